"""A bound in time ends what takes longer, says that it was the bound, and never hides that somebody else stopped it."""

import asyncio

import pytest

from mesh.serve.within import within


def test_what_takes_longer_is_ended_and_the_task_lives_on():
    async def late() -> int:
        with pytest.raises(TimeoutError), within(0.01):
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        task = asyncio.current_task()
        return -1 if task is None else task.cancelling()

    assert asyncio.run(late()) == 0


def test_what_is_done_in_time_is_left_alone():
    async def quick() -> str:
        with within(0.01):
            done = await asyncio.sleep(0, "done")
        await asyncio.sleep(0.03)
        return done

    assert asyncio.run(quick()) == "done"


@pytest.mark.parametrize("bound_s", [60.0, 0.01])
def test_who_else_cancels_is_obeyed(bound_s):
    async def cancelled() -> None:
        async def work() -> None:
            with within(bound_s):
                try:
                    await asyncio.Event().wait()
                finally:
                    asking.cancel()

        asking = asyncio.ensure_future(work())
        asyncio.get_running_loop().call_later(0.05, asking.cancel)
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(cancelled())


def test_the_inner_bound_is_the_one_that_is_told():
    async def nested() -> str:
        with within(60.0):
            try:
                with within(0.01):
                    await asyncio.Event().wait()
            except TimeoutError:
                return "inner"
        return "none"

    assert asyncio.run(nested()) == "inner"


def test_the_outer_bound_holds_inside_a_longer_one():
    async def nested() -> None:
        with within(0.01), within(60.0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(nested())
