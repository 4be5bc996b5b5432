"""Keeps graphs at what their policy files say, without a restart.

A thread of its own looks at each file every half second, off the event loop. A content counts once two looks in a row
have found it, so that a file that is still being written, or replaced by way of a deletion, is not taken: from the end
of the change to the new policy it takes 1 second at most. A file that cannot be used is refused as a whole; the policy
before it stays in force, and `rejected` says why.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mesh.config.load import read_bytes
from mesh.config.policies import Numbers, policy_file, policy_from, shown
from mesh.errors import ConfigError
from mesh.policy import Policy, policy_of

LOOK_EVERY_S: Final = 0.5

Content = bytes | None
"""What a policy file holds; None where there is none, which means the declared defaults."""


@dataclass(slots=True)
class _Watched:
    """One graph's file. `judged` is the content that was last taken or refused, `seen` that of the last look."""

    file: Path
    shown: str
    numbers: Numbers
    policy: Policy
    judged: Content | str = None
    seen: Content | str = None  # a text says why the file could not be read
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Watching:
    """What is watched: `apply` is called in the watching thread, with a graph's name and its new policy."""

    folder: Path
    graphs: Mapping[str, Numbers]
    apply: Callable[[str, Policy], None]
    kept: Path | None = None
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("mesh.policy"))


class PolicyWatch:
    """Loads the policies of some graphs at once, and then watches their files from `start` to `close`.

    A copy of each content that was taken is put into `watching.kept`. Where a file cannot be used when the watch
    begins, that copy holds: a replica that starts late then serves what the others serve.

    Raises:
        ConfigError: a file cannot be used, and no copy is there.
    """

    def __init__(self, watching: Watching) -> None:
        self._watching = watching
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mesh-policies", daemon=True)
        self._failure = ""
        self._watched = {name: self._first(name, numbers) for name, numbers in watching.graphs.items()}

    @property
    def policies(self) -> Mapping[str, Policy]:
        """The policies in force, by graph."""
        return {name: one.policy for name, one in self._watched.items()}

    @property
    def rejected(self) -> Mapping[str, str]:
        """Why a graph's file is not in force, for those graphs whose file was refused."""
        return {name: one.problem for name, one in self._watched.items() if one.problem is not None}

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread. It looks no more once this returns."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Look at each file once."""
        for name, one in self._watched.items():
            content = _content(one.file, one.shown)
            settled, one.seen = content == one.seen, content
            if settled and content != one.judged:
                one.judged = content
                self._judge(name, one, content)

    def _run(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            try:
                self.look()
            except Exception as error:
                if repr(error) != self._failure:  # once, not twice a second
                    self._failure = repr(error)
                    self._watching.log.exception("the policies could not be looked at; looking goes on")

    def _first(self, name: str, numbers: Numbers) -> _Watched:
        file = policy_file(self._watching.folder, name)
        one = _Watched(file, shown(file), numbers, policy_of(numbers))
        one.judged = one.seen = _content(file, one.shown)
        try:
            one.policy = _policy(one.judged, one)
        except ConfigError as error:
            kept = self._kept(name, numbers)
            if kept is None:
                raise
            one.policy = kept
            self._refused(name, one, error)
        else:
            self._keep(name, one.judged)
        return one

    def _kept(self, name: str, numbers: Numbers) -> Policy | None:
        """What was in force last; None where nobody knows, or the graph's numbers have changed since."""
        if (copy := self._copy_of(name)) is None:
            return None
        with contextlib.suppress(ConfigError):
            return policy_from(read_bytes(copy, shown(copy)), copy, numbers)
        return None

    def _judge(self, name: str, one: _Watched, content: Content | str) -> None:
        """Take a new content, or refuse it and say so once."""
        try:
            policy = _policy(content, one)
        except ConfigError as error:
            self._refused(name, one, error)
            return
        before, one.policy, one.problem = one.policy, policy, None
        self._watching.apply(name, policy)
        self._keep(name, content)
        self._watching.log.info("policy of %s: %s, was %s (%s)", name, policy.version, before.version, one.shown)

    def _refused(self, name: str, one: _Watched, error: ConfigError) -> None:
        one.problem = str(error)
        self._watching.log.warning("policy of %s stays %s: %s", name, one.policy.version, error)

    def _copy_of(self, name: str) -> Path | None:
        return policy_file(self._watching.kept, name) if self._watching.kept is not None else None

    def _keep(self, name: str, content: Content | str) -> None:
        """Put a copy aside. It is a convenience for later starts: where it cannot be written, nothing is lost now."""
        if (copy := self._copy_of(name)) is None or isinstance(content, str):
            return
        with contextlib.suppress(OSError):
            copy.parent.mkdir(parents=True, exist_ok=True)
            new = copy.with_suffix(f".{os.getpid()}.new")
            new.write_bytes(content or b"")
            new.replace(copy)


def _content(file: Path, name: str) -> Content | str:
    try:
        return read_bytes(file, name)
    except ConfigError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            return None
        return f"{error.problem} {error.remedy}"


def _policy(content: Content | str, one: _Watched) -> Policy:
    """What a content says.

    Raises:
        ConfigError: it cannot be used.
    """
    if isinstance(content, str):
        raise ConfigError(one.shown, content)
    return policy_of(one.numbers) if content is None else policy_from(content, one.file, one.numbers)
