"""Structured extraction: a document as one JSON object of its type's schema, and the check that it is one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

import orjson

from mesh.catalogue import digest
from mesh.config.yaml_file import Fault, read_yaml
from mesh.errors import ConfigError
from mesh.node import Demand, Node, plain
from mesh.state import Answer, Request, State, Verdict
from mesh.vocabulary import OK, TRUNCATED, Capability, Cause, Kind
from nodes.caller import Caller
from nodes.json_schema import must_be_schema
from nodes.labels import located
from nodes.model import Model
from nodes.validate import Finding, Validator, json_finding

if TYPE_CHECKING:
    from mesh.hop import Hop

Schemas: TypeAlias = tuple[tuple[str, Mapping[str, Any]], ...]
"""((type, its JSON Schema), ...), in the order of the file."""

UNKNOWN: Final = "unknown"  # the outcome for a document of a type without a schema
TASK: Final = (
    "Read the document, and give what it says as one JSON object that fits this JSON Schema. Copy values as they stand "
    "there; what is not there is null. Give the JSON and nothing else.\n{schema}"
)


def schema_set(schemas: Mapping[str, Mapping[str, Any]] | Schemas | str | Path) -> Schemas:
    """JSON Schemas by document type, from a mapping or from a YAML file beside the graph.

    Raises:
        ConfigError: the file cannot be read, or a schema in it cannot be judged; says which and where.
        ValueError: one of a mapping cannot.
    """
    if not isinstance(schemas, (str, Path)):
        found = tuple(dict(schemas).items())
        for _, schema in found:
            must_be_schema(schema)
        return found
    path = located(Path(schemas))
    file = read_yaml(path, path.name)
    if not isinstance(file.data, dict) or not file.data:
        raise ConfigError(path.name, "must name a type of document at least, with its JSON Schema.")
    for name, schema in file.data.items():
        try:
            must_be_schema(schema)
        except (ValueError, AttributeError) as error:
            raise file.refused([Fault((name,), str(error))]) from None
    return tuple(file.data.items())


@dataclass(frozen=True, slots=True)
class Extract(Caller):
    """Ask a tier for what a document says, in the form of its type's schema.

    Outcomes: `ok`, `truncated` (the length limit cut the reply), `unknown` (no schema for its type: no call), and the
    standard failures. A tier that can be held to a schema is (`Capability.JSON`); any is told it. Put a `Fits` behind
    it: nobody else says whether the reply keeps to the schema.

    Args:
        tier: the name in the catalogue.
        schemas: by type, or the name of a YAML file of them beside the graph.
        signal: the signal that holds the document's type.
        optional, max_tokens, attempts: as of `Model`.
    """

    tier: str
    schemas: Schemas | Mapping[str, Mapping[str, Any]] | str | Path
    signal: str = field(default="task", kw_only=True)
    optional: bool = field(default=False, kw_only=True)
    max_tokens: int | None = field(default=None, kw_only=True)
    attempts: int = field(default=1, kw_only=True)
    _asks: Mapping[str, tuple[Model, Model]] = field(init=False, repr=False, compare=False)

    kind: ClassVar[Kind] = Kind.MODEL

    def __post_init__(self) -> None:
        found = schema_set(self.schemas)
        object.__setattr__(self, "schemas", found)
        object.__setattr__(self, "_asks", {name: self._ways(name, schema) for name, schema in found})

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({OK, TRUNCATED, UNKNOWN})

    @property
    def demand(self) -> Demand:
        return Demand(model_calls=self.attempts, output_tokens=self.max_tokens, seconds=None)

    async def run(self, state: State, hop: "Hop") -> Verdict:
        asks = self._asks.get(str(state.signals.get(self.signal)))
        if asks is None:
            return Verdict(outcome=UNKNOWN, because=Cause.NO_RULE_MATCHED)
        told, held = asks
        return await (held if hop.offers(self.tier, Capability.JSON) else told).run(state, hop)

    def describe(self) -> dict[str, Any]:
        return {name: value for name, value in _described(self).items() if name != "_asks"}

    def _ways(self, name: str, schema: Mapping[str, Any]) -> tuple[Model, Model]:
        """The call for tiers that are only told the schema, and for those that are held to it."""
        form = {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}
        same: dict[str, Any] = {
            "task": TASK.format(schema=orjson.dumps(schema).decode()),
            "optional": self.optional,
            "max_tokens": self.max_tokens,
            "attempts": self.attempts,
            "defaults": {"temperature": 0},
        }
        return Model(self.tier, **same), Model(self.tier, **same, params={"response_format": form})


@dataclass(frozen=True, slots=True)
class Fits(Validator):
    """The answer is JSON that fits the schema of its document's type. Outcomes: `valid`, `invalid`.

    Args:
        schemas: by type, or the name of a YAML file of them beside the graph.
        signal: the signal that holds the document's type.
    """

    schemas: Schemas | Mapping[str, Mapping[str, Any]] | str | Path
    signal: str = field(default="task", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schemas", schema_set(self.schemas))

    def judge(self, answer: Answer, request: Request) -> Finding:
        raise NotImplementedError  # it takes the type, which a signal holds: see `look`

    def look(self, answer: Answer, state: State) -> Finding:
        assert isinstance(self.schemas, tuple)  # noqa: S101 -- __post_init__ made it one
        schema = dict(self.schemas).get(str(state.signals.get(self.signal)))
        return Finding(Cause.NO_RULE_MATCHED) if schema is None else json_finding(answer.text, schema)

    def describe(self) -> dict[str, Any]:
        return _described(self)


def _described(node: Extract | Fits) -> dict[str, Any]:
    schemas = dict(node.schemas) if isinstance(node.schemas, tuple) else {}
    return {**Node.describe(node), "schemas": sorted(schemas), "schemas_digest": digest(plain(schemas))}
