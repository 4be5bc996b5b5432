"""Traversals are kept, on both stores alike: found by what was asked, stable to page through, and bounded."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import orjson
import pytest

from mesh.errors import RequestError, StoreError
from mesh.store.counts import Series
from mesh.store.protocol import Filter, Place, Record, Retention, entry_of
from mesh.store.rows import MAX_COUNT
from mesh.testing import traversals as samples
from mesh.vocabulary import Ended
from tests.traversal_stores import KINDS, NOW, at, ids, opened, put


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    yield from opened(request.param, tmp_path / ".mesh")


@pytest.mark.parametrize("make", [samples.four_hops, samples.fan_out, samples.escalated, samples.capped])
def test_a_record_is_read_as_it_was_written(store, make):
    traversal = make()
    put(store, traversal)
    assert store.get(traversal.request_id) == orjson.loads(
        orjson.dumps(traversal.to_json(), option=orjson.OPT_NON_STR_KEYS)
    )


def test_what_nodes_noted_beyond_json_is_kept(store):
    traversal = samples.four_hops()
    traversal.hops[0].signals = {7: "by a number", "some": {"b", "a"}, True: None}
    put(store, traversal)
    record = store.get(traversal.request_id)
    assert record is not None
    assert record["hops"][0]["signals"] == {"7": "by a number", "some": ["a", "b"], "true": None}


def test_a_summary_says_what_its_record_says(store):
    put(store, samples.escalated())
    (item,) = store.find(Filter()).items
    record = store.get(item.request_id)
    assert record is not None
    shared = {name: value for name, value in item.to_json().items() if name in record}
    assert shared == {name: record[name] for name in shared}
    assert (item.total_us, item.input_tokens) == (record["latency_us"]["total"], record["tokens"]["input"])
    assert item.route == "intent>small>sure>large"


def test_one_client_id_repeated_a_hundred_times_is_a_hundred_traversals(store):
    put(store, *(at(number, client_request_id="again") for number in range(100)))
    assert len(ids(store, client_request_id="again", limit=1_000)) == 100
    newest = store.get("again")
    assert newest is not None
    assert newest["request_id"] == at(99).request_id


def test_a_request_id_that_is_written_again_replaces_its_record(store):
    put(store, at(1, outcome=Ended.REVIEW))
    put(store, at(1, outcome=Ended.OK))
    (item,) = store.find(Filter()).items
    record = store.get(item.request_id)
    assert record is not None
    assert item.outcome == record["outcome"] == "ok"


def test_a_record_is_amended_in_its_tenant_alone_and_counts_as_before(store):
    mine = at(1, tenant="acme", outcome=Ended.OK)
    put(store, mine, at(2, tenant="acme"))
    before, counted = store.get(mine.request_id), store.counters()
    assert before is not None
    assert not store.amend(mine.request_id, "other", lambda record: {**record, "quality": [1]})
    assert not store.amend("unknown", "acme", lambda record: {**record, "quality": [1]})
    assert store.get(mine.request_id) == before
    with ThreadPoolExecutor(8) as threads:  # none undoes what another did
        list(threads.map(lambda n: store.amend(mine.request_id, "acme", partial(_marked, mark=n)), range(16)))
    after = store.get(mine.request_id)
    assert after is not None
    assert sorted(after["quality"]) == list(range(16))
    assert {**after, "quality": before["quality"]} == before
    assert store.counters() == counted
    assert len(store.find(Filter(tenant="acme")).items) == 2


def _marked(record: Record, mark: int) -> Record:
    return {**record, "quality": [*record["quality"], mark]}


def test_a_batch_is_written_whole_or_not_at_all(store):
    no_number: Any = "no number"
    broken = replace(entry_of(at(2)), started_us=no_number)
    with pytest.raises((StoreError, ValueError)):
        store.write([entry_of(at(1)), broken])
    assert ids(store) == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"graph": "support"}, {"escalated", "fan_out", "timed_out"}),
        ({"outcome": "capped"}, {"capped"}),
        ({"model": "premium"}, {"escalated"}),
        ({"tenant": "acme"}, {"escalated"}),
        ({"task": "billing"}, {"escalated"}),
        ({"session": "s-81", "graph": "support"}, {"escalated"}),
        ({"graph": "support", "outcome": "ok", "tenant": "local"}, set()),
        ({"graph": "' OR 1=1 --"}, set()),
        ({}, {"four_hops", "fan_out", "escalated", "capped", "timed_out"}),
    ],
)
def test_a_filter_finds_what_fits_all_of_it(store, wanted, found):
    made = {name: getattr(samples, name)() for name in ("four_hops", "fan_out", "escalated", "capped", "timed_out")}
    put(store, *made.values())
    assert set(ids(store, **wanted)) == {made[name].request_id for name in found}


def test_since_is_included_and_until_is_not(store):
    put(store, *map(at, range(5)))
    found = ids(store, since=NOW + timedelta(seconds=1), until=NOW + timedelta(seconds=3))
    assert found == [at(2).request_id, at(1).request_id]


def test_pages_show_each_traversal_once_while_others_come_in(store):
    put(store, *map(at, range(0, 100, 2)))
    seen: list[str] = []
    cursor = None
    while True:
        page = store.find(Filter(limit=7, cursor=cursor))
        seen += [item.request_id for item in page.items]
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
        put(store, at(1_000 + len(seen)))  # newer than all that were there
    assert seen == [at(number).request_id for number in range(98, -1, -2)]


def test_pages_of_one_instant_show_each_traversal_once(store):
    put(store, *(at(0, request_id=f"{number:032x}") for number in range(25)))
    records = list(store.records(Filter(limit=10)))
    assert [record["request_id"] for record in records] == [f"{number:032x}" for number in range(24, -1, -1)]


@pytest.mark.parametrize("cursor", ["", "x", "e30", Place(2**63, "x").cursor(), "AAAA!", "\udcff"])
def test_a_made_up_cursor_is_the_clients_mistake(cursor):
    with pytest.raises(RequestError, match="cursor"):
        Filter(cursor=cursor)


def test_a_shortened_id_finds_its_traversal_from_either_end(store):
    traversal = samples.four_hops()
    put(store, traversal, samples.escalated())
    for name in (traversal.request_id[:12], traversal.request_id[-8:], traversal.request_id[-20:]):
        record = store.get(name)
        assert record is not None
        assert record["request_id"] == traversal.request_id
    assert store.get(traversal.request_id[:5]) is None
    assert store.get("ffffff") is None


def test_a_shortened_id_that_fits_several_is_refused(store):
    put(store, samples.four_hops(), samples.fan_out())
    with pytest.raises(RequestError, match="several traversals"):
        store.get("019a8c3f")


def test_a_tenant_sees_only_its_own(store):
    put(store, samples.escalated(), samples.four_hops())
    name = samples.escalated().request_id
    assert store.get(name, tenant="acme") is not None
    assert store.get(name, tenant="local") is None
    assert store.get(name[-8:], tenant="local") is None
    assert store.get("ticket-4711", tenant="local") is None
    last = store.last(tenant="acme")
    assert last is not None
    assert last["tenant"] == "acme"


def test_text_that_is_no_unicode_finds_nothing(store):
    with pytest.raises(RequestError):
        store.get("\udcff" * 8)


def test_old_traversals_go_by_age(store):
    put(store, *map(at, range(10)))
    assert not store.prune(Retention(max_age_days=1), NOW + timedelta(days=1, seconds=4))
    assert ids(store) == [at(number).request_id for number in range(9, 3, -1)]


def test_the_oldest_go_beyond_a_number_of_rows_in_small_steps(store):
    put(store, *map(at, range(1_300)))
    keep = Retention(max_age_days=None, max_rows=100)
    steps = 0
    while store.prune(keep, NOW):
        steps += 1
    assert steps == 2  # 500 and 500, then the rest
    assert ids(store, limit=1_000) == [at(number).request_id for number in range(1_299, 1_199, -1)]


def test_without_limits_nothing_goes(store):
    put(store, *map(at, range(10)))
    store.prune(Retention(max_age_days=None, max_rows=None, max_bytes=None), NOW + timedelta(days=9_999))
    assert len(ids(store)) == 10


def test_a_page_holds_1_to_1000():
    for limit in (0, -1, 1_001):
        with pytest.raises(RequestError, match="1 to 1000"):
            Filter(limit=limit)


def test_text_that_a_database_does_not_take_is_kept_and_found(store):
    put(store, at(1, session="a\0b", task="\U0001f600 '; DROP TABLE traversal --", because="%s %(x)s \\"))
    (item,) = store.find(Filter(session="a\0b")).items
    record = store.get(item.request_id)
    assert record is not None
    assert record["session"] == "a\0b"
    assert item.because == "%s %(x)s \\"
    assert ids(store, task="\U0001f600 '; DROP TABLE traversal --") == [item.request_id]
    assert store.get("\0") is None


def test_the_counters_grow_with_what_is_new_and_outlive_the_records(store):
    put(store, at(1, outcome=Ended.REVIEW), at(2))
    before = store.counters()
    assert before[Series("requests", ("g", "review", "none"))] == 1
    put(store, at(1, outcome=Ended.REVIEW), at(2))
    assert store.counters() == before
    put(store, at(1, outcome=Ended.OK))
    assert store.counters()[Series("requests", ("g", "ok", "none"))] == 1
    store.prune(Retention(max_rows=0), NOW)
    assert ids(store) == []
    assert store.counters()[Series("requests", ("g", "review", "none"))] == 1


def test_a_counter_that_is_full_stops_and_no_write_does(store):
    series = Series("requests", ("g", "error", "none"))
    entry = replace(entry_of(at(1)), counts={series: MAX_COUNT - 1})
    store.write([entry])
    put(store, at(2), at(3))
    assert store.counters()[series] == MAX_COUNT
    assert len(ids(store)) == 3


def test_the_oldest_go_beyond_a_size(store):
    put(store, *(at(number, because=f"{number:04d}" * 500) for number in range(400)))
    whole = Retention(max_age_days=None, max_rows=None, max_bytes=10**12)
    assert not store.prune(whole, NOW)
    assert len(ids(store, limit=1_000)) == 400
    for _ in range(10):
        store.prune(replace(whole, max_bytes=1), NOW)
    assert ids(store, limit=1_000) == []
