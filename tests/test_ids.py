"""Ids: none is given twice, by whatever thread or forked process, and they sort by time."""

import multiprocessing
import threading

import pytest

from mesh.clock import AT_ONCE, RandomIds, SystemClock

RANDOM_DIGITS = 20


def drawn(count: int) -> list[str]:
    ids = RandomIds(SystemClock())
    return [ids.request_id() for _ in range(count)]


def random_parts(ids: list[str]) -> list[str]:
    return [one[-RANDOM_DIGITS:] for one in ids]


def test_ids_have_32_hex_digits_and_sort_by_time():
    ids = drawn(3 * AT_ONCE)
    assert all(len(one) == 32 and int(one, 16) for one in ids)
    assert [one[:-RANDOM_DIGITS] for one in ids] == sorted(one[:-RANDOM_DIGITS] for one in ids)


def test_threads_never_share_one():
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.extend(random_parts(drawn(5 * AT_ONCE)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(found) == 8 * 5 * AT_ONCE


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking beside threads, from Python 3.12 on
def test_a_forked_process_draws_its_own():
    before = random_parts(drawn(1))  # so that some are left over
    with multiprocessing.get_context("fork").Pool(1) as pool:
        child = random_parts(pool.apply(drawn, (AT_ONCE,)))
    assert not set(child) & set(before + random_parts(drawn(AT_ONCE)))
