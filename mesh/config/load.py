"""Which file is read, and what comes out of it."""

import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from budgets.tenants import Caps, Tenant
from mesh.catalogue import Catalogue
from mesh.clock import Clock, SystemClock
from mesh.config.faults import Source, fault_at, faults
from mesh.config.models import AUTO, Alerts, Batch, File, Http
from mesh.config.tenants import DeclaredKey, caps_of, keys_of, tenants_of
from mesh.config.tiers import catalogue
from mesh.errors import ConfigError, nearest
from mesh.execution import NO_EXECUTION, Execution

VARIABLE: Final = "MESH_CONFIG"
FILE: Final = "mesh.toml"
STORE: Final = ".mesh"
POLICIES: Final = "policies"
_MAX_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Where traversals and the ledger lie, and how much is kept. `path` is absolute; None is unlimited.

    `url` is the ledger's address; None is the file `ledger.sqlite3` in `path`.
    """

    path: Path
    url: str | None
    retention_days: int | None
    max_traces: int | None
    max_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole configuration. It holds no secret.

    `source` names the file, or 'built-in defaults'. `aliases` maps other model names to graphs or `graph/tier`.
    `policies` is the folder of the policy files, absolute; it need not exist. `session` and `workflow` are the caps of
    tenants that set none of their own.
    """

    source: str
    default_graph: str | None
    aliases: Mapping[str, str]
    catalogue: Catalogue
    http: Http
    store: StoreConfig
    policies: Path
    keep_content: bool
    tenants: Mapping[str, Tenant]
    keys: tuple[DeclaredKey, ...]
    session: Caps
    workflow: Caps
    alerts: Alerts
    execution: Execution = NO_EXECUTION
    batch: Batch = Batch()

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
    source = read_source(file, named or FILE) if file.is_file() else Source("built-in defaults", "", file.parent)
    data = parsed(source)
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
        policies=_policies(written, source),
        keep_content=written.traces.content,
        tenants=tenants_of(written, source),
        keys=keys_of(written, source),
        session=caps_of(written.defaults.session) or Caps(),
        workflow=caps_of(written.defaults.workflow) or Caps(),
        alerts=_alerts(written, source),
        execution=Execution(**written.execution.model_dump()),
        batch=_batch(written, source),
    )


def read_source(file: Path, name: str) -> Source:
    """The file's text.

    Raises:
        ConfigError: it cannot be read, is too long or is not UTF-8.
    """
    return source_of(read_bytes(file, name), file, name)


def read_bytes(file: Path, name: str) -> bytes:
    """What the file holds.

    Raises:
        ConfigError: it cannot be read, or is too long.
    """
    try:
        with file.open("rb") as opened:
            raw = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(name, f"the file cannot be read: {error.strerror}.", "Check its permissions.") from error
    if len(raw) > _MAX_BYTES:
        raise ConfigError(name, f"the file is longer than {_MAX_BYTES} bytes.", "Is it the right file?")
    return raw


def source_of(raw: bytes, file: Path, name: str) -> Source:
    """The text of a file's bytes.

    Raises:
        ConfigError: they are not UTF-8.
    """
    try:
        return Source(name, raw.decode("utf-8-sig"), file.parent)
    except UnicodeDecodeError as error:
        raise ConfigError(name, f"byte {error.start} is not UTF-8.", "Save the file as UTF-8.") from error


def parsed(source: Source) -> dict[str, Any]:
    """The file's data, numbers with a point as decimals.

    Raises:
        ConfigError: it is not TOML.
    """
    try:
        return tomllib.loads(source.text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:  # its message tells line and column
        raise ConfigError(source.name, f"this is not TOML: {error}.", "See https://toml.io for its rules.") from error
    except (ValueError, ArithmeticError) as error:  # of a number of thousands of digits, or with such an exponent
        raise ConfigError(source.name, "a number in it is too long to be read.", "Write fewer digits.") from error
    except RecursionError as error:
        raise ConfigError(source.name, "its tables or lists are nested too deep.", "Flatten them.") from error


def _check_aliases(written: File, source: Source) -> None:
    for alias, target in written.aliases.items():
        if target == AUTO or target in written.aliases:
            problem = f"an alias leads to a graph, and {target!r} is another alias."
            raise fault_at(source, ("aliases", alias), problem, "Name the graph itself.")


def _policies(written: File, source: Source) -> Path:
    folder = source.absolute(written.policies.path or POLICIES)
    if written.policies.path is not None and not folder.is_dir():
        remedy = "Make it, or leave path out: policies/ beside this file is looked at then."
        raise fault_at(source, ("policies", "path"), f"there is no folder {str(folder)!r}.", remedy)
    return folder


def _alerts(written: File, source: Source) -> Alerts:
    alerts = written.alerts
    if alerts.webhook is not None and alerts.secret_env is None:
        remedy = 'Name the variable that holds it: secret_env = "MESH_ALERTS_SECRET".'
        raise fault_at(source, ("alerts", "webhook"), "alerts are signed, and no secret is named.", remedy)
    if alerts.ca_file is None:
        return alerts
    return alerts.model_copy(update={"ca_file": str(source.absolute(alerts.ca_file))})


def _batch(written: File, source: Source) -> Batch:
    batch = written.batch
    if batch.begin_within_hours > batch.keep_hours:
        problem = f"a request would be forgotten after {batch.keep_hours} hours, and may begin later than that."
        raise fault_at(source, ("batch", "keep_hours"), problem, "Keep it at least for begin_within_hours.")
    if batch.notify and written.alerts.webhook is None:
        raise fault_at(source, ("batch", "notify"), "there is nobody to tell.", "Name a webhook in [alerts].")
    return batch


def _store(written: File, source: Source) -> StoreConfig:
    return StoreConfig(
        path=source.absolute(written.store.path or STORE),
        url=written.store.url,
        retention_days=written.store.retention_days,
        max_traces=written.store.max_traces,
        max_bytes=written.store.max_bytes,
    )
