-- The worker's one round trip: report what is done, take what is due; one transaction.

-- Reports find their deliveries by lateral, offset 0, and change them by their place: each is looked up by its key. Joined
-- by their keys, a planner that takes the table for empty, as it was when it was last analysed, reads the whole of it and
-- looks for each row among the reports. A delivery that is renewed meanwhile has another place, and is not found: then its
-- row is locked, and a second pass sees where it is.

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
comment on function runtime.lock_reported(json) is 'Waits for the rows of the deliveries that are reported by their current lease.';

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
            as r (message bigint, subscription integer, lease uuid, seconds real, emits jsonb)
        left join lateral (
            select d.ctid as place from runtime.deliveries d
            where d.message_id = r.message and d.subscription = r.subscription and d.lease = r.lease offset 0
        ) l on true
    ), gone as (
        delete from runtime.deliveries d using report r
        where d.ctid = r.place
        returning d.message_id, d.subscription, d.attempts, d.crashes, d.marks, d.sole, d.ordered_key,
                  r.seconds, r.emits
    ), logged as (
        insert into runtime.runs (message_id, subscription, ended_at, worker, attempt, outcome, seconds)
        select g.message_id, g.subscription, clock_timestamp(), me, g.attempts + g.crashes + 1, 'done', g.seconds
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
        (select jsonb_agg(jsonb_build_array(r.message, r.subscription)) from report r
         where not exists (select from gone g2 where g2.message_id = r.message and g2.subscription = r.subscription)
        ) as refused
    into ended
    from gone g;

    if ended.sole is not null or ended.shared is not null then
        perform runtime.mark_processed(ended.sole, ended.shared);
    end if;
    if ended.ordered is not null then
        perform runtime.unpark(ended.ordered, ended.ordered_keys);
    end if;
    if ended.emitted then
        -- The writer's name and the cause come from the delivery, not from the report.
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
            -- Of the runtime's own keys, a delivery may use that of its answer.
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
    'Finishes deliveries by their current lease, inserts what their handlers emitted, and says which were refused.';

create function runtime.fail(reports json, me uuid) returns jsonb
language plpgsql set search_path = '' as $$
declare
    held record;
    dead record;
begin
    -- outcome: failed (try again after delay), dead (never again), later (put off), released (given back), cancelled
    -- (as an operator asked; where nobody did any more, it is due again).
    with report as (
        select * from json_to_recordset(reports) as r (message bigint, subscription integer, lease uuid)
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
           coalesce(jsonb_agg(jsonb_build_array(r.message, r.subscription)), '[]') as refused
    into held
    from report r
    where not exists (select from locked l where l.message_id = r.message and l.subscription = r.subscription);

    if exists (select from runtime.cancels) then
        select * into held.ids, held.subscriptions from runtime.end_as_asked(held.ids, held.subscriptions, me);
    end if;
    with report as materialized (
        select r.*, d.place, d.attempts, d.crashes,
               case when r.outcome = 'failed' and d.attempts + 1 >= s.max_attempts then 'dead' else r.outcome end as verdict
        from unnest(held.ids, held.subscriptions) as h (id, subscription)
        join json_to_recordset(reports) as r (
            message bigint, subscription integer, outcome text, reason text, delay double precision,
            seconds real, error text, traceback text
        ) on r.message = h.id and r.subscription = h.subscription
        cross join lateral (
            select l.ctid as place, l.attempts, l.crashes from runtime.deliveries l
            where l.message_id = h.id and l.subscription = h.subscription offset 0
        ) d
        join runtime.subscriptions s on s.id = h.subscription
    ), logged as (
        insert into runtime.runs
            (message_id, subscription, ended_at, worker, attempt, outcome, seconds, error, traceback)
        select r.message, r.subscription, clock_timestamp(), me, r.attempts + r.crashes + 1, r.verdict, r.seconds,
               r.error, r.traceback
        from report r where r.verdict <> 'released'
    ), put_off as (
        update runtime.deliveries d
        set lease = null,
            attempts = d.attempts + (r.verdict = 'failed')::integer,
            visible_at = case
                when r.verdict <> 'released' then clock_timestamp() + make_interval(secs => coalesce(r.delay, 0))
                when d.crashes > 0 then clock_timestamp()
            end
        from report r
        where d.ctid = r.place and r.verdict <> 'dead'
        returning d.message_id, d.subscription, d.ordered_key
    )
    select array_agg(r.message) as ids, array_agg(r.subscription) as subscriptions,
           array_agg(coalesce(r.reason, 'failed')) as reasons, array_agg(r.error) as errors,
           array_agg(r.traceback) as tracebacks,
           (select jsonb_agg(jsonb_build_array(p.subscription, p.ordered_key, p.message_id))
            from put_off p where p.ordered_key is not null) as unleased
    into dead
    from report r where r.verdict = 'dead';

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
comment on function runtime.renew(json, timestamptz) is 'Moves the ends of leases; says which were lost.';

create function runtime.drop_undeliverable(taken runtime.taken[], at timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    gone record;
begin
    with hopeless as (
        -- Taken by this very exchange, so their places hold.
        select d.place, m.id is not null as expired
        from unnest(taken) as t
        cross join lateral (
            select l.ctid as place from runtime.deliveries l
            where l.message_id = t.message_id and l.subscription = t.subscription offset 0
        ) d
        left join lateral (
            select l.id, l.expires_at from public.consciousness_stream l where l.id = t.message_id offset 0
        ) m on true
        where m.id is null or m.expires_at <= at
    ), ended as (
        delete from runtime.deliveries d using hopeless h
        where d.ctid = h.place
        returning d.message_id, d.subscription, d.attempts, d.marks, d.sole, d.ordered_key, h.expired
    ), logged as (
        insert into runtime.runs (message_id, subscription, ended_at, attempt, outcome)
        select e.message_id, e.subscription, clock_timestamp(), e.attempts, 'expired' from ended e where e.expired
    ), counted as (
        update runtime.subscriptions s set expired = s.expired + c.amount
        from (select e.subscription, count(*) as amount from ended e where e.expired group by 1) c
        where s.id = c.subscription
    )
    select array_agg(e.message_id) as ids, array_agg(e.subscription) as subscriptions,
           array_agg(e.marks) as marks, array_agg(e.sole) as soles, array_agg(e.ordered_key) as ordered_keys
    into gone from ended e;
    if gone.ids is not null then
        perform runtime.after_end(gone.ids, gone.subscriptions, gone.marks, gone.soles, gone.ordered_keys);
    end if;
end
$$;
comment on function runtime.drop_undeliverable(runtime.taken[], timestamptz) is
    'Ends deliveries whose message is gone or had expired at that time.';

create function runtime.hand_on(me runtime.workers, want jsonb, failed json) returns void
language plpgsql set search_path = '' as $$
declare
    waiting integer[] := array(
        select s.id from runtime.subscriptions s
        where s.id = any (me.subscriptions) and s.ordered and s.settled and s.paused_at is null
          and coalesce((want ->> s.id::text)::integer, 0) = 0
          and exists (
              select from runtime.deliveries d
              where d.subscription = s.id and d.priority = 0 and d.visible_at is null offset 0
          )
        union
        -- Given back, or to be tried again: a worker that leaves looks no more, and sets no timer for it.
        select r.subscription from json_to_recordset(failed) as r (subscription integer)
        where r.subscription is not null and coalesce((want ->> r.subscription::text)::integer, 0) = 0
    );
begin
    if cardinality(waiting) > 0 then
        perform runtime.wake_sleepers(waiting, '{}', but => me.id);
    end if;
end
$$;
comment on function runtime.hand_on(runtime.workers, jsonb, json) is
    'Wakes somebody for what an end has let go, or an attempt has given back, and this worker has no room for.';

create function runtime.fall_asleep(me runtime.workers, pump runtime.pumps, free integer[], fence xid8)
returns table (new_fence xid8, quiet boolean)
language plpgsql set search_path = '' as $$
declare
    called bigint := (select max(c.n) from runtime.calls c where c.pump = fall_asleep.pump.id and c.n >= fall_asleep.pump.last_but_one);
begin
    if not me.asleep or me.free is distinct from fall_asleep.free or me.pump is distinct from fall_asleep.pump.id then
        update runtime.workers w set asleep = true, free = fall_asleep.free, pump = fall_asleep.pump.id
        where w.id = me.id;
        return query select null::xid8, false;
        return;
    elsif called = fall_asleep.pump.previous then
        -- Until this exchange commits, others may leave it at that call.
        return query select null::xid8, false;
        return;
    elsif called is not null then
        -- Until the last one did.
        fence := null;
    end if;
    -- The mark was committed by an earlier exchange. A writer that could not see it has a lower xid than ours
    -- had when we first came back; once all of those have ended, what they wrote is there to be taken.
    fence := least(fence, pg_current_xact_id());
    return query select fence, pg_snapshot_xmin(pg_current_snapshot()) >= fence;
end
$$;
comment on function runtime.fall_asleep(runtime.workers, runtime.pumps, integer[], xid8) is
    'Marks a worker asleep; from the next exchange on, says whether nobody can still write without seeing the mark.';

create function runtime.send_nonce(worker uuid, announce text[], nonce text) returns void
language plpgsql set search_path = '' as $$
begin
    delete from runtime.beats b where b.worker = send_nonce.worker or b.sent_at < clock_timestamp() - interval '1 hour';
    insert into runtime.beats (nonce, worker) values (send_nonce.nonce, send_nonce.worker);
    if 'notify' = any (announce) then
        perform pg_notify(runtime.notify_channel(worker), 'nonce:' || nonce);
    end if;
    if 'realtime' = any (announce) and runtime.realtime_is_there() then
        perform realtime.send(
            jsonb_build_object('nonce', nonce), 'nonce', 'runtime:' || worker::text, true);
    end if;
end
$$;
comment on function runtime.send_nonce(uuid, text[], text) is 'Sends a nonce back over every push path, to prove each from end to end.';

create function runtime.beat(me runtime.workers, nonce text, gauges jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
    rules runtime.policy := runtime.rules();
begin
    perform runtime.mend_clock();
    update runtime.workers w set seen_at = clock_timestamp(), details = w.details || coalesce(gauges, '{}')
    where w.id = me.id;
    perform runtime.mark_unmarked();
    perform runtime.heal_order(me);
    delete from runtime.workers w where w.seen_at < clock_timestamp() - interval '1 day' and w.id <> me.id;
    delete from runtime.pumps p where not exists (select from runtime.workers w where w.id = p.worker);
    -- An unanswered call is kept for as long as its worker may count as asleep.
    delete from runtime.calls c
    where c.called_at < clock_timestamp() - make_interval(secs => greatest(60, rules.sleeper_seconds))
        -- From before the clock was set back.
        or c.called_at > clock_timestamp();
    if nonce is not null then
        perform runtime.send_nonce(me.id, me.announce, nonce);
    end if;
    return to_jsonb(runtime.disorders(me.announce) || array(select r.warning from runtime.rivals(me.id) r));
end
$$;
comment on function runtime.beat(runtime.workers, text, jsonb) is
    'The sweep''s part of an exchange: heartbeat with the worker''s gauges, leftovers, and a nonce that proves the push '
    'paths. Returns what the worker should warn of.';

create function public.stream_beat(worker uuid, nonce text) returns json
language plpgsql security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('send nonces');
    perform runtime.send_nonce(worker, array['realtime', 'notify'], nonce);
    return json_build_object('nonce', nonce);
end
$$;
comment on function public.stream_beat(uuid, text) is
    'Sends a nonce back over every push path, for a listener that takes no deliveries.';

create function runtime.check_caller(caller text, done json, failed json, renew json, want jsonb) returns void
language plpgsql stable set search_path = '' as $$
declare
    stranger integer;
begin
    select named.id into stranger
    from (
        select (r ->> 'subscription')::integer as id from json_array_elements(coalesce(done, '[]')) as r
        union select (r ->> 'subscription')::integer from json_array_elements(coalesce(failed, '[]')) as r
        union select (r ->> 'subscription')::integer from json_array_elements(coalesce(renew, '[]')) as r
        union select k::integer from jsonb_object_keys(coalesce(want, '{}')) as k
    ) named
    left join runtime.subscriptions s on s.id = named.id
    where s.agent is distinct from caller limit 1;
    if stranger is not null then
        raise exception using errcode = '42501',
            message = format('agent %L does not own subscription %s', caller, stranger);
    end if;
end
$$;
comment on function runtime.check_caller(text, json, json, json, jsonb) is
    'An agent under its own identity reports, renews and takes only its own deliveries.';

create function runtime.keep_leases(held uuid, want jsonb, until timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
    kept jsonb;
begin
    with mine as materialized (
        select d.ctid as place
        from jsonb_each_text(coalesce(want, '{}')) as w
        join runtime.deliveries d on d.subscription = w.key::integer
        -- Also those whose lease has run out, while nobody has counted that as a crash: their pump knows that none has
        -- begun.
        where d.lease = held and d.visible_at <= until
          and case when d.lease is not null then 2 when d.crashes >= 2 then 1 else 0 end = 2
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
    'Renews what one exchange has leased and tells of it without the messages: [message, subscription, lease]. For a pump '
    'whose answers do not arrive, so that it can give back what it cannot have, and have the rest a few at a time.';

create function public.stream_exchange(
    worker uuid,
    pump uuid,
    n bigint,
    done json default null,
    failed json default null,
    renew json default null,
    want jsonb default null,
    options jsonb default '{}'
) returns json
language plpgsql security definer set search_path = ''
    set enable_seqscan = off set enable_bitmapscan = off set jit = off set plan_cache_mode = force_generic_plan set lock_timeout = '2s' as $$
declare
    met record;
    me runtime.workers;
    mine runtime.pumps;
    -- Looked at only where there are any: it is a part of every exchange's time.
    caller text := case when current_setting('request.jwt.claims', true) <> '' then runtime.caller_agent() end;
    until timestamptz := clock_timestamp()
        + make_interval(secs => coalesce((options ->> 'lease_seconds')::double precision, 30));
    due boolean := coalesce((options ->> 'due')::boolean, false);
    alone boolean := coalesce((options ->> 'alone')::boolean, false);
    -- A worker says how much it can take after an answer could not be built, or did not arrive: then what seems small
    -- is weighed too, and no message is told of before.
    exactly boolean := options ?| '{max_bytes,bare}';
    new_lease uuid := case when want <> '{}' then gen_random_uuid() end;
    looked_at timestamptz;
    refused jsonb := '[]'::jsonb;
    lost jsonb;
    nap record;
    taking runtime.taking;
    allowed jsonb := want;
    bound jsonb;
    answer jsonb := '{}'::jsonb;
    warnings jsonb;
    limited_seconds double precision;
    described json := '[]'::json;
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using errcode = '25001', message = 'stream_exchange needs isolation level read committed';
    end if;
    -- Losing a lease in a crash of the database costs a lease time; losing a finish would repeat work. A condition, since
    -- that is an expression: performed, the call would be a query.
    if done is null and failed is null and set_config('synchronous_commit', 'off', true) is null then
        null;
    end if;
    if caller is not null then
        perform runtime.check_caller(caller, done, failed, renew, want);
    end if;

    for tries in 1..2 loop
        update runtime.pumps p
        set last_but_one = p.previous, previous = p.n, n = stream_exchange.n, lease = new_lease, refused = '[]'
        from (select stream_exchange.worker as id) asked
        left join runtime.workers w on w.id = asked.id
        where p.id = stream_exchange.pump and p.n < stream_exchange.n
        returning p as pump, w as worker, exists (select from runtime.limits) as is_limited,
                  exists (select from runtime.subscriptions s where s.ordered) as has_order
        into met;
        exit when found;
        insert into runtime.pumps (id, worker) values (pump, stream_exchange.worker) on conflict do nothing;
    end loop;
    mine := met.pump;
    me := met.worker;
    if mine.id is null then
        select * into mine from runtime.pumps p where p.id = pump for update;
        if n < mine.n then
            return json_build_object('n', mine.n, 'stale', true);
        end if;
        return json_build_object(
            'n', n, 'repeated', true, 'refused', mine.refused,
            'leased', case when options ? 'bare' then runtime.keep_leases(mine.lease, want, until) end,
            'taken', case when options ? 'bare' then '[]' else coalesce((
                select (runtime.describe(
                    array_agg(row(d.message_id, d.subscription, d.attempts, d.crashes, d.priority)::runtime.taken),
                    mine.lease, '-infinity'
                )).rows
                from runtime.deliveries d
                join jsonb_each_text(coalesce(want, '{}')) as w on w.key::integer = d.subscription
                where d.lease = mine.lease and d.visible_at > clock_timestamp() and d.visible_at < 'infinity'
            ), '[]') end);
    end if;

    if done is not null then
        refused := runtime.finish(done, stream_exchange.worker);
    end if;
    if failed is not null then
        refused := refused || runtime.fail(failed, stream_exchange.worker);
    end if;
    if renew is not null then
        lost := runtime.renew(renew, until);
        answer := jsonb_build_object('lost', lost);
    end if;

    if me.id is null then
        -- Pruned, or the database was reset: the worker must subscribe again.
        answer := answer || '{"unknown": true}';
    else
        if options ? 'beat' then
            warnings := runtime.beat(me, options ->> 'nonce', options -> 'gauges');
            if warnings <> '[]' then
                answer := answer || jsonb_build_object('warnings', warnings);
            end if;
        end if;
        if options ? 'settle' then
            perform runtime.settle(me.subscriptions);
            answer := answer || jsonb_build_object('unsettled', array(
                select s.id from runtime.subscriptions s where s.id = any (me.subscriptions) and not s.settled));
        end if;
        if options ? 'stay' then
            -- Called: there is most likely something, so whether it may sleep on is left for the next exchange.
            null;
        elsif options ? 'sleep' then
            select * into nap from runtime.fall_asleep(
                me, mine, array(select w.key::integer from jsonb_each_text(coalesce(want, '{}')) as w
                          where w.value::integer > 0 order by 1),
                (options ->> 'fence')::xid8);
            answer := answer || jsonb_build_object('fence', nap.new_fence::text, 'quiet', nap.quiet);
        elsif me.asleep then
            update runtime.workers w set asleep = false where w.id = me.id;
        end if;
        if me.cancelled_at is not null then
            answer := answer || jsonb_build_object('cancelled', runtime.cancelled_of(me));
        end if;
    end if;

    if new_lease is not null then
        looked_at := clock_timestamp();
        if due then
            perform runtime.count_crashes(want);
        end if;
        if met.is_limited then
            select * into allowed, bound from runtime.allow(want);
        end if;
        if alone then
            taking := runtime.take_alone(allowed, until, new_lease, mine.number);
        elsif due then
            taking := runtime.take_due_too(allowed, options -> 'cursors', until, new_lease, mine.number, looked_at, exactly);
        else
            taking := runtime.take_fresh(
                allowed, options -> 'cursors', until, new_lease, mine.number, looked_at, exactly);
        end if;
        if taking.ordered is not null then
            taking := runtime.take_in_order(taking, allowed, due, until, new_lease, mine.number);
        end if;
        if (taking.heavy or exactly) and not options ? 'bare' and cardinality(taking.taken) > 0 then
            taking := runtime.fit(
                taking, coalesce((options ->> 'max_bytes')::bigint, 8000000), exactly, stream_exchange.worker);
        end if;
        if cardinality(taking.taken) >= taking.least then
            taking.filled := runtime.filled(taking, allowed);
        end if;
        if options ? 'bare' then
            perform runtime.drop_undeliverable(taking.taken, looked_at);
            answer := answer || jsonb_build_object('leased', runtime.keep_leases(new_lease, want, until));
        elsif cardinality(taking.taken) > 0 then
            described := taking.rows;
            if not taking.is_whole or described is null then
                select * into described, taking.is_whole from runtime.describe(taking.taken, new_lease, looked_at);
            end if;
            if not taking.is_whole then
                perform runtime.drop_undeliverable(taking.taken, looked_at);
                -- What stood behind them may go now.
                taking.look_again := true;
            end if;
        end if;
        if bound is not null then
            select * into taking.filled, limited_seconds
            from runtime.spend(
                want, bound, array(select t.subscription from unnest(taking.taken) as t), taking.filled);
            if limited_seconds is not null then
                answer := answer || jsonb_build_object('limited', limited_seconds);
            end if;
        end if;
        if cardinality(taking.filled) > 0 then
            perform runtime.wake_sleepers(taking.filled, '{}', but => me.id);
        end if;
        answer := answer || jsonb_build_object(
            'full', taking.filled, 'cursors', taking.cursors, 'look_again', taking.look_again);
        if due then
            answer := answer || jsonb_build_object(
                'next_due', case when taking.more_due then 0 else runtime.next_due_seconds(want, looked_at) end,
                'suspects', runtime.has_suspects(want));
        end if;
    end if;

    if done is not null or failed is not null then
        if failed is not null or met.has_order then
            perform runtime.hand_on(me, want, failed);
        end if;
        if met.is_limited then
            perform runtime.hand_on_slots(me, done, failed);
        end if;
    end if;

    if refused <> '[]' then
        update runtime.pumps p set refused = stream_exchange_refused.value
        from (select refused as value) as stream_exchange_refused
        where p.id = pump;
    end if;
    return json_build_object('n', n, 'refused', refused, 'taken', described, 'more', answer);
end
$$;
comment on function public.stream_exchange(uuid, uuid, bigint, json, json, json, jsonb, jsonb) is
    'Reports done, failed and renewed deliveries and takes up to want[subscription] due ones with their messages. '
    'Each pump numbers its exchanges; a repeated number is answered again and applied once.';
