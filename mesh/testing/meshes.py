"""A mesh for tests: scripted tiers, virtual time, counted ids, and the records kept."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh.catalogue import Catalogue, Endpoint, ModelSpec
from mesh.engine import Form, Mesh
from mesh.graph import Graph
from mesh.prices import Prices, Rates
from mesh.providers.scripted import ScriptedProvider
from mesh.testing.clock import FakeClock
from mesh.trace import Traversal
from mesh.vocabulary import Capability, Privacy

CENT_RATES = Rates(
    input_pusd=1_000_000,
    output_pusd=4_000_000,
    cached_input_pusd=100_000,
    cache_write_pusd=1_250_000,
    reasoning_pusd=4_000_000,
)  # fmt: skip -- $1 and $4 per million tokens


def spec_of(name: str, *, rank: int = 0, provider: str = "scripted", **changes: Any) -> ModelSpec:
    """A tier for tests: $1 per million input tokens, $4 per million output tokens, all capabilities."""
    fields: dict[str, Any] = {
        "name": name,
        "provider": provider,
        "model": name,
        "version": f"{name}-1",
        "endpoints": (Endpoint(name=name),),
        "prices": Prices(CENT_RATES),
        "context_window": 8_192,
        "max_output_tokens": 1_024,
        "default_max_tokens": 256,
        "capabilities": frozenset(Capability),
        "privacy": Privacy.PUBLIC,
        "rank": rank,
    }
    return ModelSpec(**{**fields, **changes})


@dataclass(slots=True)
class RecordingSink:
    """Keeps every finished record: `Mesh(..., record=sink)`."""

    records: list[Traversal] = field(default_factory=list)

    def __call__(self, traversal: Traversal) -> None:
        self.records.append(traversal)


@dataclass(slots=True)
class CountedIds:
    """Ids that are the same in every run: 'r1', 'r2', ..."""

    count: int = 0

    def request_id(self) -> str:
        self.count += 1
        return f"r{self.count}"


def scripted_mesh(
    graph: Graph,
    replies: Mapping[str, Any],
    *,
    specs: Mapping[str, ModelSpec] | None = None,
    form: Form = Form.STAGED,
    **changes: Any,
) -> Mesh:
    """A mesh in which each tier of `replies` is scripted (see ScriptedProvider), in virtual time.

    `specs` overrides the catalogue's entries; ranks default to the order of `replies`. Run it with `testing.run`.
    """
    specs = specs or {}
    tiers = {name: specs.get(name) or spec_of(name, rank=rank) for rank, name in enumerate(replies)}
    fields: dict[str, Any] = {
        "catalogue": Catalogue(tiers),
        "providers": {"scripted": ScriptedProvider(replies)},
        "clock": FakeClock(),
        "ids": CountedIds(),
        "rng": random.Random(7),
        "form": form,
    }
    return Mesh(graph, **{**fields, **changes})
