"""One file per wire. Only these modules talk to a model; each call demands a live reservation."""
