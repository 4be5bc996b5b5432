"""Routing graphs for LLM requests. Import from the module that owns the name; this page re-exports nothing."""
