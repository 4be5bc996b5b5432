"""A graph as one SVG file: no script, no font to load, readable on light and dark pages, the same bytes each time."""

import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import Final

from mesh.draw.layout import Layout, Route, Spot, laid_out
from mesh.draw.shapes import LOOKS, outline, text_width
from mesh.draw.sketch import Arrow, Figure, Shape, Sketch

NAME: Final = 13.0  # font sizes
SMALL: Final = 10.5
LABEL: Final = 11.0
LINE: Final = 13.0  # from line to line of a label
BOX: Final = 40.0
PAD: Final = 24.0
STUB: Final = 6.0  # how far a line leaves and meets a box straight
LANE_PAD: Final = 9.0
LANE_NAME: Final = 13.0
LABEL_CHARS: Final = 22  # a label's line is no longer, if a word fits into that
LEAST_WIDTH: Final = 620.0

STYLE: Final = """
svg{--bg:#ffffff;--ink:#1f2328;--soft:#59636e;--line:#6e7781;--fail:#b35900;--lane:#f3f5f8;--edge:#d1d9e0;
--amber:#fff3d6;--amber-s:#a86a00;--teal:#dcf5f2;--teal-s:#0f766e;--violet:#efe7fd;--violet-s:#6d43b8;
--red:#ffe5e2;--red-s:#b42318;--rose:#fde4ef;--rose-s:#ac2b6c;--blue:#dcebff;--blue-s:#0b5cad;
--green:#e0f5e1;--green-s:#22742e;--grey:#eef0f3;--grey-s:#59636e}
@media (prefers-color-scheme:dark){svg{--bg:#0d1117;--ink:#e6edf3;--soft:#9aa4af;--line:#8b949e;--fail:#f0a04b;
--lane:#161b22;--edge:#30363d;--amber:#3a2c0b;--amber-s:#e0aa3e;--teal:#0c302d;--teal-s:#4cc6b8;
--violet:#2b2146;--violet-s:#b79cf2;--red:#3f1a17;--red-s:#ff8f85;--rose:#3c1a2b;--rose-s:#f08fbd;
--blue:#11294a;--blue-s:#79b8ff;--green:#14301a;--green-s:#6fcf7c;--grey:#21262d;--grey-s:#9aa4af}}
text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:var(--ink)}
.n{font-size:13px;font-weight:600;text-anchor:middle}.d,.k{font-size:10.5px;fill:var(--soft)}.d{text-anchor:middle}
.l{font-size:11px;text-anchor:middle;stroke:var(--bg);stroke-width:4px;paint-order:stroke;stroke-linejoin:round}
.f .l,.l.f{fill:var(--fail)}.h{font-size:17px;font-weight:700}.v{font-size:13px;font-weight:600}
.e{fill:none;stroke:var(--line);stroke-width:1.4}.f .e{stroke:var(--fail);stroke-dasharray:5 4}
.a{fill:var(--line)}.f .a{fill:var(--fail)}.g{fill:var(--lane);stroke:var(--edge)}.t{fill:var(--ink)}
.o{stroke:var(--lane);stroke-width:4px;paint-order:stroke;stroke-linejoin:round}.p{fill:none;stroke:var(--edge)}
""".strip().replace("\n", "")
HUES: Final = ("amber", "teal", "violet", "red", "rose", "blue", "green", "grey")


def svg_of(sketch: Sketch) -> str:
    """The graph as SVG text."""
    layout = laid_out(sketch, lambda name: shape_size(sketch.shapes[name]), label_size)
    width = max(layout.width + 2 * PAD + 2 * LANE_PAD, LEAST_WIDTH)
    legend, legend_height = _legend(sketch, width)
    footer, footer_height = _footer(sketch, width)
    head, head_height = _head(sketch, width)
    left, top = (width - layout.width) / 2, head_height + PAD
    bottom = top + layout.height + PAD
    height = bottom + legend_height + footer_height + PAD / 2
    hues = "".join(f".{hue}{{fill:var(--{hue});stroke:var(--{hue}-s);stroke-width:1.5}}" for hue in HUES)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}"',
        f' width="{_n(width)}" height="{_n(height)}" role="img" aria-labelledby="title desc">',
        f'<title id="title">{escape(f"Routing graph {sketch.name}")}</title>',
        f'<desc id="desc">{escape(described(sketch))}</desc>',
        f"<style>{STYLE}{hues}</style>",
        f'<rect width="{_n(width)}" height="{_n(height)}" fill="var(--bg)"/>',
        *head,
        f'<g transform="translate({_n(left)} {_n(top)})">',
        *_lanes(layout),
        *(_arrow(route, sketch) for route in layout.routes),
        *(_shape(sketch.shapes[name], spot) for name, spot in layout.shapes.items()),
        *(_label(route) for route in layout.routes if route.label is not None),
        *_lane_names(layout),
        "</g>",
        f'<g transform="translate({_n(PAD)} {_n(bottom)})">', *legend, "</g>",
        f'<g transform="translate({_n(PAD)} {_n(bottom + legend_height)})">', *footer, "</g>",
        "</svg>\n",
    ])  # fmt: skip


def described(sketch: Sketch) -> str:
    """The drawing in words, for those who do not see it."""
    sentences = [sketch.doc] if sketch.doc else []
    for arrow in sketch.arrows:
        on = f" on {', '.join(arrow.full)}" if arrow.full else ""
        target = "END" if sketch.shapes[arrow.target].kind == "end" else arrow.target
        sentences.append(f"{arrow.source} leads to {target}{on}.")
    sentences += [f"{one.name}: at worst {one.worst}, cap {one.cap}." for one in sketch.figures]
    return " ".join([*sentences, *sketch.notes])


def shape_size(shape: Shape) -> tuple[float, float]:
    """(width, height) of a shape that its text fits into."""
    if shape.kind == "end":
        return 16.0, 16.0
    if shape.kind == "fork":
        return 84.0, 5.0
    width = max(text_width(shape.title, NAME), text_width(shape.detail, SMALL))
    return max(width + 30.0, 84.0), BOX if shape.detail else 28.0


def label_lines(arrow: Arrow) -> list[str]:
    """A label's lines, broken between outcomes."""
    lines: list[str] = []
    for number, label in enumerate(arrow.labels):
        word = label + ("," if number < len(arrow.labels) - 1 else "")
        if lines and len(lines[-1]) + len(word) < LABEL_CHARS:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def label_size(arrow: Arrow) -> tuple[float, float]:
    """(width, height) of a label, room around it included; (0, 0) without one."""
    lines = label_lines(arrow)
    return (max(text_width(line, LABEL) for line in lines) + 6.0, len(lines) * LINE + 18.0) if lines else (0.0, 0.0)


# parts


def _head(sketch: Sketch, width: float) -> tuple[list[str], float]:
    parts = [f'<text class="h" x="{_n(PAD)}" y="30">{escape(sketch.name)}</text>']
    room = int((width - 2 * PAD) / text_width("x", SMALL))
    lines = textwrap.wrap(sketch.doc, room, max_lines=3, placeholder=" ...")
    for number, line in enumerate(lines, 1):
        parts.append(f'<text class="k" x="{_n(PAD)}" y="{_n(32 + number * 16)}">{escape(line)}</text>')
    return parts, 38.0 + 16 * len(lines)


def _lanes(layout: Layout) -> Iterable[str]:
    for left, top, right, bottom in layout.lanes.values():
        x, y = left - LANE_PAD, top - LANE_PAD - LANE_NAME
        yield (
            f'<rect class="g" x="{_n(x)}" y="{_n(y)}" width="{_n(right - left + 2 * LANE_PAD)}" '
            f'height="{_n(bottom - top + 2 * LANE_PAD + LANE_NAME)}" rx="8"/>'
        )


def _lane_names(layout: Layout) -> Iterable[str]:
    for lane, (left, top, _, _) in layout.lanes.items():
        yield f'<text class="k o" x="{_n(left - LANE_PAD + 6)}" y="{_n(top - LANE_PAD - 2)}">{escape(lane)}</text>'


def _shape(shape: Shape, spot: Spot) -> str:
    x, y = spot.x, spot.y
    if shape.kind == "end":
        return _dot(x, y)
    if shape.kind == "fork":
        return f"<g><title>{escape(shape.note)}</title>{_bar(x - spot.width / 2, y, spot.width)}</g>"
    body = outline(shape.kind, x, y, spot.width, spot.height)
    title = f"<title>{escape(shape.note)}</title>" if shape.note else ""
    name_y = y - 2 if shape.detail else y + 4.5
    text = f'<text class="n" x="{_n(x)}" y="{_n(name_y)}">{escape(shape.title)}</text>'
    if shape.detail:
        text += f'<text class="d" x="{_n(x)}" y="{_n(y + 13)}">{escape(shape.detail)}</text>'
    return f'<g>{title}<g class="{LOOKS[shape.kind].hue}">{body}</g>{text}</g>'


def _dot(x: float, y: float) -> str:
    """Where a traversal ends."""
    at = f'cx="{_n(x)}" cy="{_n(y)}"'
    return f'<circle class="t" {at} r="4.5"/><circle class="e" {at} r="7.5"/>'


def _bar(left: float, y: float, width: float) -> str:
    """Where branches begin."""
    return f'<rect class="t" x="{_n(left)}" y="{_n(y - 2.5)}" width="{_n(width)}" height="5" rx="2"/>'


def _arrow(route: Route, sketch: Sketch) -> str:
    if len(route.spots) == 1:
        path, head = _loop(route.spots[0])
    else:
        path, head = _curve(route)
    arrow = route.arrow
    target = "END" if sketch.shapes[arrow.target].kind == "end" else arrow.target
    on = f": {', '.join(arrow.full)}" if arrow.full else ""
    title = f"<title>{escape(f'{arrow.source} to {target}{on}')}</title>"
    group = '<g class="f">' if arrow.failing else "<g>"
    return f'{group}{title}<path class="e" d="{path}"/><path class="a" d="{head}"/></g>'


def _curve(route: Route) -> tuple[str, str]:
    """(the line, its head): straight down through the middle of each place that it passes, curved in between."""
    spots = route.spots
    points = [(_port(spots[0], spots[1], below=True), spots[0].y + spots[0].height / 2)]
    for spot in spots[1:-1]:
        points += [(spot.x, spot.y - spot.extent / 2), (spot.x, spot.y + spot.extent / 2)]
    points.append((_port(spots[-1], spots[-2], below=False), spots[-1].y - spots[-1].height / 2))
    points.insert(1, (points[0][0], points[0][1] + STUB))
    points.insert(-1, (points[-1][0], points[-1][1] - STUB))
    if route.back:
        points.reverse()
    path = [f"M{_n(points[0][0])} {_n(points[0][1])}"]
    for (x, y), (to_x, to_y) in pairwise(points):
        middle = (y + to_y) / 2
        straight = abs(x - to_x) < 0.05
        path.append(
            f"L{_n(to_x)} {_n(to_y)}"
            if straight
            else f"C{_n(x)} {_n(middle)} {_n(to_x)} {_n(middle)} {_n(to_x)} {_n(to_y)}"
        )
    x, y = points[-1]
    rise = 7 if route.back else -7
    return "".join(path), f"M{_n(x)} {_n(y)}l-4 {rise}h8z"


def _port(spot: Spot, towards: Spot, *, below: bool) -> float:
    """Where an arrow leaves or meets a box: side by side, in the order of the places that they go to."""
    beside = sorted(spot.below if below else spot.above, key=lambda other: other.x)
    place = next(number for number, other in enumerate(beside) if other is towards)
    room = min(spot.width - 26.0, 26.0 * (len(beside) - 1)) if spot.width > 30 else 0.0
    return spot.x + (place / (len(beside) - 1) - 0.5) * room if len(beside) > 1 else spot.x


def _loop(spot: Spot) -> tuple[str, str]:
    """An arrow from a box to itself, on its right side."""
    x, y = spot.x + spot.width / 2, spot.y
    return f"M{_n(x)} {_n(y - 8)}c18 -6 18 22 2 16", f"M{_n(x)} {_n(y + 8)}l7 -3v7z"


def _label(route: Route) -> str:
    spot = route.label
    if spot is None:
        return ""
    lines = label_lines(route.arrow)
    first = spot.y - (len(lines) - 1) * LINE / 2 + LABEL * 0.36
    return "".join(
        f'<text class="l{" f" if route.arrow.failing else ""}" x="{_n(spot.x)}" y="{_n(first + number * LINE)}">'
        f"{escape(line)}</text>"
        for number, line in enumerate(lines)
    )


# below the graph


def _legend(sketch: Sketch, width: float) -> tuple[list[str], float]:
    """One sample of each kind that is there, and what lines and dots mean."""
    kinds = [kind for kind in LOOKS if kind not in ("start", "failures")]
    kinds = [kind for kind in kinds if any(shape.kind == kind for shape in sketch.shapes.values())]
    samples: list[tuple[str, str]] = [(kind, kind) for kind in kinds]
    if any(shape.kind == "fork" for shape in sketch.shapes.values()):
        samples.append(("fork", "all at once"))
    if any(arrow.failing for arrow in sketch.arrows):
        samples.append(("failing", "on failure"))
    samples.append(("end", "the end"))
    parts: list[str] = []
    x, y = 0.0, 10.0
    for kind, words in samples:
        wide = 30 + text_width(words, SMALL) + 18
        if x + wide > width - 2 * PAD and x:
            x, y = 0.0, y + 22
        parts.append(_sample(kind, x, y) + f'<text class="k" x="{_n(x + 30)}" y="{_n(y + 4)}">{escape(words)}</text>')
        x += wide
    for note in sketch.notes:
        y += 20
        parts.append(f'<text class="k" x="0" y="{_n(y + 4)}">{escape(note)}</text>')
    return parts, y + 22


def _sample(kind: str, x: float, y: float) -> str:
    if kind == "end":
        return _dot(x + 11, y)
    if kind == "fork":
        return _bar(x, y, 22)
    if kind == "failing":
        return f'<g class="f"><path class="e" d="M{_n(x)} {_n(y)}h22"/></g>'
    return f'<g class="{LOOKS[kind].hue}">{outline(kind, x + 12, y, 24, 15)}</g>'


def _footer(sketch: Sketch, width: float) -> tuple[list[str], float]:
    """The bounds, each beside its cap. What holds is in bold."""
    if not sketch.figures:
        return [], 0.0
    room = width - 2 * PAD
    cell = room / len(sketch.figures)
    parts = [f'<rect class="p" x="0" y="0" width="{_n(room)}" height="82" rx="8"/>']
    parts.append('<text class="k" x="12" y="72">At worst, and the cap on it: what is in bold holds.</text>')
    for number, figure in enumerate(sketch.figures):
        parts += _cell(figure, number * cell + 12)
    return parts, 82.0


def _cell(figure: Figure, x: float) -> Sequence[str]:
    held, holds = ("k", "v") if figure.capped else ("v", "k")
    cap = "no cap" if figure.cap == "-" else f"cap {figure.cap}"
    return [
        f'<text class="k" x="{_n(x)}" y="17">{escape(figure.name)}</text>',
        f'<text class="{held}" x="{_n(x)}" y="35">{escape(figure.worst)}</text>',
        f'<text class="{holds}" x="{_n(x)}" y="53">{escape(cap)}</text>',
    ]


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
