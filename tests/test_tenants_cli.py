"""`mesh tenant` and `mesh budget`: what an operator types, sees, and finds in the audit log."""

import asyncio
import csv
import io
import json
import re
from datetime import datetime

import pytest
from typer.testing import CliRunner

from budgets.account import Account, Amount
from budgets.address import ledger_url
from budgets.archive import read_archive, wrong_archive
from budgets.keys import hash_of, public_of
from budgets.open import open_ledger
from budgets.period import monthly, period_of
from mesh.cli.main import app_for
from mesh.errors import BudgetExceededError, ConfigError, MeshError
from mesh.vocabulary import Scope

CENT = 10_000_000


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path, monkeypatch):
    """Options that name a store, and the address of its ledger."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    if request.param == "sqlite":
        return ["--store", str(tmp_path)], ledger_url(tmp_path)
    from tests.postgres_server import new_schema

    url, config = new_schema(), tmp_path / "mesh.toml"
    config.write_text(f'[store]\nurl = "{url}"\n')
    return ["--config", str(config)], url


class Shell:
    """Types commands, and looks at the ledger beside them."""

    def __init__(self, options, url):
        self.options, self.url = options, url

    def __call__(self, *arguments, code=0):
        typed = [*arguments, *([] if arguments[1] == "make-key" else self.options)]
        done = CliRunner().invoke(app_for(typed), typed)
        if isinstance(done.exception, MeshError) and code:
            return str(done.exception)
        assert done.exit_code == code, (done.output, done.exception)
        return done.stdout if not code else done.output

    def json(self, *arguments):
        return json.loads(self(*arguments, "--json"))

    def on(self, work):
        async def go():
            book = open_ledger(self.url)
            try:
                return await work(book)
            finally:
                await book.close()

        return asyncio.run(go())

    def spend(self, tenant, nusd, *, session=None, parent=None, name="r", reserved=0, zone="UTC"):
        """Settle a call of a tenant, and hold another."""

        async def work(book):
            now_us = await book.now_us()
            path = [Account(Scope.TENANT, monthly(Scope.TENANT, tenant, zone, now_us))]
            path += [Account(Scope.PARENT, monthly(Scope.TENANT, parent, "UTC", now_us))] if parent else []
            path += [Account(Scope.SESSION, f"session:{tenant}:{session}")] if session else []
            held = await book.reserve(f"{name}:0:1", Amount(nusd, 100, 1), tuple(path))
            await book.settle(held, Amount(nusd, 100, 1), estimated=False)
            if reserved:
                await book.reserve(f"{name}:1:1", Amount(reserved, 50), tuple(path))
            await book.flush()

        self.on(work)

    def acts(self):
        return [each["body"] for each in self.json("budget", "entries", "--kind", "act")]


@pytest.fixture
def mesh(store):
    return Shell(*store)


def test_a_tenant_is_added_changed_and_listed(mesh):
    mesh("tenant", "add", "corp", "--month", "usd=500", "--sla", "enterprise", "--reason", "contract 7")
    caps = ["--month", "usd=100", "--month", "soft_usd=80", "--month", "tokens=1_000_000", "--session", "usd=0.50"]
    pace = ["--requests-per-minute", "600", "--concurrency", "20"]
    made = mesh.json(
        "tenant", "add", "acme", "--parent", "corp", "--zone", "Europe/Vienna", "--graphs", "a, b", *caps, *pace
    )
    assert made["month"]["hard"] == {"nusd": 100 * 10**9, "tokens": 1_000_000, "requests": None, "steps": None}
    assert made["month"]["soft"]["nusd"] == 80 * 10**9
    assert (made["graphs"], made["requests_per_minute"], made["zone"]) == (["a", "b"], 600, "Europe/Vienna")
    changed = mesh.json(
        "tenant", "set", "acme", "--month", "soft_usd=unlimited", "--graphs", "all", "--concurrency", "unlimited",
        "--no-escalation", "--parent", "none", "--close", "--reason", "they left",
    )  # fmt: skip
    assert changed["month"] == {
        "hard": made["month"]["hard"], "soft": {"nusd": None, "tokens": None, "requests": None, "steps": None},
    }  # fmt: skip
    assert (changed["graphs"], changed["concurrency"], changed["parent"], changed["closed"]) == ([], None, None, True)
    assert changed["escalation"] is False
    listed = mesh("tenant", "list")
    assert "corp: enterprise, 0 usable keys" in listed
    assert "acme: pro, 0 usable keys, closed" in listed
    assert "each month: $100, 1,000,000 tokens" in listed
    assert [one["name"] for one in mesh.json("tenant", "list")] == ["acme", "corp"]
    acts = mesh.acts()
    assert [(act["verb"], act["reason"]) for act in acts] == [
        ("tenant.add", "contract 7"), ("tenant.add", ""), ("tenant.set", "they left"),
    ]  # fmt: skip
    assert acts[2]["before"]["concurrency"] == 20
    assert acts[2]["after"]["concurrency"] is None


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["add", "ACME"], "is not a name"),
        (["add", "acme", "--zone", "Mars"], "is no time zone"),
        (["add", "acme", "--parent", "nobody"], "there is no tenant 'nobody'"),
        (["add", "acme", "--month", "usd=-3"], "not negative"),
        (["add", "acme", "--month", "usd"], "is no cap"),
        (["add", "acme", "--month", "tokens=1e3"], "is no number"),
        (["add", "acme", "--month", "usd=1", "--month", "soft_usd=2"], "beyond the hard one"),
        (["add", "acme", "--concurrency", "-1"], "is no number"),
        (["set", "acme"], "there is none"),
        (["keys", "acme"], "there is none"),
        (["rotate", "acme"], "there is none"),
    ],
)
def test_what_cannot_be_is_said_with_the_remedy_and_nothing_is_kept(tmp_path, typed, said):
    mesh = Shell(["--store", str(tmp_path)], ledger_url(tmp_path))
    mesh("tenant", "add", "corp")
    with pytest.raises(ConfigError, match=re.escape(said)):
        raise ConfigError("x", mesh("tenant", *typed, code=1))
    assert [one["name"] for one in mesh.json("tenant", "list")] == ["corp"]
    assert len(mesh.acts()) == 1


def test_a_key_is_shown_once_and_its_life_is_logged_without_it(mesh):
    mesh("tenant", "add", "acme")
    text = mesh("tenant", "keys", "acme", "--new", "--role", "read-only", "--expires", "90d").strip()
    assert public_of(text)
    (key,) = mesh.json("tenant", "keys", "acme")
    assert (key["public"], key["role"], key["state"]) == (public_of(text), "read-only", "usable")
    assert key["expires_us"] - key["created_us"] == pytest.approx(90 * 86_400 * 10**6, rel=0.001)
    rotated = mesh.json("tenant", "rotate", "acme", "--overlap", "1h", "--reason", "yearly")
    assert rotated["role"] == "read-only"
    assert "2 usable keys" in mesh("tenant", "rotate", "acme", code=1)
    assert "is revoked" in mesh("tenant", "revoke", key["public"])
    assert "revoked already" in mesh("tenant", "revoke", key["public"], code=1)
    states = {each["public"]: each["state"] for each in mesh.json("tenant", "keys", "acme")}
    assert states == {key["public"]: "revoked", rotated["public"]: "usable"}
    shown = (
        mesh("tenant", "keys", "acme") + mesh("budget", "export") + mesh("budget", "entries") + mesh("tenant", "list")
    )
    for secret in (text, rotated["key"]):
        assert secret.rpartition("-")[2] not in shown
        assert hash_of(secret) not in shown
    assert [act["verb"] for act in mesh.acts()] == [
        "tenant.add", "key.create", "key.rotate", "key.expire", "key.revoke",
    ]  # fmt: skip
    assert all(act["actor"] for act in mesh.acts())


def test_a_key_for_a_file_is_made_and_nothing_kept(tmp_path):
    told = Shell([], "").json("tenant", "make-key")
    assert (told["public"], told["sha256"]) == (public_of(told["key"]), hash_of(told["key"]))


def test_balances_are_shown_as_a_tree_of_eighty_columns(mesh):
    mesh("tenant", "add", "corp", "--month", "usd=500")
    mesh(
        "tenant",
        "add",
        "acme",
        "--parent",
        "corp",
        "--month",
        "usd=1",
        "--month",
        "soft_usd=0.40",
        "--session",
        "usd=2",
    )
    mesh("tenant", "add", "idle", "--month", "tokens=5")
    for n in range(7):
        mesh.spend("acme", 7 * CENT, session=f"chat-{n}", parent="corp", name=f"r{n}", reserved=CENT if n == 0 else 0)
    shown = mesh("budget", "show")
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80, shown
    assert "\x1b" not in shown
    assert any(re.match(r"corp  \d{4}-\d\d UTC$", line) for line in lines)
    assert any("money    $0.49 + $0.01 reserved of $500" in line for line in lines)
    assert any("money    $0.49 + $0.01 reserved of $1 (50 %), soft $0.40" in line for line in lines)
    assert sum("session chat-" in line for line in lines) == 5
    assert "2 more: --all shows them" in shown
    assert any("tokens   0 of 5" in line for line in lines)
    assert sum("session chat-" in line for line in mesh("budget", "show", "--all").splitlines()) == 7
    (tree,) = mesh.json("budget", "show", "corp")
    (acme,) = tree["below"]
    assert acme["cost_nusd"]["settled"] == tree["cost_nusd"]["settled"] == 49 * CENT
    assert acme["cost_nusd"]["projected"] >= 49 * CENT
    assert datetime.fromisoformat(acme["resets_at"]).day == 1
    (session,) = mesh.json("budget", "show", "session:acme:chat-3")
    assert session["cost_nusd"]["settled"] == 7 * CENT
    assert "Did you mean 'acme'" in mesh("budget", "show", "acmee", code=1)


def test_a_limit_is_set_raised_for_a_while_and_taken_back(mesh):
    mesh("tenant", "add", "acme", "--month", "usd=1", "--month", "soft_usd=0.5")

    async def room(book, nusd):
        account = Account(
            Scope.TENANT, monthly(Scope.TENANT, "acme", "UTC", await book.now_us()), 100 * CENT, soft_nusd=50 * CENT
        )
        try:
            await book.release(await book.reserve("r:0:1", Amount(nusd, 0), (account,)))
        except BudgetExceededError as error:
            return error.limit
        return None

    limit = lambda: mesh.on(lambda book: room(book, 10**12))  # noqa: E731
    assert limit() == 100 * CENT
    assert mesh("budget", "set", "tenant:acme", "--usd", "3").strip() == "tenant:acme: cost_nusd: $3, soft $0.50"
    assert limit() == 300 * CENT
    assert "less than what holds now, $3" in mesh(
        "budget", "raise", "tenant:acme", "--usd", "2", "--until", "2h", code=1
    )
    raised = mesh.json("budget", "raise", "tenant:acme", "--usd", "9", "--until", "2h", "--reason", "a launch")
    assert (raised[0]["hard"], raised[0]["soft"]) == (900 * CENT, 50 * CENT)
    assert limit() == 900 * CENT
    assert "is over" in mesh("budget", "raise", "tenant:acme", "--usd", "10", "--until", "2020-01-01", code=1)
    mesh("budget", "set", "tenant:acme", "--clear")
    assert limit() == 100 * CENT
    for wrong in ("acme", "request:x", "tenant:", "session:acme", "tenant:nobody", "session:nobody:s"):
        assert mesh("budget", "set", wrong, "--usd", "1", code=1)
    assert "--clear" in mesh("budget", "set", "tenant:acme", code=1)
    verbs = [(act["verb"], act["subject"], act["reason"]) for act in mesh.acts()][1:]
    assert verbs == [
        ("budget.set", "tenant:acme", ""), ("budget.raise", "tenant:acme", "a launch"),
        ("budget.set", "tenant:acme", ""), ("budget.set", "tenant:acme", ""),
    ]  # fmt: skip


def test_entries_are_listed_exported_and_verified(mesh):
    mesh("tenant", "add", "acme", "--reason", "=1+1")
    mesh.spend("acme", 3 * CENT)
    listed = mesh("budget", "entries")
    assert "tenant.add tenant:acme: =1+1" in " ".join(listed.split())
    assert "r:0:1: $0.03, 100 tokens" in listed
    assert max(map(len, listed.splitlines())) <= 80
    lines = [json.loads(line) for line in mesh("budget", "export").splitlines()]
    assert [line["kind"] for line in lines] == ["act", "settled"]
    assert lines[1]["body"]["settled"] == [3 * CENT, 100, 1, 0]
    rows = list(csv.DictReader(io.StringIO(mesh("budget", "export", "--form", "csv", "--tenant", "acme"))))
    assert [(row["kind"], row["settled_nusd"], row["ref"]) for row in rows] == [
        ("act", "", "tenant:acme"), ("settled", str(3 * CENT), "r:0:1"),
    ]  # fmt: skip
    assert rows[0]["reason"] == "'=1+1", "a spreadsheet takes it for text"
    assert [line["kind"] for line in map(json.loads, mesh("budget", "export", "--after", "1").splitlines())] == [
        "settled"
    ]
    assert "is right" in mesh("budget", "verify")
    assert mesh.json("budget", "verify") == {"verified": True, "difference": None, "signatures": False}
    assert "no form" in mesh("budget", "export", "--form", "xml", code=1)


def test_verify_ends_with_1_and_names_the_first_difference(tmp_path):
    import pysqlite3.dbapi2 as sqlite

    mesh = Shell(["--store", str(tmp_path)], ledger_url(tmp_path))
    mesh("tenant", "add", "acme")
    mesh("tenant", "keys", "acme", "--new", "--role", "read-only")
    with sqlite.connect(tmp_path / "ledger.sqlite3") as db:
        spoilt = "CAST(replace(CAST(body AS TEXT), 'read-only', 'operator') AS BLOB)"
        db.execute(f"UPDATE item SET body = {spoilt} WHERE kind = 'key'")  # noqa: S608
    db.close()
    assert "is not what was written" in mesh("budget", "verify", code=1)


def test_closed_months_leave_the_books_which_still_verify(mesh, tmp_path, monkeypatch):
    mesh("tenant", "add", "acme")
    mesh.spend("acme", 3 * CENT)
    file = tmp_path / "old.jsonl"
    assert "is not set" in mesh("budget", "archive", "--before", "2026-01", "--to", str(file), code=1)
    monkeypatch.setenv("MESH_ARCHIVE_KEY", "a secret")
    assert "has not begun" in mesh("budget", "archive", "--before", "2999-01", "--to", str(file), code=1)
    assert "is no month" in mesh("budget", "archive", "--before", "soon", "--to", str(file), code=1)
    now = mesh.on(lambda book: book.now_us())
    month = period_of("UTC", now)
    assert "0 entries" in mesh("budget", "archive", "--before", month, "--to", str(file))
    assert list(read_archive(file)) == []
    assert wrong_archive(read_archive(file), {}) is None
    assert [act["verb"] for act in mesh.acts()] == ["tenant.add", "budget.archive"]
    assert mesh.json("budget", "verify")["verified"]


def test_without_a_ledger_there_is_nothing_to_show(tmp_path):
    mesh = Shell(["--store", str(tmp_path / "none")], "")
    assert "there is no ledger yet" in mesh("budget", "show", code=1)
    assert "there is no ledger yet" in mesh("tenant", "list", code=1)
    assert not (tmp_path / "none").exists()
