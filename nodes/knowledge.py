"""A knowledge base: entries with the questions that they answer, from a file that may change while it is served.

```yaml
entries:
  - id: passwords-1                    # cited as [kb:passwords-1]
    title: Reset a forgotten password
    asks: [I forgot my password, How do I reset my password?]
    text: Open id.company.example and choose "Forgot password".
```

A file that ends with `.jsonl` has one such entry a line, as JSON; it is read 20 times as fast, which thousands of
entries are worth. What an entry says goes into prompts, so one that
tries to give orders there is refused, and so are characters that nobody sees.
"""

import hashlib
import logging
import re
import threading
import unicodedata
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mesh.config.yaml_file import Fault, YamlFile, parsed_yaml
from mesh.errors import ConfigError
from mesh.state import Passage
from nodes import weights
from nodes.attacks import attacks
from nodes.labels import located

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("mesh.knowledge")

LOOK_EVERY_S: Final = 0.5
FILE_BYTES_MAX: Final = 4 * 1024 * 1024
ENTRIES_MAX: Final = 5_000
QUESTIONS_MAX: Final = 50_000  # of all entries, titles included: 50 MB of vectors
TEXT_MAX: Final = 4_000  # characters of an entry: it has to fit into the window of a small model
LINES: Final = ".jsonl"
ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
TAGS: Final = re.compile(r"</?\s*(?:entry|question)\b", re.IGNORECASE)


def _id(value: str) -> str:
    if not ID.fullmatch(value):
        raise ValueError("an id is of a-z, 0-9, '.', '_' and '-', 64 at most")
    return value


def _said(value: str) -> str:
    """Text for a prompt, in which nothing gives orders or hides."""
    if not value.strip():
        raise ValueError("this is empty")
    if any(unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs") and char not in "\n\t" for char in value):
        raise ValueError("it holds characters that nobody sees (controls, zero-width or bidirectional marks)")
    if attacks(value) or TAGS.search(value):
        raise ValueError("it reads like an order to the model, or holds the tags that fence entries; say it otherwise")
    return value


Said = Annotated[str, Field(max_length=TEXT_MAX), AfterValidator(_said)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Entry(_Shape):
    id: Annotated[str, AfterValidator(_id)]
    title: Said
    asks: list[Said] = []
    text: Said


class _File(_Shape):
    entries: Annotated[list[_Entry], Field(min_length=1, max_length=ENTRIES_MAX)]


@dataclass(frozen=True, slots=True)
class Entries:
    """What a file says: passages in its order, and what each is found by. `digest` is that of the file's bytes."""

    passages: tuple[Passage, ...]
    questions: tuple[tuple[str, ...], ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Table:
    """The vectors of entries. `starts[i]` is the first row of entry i; titles count as questions."""

    entries: Entries
    rows: "NDArray[np.float32]"  # [questions, 256], of length 1
    centres: "NDArray[np.float32]"  # [entries, 256], of length 1
    starts: "NDArray[np.intp]"

    def scores(self, text: str) -> "NDArray[np.float32]":
        """float32[entries]: half the cosine to the nearest of an entry's questions, half that to their centre."""
        import numpy as np  # noqa: PLC0415 -- graphs are read without it

        vector = weights.vector(text)
        # not `@`: from 2,000 rows on BLAS starts threads for it, and waits 8 ms for a core where others are busy
        nearest = np.maximum.reduceat(np.vecdot(self.rows, vector), self.starts)
        return cast("NDArray[np.float32]", (nearest + np.vecdot(self.centres, vector)) * np.float32(0.5))


class Knowledge:
    """The entries of a file, as they are now.

    Once it is used, a thread looks at the file twice a second. A content counts when two looks in a row have found it.
    One that cannot be used is refused as a whole: a warning says why, and what held before still holds.

    Args:
        source: YAML or JSON lines; a relative path is looked for beside the graph's module, then in the current folder.

    Raises:
        ConfigError: the file cannot be read or used; names the line of each fault.
    """

    def __init__(self, source: str | Path) -> None:
        self.path = located(Path(source)).absolute()
        self.name = self.path.name
        self.problem: str | None = None  # why the file, as it is now, is not in force
        self._lock = threading.Lock()
        self._judged: bytes | None = _bytes(self.path)  # what was taken or refused last; None: what could not be read
        self._seen = self._judged
        self._entries = entries_of(self._judged, self.name)
        self._table: Table | None = None
        self._watching = False

    @property
    def digest(self) -> str:
        return self._entries.digest

    def __str__(self) -> str:
        return self.name

    def table(self) -> Table:
        """The entries with their vectors. The first call makes these, and begins to watch the file."""
        table = self._table
        return self._made() if table is None or table.entries is not self._entries else table

    def _made(self) -> Table:
        with self._lock:
            if self._table is None or self._table.entries is not self._entries:  # nobody was faster
                self._table = _table(self._entries)
            if not self._watching:
                self._watching = True
                args = (weakref.ref(self),)
                threading.Thread(target=_watch, args=args, name="mesh-knowledge", daemon=True).start()
            return self._table

    def look(self) -> None:
        """Look at the file once."""
        try:
            raw = _bytes(self.path)
        except ConfigError as error:
            self._judged = None
            self._refused(f"{error.problem} {error.remedy}")
            return
        settled, self._seen = raw == self._seen, raw
        if settled and raw != self._judged:
            self._judged = raw  # once: to read a large file takes seconds, and what is refused stays refused
            self._judge(raw)

    def _judge(self, raw: bytes) -> None:
        """Take a new content, or refuse it and say so once."""
        try:
            entries = entries_of(raw, self.name)
            table = _table(entries)
        except ConfigError as error:
            self._refused(str(error))
            return
        before, self.problem = self._entries, None
        with self._lock:
            self._entries, self._table = entries, table
        if entries.digest != before.digest:
            log.info(
                "knowledge %s: %s entries, %s, was %s", self.name, len(entries.passages), entries.digest, before.digest
            )

    def _refused(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("knowledge %s stays %s: %s", self.name, self.digest, problem)
        self.problem = problem


def _watch(held: "weakref.ref[Knowledge]") -> None:
    """Look now and then, until nobody has the knowledge any more."""
    waiting = threading.Event()
    while not waiting.wait(LOOK_EVERY_S):
        knowledge = held()
        if knowledge is None:
            return
        try:
            knowledge.look()
        except Exception as error:
            if repr(error) != knowledge.problem:  # once, not twice a second
                knowledge.problem = repr(error)
                log.exception("the knowledge %s could not be looked at; looking goes on", knowledge.name)
        del knowledge


def entries_of(raw: bytes, name: str) -> Entries:
    """The entries that a file's bytes say. `name` is what errors call it; its ending tells the form.

    Raises:
        ConfigError: all faults, with their lines.
    """
    file = _lines(raw, name) if name.endswith(LINES) else parsed_yaml(raw, name)
    found = file.checked(_File).entries
    firsts: dict[str, int] = {}
    twice = [
        Fault(
            ("entries", index, "id"), f"id {entry.id!r} is given twice, first in line {_line(file, firsts[entry.id])}."
        )
        for index, entry in enumerate(found)
        if firsts.setdefault(entry.id, index) != index
    ]
    if twice:
        raise file.refused(twice)
    count = sum(1 + len(entry.asks) for entry in found)
    if count > QUESTIONS_MAX:
        raise ConfigError(name, f"{count} titles and questions; at most {QUESTIONS_MAX}.", "Leave some out.")
    return Entries(
        passages=tuple(Passage(entry.id, _flat(entry.title), entry.text.strip()) for entry in found),
        questions=tuple((entry.title, *entry.asks) for entry in found),
        digest=hashlib.sha256(raw).hexdigest()[:16],
    )


def _line(file: YamlFile, index: int) -> int:
    return file.line(("entries", index))


def _flat(text: str) -> str:
    return " ".join(text.split())


def _lines(raw: bytes, name: str) -> YamlFile:
    """JSON lines as a file whose places have lines. Empty lines, and those that begin with '#', say nothing.

    Raises:
        ConfigError: a line is no JSON object.
    """
    entries: list[Any] = []
    lines: dict[tuple[str | int, ...], int] = {(): 1, ("entries",): 1}
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"{name}:{number}", f"this is not JSON: {error.msg}, column {error.colno}.") from error
        lines["entries", len(entries)] = number
        entries.append(entry)
    return YamlFile(name, {"entries": entries}, lines)


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        remedy = "Put it beside the graph's module, or give its full path."
        raise ConfigError(f"knowledge file {str(path)!r}", f"cannot be read: {error.strerror}.", remedy) from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(path.name, f"a knowledge file of more than {FILE_BYTES_MAX} bytes.", "Split it.")
    return raw


def _table(entries: Entries) -> Table:
    import numpy as np  # noqa: PLC0415 -- graphs are read without it

    counts = [len(questions) for questions in entries.questions]
    rows = weights.embed([question for questions in entries.questions for question in questions])
    starts = np.cumsum([0, *counts[:-1]])
    sums = np.add.reduceat(rows, starts, axis=0)
    lengths = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.float32(1e-9))
    return Table(entries, rows, (sums / lengths).astype(np.float32), starts)


def knowledge_of(source: "Knowledge | str | Path") -> Knowledge:
    """The knowledge itself, or that of a file."""
    return source if isinstance(source, Knowledge) else Knowledge(source)


def fenced_passages(passages: Sequence[Passage]) -> str:
    """The passages for a prompt, each in a fence that nothing inside can close."""
    return "\n".join(f"<entry>\n[kb:{one.id}] {one.title}\n{TAGS.sub('< ', one.text)}\n</entry>" for one in passages)
