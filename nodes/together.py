"""Several calls at once."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_Result = TypeVar("_Result")


async def all_of(calls: Iterable[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """What these calls give, in their order, all made at once.

    If one fails the others are cancelled and settled, and what it raised is raised as if it had been made alone: the
    walker knows a `CallFailed`, and no group of them.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failed:
        raise _first(failed) from None
    return [task.result() for task in tasks]


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
