"""One look at the register a tick; a policy that changes is one entry of the audit log, whoever loads it first."""

import asyncio
from collections import Counter
from types import MappingProxyType

import pysqlite3.dbapi2 as sqlite
import pytest

from budgets.durable import DurableLedger
from budgets.sqlite import SqliteLedgerStore
from mesh.clock import SystemClock
from mesh.config.policy_watch import PolicyWatch, Watching
from mesh.errors import LedgerUnavailableError
from mesh.policy import Number
from mesh.serve.bypasses import Bypasses
from mesh.serve.policies import PolicyActs
from mesh.serve.register import RegisterWatch
from mesh.serve.tenancy import Tenancy
from mesh.vocabulary import EntryKind

NUMBERS = MappingProxyType(
    {"floor": Number(name="floor", default=0.5, unit="score", low=0, high=1, meaning="what passes")}
)


class Counting(SqliteLedgerStore):
    """Counts what it is asked to read."""

    asked: Counter[str]

    def items(self, after):
        self.asked["items"] += 1
        return super().items(after)

    def overrides(self):
        self.asked["overrides"] += 1
        return super().overrides()

    def now_us(self):
        self.asked["now_us"] += 1
        return super().now_us()


class Replica:
    """What one replica follows, on the store of all of them."""

    def __init__(self, folder):
        store = Counting(folder / "ledger.sqlite3", busy_s=0.05)
        store.asked = self.asked = Counter()
        self.book = DurableLedger(store)
        self.policies = PolicyWatch(Watching(folder, {"support": NUMBERS}, lambda name, policy: None))
        tenancy = Tenancy(self.book, SystemClock(), loopback=True)
        acts = PolicyActs(self.book, self.policies, actor="replica")
        self.register = RegisterWatch(self.book, (tenancy, Bypasses(self.book, {}, tenancy.now_us), acts))

    def look(self):
        """A look at the files, twice as a change counts only then, and one at the register."""
        self.policies.look()
        self.policies.look()
        asyncio.run(self.register.look())

    def told(self):
        """(before, after) of the number in each change of a policy that the audit log has."""
        entries = [entry.data for entry in asyncio.run(self.book.entries(kinds=[EntryKind.ACT]))]
        found = [(act["before"], act["after"]) for act in entries if act["verb"] == "policy.change"]
        return [tuple(None if side is None else side["values"]["floor"] for side in change) for change in found]


@pytest.fixture
def replicas(tmp_path):
    both = (Replica(tmp_path), Replica(tmp_path))
    yield both
    for each in both:
        asyncio.run(each.book.close())


def test_an_idle_replica_looks_once_a_tick(replicas):
    one = replicas[0]
    for _ in range(10):
        asyncio.run(one.register.look())
    assert one.asked == {"items": 10, "overrides": 5, "now_us": 1}


def test_a_change_of_a_policy_is_one_act_over_all_replicas_with_before_and_after(tmp_path, replicas):
    one, two = replicas
    file = tmp_path / "support.toml"
    for floor in (None, 0.7, 0.7, 0.9, 0.7):
        if floor is not None:
            file.write_text(f"floor = {floor}\n")
        for replica in (one, two, one):
            replica.look()
    assert one.told() == two.told() == [(None, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 0.7)]
    file.write_text("floor = 7\n")  # refused: nothing changes
    two.look()
    assert len(two.told()) == 4
    assert asyncio.run(one.book.verify()) is None


def test_replicas_that_race_tell_it_once_and_a_store_that_is_away_hears_of_it_later(tmp_path, replicas):
    one, two = replicas
    one.look()
    two.look()
    (tmp_path / "support.toml").write_text("floor = 0.7\n")
    for replica in replicas:
        replica.policies.look()
        replica.policies.look()
    other = sqlite.connect(str(tmp_path / "ledger.sqlite3"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailableError):
        asyncio.run(one.register.look())
    other.execute("ROLLBACK")
    other.close()

    async def race():
        await asyncio.gather(one.register.look(), two.register.look())
        await asyncio.gather(one.register.look(), two.register.look())

    asyncio.run(race())
    assert one.told() == [(None, 0.5), (0.5, 0.7)]
