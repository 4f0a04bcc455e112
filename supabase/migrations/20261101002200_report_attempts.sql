-- Reports: attempts that are done, have failed, or go on and renew their leases.
-- A report finds its delivery by lateral and offset 0, one look-up each, and changes it by its ctid. With a plain join,
-- a planner that takes the table for empty, as it was when it was last analysed, reads all of it. A delivery that is
-- renewed meanwhile has another ctid and is not found: then its row is locked, and a second pass finds it.

create function runtime.lock_reported(reports json) returns void
language plpgsql set search_path = '' as $$
begin
    perform from json_to_recordset(reports) as r (message bigint, subscription integer, lease uuid)
    cross join lateral (
        select from runtime.deliveries d
        where d.message_id = r.message and d.subscription = r.subscription and d.lease = r.lease
        for update offset 0
    ) l;
end
$$;
comment on function runtime.lock_reported(json) is
    'Waits for the rows of the deliveries that are reported by their current lease.';

create function runtime.finish(reports json, me uuid, is_locked boolean default false) returns jsonb
language plpgsql set search_path = '' as $$
declare
    ended record;
    emits jsonb;
    refused jsonb;
begin
    with report as materialized (
        select r.*, l.place
        from json_to_recordset(reports)
            as r (message bigint, subscription integer, lease uuid, seconds real, emits jsonb, usage jsonb)
        left join lateral (
            select d.ctid as place from runtime.deliveries d
            where d.message_id = r.message and d.subscription = r.subscription and d.lease = r.lease offset 0
        ) l on true
    ), gone as (
        delete from runtime.deliveries d using report r
        where d.ctid = r.place
        returning d.message_id, d.subscription, d.attempts, d.crashes, d.marks, d.sole, d.ordered_key,
                  r.seconds, r.emits, r.usage
    ), logged as (
        insert into runtime.runs (message_id, subscription, ended_at, worker, attempt, outcome, seconds, usage)
        select g.message_id, g.subscription, clock_timestamp(), me, g.attempts + g.crashes + 1, 'done', g.seconds, g.usage
        from gone g
    )
    select
        array_agg(g.message_id) filter (where g.sole) as sole,
        array_agg(distinct g.message_id) filter (where g.marks and not g.sole) as shared,
        array_agg(g.subscription) filter (where g.ordered_key is not null) as ordered,
        array_agg(g.ordered_key) filter (where g.ordered_key is not null) as ordered_keys,
        bool_or(g.emits is not null) as emitted,
        case when bool_or(g.emits is not null) then jsonb_agg(
            jsonb_build_array(g.message_id, g.subscription, g.emits) order by g.message_id
        ) filter (where g.emits is not null) end as emits,
        (select true from report r where r.usage is not null limit 1) as told_usage,
        (select jsonb_agg(jsonb_build_array(r.message, r.subscription)) from report r
         where not exists (select from gone g2 where g2.message_id = r.message and g2.subscription = r.subscription)
        ) as refused
    into ended
    from gone g;

    if ended.told_usage then
        perform set_config('runtime.told_usage', 'on', true);
    end if;
    if ended.sole is not null or ended.shared is not null then
        perform runtime.mark_processed(ended.sole, ended.shared);
    end if;
    if ended.ordered is not null then
        perform runtime.unpark(ended.ordered, ended.ordered_keys);
    end if;
    if ended.emitted then
        -- The agent and the parent come from the delivery, not from the report.
        emits := (
            select jsonb_agg(
                jsonb_build_object('correlation_id', e.value ->> 0) || d.value
                || jsonb_build_object('parent_id', e.value -> 0, 'agent', s.agent)
                order by e.place, d.place)
            from jsonb_array_elements(ended.emits) with ordinality as e (value, place)
            join runtime.subscriptions s on s.id = (e.value ->> 1)::integer
            cross join lateral jsonb_array_elements(e.value -> 2) with ordinality as d (value, place)
        );
        if emits @? '$[*].dedup_key ? (@ != null)' then
            -- Of the reserved dedup_keys, a delivery may use the one of its own answer.
            perform runtime.refuse_reserved(min(d ->> 'dedup_key'))
            from jsonb_array_elements(ended.emits) as e
            cross join lateral jsonb_array_elements(e -> 2) as d
            where runtime.is_reserved(d ->> 'dedup_key')
              and d ->> 'dedup_key' <> format('answer %s %s', e ->> 0, e ->> 1);
        end if;
        if emits is not null then
            perform runtime.store(emits);
        end if;
    end if;
    if ended.refused is null or is_locked then
        return coalesce(ended.refused, '[]');
    end if;
    perform runtime.lock_reported(reports);
    refused := runtime.finish(reports, me, is_locked => true);
    return (select coalesce(jsonb_agg(r), '[]') from jsonb_array_elements(ended.refused) as r where refused @> jsonb_build_array(r));
end
$$;
comment on function runtime.finish(json, uuid, boolean) is
    'Finishes deliveries by their current lease, inserts their emits, and returns the reports that were refused.';

create function runtime.fail(reports json, me uuid) returns jsonb
language plpgsql set search_path = '' as $$
declare
    held record;
    dead record;
begin
    -- outcome: failed (try again after delay), dead (never again), later (put off), released (given back), cancelled
    -- (by an operator; due again where the cancellation was withdrawn), suspended (until its waits are over), undone (its
    -- steps are, as far as they can be: a dead letter). hold: for so many seconds a provider lets nobody through, so that
    -- the subscription is held for all workers.
    with report as (
        select * from json_to_recordset(reports)
            as r (message bigint, subscription integer, lease uuid, usage jsonb, hold double precision)
    ), locked as (
        select d.message_id, d.subscription from report r
        cross join lateral (
            select l.message_id, l.subscription from runtime.deliveries l
            where l.message_id = r.message and l.subscription = r.subscription and l.lease = r.lease
            for update offset 0
        ) d
    )
    select (select array_agg(l.message_id) from locked l) as ids,
           (select array_agg(l.subscription) from locked l) as subscriptions,
           (select true from report r where r.usage is not null or r.hold is not null limit 1) as told_usage,
           coalesce(jsonb_agg(jsonb_build_array(r.message, r.subscription)), '[]') as refused
    into held
    from report r
    where not exists (select from locked l where l.message_id = r.message and l.subscription = r.subscription);

    if held.told_usage then
        perform set_config('runtime.told_usage', 'on', true);
    end if;
    perform runtime.forget_unsettled(held.ids, held.subscriptions);
    if exists (select from runtime.cancels) then
        select * into held.ids, held.subscriptions from runtime.end_as_asked(held.ids, held.subscriptions, me);
    end if;
    with report as materialized (
        select r.*, d.place, d.attempts, d.crashes,
               case when r.outcome = 'failed' and d.attempts + 1 >= s.max_attempts then 'dead' else r.outcome end as verdict
        from unnest(held.ids, held.subscriptions) as h (id, subscription)
        join json_to_recordset(reports) as r (
            message bigint, subscription integer, outcome text, reason text, delay double precision,
            seconds real, error text, traceback text, usage jsonb, waits jsonb
        ) on r.message = h.id and r.subscription = h.subscription
        cross join lateral (
            select l.ctid as place, l.attempts, l.crashes from runtime.deliveries l
            where l.message_id = h.id and l.subscription = h.subscription offset 0
        ) d
        join runtime.subscriptions s on s.id = h.subscription
    ), logged as (
        insert into runtime.runs
            (message_id, subscription, ended_at, worker, attempt, outcome, seconds, error, traceback, usage)
        select r.message, r.subscription, clock_timestamp(), me, r.attempts + r.crashes + 1, r.verdict, r.seconds,
               r.error, r.traceback, r.usage
        from report r where r.verdict <> 'released'
    ), put_off as (
        update runtime.deliveries d
        set lease = null,
            attempts = d.attempts + (r.verdict = 'failed')::integer,
            visible_at = case
                when r.verdict <> 'released' then clock_timestamp() + make_interval(secs => coalesce(r.delay, 0))
                when d.crashes > 0 or d.pinned is not null then clock_timestamp()
            end
        from report r
        where d.ctid = r.place and r.verdict not in ('dead', 'undone')
        returning d.message_id, d.subscription, d.ordered_key
    )
    select array_agg(r.message) as ids, array_agg(r.subscription) as subscriptions,
           array_agg(coalesce(r.reason, 'failed')) as reasons, array_agg(r.error) as errors,
           array_agg(r.traceback) as tracebacks,
           (select jsonb_agg(jsonb_build_array(p.subscription, p.ordered_key, p.message_id))
            from put_off p where p.ordered_key is not null) as unleased,
           (select jsonb_agg(jsonb_build_array(w.message, w.subscription, coalesce(w.waits, '[]')))
            from report w where w.verdict = 'suspended') as suspended
    into dead
    from report r where r.verdict in ('dead', 'undone');

    if dead.suspended is not null then
        perform runtime.suspend(array_agg((u ->> 0)::bigint), array_agg((u ->> 1)::integer), array_agg(u -> 2))
        from jsonb_array_elements(dead.suspended) as u;
    end if;
    if dead.unleased is not null then
        perform runtime.unpark_below(dead.unleased);
    end if;
    if dead.ids is not null then
        perform runtime.bury(dead.ids, dead.subscriptions, dead.reasons, dead.errors, dead.tracebacks);
    end if;
    return held.refused;
end
$$;
comment on function runtime.fail(json, uuid) is
    'Ends attempts that did not succeed: tries again after a delay, puts off, gives back, or buries as dead letters.';

create function runtime.renew(leases json, until timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
    lost jsonb;
begin
    perform runtime.lock_reported(leases);
    with asked as materialized (
        select r.*, l.place
        from json_to_recordset(leases) as r (message bigint, subscription integer, lease uuid)
        left join lateral (
            select d.ctid as place from runtime.deliveries d
            where d.message_id = r.message and d.subscription = r.subscription and d.lease = r.lease offset 0
        ) l on true
    ), renewed as (
        update runtime.deliveries d set visible_at = until from asked a
        where d.ctid = a.place
        returning d.message_id, d.subscription
    )
    select coalesce(jsonb_agg(jsonb_build_array(a.message, a.subscription)), '[]') into lost from asked a
    where not exists (select from renewed r where r.message_id = a.message and r.subscription = a.subscription);
    return lost;
end
$$;
comment on function runtime.renew(json, timestamptz) is 'Moves the ends of leases; returns the leases that were lost.';

create function runtime.keep_leases(held uuid, want jsonb, until timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
    kept jsonb;
begin
    with mine as materialized (
        select d.ctid as place
        from jsonb_each_text(coalesce(want, '{}')) as w
        join runtime.deliveries d on d.subscription = w.key::integer
        -- Also leases that have run out and are not counted as crashes yet: the pump knows that none of these attempts
        -- has begun.
        where d.lease = held and d.visible_at <= until
          and case when d.lease is not null then 2 else coalesce(d.pinned, 0) + (d.crashes >= 2)::integer end = 2
        for update of d
    ), renewed as (
        update runtime.deliveries d set visible_at = until from mine m where d.ctid = m.place
        returning d.message_id, d.subscription
    )
    select coalesce(jsonb_agg(jsonb_build_array(r.message_id, r.subscription, held) order by r.message_id), '[]')
    into kept from renewed r;
    return kept;
end
$$;
comment on function runtime.keep_leases(uuid, jsonb, timestamptz) is
    'Renews the leases of one exchange, and returns them without the messages: [message, subscription, lease]. For a '
    'pump whose answers do not arrive, so that it can give back some deliveries and receive the others a few at a '
    'time.';
