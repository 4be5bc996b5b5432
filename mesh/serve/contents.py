"""Kept content in a replica: the store, what erases from it in the background, and the cache of answers over it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from mesh.cache import AnswerCache
from mesh.graph import BuiltGraph
from mesh.metrics import Metrics
from mesh.store.contents import sweep_forever
from mesh.store.open import open_contents
from mesh.vocabulary import Kind

DROPPED = "Answers that could not be kept: too many at once, or the store was away."


class KeptContent:
    """The content store of a replica, opened at once. `answers` is there where a graph has a cache.

    Args:
        url, folder: where it lies, as `open_contents` takes them.
        graphs: those that are served.
    """

    def __init__(self, url: str | None, folder: Path, graphs: Sequence[BuiltGraph]) -> None:
        self.store = open_contents(url, folder)
        cached = any(node.kind is Kind.CACHE for graph in graphs for node in graph.nodes.values())
        self.answers = AnswerCache(self.store) if cached else None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks.append(asyncio.create_task(sweep_forever(self.store)))
        if self.answers is not None:
            self._tasks.append(asyncio.create_task(self.answers.follow_forever()))

    async def stop(self) -> None:
        """Write what still waits, and close the store."""
        for task in self._tasks:
            task.cancel()
        if self.answers is not None:
            await self.answers.flush()
        self.store.close()

    def show(self, metrics: Metrics) -> None:
        """Tell how much of the cache this replica knows."""
        if (answers := self.answers) is not None:
            metrics.watch("mesh_cache_entries", "Kept answers that this replica knows of.", lambda: answers.entries)
            metrics.watch("mesh_cache_dropped_total", DROPPED, lambda: answers.dropped, kind="counter")
