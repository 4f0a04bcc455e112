-- Waits: a handler that waits longer than a moment is suspended. Its delivery has no lease and takes no slot until a
-- message that it waits for is written, or its time has come. Then the handler runs from the top, with the outcomes of
-- its steps and waits answered from storage.

create function runtime.probe(field text, value jsonb) returns text
language sql immutable set search_path = '' as $$
    select case jsonb_typeof(value)
        when 'number' then left(field, 100) || '=' || left(trim_scale((value #>> '{}')::numeric)::text, 100)
        when 'string' then left(field, 100) || '="' || left(value #>> '{}', 100)
        when 'boolean' then left(field, 100) || '=' || (value #>> '{}')
        when 'null' then left(field, 100) || '=null'
    end
$$;
comment on function runtime.probe(text, jsonb) is
    'A field whose value is a scalar, as a text that is the same for equal values; null for an object or an array.';

create function runtime.probe_of(filter jsonb) returns text
language sql immutable set search_path = '' as $$
    select coalesce(case when jsonb_typeof(filter) = 'object' then (
        select min(p.probe) from jsonb_each(filter) as f
        cross join lateral (select runtime.probe(f.key, f.value) as probe) p
    ) end, '')
$$;
comment on function runtime.probe_of(jsonb) is 'The one field of a filter by which messages find it; empty for none.';

create function runtime.probes_of(value jsonb) returns text[]
language plpgsql immutable set search_path = '' as $$
begin
    if jsonb_typeof(value) <> 'object' then
        return array[''];
    end if;
    -- runtime.probe, written out: a call for each field would take most of the time.
    return array(
        select left(f.key, 100) || case jsonb_typeof(f.value)
            when 'number' then '=' || left(trim_scale((f.value #>> '{}')::numeric)::text, 100)
            when 'string' then '="' || left(f.value #>> '{}', 100)
            when 'boolean' then '=' || (f.value #>> '{}')
            else '=null' end
        from jsonb_each(value) as f where jsonb_typeof(f.value) not in ('object', 'array')
        union all select '');
end
$$;
comment on function runtime.probes_of(jsonb) is 'The fields of a message by which its waits are found.';

create function runtime.may_answer(key text, dedup_key text, value jsonb) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
    -- A decision bears the dedup_key that stream_decide alone can give it, so that no inserted row decides.
    return key <> 'approval.decided' or dedup_key is not distinct from 'decision ' || (value ->> 'request');
end
$$;
comment on function runtime.may_answer(text, text, jsonb) is
    'Whether a message may end a wait: any may, but for decisions that nobody has made.';

create function runtime.first_answer(pattern text, filter jsonb, since bigint, parent bigint, seen bigint[])
returns bigint
language plpgsql stable set search_path = '' as $$
declare
    prefix text collate "C" := runtime.prefix_of(pattern);
    regex text := runtime.regex_of(pattern);
begin
    if parent is not null then
        return (
            select min(m.id) from public.consciousness_stream m
            where m.parent_id = parent and m.key = pattern and m.id > since and m.id <> all (seen)
              and (filter is null or m.value @> filter));
    elsif prefix is null then
        return (
            select m.id from public.consciousness_stream m
            where m.key = pattern and m.id > since and (filter is null or m.value @> filter)
              and runtime.may_answer(m.key, m.dedup_key, m.value)
            order by m.key, m.id limit 1);
    end if;
    return (
        select m.id from public.consciousness_stream m
        where m.id > since and m.key ~ regex and (filter is null or m.value @> filter)
          and runtime.may_answer(m.key, m.dedup_key, m.value)
        order by m.id limit 1);
end
$$;
comment on function runtime.first_answer(text, jsonb, bigint, bigint, bigint[]) is
    'The first message after an id whose key matches and whose value contains the filter; where a parent is given, of '
    'those that it has caused and that have not been seen.';

create function runtime.outcome_of(w runtime.waits, answer bigint) returns jsonb
language sql immutable set search_path = '' as $$
    select jsonb_strip_nulls(jsonb_build_object(
        'answer', answer, 'timeout', case when answer is null then true end, 'trace', w.trace))
$$;
comment on function runtime.outcome_of(runtime.waits, bigint) is
    'How a wait has ended, as it is kept: by a message, or by its time where there is none.';

create function runtime.keep_answer(w runtime.waits, answer bigint) returns void
language sql set search_path = '' as $$
    insert into runtime.steps (message_id, subscription, name, key, occurrence, value)
    values (w.message_id, w.subscription, 'wait.' || w.name, w.key, w.occurrence, runtime.outcome_of(w, answer))
    on conflict on constraint steps_pkey do nothing;
    delete from runtime.waits x
    where x.message_id = w.message_id and x.subscription = w.subscription
      and x.name = w.name and x.key = w.key and x.occurrence = w.occurrence;
$$;
comment on function runtime.keep_answer(runtime.waits, bigint) is
    'Ends a wait, whose row is locked, by a message, or by its time where there is none.';

create function runtime.go_on(ids bigint[], subscriptions integer[]) returns void
language plpgsql set search_path = '' as $$
declare
    woken record;
    busy record;
begin
    with suspended as materialized (
        select d.message_id, d.subscription
        from unnest(ids, subscriptions) as t (id, subscription)
        join runtime.deliveries d on d.message_id = t.id and d.subscription = t.subscription
        where d.lease is null and d.visible_at > clock_timestamp()
    ), free as materialized (
        -- A crowd that one message lets go comes due within seconds, not at once.
        select l.place, row_number() over () as turn
        from suspended s
        cross join lateral (
            select d.ctid as place from runtime.deliveries d
            where d.message_id = s.message_id and d.subscription = s.subscription
            for update skip locked offset 0
        ) l
    ), due as (
        update runtime.deliveries d
        set visible_at = clock_timestamp() + make_interval(secs => (f.turn - 1) * 0.0005), heavy = true
        from free f where d.ctid = f.place
        returning d.message_id, d.subscription, d.pinned
    ), missed as (
        -- Locked by another writer, who lets it go just now, and may yet roll back.
        insert into runtime.unsettled_waits (message_id, subscription, places)
        select s.message_id, s.subscription, coalesce((
            select jsonb_agg(jsonb_build_array(substr(x.name, 6), x.key, x.occurrence)) from runtime.steps x
            where x.message_id = s.message_id and x.subscription = s.subscription and starts_with(x.name, 'wait.')), '[]')
        from suspended s
        where not exists (
            select from due u where u.message_id = s.message_id and u.subscription = s.subscription)
    )
    select array_agg(distinct u.subscription) as subscriptions, array_agg(u.subscription) filter (where u.pinned is not null) as pinned,
           array_agg(u.pinned) filter (where u.pinned is not null) as lanes
    into woken from due u;
    if woken.subscriptions is not null then
        perform runtime.wake_sleepers(woken.subscriptions, '{}', event => 'due');
    end if;
    if woken.pinned is not null then
        perform runtime.wake_sleepers(array_agg(t.subscription), '{}', lanes => array_agg(t.lane), event => 'due')
        from (select distinct x.* from unnest(woken.pinned, woken.lanes) as x (subscription, lane)) t;
    end if;
    -- A handler that still waits within its process asks again when it is told.
    for busy in
        select distinct w.id, w.announce
        from unnest(ids, subscriptions) as t (id, subscription)
        join runtime.deliveries d on d.message_id = t.id and d.subscription = t.subscription and d.lease is not null
        join runtime.pumps p on p.number = d.holder
        join runtime.workers w on w.id = p.worker
    loop
        perform runtime.push(busy.id, busy.announce, 'answer');
    end loop;
end
$$;
comment on function runtime.go_on(bigint[], integer[]) is
    'Makes suspended deliveries due, one of whose waits is over, and tells the workers of those that wait in a process.';

create function runtime.answer_waits(ids bigint[], keys text[]) returns void
language plpgsql set search_path = '' as $$
declare
    over record;
begin
    with waited as materialized (
        select k.key, c.pattern
        from unnest(keys) as k (key)
        cross join lateral unnest(runtime.candidates(k.key)) as c (pattern)
        where exists (select from runtime.waits w where w.pattern = c.pattern offset 0)
    ), hit as materialized (
        select w.message_id, w.subscription, w.name, w.key, w.occurrence, min(m.id) as answer
        from waited k
        join public.consciousness_stream m on m.key = k.key and m.id = any (ids)
        cross join lateral unnest(runtime.probes_of(m.value) || ('#' || m.parent_id)) as p (probe)
        cross join lateral (
            select * from runtime.waits l where l.pattern = k.pattern and l.probe = p.probe offset 0
        ) w
        where m.id > w.since_id and (w.parent is null or w.parent = m.parent_id)
          and (w.filter is null or m.value @> w.filter)
          and runtime.may_answer(m.key, m.dedup_key, m.value)
        group by 1, 2, 3, 4, 5
    ), met as materialized (
        select h.*, l.place, l.trace
        from hit h
        left join lateral (
            select x.ctid as place, x.trace from runtime.waits x
            where x.message_id = h.message_id and x.subscription = h.subscription and x.name = h.name
              and x.key = h.key and x.occurrence = h.occurrence
            for update skip locked offset 0
        ) l on true
    ), kept as (
        insert into runtime.steps (message_id, subscription, name, key, occurrence, value)
        select h.message_id, h.subscription, 'wait.' || h.name, h.key, h.occurrence,
               jsonb_strip_nulls(jsonb_build_object('answer', h.answer, 'trace', h.trace))
        from met h where h.place is not null
        on conflict on constraint steps_pkey do nothing
    ), ended as (
        delete from runtime.waits x using met h where x.ctid = h.place
    ), missed as (
        -- Locked by another writer, who answers it just now, and may yet roll back.
        insert into runtime.unsettled_waits (message_id, subscription, places)
        select h.message_id, h.subscription, jsonb_build_array(jsonb_build_array(h.name, h.key, h.occurrence))
        from met h where h.place is null
    )
    select array_agg(m.message_id) as ids, array_agg(m.subscription) as subscriptions into over
    from (select distinct h.message_id, h.subscription from met h where h.place is not null) m;
    if over.ids is not null then
        perform runtime.go_on(over.ids, over.subscriptions);
    end if;
end
$$;
comment on function runtime.answer_waits(bigint[], text[]) is
    'The fan-out''s part of waits: ends those that these new messages answer, in the writer''s transaction.';

create function public.stream_wait(message bigint, subscription integer, lease uuid, waits jsonb) returns json
language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
    caller text := case when current_setting('request.jwt.claims', true) <> '' then runtime.caller_agent() end;
    asked record;
    w runtime.waits;
    is_open boolean;
    is_changed boolean;
    outcomes jsonb := '[]'::jsonb;
    outcome jsonb;
    answer bigint;
    soonest timestamptz;
begin
    if caller is not null then
        perform runtime.check_caller(caller, null, null, null, jsonb_build_object(subscription, 1));
    end if;
    perform from runtime.deliveries d
    where d.message_id = message and d.subscription = stream_wait.subscription and d.lease = stream_wait.lease
    for key share;
    if not found then
        return json_build_object('held', false);
    end if;
    if exists (select from runtime.pins) then
        perform runtime.pin(message, subscription);
    end if;
    for asked in
        select x.* from jsonb_to_recordset(waits) as x (
            name text, key text, occurrence integer, pattern text, filter jsonb, parent bigint, since bigint,
            seen bigint[], trace text, seconds double precision)
    loop
        if asked.parent is not null then
            -- The asker has seen these answers, and waits for another one in the same place.
            delete from runtime.steps s
            where s.message_id = message and s.subscription = stream_wait.subscription
              and s.name = 'wait.' || asked.name and s.key = asked.key and s.occurrence = asked.occurrence
              and (s.value -> 'answer')::bigint = any (asked.seen);
        end if;
        outcome := (
            select s.value from runtime.steps s
            where s.message_id = message and s.subscription = stream_wait.subscription
              and s.name = 'wait.' || asked.name and s.key = asked.key and s.occurrence = asked.occurrence);
        if outcome is null then
            select * into w from runtime.waits x
            where x.message_id = message and x.subscription = stream_wait.subscription
              and x.name = asked.name and x.key = asked.key and x.occurrence = asked.occurrence
            for update skip locked;
            is_open := found;
            is_changed := is_open and (w.seen <> asked.seen or w.trace is distinct from asked.trace);
            w.seen := coalesce(asked.seen, w.seen);
            if not is_open then
                if asked.pattern is not null then
                    perform runtime.check_pattern(asked.pattern);
                end if;
                w := row(
                    message, subscription, asked.name, asked.key, asked.occurrence, asked.pattern, asked.filter,
                    coalesce('#' || asked.parent, runtime.probe_of(asked.filter)), asked.parent,
                    coalesce(asked.since, message), coalesce(asked.seen, '{}'), asked.trace,
                    -- The time for an answer runs from the step that keeps the request, over all attempts.
                    coalesce((
                        select s.created_at from runtime.steps s
                        where asked.parent is not null and s.message_id = message
                          and s.subscription = stream_wait.subscription
                          and s.name = asked.name and s.key = asked.key and s.occurrence = asked.occurrence
                    ), clock_timestamp()) + make_interval(secs => asked.seconds),
                    clock_timestamp(), false);
                insert into runtime.waits select w.* where not exists (
                    -- Its row is locked: a writer answers it just now.
                    select from runtime.waits x
                    where x.message_id = message and x.subscription = stream_wait.subscription
                      and x.name = asked.name and x.key = asked.key and x.occurrence = asked.occurrence);
                is_open := found;
            end if;
            if is_open then
                answer := case when w.pattern is not null then
                    runtime.first_answer(w.pattern, w.filter, w.since_id, w.parent, w.seen) end;
                if answer is not null or w.until <= clock_timestamp() then
                    perform runtime.keep_answer(w, answer);
                    outcome := runtime.outcome_of(w, answer);
                else
                    soonest := least(soonest, w.until);
                    if is_changed then
                        update runtime.waits x set seen = w.seen, trace = asked.trace
                        where x.message_id = message and x.subscription = stream_wait.subscription
                          and x.name = asked.name and x.key = asked.key and x.occurrence = asked.occurrence;
                    end if;
                end if;
            end if;
        end if;
        outcomes := outcomes || coalesce(runtime.told(outcome), 'null');
    end loop;
    return json_build_object(
        'held', true, 'outcomes', outcomes,
        'seconds', greatest(0, extract(epoch from soonest - clock_timestamp())));
end
$$;
comment on function public.stream_wait(bigint, integer, uuid, jsonb) is
    'Has a delivery wait, by its current lease: held tells whether that was so. Of each wait [{name, key, occurrence, '
    'pattern, filter, parent, since, seen, trace, seconds}] the outcome, {answer: message} or {timeout: true}, or null '
    'while it goes on; seconds until the first one ends by time. A wait for answers names their parent, the request, and '
    'the ids of those it has seen, which do not end it again.';

create function runtime.end_overdue_waits(taken runtime.taken[], now timestamptz) returns void
language plpgsql set search_path = '' as $$
begin
    with held as materialized (
        -- Locked by a writer, it is answered just now, and the handler asks for the answer.
        select l.*
        from unnest(taken) as t
        cross join lateral (
            select x.ctid as place, x as wait,
                   x.until <= now and x.parent is null and (x.pattern is null or x.settled and not exists (
                       select from runtime.unsettled_waits u
                       where u.message_id = x.message_id and u.subscription = x.subscription)) as is_over
            from runtime.waits x
            where x.message_id = t.message_id and x.subscription = t.subscription
            for update skip locked offset 0
        ) l
        where t.heavy
    ), kept as (
        insert into runtime.steps (message_id, subscription, name, key, occurrence, value)
        select (h.wait).message_id, (h.wait).subscription, 'wait.' || (h.wait).name, (h.wait).key, (h.wait).occurrence,
               runtime.outcome_of(h.wait, null)
        from held h where h.is_over
        on conflict on constraint steps_pkey do nothing
    ), ended as (
        delete from runtime.waits x using held h where x.ctid = h.place and h.is_over
    ), running as (
        -- Its handler asks again by itself, and may be suspended anew.
        update runtime.waits x set settled = false
        from held h where x.ctid = h.place and h.is_over is not true and (h.wait).settled
    )
    -- The writer may yet roll back, and the handler end before it asks, by a failure or a drain.
    insert into runtime.unsettled_waits (message_id, subscription)
    select distinct x.message_id, x.subscription
    from unnest(taken) as t
    join runtime.waits x on x.message_id = t.message_id and x.subscription = t.subscription
    where x.settled and t.heavy and not exists (select from held h where h.place = x.ctid);
end
$$;
comment on function runtime.end_overdue_waits(runtime.taken[], timestamptz) is
    'Ends by time the sleeps of deliveries that are taken, and the waits that no writer can have missed: of a crowd that '
    'comes due at once no handler has to ask whether its time has come.';

create function runtime.is_answered(message bigint, subscription integer, places jsonb) returns boolean
language plpgsql stable set search_path = '' as $$
begin
    return exists (
        select from jsonb_array_elements(places) as p
        join runtime.steps s on s.message_id = message and s.subscription = is_answered.subscription
            and s.name = 'wait.' || (p ->> 0) and s.key = p ->> 1 and s.occurrence = (p ->> 2)::integer);
end
$$;
comment on function runtime.is_answered(bigint, integer, jsonb) is
    'Whether one of the waits in these places, [name, key, occurrence], is over.';

create function runtime.suspend(ids bigint[], subscriptions integer[], places jsonb[]) returns void
language plpgsql set search_path = '' as $$
begin
    -- The caller has locked the deliveries, and ended their leases.
    with suspended as materialized (
        select t.id, t.subscription, t.places, t.turn, w.is_awaited, w.until,
               runtime.is_answered(t.id, t.subscription, t.places) as is_answered
        from unnest(ids, subscriptions, places) with ordinality as t (id, subscription, places, turn)
        cross join lateral (
            select coalesce(bool_or(x.pattern is not null), false) as is_awaited, min(x.until) as until
            from runtime.waits x where x.message_id = t.id and x.subscription = t.subscription
        ) w
    ), unsettled as (
        -- A sleep ends by time alone, so no writer can miss it.
        insert into runtime.unsettled_waits (message_id, subscription, places)
        select s.id, s.subscription, s.places from suspended s where s.is_awaited or s.is_answered order by s.turn
    ), put_off as (
        -- A crowd is looked at in turns. Its first one is due now, which brings the first turn, and each turn brings the
        -- next: were the others due, too, they would run before their turn, and for nothing.
        select s.id, s.subscription, least(s.until, clock_timestamp() + interval '1 minute') as until
        from (
            select x.*, row_number() over (partition by x.subscription order by x.turn) as place from suspended x
            where x.is_awaited and not x.is_answered
        ) s
        where s.place > 1 or exists (
            select from runtime.unsettled_waits u where u.subscription = s.subscription and u.places is not null)
    )
    update runtime.deliveries d set heavy = true, visible_at = coalesce(p.until, d.visible_at)
    from suspended s
    left join put_off p on p.id = s.id and p.subscription = s.subscription
    cross join lateral (
        select l.ctid as place from runtime.deliveries l
        where l.message_id = s.id and l.subscription = s.subscription offset 0
    ) at
    where d.ctid = at.place;
end
$$;
comment on function runtime.suspend(bigint[], integer[], jsonb[]) is
    'Has the waits of suspended deliveries looked at once more, after every writer that could miss them has ended; those '
    'of a crowd in turns.';

create function runtime.forget_unsettled(ids bigint[], subscriptions integer[]) returns void
language plpgsql set search_path = '' as $$
begin
    -- Nearly always there is none.
    if exists (select from runtime.unsettled_waits) then
        delete from runtime.unsettled_waits u using unnest(ids, subscriptions) as t (id, subscription)
        where u.message_id = t.id and u.subscription = t.subscription and u.places is not null;
    end if;
end
$$;
comment on function runtime.forget_unsettled(bigint[], integer[]) is
    'Looks no more at waits of deliveries that run, or have run since: their handlers ask by themselves, and when they come '
    'due again is not for a look to decide that began before.';

create function runtime.unsettle_held(wanted jsonb) returns void
language plpgsql set search_path = '' as $$
begin
    with free as materialized (
        select x.ctid as place
        from runtime.unsettled_waits u
        join runtime.waits x on x.message_id = u.message_id and x.subscription = u.subscription
        where u.places is null and wanted ? u.subscription::text and x.settled
        for update of x skip locked
    )
    update runtime.waits x set settled = false from free f where x.ctid = f.place;
    delete from runtime.unsettled_waits u
    where u.places is null and wanted ? u.subscription::text and not exists (
        select from runtime.waits x
        where x.message_id = u.message_id and x.subscription = u.subscription and x.settled);
end
$$;
comment on function runtime.unsettle_held(jsonb) is
    'Has time end no wait by itself that a writer held when its delivery was taken: another writer may have missed it for '
    'that.';

create function runtime.settle_waits(wanted jsonb, now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    u runtime.unsettled_waits;
    w runtime.waits;
    place jsonb;
    answer bigint;
    is_over boolean;
    is_missed boolean;
begin
    perform runtime.unsettle_held(wanted);
    for u in
        select x.* from runtime.unsettled_waits x
        where x.subscription in (select k::integer from jsonb_object_keys(wanted) as k) and x.places is not null
        order by x.id limit 200 for update skip locked
    loop
        perform from runtime.deliveries d
        where d.message_id = u.message_id and d.subscription = u.subscription and d.lease is null
        for update skip locked;
        if not found then
            -- It runs, and asks by itself; or it has ended; or a writer lets it go just now.
            if not exists (
                select from runtime.deliveries d
                where d.message_id = u.message_id and d.subscription = u.subscription and d.lease is null) then
                delete from runtime.unsettled_waits x where x.id = u.id;
            end if;
            continue;
        end if;
        is_missed := true;
        is_over := false;
        if not u.fenced then
            -- As a new subscription settles: first the fence, which refuses stricter writers with an older snapshot …
            perform runtime.raise_fence();
            u.fenced := true;
        elsif u.xid is null then
            -- … then the mark: every other writer that could not see the wait has a lower xid …
            u.xid := pg_current_xact_id();
        elsif u.xid > pg_current_xact_id() and runtime.is_foreign(u.xid) then
            u.fenced := false;
            u.xid := null;
        elsif pg_snapshot_xmin(pg_current_snapshot()) > u.xid then
            -- … and when all of those have ended, what they wrote is history.
            is_missed := false;
            for place in select p from jsonb_array_elements(u.places) as p loop
                select * into w from runtime.waits x
                where x.message_id = u.message_id and x.subscription = u.subscription and x.name = place ->> 0
                  and x.key = place ->> 1 and x.occurrence = (place ->> 2)::integer
                for update skip locked;
                if found then
                    answer := case when w.pattern is not null then
                        runtime.first_answer(w.pattern, w.filter, w.since_id, w.parent, w.seen) end;
                    if answer is not null then
                        perform runtime.keep_answer(w, answer);
                        is_over := true;
                    elsif w.pattern is not null and not w.settled then
                        update runtime.waits x set settled = true
                        where x.message_id = w.message_id and x.subscription = w.subscription and x.name = w.name
                          and x.key = w.key and x.occurrence = w.occurrence;
                    end if;
                elsif runtime.is_answered(u.message_id, u.subscription, jsonb_build_array(place)) then
                    is_over := true;
                else
                    -- A writer answers it just now, and may yet roll back.
                    is_missed := true;
                    u.xid := null;
                end if;
            end loop;
        end if;
        if is_missed then
            update runtime.unsettled_waits x set fenced = u.fenced, xid = u.xid, looked = x.looked + 1 where x.id = u.id;
        else
            delete from runtime.unsettled_waits x where x.id = u.id;
        end if;
        update runtime.deliveries d set visible_at = case
            when is_over then now
            when is_missed then least(l.until, now + make_interval(secs => least(0.1 * 1.5 ^ least(u.looked, 20), 1.0)))
            else least(coalesce(l.until, now + interval '100 years'), l.look_again) end
        from (
            -- The handlers of a request may all end without an answer, which no message tells.
            select min(x.until) as until,
                   case when bool_or(x.parent is not null) then
                       now + interval '15 minutes' * (0.8 + 0.2 * random()) end as look_again
            from runtime.waits x
            where x.message_id = u.message_id and x.subscription = u.subscription
        ) l
        where d.message_id = u.message_id and d.subscription = u.subscription
          -- What a message has let go meanwhile stays so.
          and not (d.visible_at <= now and runtime.is_answered(u.message_id, u.subscription, u.places));
    end loop;
    -- Of each subscription the first one behind this turn comes due soon, which brings the next turn.
    update runtime.deliveries d set visible_at = now + interval '0.1 s'
    from (
        select l.place
        from jsonb_object_keys(wanted) as k
        cross join lateral (
            select x.message_id, x.subscription, x.places from runtime.unsettled_waits x
            where x.subscription = k::integer and x.id > u.id and x.places is not null order by x.id limit 1
        ) behind
        cross join lateral (
            select n.ctid as place from runtime.deliveries n
            where n.message_id = behind.message_id and n.subscription = behind.subscription and n.lease is null
              and not runtime.is_answered(n.message_id, n.subscription, behind.places)
              and not exists (
                  select from runtime.waits y
                  where y.message_id = n.message_id and y.subscription = n.subscription and y.until <= now)
            for update skip locked offset 0
        ) l
    ) next
    where d.ctid = next.place;
end
$$;
comment on function runtime.settle_waits(jsonb, timestamptz) is
    'Looks once more at the waits that a writer may have missed which was under way when they began. It takes three '
    'transactions, and the end of every older writer.';

create function runtime.forget_waits(ids bigint[], subscriptions integer[]) returns void
language sql set search_path = '' as $$
    delete from runtime.waits w using (
        select x.ctid as place from unnest(ids, subscriptions) as t (id, subscription)
        join runtime.waits x on x.message_id = t.id and x.subscription = t.subscription
        for update of x skip locked
    ) l
    where w.ctid = l.place;
$$;
comment on function runtime.forget_waits(bigint[], integer[]) is 'Ends the waits of deliveries that have ended.';

create function runtime.waits_of(message bigint, subscription integer) returns json
language sql stable set search_path = '' as $$
    select coalesce(json_agg(json_build_object(
        'pattern', w.pattern, 'where', w.filter, 'parent', w.parent, 'key', w.key, 'occurrence', w.occurrence,
        'since', w.created_at, 'until', w.until) order by w.created_at, w.name), '[]')
    from runtime.waits w where w.message_id = message and w.subscription = waits_of.subscription
$$;
comment on function runtime.waits_of(bigint, integer) is 'What a delivery waits for: a pattern, or null for a time.';

create function public.stream_waits(subscription text default null, pattern text default null, max integer default 100)
returns json
language plpgsql stable security definer set search_path = '' as $$
declare
    caller text := runtime.caller_agent();
begin
    perform runtime.check_between('max', max, 1, 10000);
    return (
        select coalesce(json_agg(row_to_json(x)), '[]') from (
            select w.message_id as message, m.key as message_key, w.name as subscription, w.pattern, w.filter as "where",
                   w.parent, w.created_at as since, w.until,
                   coalesce((
                       select d.lease is null from runtime.deliveries d
                       where d.message_id = w.message_id and d.subscription = w.subscription
                   ), true) as suspended
            -- Those that are shown are chosen first, so that only their messages are read.
            from (
                select s.name, w.message_id, w.subscription, w.pattern, w.filter, w.parent, w.created_at, w.until
                from runtime.waits w
                join runtime.subscriptions s on s.id = w.subscription
                where (stream_waits.subscription is null or s.name = stream_waits.subscription)
                  and (stream_waits.pattern is null or w.pattern = stream_waits.pattern)
                  and (caller is null or s.agent = caller)
                order by w.created_at, w.message_id limit max
            ) w
            left join lateral (
                select m.key from public.consciousness_stream m where m.id = w.message_id offset 0
            ) m on true
            order by w.created_at, w.message_id
        ) x);
end
$$;
comment on function public.stream_waits(text, text, integer) is
    'What handlers wait for, the longest wait first: [{message, message_key, subscription, pattern, where, parent, since, '
    'until, suspended}]; pattern is null for a sleep, parent the request whose answer it waits for.';
