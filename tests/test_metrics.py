"""`/metrics` is exact: over replicas, restarts, retries and retention, to the last nano-dollar."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pysqlite3.dbapi2 as sqlite
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mesh.errors import StoreError
from mesh.metrics import CONTENT_TYPE, Metrics
from mesh.store.counts import (
    OVERHEAD_BOUNDS_US,
    REQUEST_BOUNDS_US,
    REQUESTS,
    Counts,
    Series,
    bucket,
    counts_of,
    overhead_us,
)
from mesh.store.protocol import Filter, Retention, entry_of
from mesh.store.rows import MAX_COUNT
from mesh.store.sqlite import SqliteStore
from mesh.store.writer import TraversalWriter
from mesh.testing import traversals as samples
from mesh.trace import EdgeRecord, HopRecord, Traversal
from mesh.vocabulary import Ended, Kind
from tests.api_server import served
from tests.examples import examples
from tests.graphs_for_tests import pinned_one

Values = dict[tuple[str, ...], float]
OWN = {"mesh_store_up", "mesh_records_queued", "mesh_records_dropped_total", "mesh_requests_in_flight"}
MADE = (samples.four_hops, samples.fan_out, samples.escalated, samples.capped, samples.timed_out)

WRITING = """
import sys
from dataclasses import replace
from pathlib import Path
from mesh.store.protocol import entry_of
from mesh.store.sqlite import SqliteStore
from mesh.store.writer import TraversalWriter
from mesh.testing import traversals as samples
MADE = (samples.four_hops, samples.fan_out, samples.escalated, samples.capped, samples.timed_out)
def made(number):
    return replace(MADE[number % 5](), request_id=f"{int(sys.argv[2]):04d}{number:028d}")
store = SqliteStore(Path(sys.argv[1]))
"""


@pytest.fixture
def store(tmp_path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / ".mesh")
    yield opened
    opened.close()


def python(code: str, *args: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITING + code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def put(store: SqliteStore, *traversals: Traversal) -> None:
    store.write([entry_of(traversal) for traversal in traversals])


def numbered(number: int, **fields) -> Traversal:
    return replace(MADE[number % 5](), request_id=f"{number:032x}", **fields)


def text_of(store: SqliteStore, replica: str = "r") -> str:
    writer = TraversalWriter(store)
    try:
        return Metrics(store, writer, replica=replica).render().decode()
    finally:
        writer.close()


def parsed(text: str) -> Values:
    """Samples by (name, label values in the order of their names), as Prometheus reads them."""
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def shown(store: SqliteStore) -> Values:
    return parsed(text_of(store))


def shared(text: str) -> list[str]:
    """The lines that must be the same from every replica."""
    return [line for line in text.splitlines() if not any(name in line for name in OWN)]


def recounted(store: SqliteStore) -> Counts:
    """The counters that the records on disk make up, each counted from nothing."""
    sums: Counts = {}
    for record in store.records(Filter(limit=1_000)):
        for series, count in counts_of(record).items():
            sums[series] = sums.get(series, 0) + count
    return sums


def summed(values: Values, name: str) -> float:
    return sum(value for key, value in values.items() if key[0] == name)


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_requests_hops_tokens_and_money_are_counted(store):
    twice = replace(samples.escalated(), request_id="second")
    put(store, samples.escalated(), twice, samples.fan_out())
    values = shown(store)
    assert values["mesh_requests_total", "support", "premium", "ok"] == 2
    assert values["mesh_requests_total", "support", "none", "refused"] == 1
    assert values["mesh_cost_nusd_total", "support", "premium"] == 2 * 2_214_000
    assert values["mesh_cost_nusd_total", "support", "none"] == 1_050_000
    assert values["mesh_hops_total", "support", "large", "ok"] == 2
    assert values["mesh_hops_total", "support", "judge", "cancelled"] == 1
    assert not [key for key in values if "END" in key]
    assert values["mesh_tokens_total", "input"] == 2 * 636 + 420
    assert values["mesh_tokens_total", "cached_input"] == 2 * 128
    assert values["mesh_request_seconds_count", "support"] == 3
    total_us = 2 * samples.escalated().total_us + samples.fan_out().total_us
    assert values["mesh_request_seconds_sum", "support"] == total_us / 1e6


def test_names_types_and_labels_are_a_contract(store):
    hit = HopRecord((0,), "cached", Kind.CACHE, 1, [EdgeRecord("START", "cached", "start")], outcome="hit")
    put(store, samples.escalated(), numbered(1, hops=[hit]))
    families = {
        family.name: (family.type, {name for sample in family.samples for name in sample.labels})
        for family in text_string_to_metric_families(text_of(store))
    }
    assert families == {
        "mesh_requests": ("counter", {"graph", "outcome", "model"}),
        "mesh_request_seconds": ("histogram", {"graph", "le"}),
        "mesh_overhead_seconds": ("histogram", {"graph", "le"}),
        "mesh_cost_nusd": ("counter", {"graph", "model"}),
        "mesh_hops": ("counter", {"graph", "node", "outcome"}),
        "mesh_cache": ("counter", {"graph", "node", "event"}),
        "mesh_cache_saved_nusd": ("counter", {"graph", "node"}),
        "mesh_tokens": ("counter", {"kind"}),
        "mesh_store_up": ("gauge", {"replica"}),
        "mesh_records_queued": ("gauge", {"replica"}),
        "mesh_records_dropped": ("counter", {"replica"}),
    }
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_each_metric_is_in_the_operators_table(store):
    page = (Path(__file__).parent.parent / "docs" / "operating.md").read_text()
    names = {line.split()[2] for line in text_of(store).splitlines() if line.startswith("# TYPE")} | OWN
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_a_store_without_a_traversal_shows_zeros_and_no_error(store):
    values = shown(store)
    assert values["mesh_tokens_total", "reasoning"] == 0
    assert values["mesh_store_up", "r"] == 1
    assert summed(values, "mesh_requests_total") == 0


def test_overhead_is_the_total_without_models_tools_people_and_suspension():
    traversal = samples.fan_out()
    assert overhead_us(traversal.to_json()) == traversal.total_us  # guards are ours, and the judge ran beside them
    traversal = samples.escalated()
    own_us = traversal.total_us - 312_000 - 2_481_000
    assert overhead_us(traversal.to_json()) == own_us
    traversal.suspended_us = 10**9
    traversal.total_us += 10**9
    assert overhead_us(traversal.to_json()) == own_us
    values = counts_of(traversal.to_json())
    assert values[Series("request_us", ("support",))] == samples.escalated().total_us


@examples(25)
@given(st.lists(st.integers(0, 150_000_000) | st.sampled_from(REQUEST_BOUNDS_US), min_size=1, max_size=30))
def test_buckets_are_those_of_the_prometheus_library(times_us):
    registry = CollectorRegistry()
    bounds = [bound_us / 1e6 for bound_us in REQUEST_BOUNDS_US]
    theirs = Histogram("mesh_request_seconds", "x", ("graph",), buckets=bounds, registry=registry).labels("quickstart")
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder))
        for number, us in enumerate(times_us):
            put(store, replace(samples.four_hops(), request_id=str(number), total_us=us))
            theirs.observe(us / 1e6)
        ours = parsed(text_of(store))
        store.close()
    expected = {k: v for k, v in parsed(generate_latest(registry).decode()).items() if not k[0].endswith("_created")}
    assert {key: value for key, value in ours.items() if key[0].startswith("mesh_request_seconds")} == pytest.approx(
        expected
    )


def test_the_text_of_a_histogram_keeps_its_form(store):
    put(store, samples.fan_out())
    lines = [line for line in text_of(store).splitlines() if line.startswith("mesh_overhead_seconds")]
    bounds = [line.split('le="')[1].split('"')[0] for line in lines if "_bucket" in line]
    assert " ".join(bounds) == "0.0001 0.00025 0.0005 0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 1.0 +Inf"
    assert lines[-1] == 'mesh_overhead_seconds_sum{graph="support"} 0.013217'


def test_counts_of_other_bounds_stay_in_the_buckets_that_hold_them(store):
    put(store, samples.fan_out())
    insert = 'INSERT INTO counter VALUES (?, \'["support","7000"]\', 5)'
    store._file.writing.execute(insert, (bucket("overhead_us"),))
    values = shown(store)
    assert values["mesh_overhead_seconds_bucket", "support", "0.005"] == 0
    assert values["mesh_overhead_seconds_bucket", "support", "0.01"] == 5
    assert values["mesh_overhead_seconds_bucket", "support", "+Inf"] == 6
    assert values["mesh_overhead_seconds_count", "support"] == 6


def test_what_a_newer_replica_counts_besides_is_left_out(store):
    put(store, samples.fan_out())
    before = text_of(store)
    store._file.writing.execute('INSERT INTO counter VALUES (\'later\', \'["a","b","c","d"]\', 5)')
    assert text_of(store) == before


def test_money_is_exact_beyond_what_a_float_holds(store):
    cost = 2**53 + 1
    put(store, *(numbered(number, graph="dear", model="m", cost_nusd=cost) for number in range(3)))
    assert f'mesh_cost_nusd_total{{graph="dear",model="m"}} {3 * cost}\n' in text_of(store)
    put(store, *(numbered(number, graph="slow", suspended_us=0, total_us=cost) for number in range(3, 6)))
    us = 3 * cost
    assert f'mesh_request_seconds_sum{{graph="slow"}} {us // 10**6}.{us % 10**6:06d}\n' in text_of(store)


def test_a_counter_that_is_full_stops_and_stops_no_write(store):
    dearest = [numbered(number, graph="dear", model="m", cost_nusd=2**63 - 2) for number in range(5)]
    put(store, dearest[0], dearest[1])  # beyond 64 bits within a batch
    put(store, dearest[2])
    put(store, dearest[3], dearest[4])
    assert store.counters()[Series("cost_nusd", ("dear", "m"))] == MAX_COUNT
    assert len(store.find(Filter()).items) == 5


def test_names_of_any_letters_survive(store):
    name = 'a "b" \\ c\nd é \\n'
    traversal = samples.timed_out()
    traversal.hops[0].node = name
    put(store, replace(traversal, graph=name, model=name))
    values = shown(store)
    assert values["mesh_requests_total", name, name, "error"] == 1
    assert values["mesh_hops_total", name, name, "timeout"] == 1


# -- one truth for all -------------------------------------------------------------------------------------------------


def test_every_replica_shows_the_same(store):
    put(store, *map(numbered, range(50)))
    other = SqliteStore(store.path.parent)
    put(other, *map(numbered, range(50, 80)))
    first, second = text_of(store, "first"), text_of(other, "second")
    assert shared(first) == shared(second)
    assert first != second
    other.close()


def test_two_processes_that_write_at_once_make_exact_sums(store):
    code = """
writer = TraversalWriter(store)
for number in range(1_000):
    writer.put(made(number))
writer.close(timeout_s=40)
print(writer.written, writer.dropped)
"""
    processes = [python(code, store.path.parent, number) for number in (1, 2)]
    scraped = []
    while any(process.poll() is None for process in processes):
        scraped.append(summed(shown(store), "mesh_requests_total"))
    assert [process.communicate() for process in processes] == [("1000 0\n", "")] * 2
    assert scraped == sorted(scraped)
    values = shown(store)
    made = [make() for make in MADE]
    for traversal in made:
        key = (traversal.graph, traversal.model or "none", traversal.outcome)
        assert values["mesh_requests_total", *key] == 400
    assert summed(values, "mesh_requests_total") == 2_000
    assert summed(values, "mesh_cost_nusd_total") == 400 * sum(traversal.cost_nusd for traversal in made)
    assert values["mesh_tokens_total", "input"] == 400 * sum(traversal.input_tokens for traversal in made)
    assert values["mesh_tokens_total", "output"] == 400 * sum(traversal.output_tokens for traversal in made)
    hops = sum(hop.kind is not Kind.END for traversal in made for hop in traversal.hops)
    assert summed(values, "mesh_hops_total") == 400 * hops
    for name in ("mesh_request_seconds_count", "mesh_overhead_seconds_count"):
        assert summed(values, name) == 2_000
    rows = store._file.writing.execute("SELECT sum(cost_nusd), sum(total_us) FROM traversal").fetchone()
    assert summed(values, "mesh_cost_nusd_total") == rows[0]
    assert summed(values, "mesh_request_seconds_sum") == pytest.approx(rows[1] / 1e6)


def test_replicas_that_are_killed_lose_no_count_and_make_none_up(store):
    code = """
for number in range(10**6):
    store.write([entry_of(made(5 * number + i)) for i in range(5)])
    print(number, flush=True)
"""
    killed = [python(code, store.path.parent, number) for number in (1, 2)]
    said = []
    for process in killed:
        assert process.stdout is not None
        said.append([process.stdout.readline() for _ in range(30)])
    for process in killed:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert store.counters() == recounted(store)
    assert summed(shown(store), "mesh_requests_total") >= 2 * 30 * 5


def test_a_restart_keeps_the_counters_and_goes_on_from_there(tmp_path):
    texts = []
    for run in range(3):
        store = SqliteStore(tmp_path)
        texts.append(shared(text_of(store)))
        put(store, numbered(run))
        texts.append(shared(text_of(store)))
        assert summed(shown(store), "mesh_requests_total") == run + 1
        store.close()
    assert texts[1] == texts[2]
    assert texts[3] == texts[4]


def test_retention_takes_nothing_away(store):
    put(store, *map(numbered, range(700)))
    before = store.counters()
    later = datetime.now(UTC) + timedelta(days=365 * 5)
    while store.prune(Retention(max_age_days=1), later):
        pass
    assert store.find(Filter()).items == ()
    assert store.counters() == before
    put(store, numbered(1_000))
    assert summed(shown(store), "mesh_requests_total") == 701


def test_two_servers_on_one_store_answer_scrapes_alike(tmp_path):
    with (
        served(tmp_path, [pinned_one()], {"small": "Paris"}) as one,
        served(tmp_path, [pinned_one()], {"small": "Paris"}) as two,
    ):
        body = b'{"model": "one", "messages": [{"role": "user", "content": "capital of France?"}]}'
        for url in (one.url, two.url, two.url):
            request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
            urllib.request.urlopen(request, timeout=10).read()
        end = time.monotonic() + 5
        while summed(shown(one.store), "mesh_requests_total") < 3 and time.monotonic() < end:
            time.sleep(0.02)
        texts = []
        for url in (one.url, two.url):
            with urllib.request.urlopen(f"{url}/metrics", timeout=5) as reply:
                assert reply.headers["content-type"] == CONTENT_TYPE
                texts.append(reply.read().decode())
    assert shared(texts[0]) == shared(texts[1])
    values = parsed(texts[0])
    assert values["mesh_requests_total", "one", "small", "ok"] == 3
    assert values["mesh_requests_in_flight", "tested"] == 1  # the scrape


# -- once and only once ------------------------------------------------------------------------------------------------


def test_a_transaction_that_fails_counts_nothing_and_its_retry_counts_once(store):
    put(store, numbered(0))
    before = store.counters()
    no_cost = (
        "CREATE TRIGGER broken BEFORE INSERT ON counter WHEN new.metric = 'tokens' BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    store._file.writing.execute(no_cost)
    with pytest.raises(StoreError):
        put(store, numbered(1), numbered(2))
    assert store.counters() == before
    assert len(store.find(Filter()).items) == 1
    writer = TraversalWriter(store)
    writer.put(numbered(1))
    writer.put(numbered(2))
    end = time.monotonic() + 10
    while writer.problem is None and time.monotonic() < end:
        time.sleep(0.01)
    assert writer.problem is not None
    store._file.writing.execute("DROP TRIGGER broken")
    writer.close(timeout_s=10)
    assert writer.written == 2
    assert store.counters() == recounted(store)
    assert summed(shown(store), "mesh_requests_total") == 3


def test_a_record_that_breaks_its_batch_counts_nothing_and_the_others_once(store):
    writer = TraversalWriter(store)
    for number in range(20):
        writer.put(numbered(number, total_us=2**63 + 1) if number == 7 else numbered(number))
    writer.close()
    assert (writer.written, writer.dropped) == (19, 1)
    assert store.counters() == recounted(store)
    assert summed(shown(store), "mesh_requests_total") == 19


class Forgetful(SqliteStore):
    """Commits, and then the news of it is lost: a database server's connection that breaks at COMMIT."""

    failures = 2

    def write(self, entries) -> None:
        super().write(entries)
        if self.failures:
            self.failures -= 1
            raise StoreError(str(self.path), "the connection was lost.")


def test_a_commit_whose_news_was_lost_is_not_counted_again(tmp_path):
    store = Forgetful(tmp_path)
    writer = TraversalWriter(store)
    for number in range(100):
        writer.put(numbered(number))
    writer.close(timeout_s=10)
    assert store.failures == 0
    assert store.counters() == recounted(store)
    assert summed(shown(store), "mesh_requests_total") == 100
    store.close()


def test_what_was_dropped_is_counted_nowhere_but_as_dropped(store):
    writer = TraversalWriter(store, max_queued=10)
    metrics = Metrics(store, writer, replica="r")
    lock = sqlite.connect(store.path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    writer.put(numbered(0))
    end = time.monotonic() + 5
    while writer.queued and time.monotonic() < end:
        time.sleep(0.005)
    for number in range(1, 31):
        writer.put(numbered(number))
    values = parsed(metrics.render().decode())
    assert values["mesh_records_queued", "r"] == 10
    assert values["mesh_records_dropped_total", "r"] == 20
    assert summed(values, "mesh_requests_total") == 0  # and a scrape does not wait for the lock
    lock.execute("ROLLBACK")
    lock.close()
    writer.close()
    values = parsed(metrics.render().decode())
    assert values["mesh_records_dropped_total", "r"] == 20
    assert summed(values, "mesh_requests_total") == 11


def paused() -> Traversal:
    """A review that waits: the small model has answered, a person is asked."""
    traversal = samples.escalated()
    hops = [
        *traversal.hops[:2],
        HopRecord((2,), "person", Kind.HUMAN, 1, [EdgeRecord("small", "person", "ok")], outcome="waiting"),
    ]
    return replace(traversal, hops=hops, outcome=Ended.REVIEW, model=None, cost_nusd=700, total_us=320_000)


def resumed() -> Traversal:
    """The same request, answered after an hour of waiting."""
    before = paused()
    hops = [*before.hops[:2], replace(before.hops[2], outcome="rejected"), *samples.escalated().hops[3:]]
    return replace(
        before,
        hops=hops,
        outcome=Ended.OK,
        model="premium",
        cost_nusd=2_214_700,
        total_us=3_600 * 10**6 + 2_900_000,
        suspended_us=3_600 * 10**6,
    )


@pytest.mark.parametrize(
    "batches", [[[paused, resumed]], [[paused], [resumed]], [[paused], [paused, resumed], [resumed]]]
)
def test_a_review_that_is_resumed_ends_twice_and_pays_once(store, batches):
    for batch in batches:
        put(store, *(make() for make in batch))
    values = shown(store)
    assert values["mesh_requests_total", "support", "none", "review"] == 1
    assert values["mesh_requests_total", "support", "premium", "ok"] == 1
    assert summed(values, "mesh_cost_nusd_total") == 2_214_700
    assert values["mesh_cost_nusd_total", "support", "premium"] == 2_214_000
    assert values["mesh_tokens_total", "input"] == 212 + 424
    assert values["mesh_hops_total", "support", "small", "ok"] == 1
    assert values["mesh_hops_total", "support", "person", "waiting"] == 1
    assert values["mesh_hops_total", "support", "person", "rejected"] == 1
    assert values["mesh_request_seconds_count", "support"] == 2
    assert values["mesh_request_seconds_sum", "support"] == pytest.approx(0.32 + 2.9)


def test_a_record_that_gets_feedback_or_a_correction_is_no_second_request(store):
    put(store, samples.escalated())
    judged = samples.escalated()
    judged.quality = [{"source": "user", "value": 1.0}]
    judged.cost_nusd += 5
    put(store, judged)
    values = shown(store)
    assert summed(values, "mesh_requests_total") == summed(values, "mesh_request_seconds_count") == 1
    assert summed(values, "mesh_cost_nusd_total") == judged.cost_nusd
    judged.cost_nusd = 0  # a counter never falls
    put(store, judged)
    assert summed(shown(store), "mesh_cost_nusd_total") == samples.escalated().cost_nusd + 5


@examples(30)
@given(st.lists(st.lists(st.integers(0, 14), max_size=6), max_size=8))
def test_however_often_and_in_whatever_batches_each_traversal_counts_once(batches):
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder))
        for batch in batches:
            put(store, *map(numbered, batch))
        assert {s: n for s, n in store.counters().items() if n} == {s: n for s, n in recounted(store).items() if n}
        store.close()


def test_all_requests_are_in_both_histograms():
    counts = [counts_of(make().to_json()) for make in MADE]
    for each in counts:
        assert sum(n for series, n in each.items() if series.metric == REQUESTS) == 1
        for metric, bounds in (("request_us", REQUEST_BOUNDS_US), ("overhead_us", OVERHEAD_BOUNDS_US)):
            found = [series.labels[1] for series in each if series.metric == bucket(metric)]
            assert len(found) == 1
            assert found[0] in {*map(str, bounds), "inf"}


# -- trouble -----------------------------------------------------------------------------------------------------------


def test_without_its_store_a_replica_still_shows_its_own_figures(store, caplog):
    put(store, numbered(0))
    writer = TraversalWriter(store)
    metrics = Metrics(store, writer, replica="r")
    metrics.watch("mesh_something", "Something.", lambda: 7)
    folder = store.path.parent
    moved = folder.rename(folder.with_name("moved"))
    folder.write_text("a file where the store should be")
    values = parsed(metrics.render().decode())
    assert values == {
        ("mesh_store_up", "r"): 0,
        ("mesh_records_queued", "r"): 0,
        ("mesh_records_dropped_total", "r"): 0,
        ("mesh_something", "r"): 7,
    }
    assert "without counters" in caplog.text
    folder.unlink()
    moved.rename(folder)
    values = parsed(metrics.render().decode())
    assert values["mesh_store_up", "r"] == 1
    assert summed(values, "mesh_requests_total") == 1
    writer.close()


def test_a_watched_figure_is_read_at_each_scrape(store):
    writer = TraversalWriter(store)
    metrics, figures = Metrics(store, writer, replica=f"host-{os.getpid()}"), iter([3, 4])
    metrics.watch("mesh_figure", "A figure.", lambda: next(figures))
    for expected in (3, 4):
        assert parsed(metrics.render().decode())["mesh_figure", f"host-{os.getpid()}"] == expected
    writer.close()
