"""Which store a command reads: --store, else what --config, MESH_CONFIG or ./mesh.toml say, else ./.mesh."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mesh.store.open import open_traversals
from mesh.store.protocol import TraversalStore
from mesh.store.sqlite import FILE_NAME

if TYPE_CHECKING:
    from mesh.reviews import Reviews

STORE: Final = ".mesh"
CONFIG: Final = "mesh.toml"
VARIABLE: Final = "MESH_CONFIG"

StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="FOLDER", help="The store. Default: what the configuration says.")
]
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="The configuration. Default: $MESH_CONFIG, ./mesh.toml."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def store_folder(store: str | None, config: str | None) -> Path:
    """The folder of the store.

    Raises:
        ConfigError: there is a configuration and it cannot be used.
    """
    if store is not None:
        named = Path(store).expanduser()
        return named.parent if named.name == FILE_NAME else named
    if config is None and VARIABLE not in os.environ and not Path(CONFIG).exists():
        return Path(STORE)
    from mesh.config import load_config

    return load_config(config, os.environ).store.path


def store_url(store: str | None, config: str | None) -> str | None:
    """The store's address, where the configuration has one and --store names no other place.

    Raises:
        ConfigError: there is a configuration and it cannot be used.
    """
    if store is not None or (config is None and VARIABLE not in os.environ and not Path(CONFIG).exists()):
        return None
    from mesh.config import load_config

    return load_config(config, os.environ).store.url


def opened_reviews(store: str | None, config: str | None) -> "Reviews":
    """The reviews, which replicas may be walking on with. To be closed."""
    from mesh.clock import RandomIds, SystemClock
    from mesh.reviews import Reviews
    from mesh.store.open import open_contents, open_reviews

    url, folder = store_url(store, config), store_folder(store, config)
    return Reviews(open_reviews(url, folder), open_contents(url, folder), RandomIds(SystemClock()))


def opened(store: str | None, config: str | None, *, create: bool = False) -> TraversalStore:
    """The traversals: for reading, unless `create`. Replicas may be writing to them.

    Raises:
        StoreError: there is none yet, or it cannot be read.
    """
    return open_traversals(store_url(store, config), store_folder(store, config), create=create)
