"""A graph as plain text of at most 80 columns: each node with its edges, from the top of the graph to its end."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Final

from mesh.draw.layout import laid_out
from mesh.draw.sketch import FORK, Arrow, Shape, Sketch

WIDTH: Final = 80
LABEL_WIDTH: Final = 26
END_MARK: Final = "(END)"


def ascii_of(sketch: Sketch, width: int = WIDTH) -> str:
    """The graph as text. No line is longer than `width`, names that are longer aside."""
    rows = {name: spot.row for name, spot in laid_out(sketch, lambda name: (1, 1), lambda arrow: (0, 0)).shapes.items()}
    listed = sorted(
        (shape for shape in sketch.shapes.values() if shape.kind not in ("end", FORK)), key=lambda s: rows[s.name]
    )
    lines = [sketch.name, *textwrap.wrap(sketch.doc, width), ""]
    for shape in listed:
        lines += _block(sketch, shape, rows, width)
    lines += _bounds(sketch)
    for note in sketch.notes:
        lines += textwrap.wrap(note, width)
    lines.append("-->  on an outcome   ..>  on a failure   ==>  all at once   ^  back up")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _block(sketch: Sketch, shape: Shape, rows: Mapping[str, int], width: int) -> Iterator[str]:
    """A node's line, and one for each of its edges."""
    said = [f"[{shape.title}]", _plain(shape.detail)] + ([f"lane {shape.lane}"] if shape.lane else [])
    yield "  ".join(part for part in said if part)
    arrows = [arrow for arrow in sketch.arrows if arrow.source == shape.name]
    for number, arrow in enumerate(arrows):
        stem = "`" if number == len(arrows) - 1 else "|"
        yield from _edge(sketch, arrow, rows, stem, width)
    yield ""


def _edge(sketch: Sketch, arrow: Arrow, rows: Mapping[str, int], stem: str, width: int) -> Iterator[str]:
    target = sketch.shapes[arrow.target]
    dash = "." if arrow.failing else "-"
    line = f"  {stem}{dash * 2}" + (f" {_plain(', '.join(arrow.labels))} " if arrow.labels else "")
    line += dash * max(2, LABEL_WIDTH - len(line)) + ("==> " if target.kind == FORK else "> ")
    then = "  |  " if stem == "|" else "     "
    yield from textwrap.wrap(
        line + _named(sketch, arrow, target, rows), width, subsequent_indent=then + " " * 4, break_long_words=False,
        break_on_hyphens=False, drop_whitespace=True,
    )  # fmt: skip


def _named(sketch: Sketch, arrow: Arrow, target: Shape, rows: Mapping[str, int]) -> str:
    if target.kind == "end":
        return END_MARK
    if target.kind == FORK:
        branches = [one.target for one in sketch.arrows if one.source == target.name]
        return f"{' + '.join(branches)} ==> {sketch.joins[target.name]}"
    return target.title + ("  ^" if rows[arrow.target] <= rows[arrow.source] else "")


def _bounds(sketch: Sketch) -> Iterator[str]:
    if not sketch.figures:
        return
    yield f"{'at worst':<14}{'':>16}{'cap':>14}"
    for one in sketch.figures:
        worst, cap = (f"{one.worst} ", f"[{one.cap}]") if one.capped else (f"[{_plain(one.worst)}]", f"{one.cap} ")
        yield f"  {one.name:<12}{_plain(worst):>16}{cap:>14}"
    yield "what is in [ ] holds"
    yield ""


def _plain(text: str) -> str:
    """Text as every terminal shows it."""
    return text.replace("\N{MIDDLE DOT}", "-").replace("\N{LESS-THAN OR EQUAL TO}", "<=")
