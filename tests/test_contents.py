"""Content is kept apart, claimed once, found by its owner, gone when its time is over, and erased when asked."""

import asyncio
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from budgets.memory import MemoryLedger
from mesh.errors import RequestError, StoreError
from mesh.store.contents import Content, Whose, forget, sweep_forever, viewed
from mesh.store.open import open_contents
from mesh.store.sqlite_contents import SqliteContents
from mesh.vocabulary import Purpose
from tests.stands import SqliteStand, postgres_stand

HOUR_US = 3_600_000_000
CANARY = b"canary-" + b"x" * 5_000


@pytest.fixture(params=["sqlite", "postgres"])
def stand(request, tmp_path):
    if request.param == "sqlite":
        return SqliteStand(tmp_path / ".mesh", SqliteContents)
    return postgres_stand(open_contents, "content_now")


@pytest.fixture
def store(stand):
    opened = stand.open()
    yield opened
    opened.close()


def piece(key="k", data=b"text", tenant="acme", **fields) -> Content:
    return Content(tenant=tenant, purpose=fields.pop("purpose", Purpose.CACHE), key=key, data=data, **fields)


def data_of(store, key="k", tenant="acme", purpose=Purpose.CACHE):
    found = store.get(tenant, purpose, key)
    return None if found is None else found.data


def test_content_is_read_as_it_was_kept_until_its_end(stand, store):
    store.put(piece(data=bytes(range(256)), user="ann", request_id="r1"), HOUR_US)
    found = store.get("acme", Purpose.CACHE, "k")
    assert (found.data, found.user, found.request_id, found.purpose) == (bytes(range(256)), "ann", "r1", Purpose.CACHE)
    assert found.created_us == store.now_us()
    assert found.expires_us == store.now_us() + HOUR_US
    stand.move(HOUR_US - 1)
    assert data_of(store) is not None
    stand.move(1)
    assert data_of(store) is None


def test_another_tenant_purpose_or_key_is_other_content(store):
    store.put(piece(), HOUR_US)
    assert data_of(store, tenant="beta") is None
    assert data_of(store, purpose=Purpose.REVIEW) is None
    assert data_of(store, key="K") is None
    store.put(piece(data=b"beta's", tenant="beta"), HOUR_US)
    assert (data_of(store), data_of(store, tenant="beta")) == (b"text", b"beta's")


def test_of_all_who_claim_a_name_at_once_one_gets_it(stand):
    stores = [stand.open() for _ in range(3)]
    start = threading.Barrier(24)

    def claim(number: int) -> Content | None:
        start.wait()
        found: Content | None = stores[number % 3].claim(piece(data=b"%d" % number), HOUR_US)
        return found

    with ThreadPoolExecutor(24) as threads:
        found = list(threads.map(claim, range(24)))
    winner = found.index(None)
    assert found.count(None) == 1
    assert {each.data for each in found if each is not None} == {b"%d" % winner}
    for opened in stores:
        opened.close()


def test_a_name_can_be_claimed_again_when_its_content_has_ended(stand, store):
    assert store.claim(piece(data=b"first"), HOUR_US) is None
    assert store.claim(piece(data=b"second"), HOUR_US).data == b"first"
    stand.move(HOUR_US)
    assert store.claim(piece(data=b"third"), HOUR_US) is None
    assert data_of(store) == b"third"


def test_a_swap_takes_place_only_on_the_version_that_was_read(stand, store):
    store.put(piece(data=b"one"), HOUR_US)
    seen = store.get("acme", Purpose.CACHE, "k")
    assert store.swap(piece(data=b"two", request_id="r", version=seen.version))
    assert not store.swap(piece(data=b"three", version=seen.version))
    now = store.get("acme", Purpose.CACHE, "k")
    assert (now.data, now.request_id, now.expires_us) == (b"two", "r", seen.expires_us)
    stand.move(HOUR_US)
    assert not store.swap(piece(data=b"late", version=now.version))


def test_what_was_erased_and_kept_anew_has_another_version(store):
    versions = set()
    for _ in range(5):
        store.put(piece(), HOUR_US)
        versions.add(store.get("acme", Purpose.CACHE, "k").version)
    assert len(versions) == 5
    seen = store.get("acme", Purpose.CACHE, "k")
    assert not store.delete("acme", Purpose.CACHE, "k", version=seen.version - 1)
    assert store.delete("acme", Purpose.CACHE, "k", version=seen.version)
    assert not store.delete("acme", Purpose.CACHE, "k")


def test_forgetting_erases_what_fits_all_that_is_asked(store):
    for tenant in ("acme", "beta"):
        for user in ("ann", "bob", None):
            store.put(piece(f"{user}", tenant=tenant, user=user, request_id=f"r-{tenant}-{user}"), HOUR_US)
            store.put(piece(f"{user}", tenant=tenant, user=user, purpose=Purpose.REVIEW), HOUR_US)
    assert store.forget(Whose(request_id="r-acme-ann")) == 1
    assert store.forget(Whose(user="ann", tenant="beta")) == 2
    assert data_of(store, "ann", purpose=Purpose.REVIEW) == b"text"
    assert store.forget(Whose(user="ann")) == 1
    assert store.forget(Whose(tenant="acme")) == 4
    assert store.forget(Whose(tenant="acme")) == 0
    assert data_of(store, "bob", tenant="beta") == b"text"
    assert data_of(store, "None", tenant="beta") == b"text"


def test_forgetting_nothing_in_particular_is_refused():
    with pytest.raises(RequestError, match="tenant, a user or a request"):
        Whose()


@pytest.mark.parametrize("key", ["", "k" * 513])
def test_a_key_that_is_too_long_or_empty_is_refused(key):
    with pytest.raises(RequestError, match="1 to 512"):
        piece(key)


def test_a_sweep_erases_what_has_ended_in_steps_and_nothing_else(stand, store):
    for number in range(1_100):
        store.put(piece(str(number)), HOUR_US)
    store.put(piece("later"), 2 * HOUR_US)
    stand.move(HOUR_US)
    steps = 1
    while store.sweep():
        steps += 1
    assert steps == 3
    assert store.forget(Whose(tenant="acme")) == 1


def test_every_replica_sweeps_until_it_ends(stand, store):
    async def go() -> None:
        sweeping = asyncio.create_task(sweep_forever(store, 0.01))
        store.put(piece(), HOUR_US)
        stand.move(HOUR_US)
        for _ in range(500):
            await asyncio.sleep(0.01)
            if store.forget(Whose(tenant="acme")) == 0:
                break
            store.put(piece(), -1)
        else:
            raise AssertionError("nothing was swept")
        sweeping.cancel()

    asyncio.run(go())


def test_forgetting_is_in_the_audit_log_without_the_users_name_and_the_books_verify(store):
    async def go() -> None:
        book = MemoryLedger()
        store.put(piece(user="ann@example.com"), HOUR_US)
        whose = Whose(tenant="acme", user="ann@example.com")
        assert await forget(store, book, whose, "ada", "article 17") == 1
        (entry,) = await book.entries()
        assert entry.chain == "acme"
        assert entry.data["verb"] == "content.forget"
        assert entry.data["after"] == {"erased": 1}
        assert entry.data["reason"] == "article 17"
        assert b"ann@" not in entry.body
        assert entry.data["subject"].startswith("tenant:acme user:sha256:")
        assert await book.verify() is None

    asyncio.run(go())


def test_who_looks_at_content_is_in_the_audit_log(store):
    async def go() -> None:
        book = MemoryLedger()
        assert await viewed(store, book, "acme", Purpose.CACHE, "k", actor="ada") is None
        assert await book.entries() == []
        store.put(piece(request_id="r1"), HOUR_US)
        found = await viewed(store, book, "acme", Purpose.CACHE, "k", actor="ada", reason="a complaint")
        assert found is not None
        assert found.data == b"text"
        (entry,) = await book.entries()
        assert (entry.data["actor"], entry.data["verb"]) == ("ada", "content.view")
        assert entry.data["after"] == {"request_id": "r1"}
        assert await book.verify() is None

    asyncio.run(go())


# -- what only the embedded store can show ----------------------------------------------------------------------------


def test_the_file_is_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        store = SqliteContents(tmp_path / "deep")
        store.put(piece(), HOUR_US)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "deep").iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert modes == {"content.db": 0o600, "content.db-wal": 0o600, "content.db-shm": 0o600}


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path):
    SqliteContents(tmp_path).close()
    (tmp_path / "content.db").chmod(0o644)
    SqliteContents(tmp_path).close()
    assert stat.S_IMODE((tmp_path / "content.db").stat().st_mode) == 0o600


def test_forgotten_content_is_on_no_page_of_any_file(tmp_path):
    store = SqliteContents(tmp_path)
    for number in range(50):
        store.put(piece(str(number), CANARY), HOUR_US)
    held = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert CANARY[:200] in held
    assert store.forget(Whose(tenant="acme")) == 50
    held = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert CANARY[:16] not in held
    store.close()


def test_content_lies_in_a_file_of_its_own(tmp_path):
    from mesh.store.sqlite import SqliteStore

    traversals, contents = SqliteStore(tmp_path), SqliteContents(tmp_path)
    contents.put(piece(data=CANARY), HOUR_US)
    assert traversals.path != contents.path
    files = [file.read_bytes() for file in tmp_path.iterdir() if file.name.startswith("traces")]
    assert files
    assert not any(CANARY[:16] in file for file in files)
    traversals.close()
    contents.close()


def test_a_store_of_another_kind_is_refused(tmp_path):
    from mesh.store.sqlite import SqliteStore

    SqliteStore(tmp_path).close()
    (tmp_path / "traces.db").rename(tmp_path / "content.db")
    with pytest.raises(StoreError, match="another program"):
        SqliteContents(tmp_path)
