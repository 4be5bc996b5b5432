"""Tenants, keys and the directory of both, without a server: every rule at its edges."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgets.account import Quota
from budgets.clerk import Clerk
from budgets.directory import NOBODY_KNOWN, Directory, changed
from budgets.keys import Key, fits, hash_of, key_of, new_secret, public_of
from budgets.ledger import Act, Override
from budgets.limits import held, limit_at, set_limits
from budgets.memory import MemoryLedger
from budgets.payer import NOBODY, Payer
from budgets.projection import projected
from budgets.register import Item
from budgets.tenants import DECLARED, MAX_PARENTS, Caps, Tenant, must_be_sound, parents_of, tenant_of
from mesh.errors import ConfigError, RegisterConflictError
from mesh.vocabulary import Kept, Priority, Role, Scope, Sla
from tests.ledgers import NOVEMBER_US, TurnedClock, request

run = asyncio.run
FULL = Tenant(
    name="acme", parent="corp", zone="Europe/Vienna", month=Caps(Quota(5, 4, 3), Quota(4)), session=Caps(Quota(2)),
    workflow=Caps(Quota(steps=9)), sla=Sla.FREE, priority=Priority.BEST, escalation=True, escalation_percent=10,
    escalation_window_s=60, graphs=("a",), tiers=("b", "c"), regions=("eu",), requests_per_minute=6, concurrency=2,
    closed=True, source=DECLARED,
)  # fmt: skip


def test_a_tenant_is_the_same_after_it_was_kept():
    assert tenant_of("acme", FULL.to_json()) == FULL
    assert tenant_of("acme", Tenant(name="acme").to_json()) == Tenant(name="acme")
    assert tenant_of("acme", {}) == Tenant(name="acme"), "what an older version did not write"
    assert tenant_of("acme", {**FULL.to_json(), "colour": "red"}) == FULL, "what a newer version writes"


def test_a_key_is_the_same_after_it_was_kept():
    key = Key(
        public="0" * 12, tenant="acme", role=Role.READ_ONLY, sha256="ab", created_us=1, expires_us=2, revoked_us=3,
        source=DECLARED,
    )  # fmt: skip
    assert key_of("0" * 12, key.to_json()) == key


def test_what_an_sla_sets_gives_way_to_what_the_tenant_says():
    free, pro, best = (Tenant(name="t", sla=sla) for sla in (Sla.FREE, Sla.PRO, Sla.ENTERPRISE))
    assert [each.preferred for each in (free, pro, best)] == [Priority.CHEAPEST, Priority.CHEAPEST, Priority.BEST]
    assert [each.may_escalate for each in (free, pro, best)] == [False, True, True]
    assert free.level.rank < pro.level.rank < best.level.rank
    assert (FULL.preferred, FULL.may_escalate, FULL.most_escalations_percent) == (Priority.BEST, True, 10)
    assert replace(FULL, escalation=False).most_escalations_percent == 0
    assert (free.most_escalations_percent, pro.most_escalations_percent) == (0, None)
    assert not replace(pro, escalation=False).may_escalate


def test_a_graph_that_is_pinned_is_allowed_with_its_tier():
    tenant = Tenant(name="t", graphs=("support",), tiers=("light",))
    allowed = ["support", "support/light", "support/premium", "other", "other/light", "suppor", "support/"]
    assert [tenant.may_ask(name) for name in allowed] == [True, True, False, False, False, False, True]
    assert all(Tenant(name="t").may_ask(name) for name in allowed)
    assert list(tenant.of(["premium", "light"])) == ["light"]
    assert list(Tenant(name="t").of(["premium", "light"])) == ["premium", "light"]
    assert (tenant.paced, replace(tenant, concurrency=0).paced, replace(tenant, requests_per_minute=0).paced) == (
        False, True, True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "A"}, "not a name"), ({"name": ""}, "not a name"), ({"name": "a" * 65}, "not a name"),
        ({"name": "a:b"}, "not a name"), ({"name": ".."}, "not a name"), ({"zone": "x/y"}, "time zone"),
        ({"requests_per_minute": -1}, "requests_per_minute"), ({"concurrency": -1}, "concurrency"),
        ({"escalation_percent": -1}, "escalation_percent"), ({"escalation_percent": 101}, "more than 100"),
        ({"escalation_window_s": 0}, "less than a second"), ({"month": Caps(Quota(-1))}, "month.nusd"),
        ({"session": Caps(Quota(), Quota(tokens=-1))}, "session.tokens"),
        ({"workflow": Caps(Quota(steps=1), Quota(steps=2))}, "workflow.steps"),
    ],
)  # fmt: skip
def test_a_tenant_that_is_not_sound_is_told_which_field(changes, said):
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        must_be_sound(replace(FULL, **changes))


def test_a_tenant_at_the_edge_is_sound():
    nothing, equal = Quota(0, 0, 0, 0), Quota(1, 1, 1, 1)
    must_be_sound(replace(FULL, name="a" * 64, requests_per_minute=0, concurrency=0, escalation_percent=0))
    must_be_sound(replace(FULL, escalation_percent=100, escalation_window_s=1, month=Caps(nothing, nothing)))
    must_be_sound(replace(FULL, session=None, workflow=Caps(equal, equal)))


def test_parents_are_told_nearest_first_and_never_in_a_circle():
    family = {name: Tenant(name=name, parent=parent) for name, parent in (("a", "b"), ("b", "c"), ("c", None))}
    assert [each.name for each in parents_of("a", family)] == ["b", "c"]
    assert parents_of("c", family) == ()
    for name, parent in (("c", "a"), ("c", "c"), ("c", "nobody")):
        with pytest.raises(ConfigError):
            parents_of("a", family | {name: Tenant(name=name, parent=parent)})
    chain = {f"t{n}": Tenant(name=f"t{n}", parent=f"t{n + 1}") for n in range(MAX_PARENTS + 1)}
    end = f"t{MAX_PARENTS}"
    assert len(parents_of("t0", chain | {end: Tenant(name=end)})) == MAX_PARENTS
    with pytest.raises(ConfigError, match="more than 8 parents"):
        parents_of("t0", chain | {f"t{MAX_PARENTS + 1}": Tenant(name="x")})


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_every_key_has_the_form_and_fits_itself_alone(first, second):
    drawn = iter([first, second])
    text = new_secret(lambda count: next(drawn)[:count])
    public = public_of(text)
    assert public is not None
    assert len(public) == 12
    assert len(text) == len("sk-mesh-") + 12 + 1 + 43
    key = Key(public=public, tenant="t", role=Role.TENANT, sha256=hash_of(text), created_us=0)
    assert fits(text, key)
    assert not fits(text, None)
    assert not fits(text + "x", key)
    assert not fits("", key)


def test_keys_are_drawn_from_all_bits_of_the_randomness():
    texts = {new_secret(lambda count, at=at: bytes([at]) * count) for at in range(256)}
    assert len({text.rpartition("-")[2] for text in texts}) == 256
    most = new_secret(lambda count: b"\xff" * count)
    least = new_secret(lambda count: b"\x00" * count)
    assert least == "sk-mesh-" + "0" * 12 + "-" + "0" * 43
    assert public_of(most)
    for wrong in (least[1:], least + "0", least.replace("mesh", "Mesh"), least[:-1], least[:-1] + "-", least + "\n"):
        assert public_of(wrong) is None


def test_a_key_ends_when_it_expires_and_when_it_is_revoked():
    key = Key(public="p", tenant="t", role=Role.TENANT, sha256="", created_us=0, expires_us=10)
    assert [key.usable(at) for at in (9, 10)] == [True, False]
    assert [key.state(at) for at in (9, 10)] == ["usable", "expired"]
    assert replace(key, revoked_us=5).state(1) == "revoked"
    assert replace(key, expires_us=None).usable(2**62)


def item(kind: str, name: str, version: int, body) -> Item:
    import orjson

    return Item(kind, name, orjson.dumps(body), version)


def known(*tenants: Tenant, keys=()) -> Directory:
    items = [item(Kept.TENANT, one.name, n, one.to_json()) for n, one in enumerate(tenants, 1)]
    items += [item(Kept.KEY, key.public, n, key.to_json()) for n, key in enumerate(keys, 100)]
    return changed(NOBODY_KNOWN, items, session=Caps(Quota(1)))


def a_key(tenant: str, **changes) -> tuple[str, Key]:
    text = new_secret()
    made = Key(public=public_of(text) or "", tenant=tenant, role=Role.TENANT, sha256=hash_of(text), created_us=0)
    return text, replace(made, **changes)


def test_a_caller_is_found_by_a_usable_key_of_a_tenant_that_may_pay():
    text, key = a_key("acme", expires_us=10)
    found = known(Tenant(name="acme", parent="corp"), Tenant(name="corp"), keys=[key]).caller(text, 9)
    assert found is not None
    assert (found.tenant.name, found.role, found.key) == ("acme", Role.TENANT, key.public)
    assert [each.name for each in found.payer.parents] == ["corp"]
    assert found.payer.session == Caps(Quota(1))
    families = {
        "closed": [Tenant(name="acme", closed=True)],
        "its parent is": [Tenant(name="acme", parent="corp"), Tenant(name="corp", closed=True)],
        "no parent": [Tenant(name="acme", parent="corp")],
        "no tenant": [Tenant(name="corp")],
    }
    for why, family in families.items():
        directory = known(*family, keys=[key])
        assert directory.caller(text, 9) is None, why
        assert directory.usable_keys(9) == [], why
    sound = known(Tenant(name="acme"), keys=[key])
    assert sound.caller(text, 10) is None
    assert sound.caller(text + "0", 9) is None
    assert sound.usable_keys(9) == [key]
    assert sound.usable_keys(10) == []


def test_a_directory_is_open_until_there_is_a_tenant_and_takes_over_what_is_newer():
    assert NOBODY_KNOWN.open
    first = known(Tenant(name="acme"))
    assert not first.open
    assert known(Tenant(name="acme", closed=True)).open
    later = changed(
        first,
        [item("bypass", "x", 7, {}), item(Kept.TENANT, "acme", 9, Tenant(name="acme", zone="Asia/Tokyo").to_json())],
    )
    assert (later.version, later.tenants["acme"].zone, dict(later.versions)) == (
        9, "Asia/Tokyo", {(Kept.TENANT, "acme"): 9},
    )  # fmt: skip
    assert first.tenants["acme"].zone == "UTC", "a directory never changes"


def clerk() -> tuple[Clerk, MemoryLedger, TurnedClock]:
    clock = TurnedClock()
    book = MemoryLedger(clock)
    return Clerk(book, "ada"), book, clock


def acts(book) -> list[str]:
    return [entry.data["verb"] for entry in run(book.entries())]


def test_a_clerk_adds_and_changes_what_is_sound_and_tells_of_what_is_not():
    made, book, _ = clerk()
    run(made.add(Tenant(name="corp")))
    run(made.add(Tenant(name="acme", parent="corp"), "why"))
    for tenant in (Tenant(name="acme"), Tenant(name="x", parent="y"), Tenant(name="x", zone="y")):
        with pytest.raises(ConfigError):
            run(made.add(tenant))
    assert run(made.set("acme", {"zone": "Asia/Tokyo"})).zone == "Asia/Tokyo"
    for name, changes in (("nobody", {}), ("acme", {"zone": "y"}), ("corp", {"parent": "acme"})):
        with pytest.raises(ConfigError):
            run(made.set(name, changes))
    assert acts(book) == ["tenant.add", "tenant.add", "tenant.set"]
    assert [entry.chain for entry in run(book.entries())] == ["corp", "acme", "acme"]
    assert run(book.entries())[1].data["reason"] == "why"


def test_a_key_is_rotated_once_with_an_overlap_that_never_lengthens_its_life():
    made, book, clock = clerk()
    run(made.add(Tenant(name="acme")))
    with pytest.raises(ConfigError, match="is over"):
        run(made.new_key("acme", Role.TENANT, NOVEMBER_US))
    with pytest.raises(ConfigError):
        run(made.new_key("nobody", Role.TENANT))
    lasting = run(made.new_key("acme", Role.OPERATOR))
    short = run(made.new_key("acme", Role.TENANT, NOVEMBER_US + 5))
    new, old = run(made.rotate(lasting.key.public, 100))
    assert (new.key.role, old.expires_us) == (Role.OPERATOR, NOVEMBER_US + 100)
    _, ending = run(made.rotate(short.text, 100))
    assert ending.expires_us == NOVEMBER_US + 5, "it would have ended before"
    clock.now += 100
    with pytest.raises(ConfigError, match="is expired"):
        run(made.rotate(lasting.key.public, 100))
    with pytest.raises(ConfigError, match="there is none"):
        run(made.revoke("nothing"))
    assert run(made.revoke(f"sk-mesh-{new.key.public}")).revoked_us == clock.now
    reasons = [
        entry.data["reason"] for entry in run(book.entries()) if entry.data["verb"] in ("key.rotate", "key.expire")
    ]
    assert reasons[:2] == [f"in place of {lasting.key.public}", f"replaced by {new.key.public}"]


def test_what_a_file_declares_is_kept_once_and_ends_with_it():
    made, book, clock = clerk()
    corp = Tenant(name="corp", source=DECLARED)
    acme = Tenant(name="acme", parent="corp", source=DECLARED)
    _, key = a_key("acme", source=DECLARED)
    for _ in range(3):
        run(made.declare({"acme": acme, "corp": corp}, {key.public: key}))
    assert acts(book) == ["tenant.declare", "tenant.declare", "key.declare"]
    assert run(made.directory()).keys[key.public].created_us == NOVEMBER_US
    clock.now += 7
    longer = replace(key, expires_us=NOVEMBER_US + 99)
    run(made.declare({"acme": acme, "corp": corp}, {key.public: longer}))
    assert run(made.directory()).keys[key.public] == replace(longer, created_us=NOVEMBER_US)
    run(made.declare({"corp": corp}, {}))
    directory = run(made.directory())
    assert (directory.tenants["acme"].closed, directory.tenants["corp"].closed) == (True, False)
    assert directory.keys[key.public].revoked_us == NOVEMBER_US + 7
    run(made.declare({"acme": acme, "corp": corp}, {key.public: longer}))
    assert not run(made.directory()).tenants["acme"].closed
    assert run(made.directory()).keys[key.public].revoked_us is None
    for refused in (made.set("acme", {}), made.revoke(key.public), made.rotate(key.public, 1)):
        with pytest.raises(ConfigError, match=r"mesh\.toml"):
            run(refused)
    run(made.add(Tenant(name="own")))
    own = run(made.new_key("own", Role.TENANT))
    with pytest.raises(ConfigError, match="was added by a command"):
        run(made.declare({"own": replace(corp, name="own")}, {}))
    with pytest.raises(ConfigError, match="was made by a command"):
        run(made.declare({}, {own.key.public: own.key}))
    assert not run(made.directory()).tenants["own"].closed


def test_of_a_file_that_is_wrong_nothing_is_kept():
    made, book, _ = clerk()
    good = Tenant(name="good", source=DECLARED)
    for wrong in (
        Tenant(name="bad", parent="bad"),
        Tenant(name="bad", parent="nobody"),
        Tenant(name="bad", zone="x/y"),
    ):
        with pytest.raises(ConfigError):
            run(made.declare({"good": good, "bad": replace(wrong, source=DECLARED)}, {}))
    assert acts(book) == []


def test_of_two_clerks_who_change_the_same_one_is_told():
    made, book, _ = clerk()
    run(made.add(Tenant(name="acme")))
    stale = run(made.directory())
    run(made.set("acme", {"zone": "Asia/Tokyo"}))
    with pytest.raises(RegisterConflictError):
        run(made._put_tenant(stale, Tenant(name="acme"), "tenant.set", ""))
    assert len(acts(book)) == 2


def test_limits_that_are_set_win_narrower_and_timed_ones_first():
    caps = Caps(Quota(1, 2, 3, 4), Quota(1))
    overrides = [
        Override("tenant:a", 0, 10, None),
        Override("tenant:a:2026-11", 1, 20, 15),
        Override("tenant:a", 0, 99, 9, 50),
    ]
    assert held(caps, "tenant:a:2026-11", overrides, 49) == Caps(Quota(99, 20, 3, 4), Quota(9, 15))
    assert held(caps, "tenant:a:2026-11", overrides, 50) == Caps(Quota(10, 20, 3, 4), Quota(None, 15))
    assert held(caps, "tenant:a:2026-12", overrides, 50) == Caps(Quota(10, 2, 3, 4), Quota())
    assert held(caps, "tenant:b:2026-11", overrides, 0) == caps


def test_what_is_not_given_stays_as_it_is_when_limits_are_set():
    made, book, _ = clerk()
    run(made.add(Tenant(name="acme", month=Caps(Quota(100, 200), Quota(80)), session=Caps(Quota(7)))))
    act = Act("ada", "budget.set", "tenant:acme", tenant="acme")
    assert [run(limit_at(book, "tenant:acme", at)) for at in range(4)] == [100, 200, None, None]
    assert run(limit_at(book, "session:acme:s", 0)) == 7
    assert run(limit_at(book, "workflow:acme:w", 0)) is None
    (one,) = run(set_limits(book, "tenant:acme", {0: 150}, {}, act))
    assert (one.dimension, one.hard, one.soft, one.until_us) == (0, 150, 80, None)
    two = run(set_limits(book, "tenant:acme", {1: None}, {0: None}, act, until_us=NOVEMBER_US + 5))
    assert [(each.dimension, each.hard, each.soft) for each in two] == [(0, 150, None), (1, None, None)]
    assert run(limit_at(book, "tenant:acme", 1)) is None
    gone = run(set_limits(book, "tenant:acme", {}, {}, act, clear=True))
    assert [(each.dimension, each.removed) for each in gone] == [(0, True), (0, True), (1, True)]
    assert [run(limit_at(book, "tenant:acme", at)) for at in range(2)] == [100, 200]
    assert run(book.overrides()) == []


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1_000_000)


def months(payer: Payer, moment: str) -> list[str]:
    return [account.id for account in payer.accounts(request("r"), None, None, at(moment))[1:]]


def test_months_begin_and_end_where_the_tenant_is_and_where_its_parents_are():
    tenant = Tenant(name="acme", zone="Pacific/Auckland", parent="corp")
    payer = Payer(tenant, (Tenant(name="corp", zone="America/New_York"),))
    assert months(payer, "2026-11-30T10:59:59Z") == ["tenant:acme:2026-11", "tenant:corp:2026-11"]
    assert months(payer, "2026-11-30T11:00:00Z") == ["tenant:acme:2026-12", "tenant:corp:2026-11"]
    assert months(payer, "2026-12-01T04:59:59Z") == ["tenant:acme:2026-12", "tenant:corp:2026-11"]
    assert months(payer, "2026-12-01T05:00:00Z") == ["tenant:acme:2026-12", "tenant:corp:2026-12"]
    assert months(payer, "2026-11-30T10:59:59Z") == ["tenant:acme:2026-11", "tenant:corp:2026-11"], "clocks go back"


@pytest.mark.parametrize("moment", ["2026-03-29T00:59:59Z", "2026-03-29T01:00:01Z", "2026-10-25T00:30:00Z"])
def test_a_change_of_the_clocks_is_within_its_month(moment):
    payer = Payer(Tenant(name="acme", zone="Europe/Vienna"))
    month = moment[:7]
    assert months(payer, moment) == [f"tenant:acme:{month}"]
    assert (
        payer.resets_us(f"tenant:acme:{month}", at(moment))
        == at(f"{month}-{'31'}T23:59:59+02:00" if month == "2026-03" else f"{month}-31T23:59:59+01:00") + 1_000_000
    )
    assert payer.resets_us("session:acme:s", at(moment)) is None


def test_accounts_carry_the_limits_of_their_scope():
    tenant = Tenant(name="acme", month=Caps(Quota(1, 2, 3), Quota(0, 1, 2)), session=Caps(Quota(7)))
    payer = Payer(tenant, (), Caps(Quota(1)), Caps(Quota(9, steps=4)))
    own, session, workflow, month = payer.accounts(request("r", 5), "s", "w", at("2026-11-22T00:00:00Z"))
    assert own.limit_nusd == 5
    assert (session.scope, session.id, session.limit_nusd) == (Scope.SESSION, "session:acme:s", 7)
    assert (workflow.id, workflow.limit_nusd, workflow.limit_steps) == ("workflow:acme:w", 9, 4)
    assert (month.limit_nusd, month.limit_tokens, month.limit_requests) == (1, 2, 3)
    assert (month.soft_nusd, month.soft_tokens, month.soft_requests) == (0, 1, 2)


def test_months_are_made_once_and_nobody_is_nobody_limits():
    payer = Payer(Tenant(name="acme"))
    first = payer.months(at("2026-11-22T00:00:00Z"))
    assert payer.months(at("2026-11-29T00:00:00Z")) is first
    assert payer.months(at("2026-12-01T00:00:00Z")) is not first
    (_, month) = NOBODY.accounts(request("r"), None, None, at("2026-11-22T00:00:00Z"))
    assert (month.id, month.hard, month.soft) == ("tenant:local:2026-11", Quota(), Quota())


def test_a_month_s_end_is_foretold_in_a_straight_line():
    assert projected(100, "UTC", at("2026-11-16T00:00:00Z")) == 200
    assert projected(100, "UTC", at("2026-11-30T23:59:59Z")) in (100, 101)
    assert projected(0, "UTC", at("2026-11-16T00:00:00Z")) == 0
    assert projected(1_000, "UTC", at("2026-11-01T00:00:01Z")) == 720_000, (
        "the first hour foretells no more than it may"
    )
    assert projected(3, "UTC", at("2026-11-02T00:00:00Z")) == 90
    assert projected(1, "UTC", at("2026-11-21T00:00:00Z")) == 2, "rounded up"
