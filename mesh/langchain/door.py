"""Where a chat model finds its mesh. Requests and replies are those of the API, as decoded JSON, at every door."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol, TypeAlias

Json: TypeAlias = dict[str, Any]


class MeshDoor(Protocol):
    """One way to a mesh. All of it runs on the background loop."""

    async def whole(self, body: Mapping[str, Any]) -> Json:
        """A chat completion.

        Raises:
            ChatMeshError: there is no answer.
        """
        ...

    def streamed(self, body: Mapping[str, Any]) -> AsyncGenerator[Json, None]:
        """The chunks of a chat completion; the last one has the usage and the mesh's own record.

        Raises:
            ChatMeshError: there is no answer, or it broke off.
        """
        ...

    async def close(self) -> None: ...
