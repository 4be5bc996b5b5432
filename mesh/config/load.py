"""Which file is read, and what comes out of it."""

import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from mesh.catalogue import Catalogue
from mesh.clock import Clock, SystemClock
from mesh.config.faults import Source, fault_at, faults
from mesh.config.models import AUTO, File, Http
from mesh.config.tiers import catalogue
from mesh.errors import ConfigError, nearest

VARIABLE: Final = "MESH_CONFIG"
FILE: Final = "mesh.toml"
STORE: Final = ".mesh"
_MAX_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Where traversals and the ledger lie, and how much is kept. `path` is absolute; None is unlimited."""

    path: Path
    retention_days: int | None
    max_traces: int | None
    max_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole configuration. It holds no secret.

    `source` names the file, or 'built-in defaults'. `aliases` maps other model names to graphs or `graph/tier`.
    """

    source: str
    default_graph: str | None
    aliases: Mapping[str, str]
    catalogue: Catalogue
    http: Http
    store: StoreConfig
    keep_content: bool

    def check_graphs(self, graphs: Collection[str]) -> None:
        """Compare the names in the file with the graphs that are deployed.

        Raises:
            ConfigError: an alias hides a graph or leads nowhere, or the default graph is not deployed.
        """
        for alias, target in self.aliases.items():
            graph, _, tier = target.partition("/")
            where = f"{self.source}: aliases.{alias}"
            if alias.partition("/")[0] in graphs:
                raise ConfigError(where, "a graph has this name.", "Choose another name for the alias.")
            if graph not in graphs:
                raise ConfigError(where, f"no graph {graph!r} is deployed.{nearest(graph, graphs)}")
            if tier and self.catalogue.get(tier) is None:
                raise ConfigError(where, f"the catalogue has no tier {tier!r}.{nearest(tier, self.catalogue.tiers)}")
        if self.default_graph is not None and self.default_graph not in graphs:
            problem = f"no graph {self.default_graph!r} is deployed.{nearest(self.default_graph, graphs)}"
            raise ConfigError(f"{self.source}: default", problem)


def load_config(path: str | None, env: Mapping[str, str], clock: Clock | None = None) -> Config:
    """The configuration at `path`, else at $MESH_CONFIG, else in ./mesh.toml, else the built-in defaults.

    `clock` tells the moment whose prices hold.

    Raises:
        ConfigError: the file cannot be read or used; it names file, line, field and remedy.
    """
    named, by = (path, "--config") if path else (env.get(VARIABLE), VARIABLE)
    file = Path(os.path.expanduser(named or FILE)).absolute()  # noqa: PTH111 - Path's raises for users it does not know
    if named and not file.is_file():
        raise ConfigError(f"{by} {named}", "there is no such file.", f"Correct {by}, or leave it out.")
    source = _read(file, named or FILE) if file.is_file() else Source("built-in defaults", "", file.parent)
    data = _parsed(source)
    try:
        written = File.model_validate(data)
    except ValidationError as error:
        raise faults(error, source) from None  # its own text would repeat what may be a secret
    _check_aliases(written, source)
    return Config(
        source=source.name,
        default_graph=written.default,
        aliases=written.aliases,
        catalogue=catalogue(written, source, (clock or SystemClock()).wall()),
        http=written.http,
        store=_store(written, source),
        keep_content=written.traces.content,
    )


def _read(file: Path, name: str) -> Source:
    try:
        with file.open("rb") as opened:
            raw = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(name, f"the file cannot be read: {error.strerror}.", "Check its permissions.") from error
    if len(raw) > _MAX_BYTES:
        raise ConfigError(name, f"the file is longer than {_MAX_BYTES} bytes.", "Is it the right file?")
    try:
        return Source(name, raw.decode("utf-8-sig"), file.parent)
    except UnicodeDecodeError as error:
        raise ConfigError(name, f"byte {error.start} is not UTF-8.", "Save the file as UTF-8.") from error


def _parsed(source: Source) -> dict[str, Any]:
    try:
        return tomllib.loads(source.text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:  # its message tells line and column
        raise ConfigError(source.name, f"this is not TOML: {error}.", "See https://toml.io for its rules.") from error


def _check_aliases(written: File, source: Source) -> None:
    for alias, target in written.aliases.items():
        if target == AUTO or target in written.aliases:
            problem = f"an alias leads to a graph, and {target!r} is another alias."
            raise fault_at(source, ("aliases", alias), problem, "Name the graph itself.")


def _store(written: File, source: Source) -> StoreConfig:
    return StoreConfig(
        path=source.absolute(written.store.path or STORE),
        retention_days=written.store.retention_days,
        max_traces=written.store.max_traces,
        max_bytes=written.store.max_bytes,
    )
