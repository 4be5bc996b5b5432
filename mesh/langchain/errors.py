"""What a mesh says where it has no answer, as one error, whether the mesh is here or elsewhere."""

from collections.abc import Mapping
from typing import Any

from mesh.errors import MeshError


class ChatMeshError(MeshError):
    """The mesh gave no answer.

    `status_code` and `code` are those of the API, 0 and `unreachable` where no reply came; `retry` says whether the
    same request may succeed soon, and `retry_after_s` when. `request_id` is what `mesh trace` takes.
    """

    def __init__(
        self,
        message: str,
        status_code: int = 0,
        code: str = "unreachable",
        type: str = "api_error",  # noqa: A002 -- as the API calls it
        param: str | None = None,
        retry: bool = False,  # noqa: FBT001, FBT002
        retry_after_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, status_code, code, type, param, retry, retry_after_s, request_id)
        self.message, self.status_code, self.code, self.type = message, status_code, code, type
        self.param, self.retry, self.retry_after_s, self.request_id = param, retry, retry_after_s, request_id

    def __str__(self) -> str:
        return self.message


def error_of(
    body: Mapping[str, Any],
    status_code: int,
    *,
    retry: bool = False,
    retry_after_s: float | None = None,
    request_id: str | None = None,
) -> ChatMeshError:
    """The error of an API's error object: {"message", "type", "param", "code"}."""
    return ChatMeshError(
        str(body.get("message") or f"The mesh replied with HTTP {status_code}."),
        status_code,
        str(body.get("code") or "error"),
        str(body.get("type") or "api_error"),
        body.get("param"),
        retry,
        retry_after_s,
        request_id,
    )
