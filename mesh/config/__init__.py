"""`mesh.toml`: read, checked and turned into a catalogue of tiers, aliases, and where to serve and store."""

from mesh.config.load import Config, StoreConfig, load_config

__all__ = ["Config", "StoreConfig", "load_config"]
