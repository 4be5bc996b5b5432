"""The worst case of a graph before it runs: hops, model calls, tokens, money and seconds, each with the walk to it."""

from mesh.bounds.bound import Bound, Bounds
from mesh.bounds.worst import bounds

__all__ = ["Bound", "Bounds", "bounds"]
