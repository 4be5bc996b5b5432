"""The tables of the ledger in PostgreSQL, and its rules as functions.

`ledger_apply` carries out a whole batch in one call, so no lock is held across a round trip. It locks the batch's
accounts in the order of their ids, then its chains in the order of their names: two batches cannot wait for each
other. The rules are those of `budgets.sheet`; one test-suite and one model hold both to the same behaviour.

Migrations only add: an older replica goes on working while a newer one has migrated.
"""

from typing import Final

from budgets.beside_schema import POSTGRES_TABLES
from budgets.postgres_register import MIGRATION
from budgets.postgres_tuning import TUNING

LOCK: Final = 0x6D6C6467
"""The advisory lock under which replicas that start together migrate one after the other."""

_TABLES: Final = """
CREATE TABLE ledger_account (
    id text COLLATE "C" PRIMARY KEY,
    scope text NOT NULL,
    settled bigint[] NOT NULL DEFAULT '{0,0,0,0}',
    reserved bigint[] NOT NULL DEFAULT '{0,0,0,0}',
    overrun bigint[] NOT NULL DEFAULT '{0,0,0,0}',
    suspense bigint[] NOT NULL DEFAULT '{0,0,0,0}',
    hard bigint[] NOT NULL DEFAULT '{NULL,NULL,NULL,NULL}',
    soft bigint[] NOT NULL DEFAULT '{NULL,NULL,NULL,NULL}',
    crossed integer NOT NULL DEFAULT 0,
    used boolean NOT NULL DEFAULT false,
    CHECK (0 <= ALL (reserved))
) WITH (fillfactor = 50);

CREATE TABLE ledger_hold (
    id text COLLATE "C" PRIMARY KEY,
    chain text NOT NULL,
    accounts text[] NOT NULL,
    amount bigint[] NOT NULL,
    owner text NOT NULL,
    epoch integer NOT NULL,
    lease_until_us bigint NOT NULL,
    created_us bigint NOT NULL
);

-- tx: a reader that goes by seq must not pass an entry whose transaction is still to be committed
CREATE TABLE ledger_entry (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain text NOT NULL,
    n bigint NOT NULL,
    at_us bigint NOT NULL,
    kind text NOT NULL,
    ref text COLLATE "C" NOT NULL,
    body text NOT NULL,
    hash bytea NOT NULL,
    tx xid8 NOT NULL DEFAULT pg_current_xact_id(),
    UNIQUE (chain, n)
);
CREATE UNIQUE INDEX ledger_entry_end ON ledger_entry (ref) WHERE kind IN ('settled', 'released', 'expired');
CREATE UNIQUE INDEX ledger_entry_correction ON ledger_entry (ref) WHERE kind = 'corrected';
CREATE INDEX ledger_entry_alert ON ledger_entry (seq) WHERE kind IN ('soft_limit', 'overrun');

CREATE TABLE ledger_head (
    chain text COLLATE "C" PRIMARY KEY,
    n bigint NOT NULL,
    hash bytea NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE ledger_override (
    key text NOT NULL,
    dimension integer NOT NULL,
    timed boolean NOT NULL,
    hard bigint,
    soft bigint,
    until_us bigint,
    PRIMARY KEY (key, dimension, timed)
);

CREATE TABLE ledger_archive (
    chain text PRIMARY KEY,
    n bigint NOT NULL,
    hash bytea NOT NULL,
    sums text NOT NULL,
    signature bytea NOT NULL
);
"""

_FIGURES: Final = """
CREATE FUNCTION ledger_now() RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

CREATE FUNCTION ledger_sum(a bigint[], b bigint[]) RETURNS bigint[] LANGUAGE sql IMMUTABLE AS
$$ SELECT ARRAY[a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4]] $$;

CREATE FUNCTION ledger_less(a bigint[], b bigint[]) RETURNS bigint[] LANGUAGE sql IMMUTABLE AS
$$ SELECT ARRAY[a[1] - b[1], a[2] - b[2], a[3] - b[3], a[4] - b[4]] $$;

CREATE FUNCTION ledger_beyond(a bigint[], b bigint[]) RETURNS bigint[] LANGUAGE sql IMMUTABLE AS
$$ SELECT ARRAY[
    greatest(0, a[1] - b[1]), greatest(0, a[2] - b[2]), greatest(0, a[3] - b[3]), greatest(0, a[4] - b[4])
] $$;

CREATE FUNCTION ledger_figures(a jsonb) RETURNS bigint[] LANGUAGE sql IMMUTABLE AS
$$ SELECT ARRAY[(a->>0)::bigint, (a->>1)::bigint, (a->>2)::bigint, (a->>3)::bigint] $$;

CREATE FUNCTION ledger_dimension(place integer) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT (ARRAY['cost_nusd', 'tokens', 'requests', 'steps'])[place] $$;

-- An operator's limits win: this account's before that of all its months, one with an end before a lasting one.
CREATE FUNCTION ledger_limits(the_id text, own bigint[], want_soft boolean, now_us bigint) RETURNS bigint[]
LANGUAGE plpgsql STABLE AS $$
DECLARE
    place integer;
    found_hard bigint;
    found_soft bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM ledger_override) THEN
        RETURN own;
    END IF;
    FOR place IN 1..4 LOOP
        SELECT hard, soft INTO found_hard, found_soft FROM ledger_override
        WHERE dimension = place - 1 AND key IN (the_id, regexp_replace(the_id, ':\\d{4}-\\d{2}$', ''))
            AND (until_us IS NULL OR now_us < until_us)
        ORDER BY key = the_id DESC, timed DESC LIMIT 1;
        IF FOUND THEN
            own[place] := CASE WHEN want_soft THEN found_soft ELSE found_hard END;
        END IF;
    END LOOP;
    RETURN own;
END $$;

-- What a request has used, by its holds and entries: it has no row. `;` follows `:`.
CREATE FUNCTION ledger_request(request text, which text) RETURNS bigint[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    sums bigint[];
BEGIN
    IF which = 'reserved' THEN
        SELECT ARRAY[
            coalesce(sum(amount[1]), 0), coalesce(sum(amount[2]), 0),
            coalesce(sum(amount[3]), 0), coalesce(sum(amount[4]), 0)
        ] INTO sums FROM ledger_hold
        WHERE id > request || ':' AND id < request || ';' AND 'request:' || request = ANY (accounts);
        RETURN sums;
    END IF;
    SELECT ARRAY[
        coalesce(sum((part->>0)::bigint), 0), coalesce(sum((part->>1)::bigint), 0),
        coalesce(sum((part->>2)::bigint), 0), coalesce(sum((part->>3)::bigint), 0)
    ] INTO sums FROM (
        SELECT body::jsonb AS data FROM ledger_entry
        WHERE kind IN ('settled', 'released', 'expired') AND ref > request || ':' AND ref < request || ';'
        UNION ALL
        SELECT body::jsonb FROM ledger_entry
        WHERE kind = 'corrected' AND ref > request || ':' AND ref < request || ';'
    ) AS ended, LATERAL (SELECT data->which AS part) AS parts WHERE data->'accounts' ? ('request:' || request);
    RETURN sums;
END $$;
"""

_ENTRIES: Final = """
-- One more entry of a chain, whose head the caller has locked.
CREATE FUNCTION ledger_enter(the_chain text, now_us bigint, the_kind text, the_ref text, the_body text)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    head ledger_head;
BEGIN
    SELECT * INTO STRICT head FROM ledger_head WHERE chain = the_chain;
    head.n := head.n + 1;
    head.hash := sha256(head.hash || convert_to(
        octet_length(the_chain) || ':' || the_chain || octet_length(the_kind) || ':' || the_kind
        || octet_length(the_ref) || ':' || the_ref || head.n || ':' || now_us || ':' || the_body, 'UTF8'));
    INSERT INTO ledger_entry (chain, n, at_us, kind, ref, body, hash)
    VALUES (the_chain, head.n, now_us, the_kind, the_ref, the_body, head.hash);
    UPDATE ledger_head SET n = head.n, hash = head.hash WHERE chain = the_chain;
END $$;

-- Report each soft limit that was reached just now.
CREATE FUNCTION ledger_report(the_chain text, now_us bigint, names text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    page ledger_account;
    soft_now bigint[];
    hard_now bigint[];
    place integer;
BEGIN
    FOR page IN SELECT * FROM ledger_account WHERE id = ANY (names) ORDER BY array_position(names, id) LOOP
        soft_now := ledger_limits(page.id, page.soft, true, now_us);
        CONTINUE WHEN soft_now IS NOT DISTINCT FROM ARRAY[NULL, NULL, NULL, NULL]::bigint[];
        hard_now := ledger_limits(page.id, page.hard, false, now_us);
        FOR place IN 1..4 LOOP
            IF page.settled[place] >= soft_now[place] AND (page.crossed >> (place - 1)) & 1 = 0 THEN
                page.crossed := page.crossed | (1 << (place - 1));
                PERFORM ledger_enter(the_chain, now_us, 'soft_limit', page.id, json_build_object(
                    'account', page.id, 'scope', page.scope, 'dimension', ledger_dimension(place),
                    'used', page.settled[place], 'soft', soft_now[place], 'hard', hard_now[place])::text);
                UPDATE ledger_account SET crossed = page.crossed WHERE id = page.id;
            END IF;
        END LOOP;
    END LOOP;
END $$;

-- Book a change on its accounts, enter it, and report what it crossed.
CREATE FUNCTION ledger_post(
    the_chain text, now_us bigint, the_kind text, the_ref text, names text[], freed bigint[], quoted bigint[],
    d_settled bigint[], d_overrun bigint[], d_suspense bigint[], guess boolean, the_epoch integer, the_owner text
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM ledger_enter(the_chain, now_us, the_kind, the_ref, json_build_object(
        'accounts', to_json(names), 'reserved', to_json(quoted), 'settled', to_json(d_settled),
        'overrun', to_json(d_overrun), 'suspense', to_json(d_suspense), 'estimated', guess, 'epoch', the_epoch,
        'owner', the_owner)::text);
    UPDATE ledger_account SET
        reserved = ledger_less(reserved, freed), settled = ledger_sum(settled, d_settled),
        overrun = ledger_sum(overrun, d_overrun), suspense = ledger_sum(suspense, d_suspense)
    WHERE id = ANY (names);
    IF the_kind <> 'released' THEN
        PERFORM ledger_report(the_chain, now_us, names);
    END IF;
    IF 0 < ANY (d_overrun) THEN
        PERFORM ledger_enter(the_chain, now_us, 'overrun', the_ref, json_build_object(
            'accounts', to_json(names), 'reserved', to_json(quoted), 'overrun', to_json(d_overrun))::text);
    END IF;
END $$;
"""

_OPERATIONS: Final = """
-- A reservation that is not live any more, or NULL.
CREATE FUNCTION ledger_ended(the_id text) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT body::jsonb || jsonb_build_object('kind', kind, 'chain', chain, 'corrected',
        EXISTS (SELECT FROM ledger_entry c WHERE c.kind = 'corrected' AND c.ref = the_id))
    FROM ledger_entry WHERE kind IN ('settled', 'released', 'expired') AND ref = the_id
$$;

CREATE FUNCTION ledger_used(the_id text, the_scope text) RETURNS bigint[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    used bigint[];
BEGIN
    IF the_scope = 'request' THEN
        RETURN ledger_sum(ledger_request(substr(the_id, 9), 'settled'), ledger_request(substr(the_id, 9), 'reserved'));
    END IF;
    SELECT ledger_sum(settled, reserved) INTO STRICT used FROM ledger_account WHERE id = the_id;
    RETURN used;
END $$;

CREATE FUNCTION ledger_reserve(op jsonb, now_us bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    held ledger_hold;
    ended jsonb;
    account record;
    asked bigint[] := ledger_figures(op->'amount');
    used bigint[];
    bounds bigint[];
    place integer;
BEGIN
    SELECT * INTO held FROM ledger_hold WHERE id = op->>'id';
    IF FOUND THEN
        RETURN jsonb_build_object('state', 'live', 'amount', to_jsonb(held.amount), 'epoch', held.epoch,
            'lease_until_us', held.lease_until_us);
    END IF;
    ended := ledger_ended(op->>'id');
    IF ended IS NOT NULL THEN
        RETURN ended || jsonb_build_object('state', ended->'kind', 'amount', ended->'reserved', 'lease_until_us', 0);
    END IF;
    FOR account IN SELECT * FROM jsonb_to_recordset(op->'accounts') AS x(id text, scope text, hard bigint[]) LOOP
        bounds := ledger_limits(account.id, account.hard, false, now_us);
        -- an unlimited request need not be summed up
        CONTINUE WHEN account.scope = 'request' AND bounds IS NOT DISTINCT FROM ARRAY[NULL, NULL, NULL, NULL]::bigint[];
        used := ledger_used(account.id, account.scope);
        FOR place IN 1..4 LOOP
            IF used[place] + asked[place] > coalesce(bounds[place], 4611686018427387904) THEN
                RETURN jsonb_build_object('refused', true, 'scope', account.scope, 'account', account.id,
                    'dimension', ledger_dimension(place), 'asked', asked[place], 'used', used[place],
                    'limit', coalesce(bounds[place], 4611686018427387904));
            END IF;
        END LOOP;
    END LOOP;
    UPDATE ledger_account SET reserved = ledger_sum(reserved, asked), hard = x.hard, soft = x.soft, used = true
    FROM jsonb_to_recordset(op->'accounts') AS x(id text, hard bigint[], soft bigint[])
    WHERE ledger_account.id = x.id;
    INSERT INTO ledger_hold VALUES (
        op->>'id', op->>'chain', ARRAY(SELECT jsonb_array_elements_text(op->'path')), asked, op->>'owner', 1,
        now_us + (op->>'lease_us')::bigint, now_us)
    RETURNING * INTO held;
    RETURN jsonb_build_object('state', 'live', 'amount', to_jsonb(asked), 'epoch', 1,
        'lease_until_us', held.lease_until_us, 'fresh', true);
END $$;

-- What comes for a reservation that is not live: the difference to what was put in suspense, or nothing.
CREATE FUNCTION ledger_late(op jsonb, now_us bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    ended jsonb := ledger_ended(op->>'id');
    actual bigint[] := '{0,0,0,0}';
    quoted bigint[];
BEGIN
    IF ended IS NULL THEN
        RETURN jsonb_build_object('conflict', 'unknown');
    END IF;
    IF ended->>'kind' <> 'expired' THEN
        IF (ended->>'kind' = 'released') = (op->'actual' IS NULL OR jsonb_typeof(op->'actual') = 'null') THEN
            RETURN NULL;
        END IF;
        RETURN jsonb_build_object('conflict', ended->>'kind');
    END IF;
    IF (ended->>'corrected')::boolean THEN
        RETURN NULL;
    END IF;
    IF jsonb_typeof(op->'actual') = 'array' THEN
        actual := ledger_figures(op->'actual');
    END IF;
    quoted := ledger_figures(ended->'reserved');
    PERFORM ledger_post(
        ended->>'chain', now_us, 'corrected', op->>'id', ARRAY(SELECT jsonb_array_elements_text(ended->'accounts')),
        '{0,0,0,0}', quoted, ledger_less(actual, quoted), ledger_beyond(actual, quoted),
        ledger_less('{0,0,0,0}', quoted), (op->>'estimated')::boolean, (ended->>'epoch')::integer, '');
    RETURN NULL;
END $$;

CREATE FUNCTION ledger_resolve(op jsonb, now_us bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    held ledger_hold;
    actual bigint[] := '{0,0,0,0}';
    the_kind text := 'released';
BEGIN
    DELETE FROM ledger_hold WHERE id = op->>'id' AND epoch = (op->>'epoch')::integer RETURNING * INTO held;
    IF NOT FOUND THEN
        RETURN ledger_late(op, now_us);
    END IF;
    IF jsonb_typeof(op->'actual') = 'array' THEN
        actual := ledger_figures(op->'actual');
        the_kind := 'settled';
    END IF;
    PERFORM ledger_post(held.chain, now_us, the_kind, held.id, held.accounts, held.amount, held.amount, actual,
        ledger_beyond(actual, held.amount), '{0,0,0,0}', (op->>'estimated')::boolean, held.epoch, held.owner);
    RETURN NULL;
END $$;

CREATE FUNCTION ledger_expire(op jsonb, now_us bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    held ledger_hold;
BEGIN
    DELETE FROM ledger_hold WHERE id = op->>'id' AND lease_until_us < now_us RETURNING * INTO held;
    IF NOT FOUND THEN
        RETURN to_jsonb(false);
    END IF;
    -- The epoch moves on, so that whoever still works under the lease that ended is told apart.
    PERFORM ledger_post(held.chain, now_us, 'expired', held.id, held.accounts, held.amount, held.amount, held.amount,
        '{0,0,0,0}', held.amount, true, held.epoch + 1, held.owner);
    RETURN to_jsonb(true);
END $$;

CREATE FUNCTION ledger_extend(op jsonb, now_us bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    held ledger_hold;
BEGIN
    UPDATE ledger_hold SET lease_until_us = greatest(lease_until_us, now_us + (op->>'lease_us')::bigint)
    WHERE id = op->>'id' AND epoch = (op->>'epoch')::integer RETURNING * INTO held;
    IF NOT FOUND THEN
        RETURN jsonb_build_object('conflict', coalesce(ledger_ended(op->>'id')->>'kind', 'unknown'));
    END IF;
    RETURN jsonb_build_object('state', 'live', 'amount', to_jsonb(held.amount), 'epoch', held.epoch,
        'lease_until_us', held.lease_until_us);
END $$;

CREATE FUNCTION ledger_look(op jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    page ledger_account;
    request text := substr(op->>'account', 9);
BEGIN
    IF op->>'account' LIKE 'request:%' THEN
        RETURN to_jsonb(ARRAY[
            ledger_request(request, 'settled'), ledger_request(request, 'reserved'),
            ledger_request(request, 'overrun'), ledger_request(request, 'suspense')]);
    END IF;
    SELECT * INTO page FROM ledger_account WHERE id = op->>'account';
    IF NOT FOUND THEN
        RETURN '[[0,0,0,0],[0,0,0,0],[0,0,0,0],[0,0,0,0]]';
    END IF;
    RETURN to_jsonb(ARRAY[page.settled, page.reserved, page.overrun, page.suspense]);
END $$;

CREATE FUNCTION ledger_set_limit(op jsonb, now_us bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    wanted jsonb := op->'override';
    is_timed boolean := jsonb_typeof(wanted->'until_us') = 'number';
    before jsonb;
BEGIN
    SELECT to_jsonb(o) - 'timed' INTO before FROM ledger_override o
    WHERE key = wanted->>'key' AND dimension = (wanted->>'dimension')::integer AND timed = is_timed;
    DELETE FROM ledger_override
    WHERE key = wanted->>'key' AND dimension = (wanted->>'dimension')::integer AND timed = is_timed;
    IF NOT (op->>'remove')::boolean THEN
        INSERT INTO ledger_override VALUES (
            wanted->>'key', (wanted->>'dimension')::integer, is_timed, (wanted->>'hard')::bigint,
            (wanted->>'soft')::bigint, (wanted->>'until_us')::bigint);
    END IF;
    -- a new limit may be reported again
    UPDATE ledger_account SET crossed = crossed & ~(1 << (wanted->>'dimension')::integer)
    WHERE wanted->>'key' IN (id, regexp_replace(id, ':\\d{4}-\\d{2}$', ''));
    PERFORM ledger_enter(op->>'chain', now_us, 'act', op->'act'->>'subject', ((op->'act') || jsonb_build_object(
        'before', before, 'after', CASE WHEN (op->>'remove')::boolean THEN NULL ELSE wanted END))::text);
    RETURN NULL;
END $$;
"""

_APPLY: Final = """
CREATE FUNCTION ledger_one(op jsonb, now_us bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    CASE op->>'do'
        WHEN 'reserve' THEN RETURN ledger_reserve(op, now_us);
        WHEN 'resolve' THEN RETURN ledger_resolve(op, now_us);
        WHEN 'expire' THEN RETURN ledger_expire(op, now_us);
        WHEN 'extend' THEN RETURN ledger_extend(op, now_us);
        WHEN 'look' THEN RETURN ledger_look(op);
        WHEN 'set_limit' THEN RETURN ledger_set_limit(op, now_us);
        WHEN 'record' THEN
            PERFORM ledger_enter(op->>'chain', now_us, 'act', op->'act'->>'subject', (op->'act')::text);
            RETURN NULL;
    END CASE;
END $$;

-- A batch, in order, in one transaction.
-- accounts: those with rows, [{id, scope}], by id, where an operation may create them; ids: those to lock;
-- chains: those that may get entries. All sorted.
CREATE FUNCTION ledger_apply(accounts jsonb, ids text[], chains text[], operations jsonb) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    made text[];
    outcomes jsonb[] := '{}';
    op jsonb;
BEGIN
    WITH new AS (
        INSERT INTO ledger_account (id, scope)
        SELECT x.id, x.scope FROM jsonb_to_recordset(accounts) AS x(id text, scope text)
        WHERE NOT EXISTS (SELECT FROM ledger_account a WHERE a.id = x.id) ORDER BY x.id COLLATE "C"
        ON CONFLICT DO NOTHING RETURNING id
    ) SELECT array_agg(id) INTO made FROM new;
    PERFORM FROM ledger_account WHERE id = ANY (ids) ORDER BY id FOR UPDATE;
    IF cardinality(chains) > 0 THEN
        INSERT INTO ledger_head SELECT x, 0, decode(repeat('00', 32), 'hex') FROM unnest(chains) AS x
        WHERE NOT EXISTS (SELECT FROM ledger_head h WHERE h.chain = x) ORDER BY x COLLATE "C" ON CONFLICT DO NOTHING;
        PERFORM FROM ledger_head WHERE chain = ANY (chains) ORDER BY chain FOR UPDATE;
    END IF;
    FOR op IN SELECT value FROM jsonb_array_elements(operations) LOOP
        outcomes := outcomes || coalesce(ledger_one(op, ledger_now()), 'null'::jsonb);
    END LOOP;
    IF made IS NOT NULL THEN
        DELETE FROM ledger_account WHERE id = ANY (made) AND NOT used;  -- nothing came to be held on it
    END IF;
    RETURN to_jsonb(outcomes)::text;
END $$;
"""

MIGRATIONS: Final[tuple[str, ...]] = (
    _TABLES + _FIGURES + _ENTRIES + _OPERATIONS + _APPLY,
    MIGRATION,
    POSTGRES_TABLES,
    TUNING,
)
