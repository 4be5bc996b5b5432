"""The register and the turnstile in PostgreSQL: the rules of `budgets.sheet` and `budgets.turnstile` as functions.

A batch first locks the gates of the tenants that it lets in, in the order of their names, then all that the books need:
so no two batches wait for each other.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

import psycopg

from budgets.entry import NO_CHAIN
from budgets.operation import Admit, Keep, Leave, OfRegister, Operation, Stay
from budgets.register import Item
from budgets.turnstile import SLOT_RETRY_US, Full, Passed

APPLY_GATED: Final = "SELECT ledger_apply_gated(%s::text[], %s::jsonb, %s::text[], %s::text[], %s::jsonb)"

_TABLES: Final = """
CREATE TABLE ledger_item (
    kind text NOT NULL,
    name text NOT NULL,
    body text NOT NULL,
    version bigint NOT NULL UNIQUE,
    hash bytea NOT NULL,
    PRIMARY KEY (kind, name)
);

-- One row. Whoever changes the register locks it first: so versions are committed in their order.
CREATE TABLE ledger_register (version bigint NOT NULL);
INSERT INTO ledger_register VALUES (0);

CREATE TABLE ledger_gate (
    tenant text COLLATE "C" PRIMARY KEY,
    n bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

CREATE TABLE ledger_pass (
    tenant text NOT NULL,
    n bigint NOT NULL,
    at_us bigint NOT NULL,
    PRIMARY KEY (tenant, n)
);

CREATE TABLE ledger_slot (
    id text PRIMARY KEY,
    tenant text NOT NULL,
    lease_until_us bigint NOT NULL
);
CREATE INDEX ledger_slot_tenant ON ledger_slot (tenant);
"""

_KEEP: Final = """
CREATE FUNCTION ledger_item_hash(kind text, name text, body text, version bigint) RETURNS bytea
LANGUAGE sql IMMUTABLE AS $$
    SELECT sha256(convert_to(
        octet_length(kind) || ':' || kind || octet_length(name) || ':' || name || version || ':' || body, 'UTF8'))
$$;

CREATE FUNCTION ledger_keep(op jsonb, now_us bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    known ledger_item;
    next bigint;
BEGIN
    SELECT version + 1 INTO STRICT next FROM ledger_register FOR UPDATE;
    SELECT * INTO known FROM ledger_item WHERE kind = op->>'kind' AND name = op->>'name';
    IF coalesce(known.version, 0) <> (op->>'expected')::bigint THEN
        RETURN jsonb_build_object('conflict', 'changed');
    END IF;
    UPDATE ledger_register SET version = next;
    INSERT INTO ledger_item VALUES (
        op->>'kind', op->>'name', op->>'body', next,
        ledger_item_hash(op->>'kind', op->>'name', op->>'body', next))
    ON CONFLICT (kind, name) DO UPDATE SET
        body = excluded.body, version = excluded.version, hash = excluded.hash;
    PERFORM ledger_enter(op->>'chain', now_us, 'act', op->'act'->>'subject', ((op->'act') || jsonb_build_object(
        'before', known.body::jsonb - 'sha256', 'after', (op->>'body')::jsonb - 'sha256'))::text);
    RETURN to_jsonb(next);
END $$;
"""

_ADMIT: Final = """
CREATE FUNCTION ledger_full(what text, used bigint, most bigint, retry_us bigint) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_build_object('what', what, 'used', used, 'limit', most, 'retry_us', retry_us)
$$;

CREATE FUNCTION ledger_admit(op jsonb, now_us bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    the_tenant text := op->>'tenant';
    most bigint := (op->>'concurrency')::bigint;
    pace bigint := (op->>'per_minute')::bigint;
    running bigint;
    number bigint;
    begun bigint;
BEGIN
    IF EXISTS (SELECT FROM ledger_slot WHERE id = op->>'id') THEN
        RETURN jsonb_build_object('left', NULL);
    END IF;
    IF most IS NOT NULL THEN
        DELETE FROM ledger_slot WHERE id IN (
            SELECT id FROM ledger_slot WHERE tenant = the_tenant AND lease_until_us < now_us FOR UPDATE SKIP LOCKED);
        SELECT count(*) INTO running FROM ledger_slot WHERE tenant = the_tenant AND lease_until_us >= now_us;
        IF running >= most THEN
            RETURN ledger_full('concurrency', running, most, (op->>'slot_retry_us')::bigint);
        END IF;
    END IF;
    IF pace IS NOT NULL THEN
        SELECT n + 1 INTO STRICT number FROM ledger_gate WHERE tenant = the_tenant;
        begun := now_us;
        IF pace > 0 THEN
            SELECT at_us INTO begun FROM ledger_pass WHERE tenant = the_tenant AND n = number - pace;
        END IF;
        IF now_us - begun < 60000000 THEN
            RETURN ledger_full('requests_per_minute', pace, pace, 60000000 - (now_us - begun));
        END IF;
        DELETE FROM ledger_pass WHERE tenant = the_tenant AND n <= number - pace;
        INSERT INTO ledger_pass VALUES (the_tenant, number, now_us);
        UPDATE ledger_gate SET n = number WHERE tenant = the_tenant;
    END IF;
    INSERT INTO ledger_slot VALUES (op->>'id', the_tenant, now_us + (op->>'lease_us')::bigint);
    RETURN jsonb_build_object('left', most - running - 1);
END $$;

-- A slot that somebody else has locked is just being taken away: its lease had ended.
CREATE FUNCTION ledger_leave(op jsonb) RETURNS void LANGUAGE sql AS $$
    DELETE FROM ledger_slot WHERE id IN (SELECT id FROM ledger_slot WHERE id = op->>'id' FOR UPDATE SKIP LOCKED)
$$;

CREATE FUNCTION ledger_stay(op jsonb, now_us bigint) RETURNS void LANGUAGE sql AS $$
    INSERT INTO ledger_slot
    SELECT x, op->>'tenant', now_us + (op->>'lease_us')::bigint FROM jsonb_array_elements_text(op->'ids') AS x
    ON CONFLICT (id) DO UPDATE SET lease_until_us = excluded.lease_until_us
$$;
"""

_ONE: Final = """
ALTER FUNCTION ledger_one(jsonb, bigint) RENAME TO ledger_one_of_books;

CREATE FUNCTION ledger_one(op jsonb, now_us bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    CASE op->>'do'
        WHEN 'keep' THEN RETURN ledger_keep(op, now_us);
        WHEN 'admit' THEN RETURN ledger_admit(op, now_us);
        WHEN 'leave' THEN PERFORM ledger_leave(op);
        WHEN 'stay' THEN PERFORM ledger_stay(op, now_us);
        ELSE RETURN ledger_one_of_books(op, now_us);
    END CASE;
    RETURN NULL;
END $$;

-- As ledger_apply; gates: the tenants to be let in, sorted.
CREATE FUNCTION ledger_apply_gated(gates text[], accounts jsonb, ids text[], chains text[], operations jsonb)
RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ledger_gate SELECT x FROM unnest(gates) AS x
    WHERE NOT EXISTS (SELECT FROM ledger_gate g WHERE g.tenant = x) ORDER BY x COLLATE "C" ON CONFLICT DO NOTHING;
    PERFORM FROM ledger_gate WHERE tenant = ANY (gates) ORDER BY tenant FOR UPDATE;
    RETURN ledger_apply(accounts, ids, chains, operations);
END $$;
"""

MIGRATION: Final = _TABLES + _KEEP + _ADMIT + _ONE


def gates_of(operations: Iterable[Operation]) -> list[str]:
    """The gates that a batch locks."""
    return sorted({each.tenant for each in operations if isinstance(each, Admit | Stay)})


def asked_of(operation: OfRegister) -> dict[str, Any]:
    """An operation as `ledger_one` reads it."""
    match operation:
        case Keep(kind, name, body, expected, act):
            return {
                "do": "keep", "kind": kind, "name": name, "body": body.decode(), "expected": expected,
                "act": asdict(act), "chain": act.tenant or NO_CHAIN,
            }  # fmt: skip
        case Admit(name, tenant, pace, lease_us):
            return {
                "do": "admit", "id": name, "tenant": tenant, "per_minute": pace.per_minute,
                "concurrency": pace.concurrency, "lease_us": lease_us, "slot_retry_us": SLOT_RETRY_US,
            }  # fmt: skip
        case Leave(name):
            return {"do": "leave", "id": name}
        case Stay(tenant, ids, lease_us):
            return {"do": "stay", "tenant": tenant, "ids": ids, "lease_us": lease_us}


def passed_of(told: Mapping[str, Any]) -> Passed | Full:
    """What `ledger_admit` said."""
    if "what" in told:
        return Full(told["what"], told["used"], told["limit"], told["retry_us"])
    return Passed(told["left"])


def items_after(db: "psycopg.Connection[Any]", version: int) -> Iterator[Item]:
    """What has changed since a version, in the order of the changes."""
    query = "SELECT kind, name, body, version FROM ledger_item WHERE version > %s ORDER BY version"
    for kind, name, body, found in db.execute(query, [version]):
        yield Item(kind, name, body.encode(), found)


def broken_item(db: "psycopg.Connection[Any]") -> str | None:
    """The first item that is not what was written, or None."""
    query = "SELECT name FROM ledger_item WHERE hash <> ledger_item_hash(kind, name, body, version) ORDER BY 1 LIMIT 1"
    row = db.execute(query).fetchone()
    return None if row is None else f"item {row[0]!r} is not what was written: its hash differs"
