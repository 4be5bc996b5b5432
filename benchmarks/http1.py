"""Just enough HTTP/1.1 to serve and to load on loopback: one message cut out of a buffer.

Made for speed on our own bench. It trusts its peer to be a real HTTP implementation, and refuses what it cannot frame.
"""

from dataclasses import dataclass


class FramingError(ValueError):
    """The message has neither a length nor chunks, or its chunks are broken."""


@dataclass(frozen=True, slots=True)
class Message:
    """One whole message. `head` is the start line and the headers in lower case; `end` is where the next one begins."""

    head: bytes
    body: bytes
    end: int

    @property
    def status(self) -> int:
        """The status code of a response."""
        return int(self.head[9:12])

    @property
    def closes(self) -> bool:
        """Whether the sender will close the connection behind this message."""
        return b"\r\nconnection: close" in self.head


def message(buffer: bytes | bytearray, *, response: bool) -> Message | None:
    """The first message of the buffer, or None if it is not whole yet.

    Raises:
        FramingError: a response without content-length and without chunks, or chunks that do not follow their form.
    """
    split = buffer.find(b"\r\n\r\n")
    if split < 0:
        return None
    head = bytes(buffer[:split]).lower()
    begin = split + 4
    length = _length(head)
    if length is not None:
        end = begin + length
        return Message(head, bytes(buffer[begin:end]), end) if len(buffer) >= end else None
    if b"\r\ntransfer-encoding: chunked" in head:
        return _chunked(buffer, head, begin)
    if response:
        raise FramingError("a response with neither content-length nor chunked encoding")
    return Message(head, b"", begin)


def _length(head: bytes) -> int | None:
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        return None
    stop = head.find(b"\r\n", at + 2)
    return int(head[at + 17 : stop if stop >= 0 else len(head)])


def _chunked(buffer: bytes | bytearray, head: bytes, begin: int) -> Message | None:
    parts: list[bytes] = []
    while (line := buffer.find(b"\r\n", begin)) >= 0:
        try:
            size = int(bytes(buffer[begin:line]).partition(b";")[0], 16)
        except ValueError as error:
            raise FramingError(f"a chunk size of {bytes(buffer[begin:line])[:20]!r}") from error
        begin = line + 2 + size + 2
        if len(buffer) < begin:
            return None
        if size == 0:
            return Message(head, b"".join(parts), begin)
        parts.append(bytes(buffer[line + 2 : line + 2 + size]))
    return None
