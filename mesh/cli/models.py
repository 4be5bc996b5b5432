"""`mesh models`: the tiers of the catalogue, what they cost, and whether they can be called from here."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from mesh.catalogue import Catalogue, ModelSpec
from mesh.cli.stores import ConfigOption, JsonOption
from mesh.clock import SystemClock
from mesh.config import load_config
from mesh.errors import ConfigError
from mesh.prices import Rates
from mesh.providers.registry import providers_for

HEADINGS = ("tier", "model", "privacy", "rank", "window", "in $/M", "out $/M", "ready")


def command(*, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List the tiers with prices, limits and privacy class, and say which can be called."""
    loaded = load_config(config, os.environ)
    problems = asyncio.run(_problems(loaded.catalogue))
    rows = [_row(spec, problems.get(name)) for name, spec in sorted(loaded.catalogue.tiers.items())]
    if as_json:
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(str(row[heading]) for heading in HEADINGS))
    Console().print(table)
    typer.echo("dollars per million tokens; - is a tier of our own that is not priced")
    typer.echo(f"catalogue {loaded.catalogue.version}, from {loaded.source}")


def _row(spec: ModelSpec, problem: str | None) -> dict[str, Any]:
    rates = spec.prices.base if spec.prices is not None and spec.prices.priced else None
    return {
        "tier": spec.name,
        "model": spec.version,
        "provider": spec.provider,
        "privacy": spec.privacy.value,
        "rank": spec.rank,
        "window": spec.context_window,
        "in $/M": _price(spec, rates, "input_pusd"),
        "out $/M": _price(spec, rates, "output_pusd"),
        "ready": problem or "yes",
    }


def _price(spec: ModelSpec, rates: Rates | None, kind: str) -> str:
    """Dollars per million tokens; an unknown price is no price of nothing: such a tier is never called."""
    if spec.prices is None:
        return "unknown"
    return "-" if rates is None else f"{getattr(rates, kind) / 1_000_000:g}"


async def _problems(catalogue: Catalogue) -> dict[str, str]:
    """Why each tier cannot be called; those that can are left out. Local models are looked for, not loaded."""
    found = {}
    for name, spec in catalogue.tiers.items():
        if spec.provider != "local" and (problem := await _problem(spec)) is not None:
            found[name] = problem
    return found


async def _problem(spec: ModelSpec) -> str | None:
    """Each tier is asked alone: one that cannot even be made is a line of the list, not its end."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # a LangChain model's module may lie here
    try:
        provider = providers_for(Catalogue({spec.name: spec}), SystemClock())[spec.provider]
    except ConfigError as error:
        return str(error)
    try:
        return await provider.ready(spec)
    finally:
        await provider.close()
