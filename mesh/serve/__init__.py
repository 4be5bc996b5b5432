"""Ray Serve: builder, ingress, placed tiers, wire types. `serve run mesh.serve:app graphs=graphs.a,graphs.b`.

Importing this package imports neither Ray nor LangGraph; its modules do.
"""

from mesh.deploy import several as app

__all__ = ["app"]
