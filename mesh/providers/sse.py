"""Server-sent events, read from bytes as they come: the same events however the bytes are cut into chunks.

Source: WHATWG HTML, 9.2.6 "Interpreting an event stream".
"""

from typing import Final, NamedTuple

_BOM: Final = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event: its data lines joined by a line feed, and its name, empty if it has none."""

    data: bytes
    name: bytes = b""


class EventStream:
    """Chunks in, whole events out. A line is decoded only when it is whole, so UTF-8 may be cut anywhere.

    Memory is bounded by the caller, who counts what it feeds.
    """

    __slots__ = ("_after_cr", "_at_start", "_data", "_name", "_tail")

    def __init__(self) -> None:
        self._tail = bytearray()  # an unfinished line
        self._data: list[bytes] = []
        self._name = b""
        self._after_cr = False  # the last chunk ended in CR: an LF that follows belongs to it
        self._at_start = True

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that end in this chunk."""
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[:1] == b"\n":
                chunk = chunk[1:]
        if not chunk:
            return []
        self._after_cr = chunk[-1:] == b"\r"
        lines = chunk.splitlines(keepends=True)
        unfinished = lines.pop() if lines[-1][-1:] not in {b"\n", b"\r"} else b""
        events: list[Event] = []
        for line in lines:
            self._take(self._whole(line), events)
        self._tail += unfinished
        return events

    def flush(self) -> list[Event]:
        """The event that the end of the stream left unfinished, if any: some servers forget the last empty line."""
        events: list[Event] = []
        self._take(self._whole(b"\n"), events)
        self._take(b"", events)
        return events

    def _whole(self, line: bytes) -> bytes:
        """The line without its end, with what earlier chunks held of it."""
        line = line.rstrip(b"\r\n")
        if self._tail:
            line = bytes(self._tail) + line
            self._tail.clear()
        if self._at_start:
            self._at_start = False
            return line.removeprefix(_BOM)
        return line

    def _take(self, line: bytes, events: list[Event]) -> None:
        if not line:
            if self._data:
                events.append(Event(b"\n".join(self._data), self._name))
                self._data = []
            self._name = b""
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
