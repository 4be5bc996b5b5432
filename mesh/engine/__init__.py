"""One traversal, start to end: `Mesh(graph)` runs a graph in this process, `compiled(graph)` is its LangGraph form."""

from mesh.engine.mesh import Finished, Mesh, Told
from mesh.engine.stages import Form, compiled

__all__ = ["Finished", "Form", "Mesh", "Told", "compiled"]
