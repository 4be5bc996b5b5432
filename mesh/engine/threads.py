"""LangGraph's checkpoints of the traversals that run here: in memory while they run, plain data once they wait.

LangGraph saves one at the end of a run (`durability="exit"`). Of a run that came to END it is thrown away; of one that
waits for a person it is taken out here, as what JSON knows, and kept in the content table with the rest of the review.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple


class _Thread(NamedTuple):
    """A traversal's last checkpoint. What was written since is only the question itself, which a resume answers."""

    checkpoint: dict[str, Any]
    metadata: dict[str, Any]


class Threads(BaseCheckpointSaver[int]):
    """A checkpointer of one process. A thread is a traversal, and holds one checkpoint: the last."""

    def __init__(self) -> None:
        super().__init__()
        self._threads: dict[str, _Thread] = {}

    def taken(self, thread_id: str) -> dict[str, Any] | None:
        """The checkpoint of a thread, which is not held here any longer."""
        thread = self._threads.pop(thread_id, None)
        return None if thread is None else thread._asdict()

    def put_back(self, thread_id: str, saved: dict[str, Any]) -> None:
        """Hold a checkpoint that was taken out, here or in another process."""
        self._threads[thread_id] = _Thread(saved["checkpoint"], saved["metadata"])

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        thread = self._threads.get(_id(config))
        if thread is None:
            return None
        at = _at(config, str(thread.checkpoint["id"]))
        checkpoint: Any = thread.checkpoint
        metadata: Any = thread.metadata
        return CheckpointTuple(at, checkpoint, metadata, None, [])

    async def aput(self, config: RunnableConfig, checkpoint: Any, metadata: Any, new_versions: Any) -> RunnableConfig:
        self._threads[_id(config)] = _Thread(checkpoint, metadata)
        return _at(config, str(checkpoint["id"]))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Nothing: nobody reads them."""


def _id(config: RunnableConfig) -> str:
    return str(config["configurable"]["thread_id"])


def _at(config: RunnableConfig, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": _id(config), "checkpoint_ns": "", "checkpoint_id": checkpoint_id}}
