"""A graph as a Mermaid flowchart, for pages that draw it themselves: GitHub's Markdown, notebooks, wikis."""

from collections.abc import Iterator, Mapping
from typing import Final

from mesh.draw.shapes import LOOKS
from mesh.draw.sketch import Arrow, Shape, Sketch

BRACKETS: Final[Mapping[str, tuple[str, str]]] = {
    "hexagon": ("{{", "}}"),
    "octagon": ("[/", "\\]"),
    "round": ("(", ")"),
    "chamfer": ("[/", "/]"),
    "sided": ("[[", "]]"),
    "slanted": ("[\\", "\\]"),
    "drum": ("[(", ")]"),
    "pill": ("([", "])"),
    "funnel": ("[\\", "/]"),
    "note": (">", "]"),
}
COLOURS: Final[Mapping[str, tuple[str, str]]] = {
    "amber": ("#fff3d6", "#a86a00"),
    "teal": ("#dcf5f2", "#0f766e"),
    "violet": ("#efe7fd", "#6d43b8"),
    "red": ("#ffe5e2", "#b42318"),
    "rose": ("#fde4ef", "#ac2b6c"),
    "blue": ("#dcebff", "#0b5cad"),
    "green": ("#e0f5e1", "#22742e"),
    "grey": ("#eef0f3", "#59636e"),
}


def mermaid_of(sketch: Sketch) -> str:
    """The graph as Mermaid text. Names of any kind are quoted; ids are numbers of our own."""
    ids = {name: f"n{number}" for number, name in enumerate(sketch.shapes)}
    lines = ["---", f"title: {_yaml(sketch.name)}", "---", "flowchart TD"]
    for lane in (None, *sketch.lanes):
        lines += _lane(sketch, lane, ids)
    lines += [f"  {_arrow(arrow, ids)}" for arrow in sketch.arrows]
    if sketch.figures or sketch.notes:
        lines.append(f'  bounds["{_text(_bounds(sketch))}"]')
        lines.append("  style bounds fill:none,stroke-dasharray:2")
    hues = sorted({look.hue for shape in sketch.shapes.values() if (look := LOOKS.get(shape.kind)) is not None})
    lines += [f"  classDef {hue} fill:{COLOURS[hue][0]},stroke:{COLOURS[hue][1]},color:#1f2328" for hue in hues]
    return "\n".join(lines) + "\n"


def _lane(sketch: Sketch, lane: str | None, ids: Mapping[str, str]) -> Iterator[str]:
    """The shapes of one lane, or those of none."""
    own = [shape for shape in sketch.shapes.values() if shape.lane == lane]
    if lane is None:
        yield from (f"  {_shape(shape, ids)}" for shape in own)
        return
    if own:
        yield f'  subgraph lane{sketch.lanes.index(lane)}["{_text(lane)}"]'
        yield from (f"    {_shape(shape, ids)}" for shape in own)
        yield "  end"


def _shape(shape: Shape, ids: Mapping[str, str]) -> str:
    if shape.kind == "end":
        return f'{ids[shape.name]}(("END"))'
    if shape.kind == "fork":
        return f'{ids[shape.name]}["all at once"]'
    look = LOOKS[shape.kind]
    left, right = BRACKETS[look.outline]
    text = _text(shape.title) + (f"<br/><small>{_text(shape.detail)}</small>" if shape.detail else "")
    return f'{ids[shape.name]}{left}"{text}"{right}:::{look.hue}'


def _arrow(arrow: Arrow, ids: Mapping[str, str]) -> str:
    line = "-.->" if arrow.failing else "-->"
    label = f'|"{_text(", ".join(arrow.labels))}"|' if arrow.labels else ""
    return f"{ids[arrow.source]} {line}{label} {ids[arrow.target]}"


def _bounds(sketch: Sketch) -> str:
    rows = [f"{one.name}: {one.worst}, {'no cap' if one.cap == '-' else f'cap {one.cap}'}" for one in sketch.figures]
    return "\n".join([*rows, *sketch.notes])


def _text(text: str) -> str:
    """Text inside quotes: what Mermaid or HTML would read as more than text is written as an entity."""
    for char, entity in (("#", "#35;"), ("&", "#amp;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;"), ("\n", "<br/>")):
        text = text.replace(char, entity)
    return text


def _yaml(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
