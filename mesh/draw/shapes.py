"""The outline and colour of each kind of node, and how wide a text is."""

import unicodedata
from dataclasses import dataclass
from typing import Final

from mesh.vocabulary import Kind

ADVANCE: Final = 0.602  # of a monospaced font's size: the widest of those that are named first in the style


@dataclass(frozen=True, slots=True)
class Look:
    """How a kind is drawn. `hue`: a class of the style sheet."""

    outline: str
    hue: str


LOOKS: Final = {
    Kind.RULE.value: Look("hexagon", "amber"),
    Kind.CLASSIFIER.value: Look("hexagon", "teal"),
    Kind.DISPATCHER.value: Look("hexagon", "violet"),
    Kind.PRESCREEN.value: Look("octagon", "red"),
    Kind.REDACT.value: Look("octagon", "rose"),
    Kind.MODEL.value: Look("round", "blue"),
    Kind.JUDGE.value: Look("chamfer", "blue"),
    Kind.VALIDATOR.value: Look("chamfer", "green"),
    Kind.VOTE.value: Look("chamfer", "violet"),
    Kind.TOOL.value: Look("sided", "teal"),
    Kind.RETRIEVER.value: Look("slanted", "green"),
    Kind.CACHE.value: Look("drum", "grey"),
    Kind.HUMAN.value: Look("pill", "rose"),
    Kind.JOIN.value: Look("funnel", "grey"),
    Kind.RESPOND.value: Look("note", "grey"),
    "start": Look("pill", "grey"),
    "failures": Look("pill", "red"),
}
CORNER: Final = 9.0


def text_width(text: str, size: float) -> float:
    """The most that a text of a monospaced font takes. Wide characters take two places."""
    places = sum(2 if unicodedata.east_asian_width(char) in "WF" else not unicodedata.combining(char) for char in text)
    return places * size * ADVANCE


def outline(kind: str, x: float, y: float, width: float, height: float) -> str:
    """The SVG elements, without colour, of a box whose centre is (x, y)."""
    left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    shape, c, half = LOOKS[kind].outline, CORNER, height / 2
    if shape in ("round", "pill", "sided", "drum"):
        radius = {"round": c, "pill": half, "sided": 3.0, "drum": 3.0}[shape]
        box = f'<rect x="{_n(left)}" y="{_n(top)}" width="{_n(width)}" height="{_n(height)}" rx="{_n(radius)}"/>'
        return box + _inside(shape, left, top, right, bottom)
    corners = {
        "hexagon": [(left + c, top), (right - c, top), (right, y), (right - c, bottom), (left + c, bottom), (left, y)],
        "octagon": [
            (left + c, top), (right - c, top), (right, top + c), (right, bottom - c),
            (right - c, bottom), (left + c, bottom), (left, bottom - c), (left, top + c),
        ],
        "chamfer": [
            (left, top), (right - c, top), (right, top + c),
            (right, bottom), (left + c, bottom), (left, bottom - c),
        ],
        "slanted": [(left + c, top), (right, top), (right - c, bottom), (left, bottom)],
        "funnel": [(left, top), (right, top), (right - c, bottom), (left + c, bottom)],
        "note": [(left, top), (right - c, top), (right, top + c), (right, bottom), (left, bottom)],
    }  # fmt: skip
    points = " ".join(f"{_n(px)},{_n(py)}" for px, py in corners[shape])
    fold = f'<path d="M{_n(right - c)} {_n(top)}v{_n(c)}h{_n(c)}"/>' if shape == "note" else ""
    return f'<polygon points="{points}"/>{fold}'


def _inside(shape: str, left: float, top: float, right: float, bottom: float) -> str:
    if shape == "sided":
        lines = f"M{_n(left + 5)} {_n(top)}V{_n(bottom)}M{_n(right - 5)} {_n(top)}V{_n(bottom)}"
    elif shape == "drum":
        lines = f"M{_n(left)} {_n(top + 5)}H{_n(right)}"
    else:
        return ""
    return f'<path d="{lines}"/>'


def _n(value: float) -> str:
    """A coordinate, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")
