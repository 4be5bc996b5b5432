"""A mesh as a LangChain chat model: `ChatMesh(graph=graph)` in this process, `ChatMesh(base_url=...)` over HTTP.

Only this package and `mesh.providers.langchain`, which takes chat models as tiers, know LangChain.
"""

from mesh.langchain.chat import ChatMesh
from mesh.langchain.errors import ChatMeshError

__all__ = ["ChatMesh", "ChatMeshError"]
