"""Where everything lies: layers from top to bottom, lanes side by side, and no two boxes or labels on one another.

Every arrow passes a row of its own between two rows of nodes, where its label has a place that nothing else takes. What
spans several rows passes the others in narrow places. The method is Sugiyama's: break cycles, assign layers, order each
by the mean of its neighbours, then move everything towards its neighbours as far as the others leave room.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from mesh.draw.sketch import Arrow, Sketch

GAP: Final = 18.0  # between two boxes of a row
PASSING: Final = 10.0  # the width of a place where an arrow only passes
ROW_GAP: Final = 18.0
MORE_GAP: Final = 22.0
LOOP: Final = 22.0  # the width of an arrow from a box to itself
BAND_GAP: Final = 34.0  # between two lanes
SLACK: Final = 1.08  # how much wider a strip is than it must be
SWEEPS: Final = 24
NO_LANE: Final = ""


@dataclass(slots=True)
class Spot:
    """A place in a row: a shape, a label, or where an arrow passes. `x` and `y` are its centre.

    `extent` is how far up and down it is kept free: an arrow passes a row through its whole height. `beside` is what is
    kept free on its right for an arrow to itself.
    """

    row: int
    width: float
    height: float
    lane: str = NO_LANE
    shape: bool = False
    extent: float = 0.0
    beside: float = 0.0
    x: float = 0.0
    y: float = 0.0
    above: list["Spot"] = field(default_factory=list)
    below: list["Spot"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Route:
    """An arrow with the places that it passes, source and target included. `back`: it leads upwards."""

    arrow: Arrow
    spots: tuple[Spot, ...]
    label: Spot | None
    back: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything with its place. `lanes` has each lane's box: left, top, right, bottom."""

    shapes: Mapping[str, Spot]
    routes: tuple[Route, ...]
    lanes: Mapping[str, tuple[float, float, float, float]]
    width: float
    height: float


Size = Callable[[str], tuple[float, float]]
"""(width, height) of a shape, by name."""
LabelSize = Callable[[Arrow], tuple[float, float]]
"""(width, height) of an arrow's label; (0, 0) without one."""


def laid_out(sketch: Sketch, size: Size, label_size: LabelSize) -> Layout:
    """Give everything its place."""
    back = _back_arrows(sketch)
    layers = _layers(sketch, back)
    shapes = {
        name: Spot(2 * layers[name], *size(name), lane=shape.lane or NO_LANE, shape=True)
        for name, shape in sketch.shapes.items()
    }
    _follow_lanes(sketch, shapes)
    loops = [arrow for arrow in sketch.arrows if arrow.source == arrow.target]
    for arrow in loops:
        shapes[arrow.source].beside += LOOP + label_size(arrow)[0]
    routes = [
        _route(arrow, shapes, arrow in back, label_size) for arrow in sketch.arrows if arrow.source != arrow.target
    ]
    rows = _rows(shapes, routes)
    lanes = _lane_order(sketch, routes)
    _order(rows, lanes)
    width = _place_across(rows, lanes)
    height = _place_down(rows)
    routes += [_loop(arrow, shapes[arrow.source], label_size) for arrow in loops]
    inside = [spot for name, spot in shapes.items() if sketch.shapes[name].kind not in ("start", "failures")]
    boxed = [*inside, *(route.label for route in routes if route.label is not None)]
    return Layout(shapes, tuple(routes), _boxes(boxed, lanes), width, height)


def _loop(arrow: Arrow, spot: Spot, label_size: LabelSize) -> Route:
    """An arrow from a box to itself, on its right, and its label."""
    width, height = label_size(arrow)
    label = Spot(spot.row, width, height, spot.lane)
    label.x, label.y = spot.x + spot.width / 2 + LOOP + width / 2, spot.y
    return Route(arrow, (spot,), label if width else None, back=True)


def _back_arrows(sketch: Sketch) -> set[Arrow]:
    """The arrows that close a cycle, seen from START in the graph's own order."""
    out: dict[str, list[Arrow]] = {name: [] for name in sketch.shapes}
    for arrow in sketch.arrows:
        out[arrow.source].append(arrow)
    led_to = {arrow.target for arrow in sketch.arrows}
    back: set[Arrow] = set()
    done: set[str] = set()
    for root in [*(name for name in sketch.shapes if name not in led_to), *sketch.shapes]:
        if root not in done:
            back |= _closing(root, out, done)
    return back


def _closing(root: str, out: Mapping[str, Sequence[Arrow]], done: set[str]) -> set[Arrow]:
    """The arrows that lead back to what is on the way, walked depth first from `root`."""
    found: set[Arrow] = set()
    on_the_way = {root}
    stack = [(root, iter(out[root]))]
    while stack:
        name, arrows = stack[-1]
        for arrow in arrows:
            if arrow.target in on_the_way:
                found.add(arrow)
            elif arrow.target not in done:
                on_the_way.add(arrow.target)
                stack.append((arrow.target, iter(out[arrow.target])))
                break
        else:
            on_the_way.remove(name)
            done.add(name)
            stack.pop()
    return found


def _layers(sketch: Sketch, back: set[Arrow]) -> dict[str, int]:
    """Each shape below all that lead to it; what nothing leads to stands right above what it leads to."""
    pairs = [(a.target, a.source) if a in back else (a.source, a.target) for a in sketch.arrows if a.source != a.target]
    above: dict[str, list[str]] = {name: [] for name in sketch.shapes}
    for source, target in pairs:
        above[target].append(source)
    layers: dict[str, int] = {}
    left = list(sketch.shapes)
    while left:
        ready = [name for name in left if all(source in layers for source in above[name])]
        for name in ready:
            layers[name] = max((layers[source] + 1 for source in above[name]), default=0)
        left = [name for name in left if name not in layers]
    for source, target in pairs:
        if not above[source] and sketch.shapes[source].kind == "failures":
            layers[source] = max(0, layers[target] - 1)
    return layers


def _follow_lanes(sketch: Sketch, shapes: Mapping[str, Spot]) -> None:
    """What is no node lies where what it serves lies: an end with its source, a beginning with what it leads to."""
    for arrow in sketch.arrows:
        target = sketch.shapes[arrow.target]
        if sketch.shapes[arrow.source].kind in ("start", "failures"):
            shapes[arrow.source].lane = shapes[arrow.target].lane
        if target.kind == "end":
            shapes[arrow.target].lane = shapes[arrow.source].lane
        if target.kind == "fork" and shapes[arrow.source].lane == shapes[sketch.joins[arrow.target]].lane:
            shapes[arrow.target].lane = shapes[arrow.source].lane


def _route(arrow: Arrow, shapes: Mapping[str, Spot], back: bool, label_size: LabelSize) -> Route:  # noqa: FBT001
    """The arrow's places, from top to bottom. Its label's place is the one next to its source."""
    top, bottom = shapes[arrow.source], shapes[arrow.target]
    if back:
        top, bottom = bottom, top
    width, height = label_size(arrow)
    label_row = bottom.row - 1 if back else top.row + 1
    spots = [top]
    label = None
    for row in range(top.row + 1, bottom.row):
        spot = Spot(row, PASSING, 0.0, shapes[arrow.target].lane)
        if row == label_row:
            spot.lane = shapes[arrow.source].lane
        if row == label_row and width:
            spot.width, spot.height = width, height
            label = spot
        spots.append(spot)
    spots.append(bottom)
    for upper, lower in pairwise(spots):
        upper.below.append(lower)
        lower.above.append(upper)
    return Route(arrow, tuple(spots), label, back)


def _rows(shapes: Mapping[str, Spot], routes: Sequence[Route]) -> list[list[Spot]]:
    spots = [*shapes.values(), *(spot for route in routes for spot in route.spots[1:-1])]
    rows: list[list[Spot]] = [[] for _ in range(max(spot.row for spot in spots) + 1)]
    for spot in spots:
        rows[spot.row].append(spot)
    return rows


# from left to right


def _lane_order(sketch: Sketch, routes: Sequence[Route]) -> dict[str, int]:
    """The lanes' places from left to right; what is in none lies where most of its arrows are."""
    used = [lane for lane in sketch.lanes if any(shape.lane == lane for shape in sketch.shapes.values())]
    ties: dict[tuple[str, str], int] = {}
    for route in routes:
        pair = (route.spots[0].lane, route.spots[-1].lane)
        ties[pair] = ties.get(pair, 0) + 1
    order = [NO_LANE]
    for lane in used:
        choices = [[*order[:place], lane, *order[place:]] for place in range(len(order) + 1)]
        order = min(choices, key=lambda lanes: sum(
            count * abs(lanes.index(a) - lanes.index(b)) for (a, b), count in ties.items() if a in lanes and b in lanes
        ))  # fmt: skip
    return {lane: place for place, lane in enumerate(order)}


def _order(rows: list[list[Spot]], lanes: Mapping[str, int]) -> None:
    """Order each row by its neighbours' places, downwards and upwards in turn. The fewest crossings win."""
    places: dict[int, float] = {}
    for row in rows:
        row.sort(key=lambda spot: lanes[spot.lane])
        places |= {id(spot): float(place) for place, spot in enumerate(row)}
    best = [list(row) for row in rows]
    fewest = _crossings(rows)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            means = {
                id(spot): _mean([places[id(n)] for n in (spot.above if down else spot.below)], places[id(spot)])
                for spot in row
            }
            row.sort(key=lambda spot: (lanes[spot.lane], means[id(spot)]))
            places |= {id(spot): float(place) for place, spot in enumerate(row)}
        if (crossings := _crossings(rows)) < fewest:
            fewest, best = crossings, [list(row) for row in rows]
    rows[:] = best


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _crossings(rows: Sequence[Sequence[Spot]]) -> int:
    total = 0
    for upper, lower in pairwise(rows):
        place = {id(spot): number for number, spot in enumerate(lower)}
        ends = [place[id(below)] for spot in upper for below in sorted(spot.below, key=lambda s: place[id(s)])]
        total += sum(one > other for number, one in enumerate(ends) for other in ends[number + 1 :])
    return total


def _place_across(rows: Sequence[Sequence[Spot]], lanes: Mapping[str, int]) -> float:
    """Places from left to right. Each lane has a strip of its own, as wide as its fullest row."""
    strips = _strips(rows, lanes)
    segments = [[(strips[lane], own) for lane in strips if (own := [s for s in row if s.lane == lane])] for row in rows]
    for row in segments:
        for (left, _), own in row:
            _settle(own, [left] * len(own), left, left + _span(own) + own[0].width + own[-1].width)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in segments if down else reversed(segments):
            for (left, right), own in row:
                wished = [_mean([n.x for n in (spot.above if down else spot.below)], spot.x) for spot in own]
                _settle(own, wished, left, right)
    return max(right for _, right in strips.values())


def _strips(rows: Sequence[Sequence[Spot]], lanes: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    """The left and right edge of each lane's strip, from left to right."""
    strips: dict[str, tuple[float, float]] = {}
    left = 0.0
    for lane in sorted(lanes, key=lambda name: lanes[name]):
        own = [[spot for spot in row if spot.lane == lane] for row in rows]
        width = max(
            (_span(row) + (row[0].width + row[-1].width) / 2 + row[-1].beside for row in own if row), default=0.0
        )
        if width:
            strips[lane] = (left, left + width * SLACK)
            left += width * SLACK + BAND_GAP
    return strips


def _span(members: Sequence[Spot]) -> float:
    """The least distance from the first one's centre to the last one's."""
    return sum(_between(one, other) for one, other in pairwise(members))


def _settle(row: Sequence[Spot], wished: Sequence[float], left: float, right: float) -> None:
    """Put spots as near as can be to where they wish to be: in their order, apart, and from `left` to `right`.

    Less what lies before it in its row, each wish must not be below its left neighbour's: where it is, both take the
    mean (least squares under an order).
    """
    offset = 0.0
    offsets: list[float] = []
    blocks: list[list[float]] = []  # sum of wishes, weight, number of spots
    for number, (spot, wish) in enumerate(zip(row, wished, strict=True)):
        offset += _between(row[number - 1], spot) if number else 0.0
        offsets.append(offset)
        weight = 1.0 if spot.height else 2.0  # an arrow that only passes is worth keeping straight
        blocks.append([(wish - offset) * weight, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [one + other for one, other in zip(blocks[-1], last, strict=True)]
    means = [total / weight for total, weight, count in blocks for _ in range(int(count))]
    least, most = left + row[0].width / 2, right - row[-1].width / 2 - row[-1].beside - offset
    for spot, mean, before in zip(row, means, offsets, strict=True):
        spot.x = max(least, min(most, mean)) + before


def _between(left: Spot, right: Spot) -> float:
    """The least distance of two neighbours' centres."""
    return (left.width + right.width) / 2 + left.beside + (GAP if left.height and right.height else GAP / 2)


# from top to bottom


def _place_down(rows: Sequence[Sequence[Spot]]) -> float:
    """Places from top to bottom. The further arrows lead across between two rows, the more room there is."""
    y = 0.0
    for row in rows:
        height = max(spot.height for spot in row)
        for spot in row:
            spot.y = y + height / 2
            spot.extent = spot.height if spot.shape else height
        across = max((abs(spot.x - below.x) for spot in row for below in spot.below), default=0.0)
        y += height + ROW_GAP + min(MORE_GAP, across / 20)
    return max(spot.y + spot.height / 2 for row in rows for spot in row)


def _boxes(spots: Sequence[Spot], lanes: Mapping[str, int]) -> dict[str, tuple[float, float, float, float]]:
    found = {}
    for lane in lanes:
        own = [spot for spot in spots if spot.lane == lane and lane != NO_LANE]
        if own:
            found[lane] = (
                min(spot.x - spot.width / 2 for spot in own),
                min(spot.y - spot.height / 2 for spot in own),
                max(spot.x + spot.width / 2 for spot in own),
                max(spot.y + spot.height / 2 for spot in own),
            )
    return found
