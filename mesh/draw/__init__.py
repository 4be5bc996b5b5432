"""A graph as a picture: SVG, Mermaid, or text for a terminal, with its bounds beside it."""

from mesh.draw.ascii import ascii_of
from mesh.draw.mermaid import mermaid_of
from mesh.draw.sketch import Sketch, sketch_of
from mesh.draw.svg import svg_of

__all__ = ["Sketch", "ascii_of", "mermaid_of", "sketch_of", "svg_of"]
