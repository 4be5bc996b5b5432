"""Where finished traversals are kept: one protocol, one embedded database, and the writer that feeds it."""
