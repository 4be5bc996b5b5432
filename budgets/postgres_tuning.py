"""The hot functions of the ledger in PostgreSQL once more: the same rules in fewer statements, the same arguments.

What a statement inside a function costs is mostly its start and end, so each that is left out counts. An older replica
calls the same functions, and finds them quicker.
"""

from typing import Final

_LIMITS: Final = """
-- mesh.overridden: whether an operator has set any limit; told once a batch, behind its locks.
CREATE OR REPLACE FUNCTION ledger_limits(the_id text, own bigint[], want_soft boolean, now_us bigint) RETURNS bigint[]
LANGUAGE plpgsql STABLE AS $$
DECLARE
    place integer;
    found_hard bigint;
    found_soft bigint;
BEGIN
    IF current_setting('mesh.overridden', true) = 'no' THEN
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

CREATE OR REPLACE FUNCTION ledger_used(the_id text, the_scope text) RETURNS bigint[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    used bigint[] := '{0,0,0,0}';
    request text := substr(the_id, 9);
BEGIN
    IF the_scope <> 'request' THEN
        SELECT ledger_sum(settled, reserved) INTO STRICT used FROM ledger_account WHERE id = the_id;
        RETURN used;
    END IF;
    PERFORM FROM ledger_hold WHERE id > request || ':' AND id < request || ';' LIMIT 1;
    IF FOUND THEN
        used := ledger_request(request, 'reserved');
    END IF;
    PERFORM FROM ledger_entry  -- nothing is corrected that has not expired
    WHERE kind IN ('settled', 'released', 'expired') AND ref > request || ':' AND ref < request || ';' LIMIT 1;
    IF FOUND THEN
        used := ledger_sum(used, ledger_request(request, 'settled'));
    END IF;
    RETURN used;
END $$;
"""

_ENTRIES: Final = """
CREATE OR REPLACE FUNCTION ledger_enter(the_chain text, now_us bigint, the_kind text, the_ref text, the_body text)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    head ledger_head;
    names text := octet_length(the_chain) || ':' || the_chain || octet_length(the_kind) || ':' || the_kind
        || octet_length(the_ref) || ':' || the_ref;
BEGIN
    UPDATE ledger_head SET n = n + 1, hash = sha256(hash || convert_to(
        names || (n + 1) || ':' || now_us || ':' || the_body, 'UTF8'))
    WHERE chain = the_chain RETURNING * INTO STRICT head;
    INSERT INTO ledger_entry (chain, n, at_us, kind, ref, body, hash)
    VALUES (the_chain, head.n, now_us, the_kind, the_ref, the_body, head.hash);
END $$;

CREATE OR REPLACE FUNCTION ledger_post(
    the_chain text, now_us bigint, the_kind text, the_ref text, names text[], freed bigint[], quoted bigint[],
    d_settled bigint[], d_overrun bigint[], d_suspense bigint[], guess boolean, the_epoch integer, the_owner text
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    watched boolean;
BEGIN
    PERFORM ledger_enter(the_chain, now_us, the_kind, the_ref, json_build_object(
        'accounts', names, 'reserved', quoted, 'settled', d_settled, 'overrun', d_overrun, 'suspense', d_suspense,
        'estimated', guess, 'epoch', the_epoch, 'owner', the_owner)::text);
    WITH changed AS (
        UPDATE ledger_account SET
            reserved = ledger_less(reserved, freed), settled = ledger_sum(settled, d_settled),
            overrun = ledger_sum(overrun, d_overrun), suspense = ledger_sum(suspense, d_suspense)
        WHERE id = ANY (names) RETURNING soft
    ) SELECT bool_or(soft IS DISTINCT FROM ARRAY[NULL, NULL, NULL, NULL]::bigint[]) INTO watched FROM changed;
    IF the_kind <> 'released' AND (watched OR current_setting('mesh.overridden', true) IS DISTINCT FROM 'no') THEN
        PERFORM ledger_report(the_chain, now_us, names);
    END IF;
    IF 0 < ANY (d_overrun) THEN
        PERFORM ledger_enter(the_chain, now_us, 'overrun', the_ref, json_build_object(
            'accounts', names, 'reserved', quoted, 'overrun', d_overrun)::text);
    END IF;
END $$;
"""

_RESERVE: Final = """
-- Not in SQL: a function in that language is parsed anew at each call.
CREATE OR REPLACE FUNCTION ledger_ended(the_id text) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    ended ledger_entry;
BEGIN
    SELECT * INTO ended FROM ledger_entry WHERE kind IN ('settled', 'released', 'expired') AND ref = the_id;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN ended.body::jsonb || jsonb_build_object('kind', ended.kind, 'chain', ended.chain, 'corrected',
        EXISTS (SELECT FROM ledger_entry c WHERE c.kind = 'corrected' AND c.ref = the_id));
END $$;

CREATE OR REPLACE FUNCTION ledger_reserve(op jsonb, now_us bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    the_id text := op->>'id';
    asked bigint[] := ledger_figures(op->'amount');
    until_us bigint := now_us + (op->>'lease_us')::bigint;
    account jsonb;
    held ledger_hold;
    ended jsonb;
    used bigint[];
    bounds bigint[];
BEGIN
    SELECT * INTO held FROM ledger_hold WHERE id = the_id;
    IF FOUND THEN
        RETURN jsonb_build_object('state', 'live', 'amount', to_jsonb(held.amount), 'epoch', held.epoch,
            'lease_until_us', held.lease_until_us);
    END IF;
    ended := ledger_ended(the_id);
    IF ended IS NOT NULL THEN
        RETURN ended || jsonb_build_object('state', ended->'kind', 'amount', ended->'reserved', 'lease_until_us', 0);
    END IF;
    FOR number IN 0..jsonb_array_length(op->'accounts') - 1 LOOP
        account := op->'accounts'->number;
        bounds := ledger_limits(account->>'id', ledger_figures(account->'hard'), false, now_us);
        -- an unlimited request need not be summed up
        CONTINUE WHEN account->>'scope' = 'request'
            AND bounds IS NOT DISTINCT FROM ARRAY[NULL, NULL, NULL, NULL]::bigint[];
        used := ledger_used(account->>'id', account->>'scope');
        FOR place IN 1..4 LOOP
            IF used[place] + asked[place] > coalesce(bounds[place], 4611686018427387904) THEN
                RETURN jsonb_build_object('refused', true, 'scope', account->>'scope', 'account', account->>'id',
                    'dimension', ledger_dimension(place), 'asked', asked[place], 'used', used[place],
                    'limit', coalesce(bounds[place], 4611686018427387904));
            END IF;
        END LOOP;
    END LOOP;
    FOR number IN 0..jsonb_array_length(op->'accounts') - 1 LOOP
        account := op->'accounts'->number;
        CONTINUE WHEN account->>'scope' = 'request';  -- it has no row
        UPDATE ledger_account SET
            reserved = ledger_sum(reserved, asked), hard = ledger_figures(account->'hard'),
            soft = ledger_figures(account->'soft'), used = true
        WHERE id = account->>'id';
    END LOOP;
    INSERT INTO ledger_hold VALUES (
        the_id, op->>'chain', ARRAY(SELECT jsonb_array_elements_text(op->'path')), asked, op->>'owner', 1, until_us,
        now_us);
    RETURN jsonb_build_object('state', 'live', 'amount', op->'amount', 'epoch', 1, 'lease_until_us', until_us,
        'fresh', true);
END $$;
"""

_APPLY: Final = """
CREATE OR REPLACE FUNCTION ledger_apply(accounts jsonb, ids text[], chains text[], operations jsonb) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    made text[];
    outcomes jsonb[] := '{}';
    op jsonb;
    now_us bigint;
BEGIN
    IF EXISTS (SELECT FROM unnest(ids) AS x WHERE NOT EXISTS (SELECT FROM ledger_account a WHERE a.id = x)) THEN
        WITH new AS (
            INSERT INTO ledger_account (id, scope)
            SELECT x.id, x.scope FROM jsonb_to_recordset(accounts) AS x(id text, scope text)
            WHERE NOT EXISTS (SELECT FROM ledger_account a WHERE a.id = x.id) ORDER BY x.id COLLATE "C"
            ON CONFLICT DO NOTHING RETURNING id
        ) SELECT array_agg(id) INTO made FROM new;
    END IF;
    PERFORM FROM ledger_account WHERE id = ANY (ids) ORDER BY id FOR UPDATE;
    IF cardinality(chains) > 0 THEN
        INSERT INTO ledger_head SELECT x, 0, decode(repeat('00', 32), 'hex') FROM unnest(chains) AS x
        WHERE NOT EXISTS (SELECT FROM ledger_head h WHERE h.chain = x) ORDER BY x COLLATE "C" ON CONFLICT DO NOTHING;
        PERFORM FROM ledger_head WHERE chain = ANY (chains) ORDER BY chain FOR UPDATE;
    END IF;
    -- behind the locks, which whoever sets a limit of one of these accounts needs too
    PERFORM set_config(
        'mesh.overridden', CASE WHEN EXISTS (SELECT FROM ledger_override) THEN 'yes' ELSE 'no' END, true);
    now_us := ledger_now();
    FOR op IN SELECT value FROM jsonb_array_elements(operations) LOOP
        IF op->>'do' = 'set_limit' THEN
            PERFORM set_config('mesh.overridden', 'yes', true);
        END IF;
        outcomes := outcomes || coalesce(ledger_one(op, now_us), 'null'::jsonb);
    END LOOP;
    IF made IS NOT NULL THEN
        DELETE FROM ledger_account WHERE id = ANY (made) AND NOT used;  -- nothing came to be held on it
    END IF;
    RETURN to_jsonb(outcomes)::text;
END $$;
"""

TUNING: Final = _LIMITS + _ENTRIES + _RESERVE + _APPLY
