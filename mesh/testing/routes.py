"""Route tests: example requests walked through a graph offline, and where they must go. `mesh test` runs them.

The nodes are the real ones; each tier is replaced by the scripted wire, time is virtual and nothing is kept. The shape
of a file is in `mesh.testing.route_file`. In tests of your own:

    suite = suite_of(graph, Path("graphs/support.routes.yaml"))

    @pytest.mark.parametrize("route", suite.routes, ids=lambda route: route.title)
    def test_routes(route: Route) -> None:
        result = suite.run(route)
        assert not result.failures, result
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from budgets.cap import Cap, lower
from mesh.catalogue import EMPTY, Catalogue, Endpoint, ModelSpec
from mesh.config.yaml_file import YamlFile, read_yaml
from mesh.engine import Mesh, Told
from mesh.errors import ConfigError
from mesh.graph import BuiltGraph, Graph
from mesh.policy import NO_NUMBERS, Policy, policy_of
from mesh.prices import Prices, Rates, Usage
from mesh.providers.protocol import Call
from mesh.providers.scripted import Scripted, ScriptedProvider
from mesh.state import Hints
from mesh.testing import route_file
from mesh.testing.clock import FakeClock, run
from mesh.testing.expectations import Failure, failures
from mesh.testing.meshes import CountedIds, spec_of
from mesh.testing.route_faults import faults
from mesh.testing.route_file import Route, RouteFile
from mesh.units import US_PER_S, nusd, pusd_per_token
from mesh.vocabulary import Judged, Kind

SUFFIX: Final = ".routes.yaml"


@dataclass(frozen=True, slots=True)
class Result:
    """A route that was walked. It passed where there is no failure."""

    route: Route
    line: int
    told: Told
    failures: Sequence[Failure]

    def __str__(self) -> str:
        return "\n".join([self.route.title, *map(str, self.failures), " > ".join(self.told.traversal.route)])


@dataclass(frozen=True, slots=True)
class Suite:
    """A graph, what its tiers are while it is tested, and the routes of one file."""

    graph: BuiltGraph
    catalogue: Catalogue
    policy: Policy
    file: YamlFile
    written: RouteFile

    @property
    def routes(self) -> Sequence[Route]:
        return self.written.routes

    def run(self, route: Route) -> Result:
        """Walk one route, in virtual time, and compare."""
        specs = {name: spec for name, spec in self.catalogue.tiers.items() if name not in (route.without or ())}
        mesh = Mesh(
            replace(self.graph, cap=_narrowed(self.graph.cap, route.cap)),
            catalogue=Catalogue(specs),
            providers={"scripted": self.scripted(route)},
            policy={**self.policy.values, **route.policy},
            clock=FakeClock(),
            ids=CountedIds(),
            rng=random.Random(route.seed),
        )
        told = run(self._asked_last(mesh, route))
        line = self.file.line(("routes", self.written.routes.index(route)))
        return Result(route, line, told, [*failures(route.expect, told, self.catalogue), *_unasked(route, told)])

    async def _asked_last(self, mesh: Mesh, route: Route) -> Told:
        """The route itself, behind what was asked before it."""
        for text in route.before or ():
            await mesh.ask(text, seed=route.seed)
        told = await mesh.ask(**self.asked(route))
        for verdict in route.verdicts or ():
            if told.review_id is None:
                break
            if verdict.judged is Judged.EXPIRED and (review := mesh.reviews.rows.get(told.review_id)) is not None:
                await asyncio.sleep((review.due_us - mesh.reviews.rows.now_us()) / US_PER_S)
            told = await mesh.resume(told.review_id, verdict.judged, text=verdict.text)
        return told

    def scripted(self, route: Route) -> ScriptedProvider:
        """What the tiers say to this route."""
        return ScriptedProvider(_scripts({**self.written.replies, **route.replies}, route))

    def asked(self, route: Route) -> dict[str, Any]:
        """What `Mesh.ask` takes of this route."""
        return {
            "messages": _messages(route),
            "params": {**({"tools": route.tools} if route.tools is not None else {}), **route.params},
            "max_tokens": route.max_tokens,
            "seed": route.seed,
            "hints": _hints(route.hints),
        }

    def warm(self) -> None:
        """Load what the first route would otherwise wait for."""
        for node in self.graph.nodes.values():
            node.warm()


def suite_of(
    graph: Graph | BuiltGraph, file: Path, *, catalogue: Catalogue = EMPTY, policy: Policy = NO_NUMBERS
) -> Suite:
    """The routes of a file, for a graph.

    Args:
        graph: built here if it is not yet.
        file: the route file.
        catalogue: the tiers that the file's own do not replace; each is called by the scripted wire.
        policy: the values of the graph's numbers; those that it leaves out have their defaults.

    Raises:
        GraphError: the graph has structural faults.
        ConfigError: the file cannot be used, or names what the graph does not have; all of it at once, with lines.
    """
    built = graph.build() if isinstance(graph, Graph) else graph
    read = read_yaml(file, _shown(file))
    written = read.checked(RouteFile)
    tiers = Catalogue(_specs(catalogue, written))
    suite = Suite(built, tiers, policy_of(built.numbers, policy.values), read, written)
    if found := list(faults(built, tiers, written)):
        raise read.refused(found)
    return suite


def route_file_of(module_file: str | None) -> Path:
    """Where the routes of a graph lie by default: beside its module, `support.routes.yaml` for `support.py`."""
    if module_file is None:
        raise ConfigError("routes", "the graph's module is no file.", "Give the route file's path.")
    return Path(module_file).with_suffix(SUFFIX)


def _shown(file: Path) -> str:
    absolute = file.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(file)


def _unasked(route: Route, told: Told) -> Iterator[Failure]:
    """A verdict that nobody was asked for shows that the route is not what its author thinks."""
    asked = sum(hop.kind is Kind.HUMAN and hop.outcome in set(Judged) for hop in told.traversal.hops)
    if route.verdicts is not None and asked < len(route.verdicts):
        yield Failure(f"{len(route.verdicts)} people to be asked", str(asked))


# -- from the file to the mesh -----------------------------------------------------------------------------------------


def _specs(catalogue: Catalogue, written: RouteFile) -> dict[str, ModelSpec]:
    """The file's tiers, ranked in its order, above those of the catalogue that it does not replace."""
    kept = {name: replace(spec, provider="scripted") for name, spec in catalogue.tiers.items()}
    lowest = 1 + max((spec.rank for name, spec in kept.items() if name not in written.tiers), default=-1)
    own = {
        name: spec_of(
            name,
            version=tier.version or f"{name}-1",
            rank=lowest + index if tier.rank is None else tier.rank,
            endpoints=(Endpoint(name=name, region=tier.region),),
            prices=Prices(_rates(tier.price)),
            context_window=tier.context_window,
            max_output_tokens=min(tier.max_output_tokens, tier.context_window),
            default_max_tokens=min(256, tier.max_output_tokens, tier.context_window),
            capabilities=frozenset(tier.capabilities),
            privacy=tier.privacy,
        )
        for index, (name, tier) in enumerate(written.tiers.items())
    }
    return kept | own


def _rates(price: route_file.Price) -> Rates:
    into, out = pusd_per_token(price.input), pusd_per_token(price.output)
    return Rates(input_pusd=into, output_pusd=out, cached_input_pusd=into, cache_write_pusd=into, reasoning_pusd=out)


def _scripts(replies: Mapping[str, Sequence[route_file.Reply]], route: Route) -> dict[str, Callable[[Call], Scripted]]:
    """What each tier says. Of several lines each call takes the next, and the last one holds from then on."""
    lines = {tier: [_line(reply) for reply in script] for tier, script in replies.items()}
    lines |= {tier: [Scripted(fails=status)] for tier, status in route.failing.items()}

    def script(said: list[Scripted]) -> Callable[[Call], Scripted]:
        left = iter(said[:-1])
        return lambda _: next(left, said[-1])

    return {tier: script(said) for tier, said in lines.items()}


def _line(reply: route_file.Reply) -> Scripted:
    return Scripted(
        text=reply.text,
        tool_calls=reply.tool_calls,
        finish_reason=reply.finish_reason,
        usage=None if reply.usage is None else Usage(input=reply.usage.input, output=reply.usage.output),
        delay_us=round(reply.delay_s * 1_000_000),
        fails=reply.fails,
        logprobs=reply.logprobs,
        top_logprobs=reply.top_logprobs,
    )


def _messages(route: Route) -> list[dict[str, Any]]:
    if route.messages is not None:
        return route.messages
    system = [{"role": "system", "content": route.system}] if route.system is not None else []
    return [*system, {"role": "user", "content": route.ask}]


def _hints(hints: route_file.Hints) -> Hints:
    said = {name: getattr(hints, name) for name in type(hints).model_fields if name not in ("allow", "deny")}
    cost_usd = said.pop("max_cost_usd")
    return Hints(
        **said,
        max_cost_nusd=None if cost_usd is None else nusd(cost_usd),
        allow=tuple(hints.allow or ()),
        deny=tuple(hints.deny or ()),
    )


def _narrowed(cap: Cap, asked: route_file.Cap) -> Cap:
    """The graph's caps, where the route says less."""
    dollars = [usd for usd in (cap.usd, None if asked.usd is None else str(asked.usd)) if usd is not None]
    return Cap(
        hops=lower(cap.hops, asked.hops),
        visits=lower(cap.visits, asked.visits),
        model_calls=lower(cap.model_calls, asked.model_calls),
        tokens=lower(cap.tokens, asked.tokens),
        usd=min(dollars, key=nusd, default=None),
        seconds=min((s for s in (cap.seconds, asked.seconds) if s is not None), default=None),
    )
