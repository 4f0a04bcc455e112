-- How a delivery ends: processed is marked, the next of its ordered key is let go, a dead letter keeps a copy.

create function runtime.mark_processed(sole bigint[], shared bigint[]) returns void
language plpgsql set search_path = '' as $$
declare
    marked integer;
    locked bigint[];
begin
    if sole is not null then
        -- skip locked: an exchange never waits for a row lock of a program that reads the table itself.
        with free as (
            select m.ctid as place from public.consciousness_stream m
            where m.id = any (sole) and not m.processed
            order by m.id for no key update skip locked
        )
        -- By its place, which cannot change while it is locked. One that has moved since the snapshot is marked later.
        update public.consciousness_stream m set processed = true from free where m.ctid = free.place;
        get diagnostics marked = row_count;
        if marked < cardinality(sole) then
            insert into runtime.unmarked
            select m.id from public.consciousness_stream m where m.id = any (sole) and not m.processed
            order by m.id
            on conflict (message_id) do update set message_id = excluded.message_id;
        end if;
    end if;
    if shared is not null then
        locked := array(
            select m.id from public.consciousness_stream m
            where m.id = any (shared) and not m.processed
            order by m.id for no key update skip locked
        );
        -- A statement of its own: its snapshot sees the deliveries that ended while we waited for nobody.
        update public.consciousness_stream m set processed = true
        where m.id = any (locked)
          and not exists (select from runtime.deliveries d where d.message_id = m.id and d.marks);
        -- Not "do nothing": a sweep that has read its list and looked is about to strike the message off. Touching
        -- the row waits for that sweep, and puts the message back on the list.
        insert into runtime.unmarked
        select m.id from public.consciousness_stream m
        where m.id = any (shared) and not m.id = any (locked) and not m.processed
        order by m.id
        on conflict (message_id) do update set message_id = excluded.message_id;
    end if;
end
$$;
comment on function runtime.mark_processed(bigint[], bigint[]) is
    'Sets processed on messages whose last marking delivery has ended: sole had one such delivery, shared had several.';

create function runtime.mark_unmarked() returns void
language plpgsql set search_path = '' as $$
declare
    ids bigint[] := array(
        select u.message_id from runtime.unmarked u order by u.message_id limit 1000 for update skip locked
    );
    locked bigint[];
begin
    if cardinality(ids) = 0 then
        return;
    end if;
    locked := array(
        select m.id from public.consciousness_stream m where m.id = any (ids)
        order by m.id for no key update skip locked
    );
    update public.consciousness_stream m set processed = true
    where m.id = any (locked) and not m.processed
      and not exists (select from runtime.deliveries d where d.message_id = m.id and d.marks);
    delete from runtime.unmarked u
    where u.message_id = any (ids)
      and (u.message_id = any (locked)
           or not exists (select from public.consciousness_stream m where m.id = u.message_id));
end
$$;
comment on function runtime.mark_unmarked() is 'The sweep''s part of processed: tries again what was locked.';

create function runtime.unpark(subscriptions integer[], keys text[], below bigint[] default '{}') returns void
language plpgsql set search_path = '' as $$
begin
    with next as materialized (
        select lowest.place
        from (
            -- Where nothing is said of below, any.
            select e.subscription, e.key, max(coalesce(e.below, 9223372036854775807)) as below
            from unnest(subscriptions, keys, below) as e (subscription, key, below) group by 1, 2
        ) ended
        cross join lateral (
            -- The lowest parked one, not the first one if that is parked: of two that end at the same time each still
            -- sees the other's row. Skip locked: somebody else lets that one go, or ends it and lets another go.
            select n.ctid as place from runtime.deliveries n
            where n.subscription = ended.subscription and n.ordered_key = ended.key and n.message_id < ended.below
              and case when n.lease is not null and n.visible_at < 'infinity' then 0
                       when n.lease is null and n.visible_at = 'infinity' then 1 else 2 end = 1
            order by n.message_id limit 1
            for no key update skip locked
        ) lowest
    )
    update runtime.deliveries d
    set visible_at = case when d.crashes > 0 then clock_timestamp() end
    from next where d.ctid = next.place;
end
$$;
comment on function runtime.unpark(integer[], text[], bigint[]) is
    'Lets the lowest parked delivery of each ordered key go; where below is given, only one with a lower id.';

create function runtime.unpark_below(unleased jsonb) returns void
language plpgsql set search_path = '' as $$
begin
    -- While one of a key runs, lower ones that came late wait for it. It has not ended, so it goes after them now.
    perform runtime.unpark(array_agg((u ->> 0)::integer), array_agg(u ->> 1), array_agg((u ->> 2)::bigint))
    from jsonb_array_elements(unleased) as u;
end
$$;
comment on function runtime.unpark_below(jsonb) is
    'Lets go what is parked below ordered deliveries [[subscription, key, message]] whose leases are over, though they go on.';

create function runtime.heal_order(me runtime.workers) returns void
language plpgsql set search_path = '' as $$
declare
    most constant integer := 1000;
    lane integer;
    walked record;
    left_over integer := most;
    reached_lane integer;
    reached_key text;
    stuck_lanes integer[] := array[]::integer[];
    stuck_keys text[] := array[]::text[];
begin
    foreach lane in array array(select l from unnest(me.subscriptions) as l where l >= coalesce(me.healed_lane, 0) order by l) loop
        -- From key to key by one look into the index each: the first entry of a key tells of all of it.
        with recursive key as (
            (select d.ordered_key, d.message_id,
                    case when d.lease is not null and d.visible_at < 'infinity' then 0
                         when d.lease is null and d.visible_at = 'infinity' then 1 else 2 end as turn
             from runtime.deliveries d
             where d.subscription = lane and d.ordered_key > case when lane = me.healed_lane then me.healed_key else '' end
             order by d.ordered_key, 3, d.message_id limit 1)
            union all
            select n.* from key k
            cross join lateral (
                select d.ordered_key, d.message_id,
                       case when d.lease is not null and d.visible_at < 'infinity' then 0
                            when d.lease is null and d.visible_at = 'infinity' then 1 else 2 end as turn
                from runtime.deliveries d
                where d.subscription = lane and d.ordered_key > k.ordered_key
                order by d.ordered_key, 3, d.message_id limit 1
            ) n
        ), page as (
            select * from key limit left_over
        )
        select count(*) as amount, max(p.ordered_key) as last,
               array_agg(p.ordered_key) filter (
                   -- Nothing is leased, and nothing that waits is lower: nobody will ever let it go.
                   where p.turn = 1 and not exists (
                       select from runtime.deliveries w
                       where w.subscription = lane and w.ordered_key = p.ordered_key and w.message_id < p.message_id
                         and case when w.lease is not null and w.visible_at < 'infinity' then 0
                                  when w.lease is null and w.visible_at = 'infinity' then 1 else 2 end = 2
                       offset 0)) as stuck
        into walked from page p;
        if walked.stuck is not null then
            stuck_keys := stuck_keys || walked.stuck;
            stuck_lanes := stuck_lanes || array_fill(lane, array[cardinality(walked.stuck)]);
        end if;
        left_over := left_over - walked.amount;
        if left_over = 0 then
            reached_lane := lane;
            reached_key := walked.last;
            exit;
        end if;
    end loop;
    if (me.healed_lane, me.healed_key) is distinct from (reached_lane, reached_key) then
        update runtime.workers w set healed_lane = reached_lane, healed_key = reached_key where w.id = me.id;
    end if;
    if cardinality(stuck_keys) > 0 then
        perform runtime.unpark(stuck_lanes, stuck_keys);
        perform runtime.wake_sleepers(array(select distinct l from unnest(stuck_lanes) as l), '{}', but => me.id);
    end if;
end
$$;
comment on function runtime.heal_order(runtime.workers) is
    'The sweep''s part of order: lets the first of a key go that is parked though nothing will ever let it go. Looks at a '
    'thousand keys of the worker''s subscriptions, and goes on from there in its next sweep.';

create function runtime.after_end(
    ids bigint[], subscriptions integer[], marks boolean[], soles boolean[], ordered_keys text[]
) returns void
language plpgsql set search_path = '' as $$
begin
    perform runtime.mark_processed(
        (select array_agg(e.id) from unnest(ids, marks, soles) as e (id, marks, sole) where e.sole),
        (select array_agg(distinct e.id) from unnest(ids, marks, soles) as e (id, marks, sole)
         where e.marks and not e.sole)
    );
    if exists (select from unnest(ordered_keys) as k where k is not null) then
        perform runtime.unpark(
            (select array_agg(e.subscription) from unnest(subscriptions, ordered_keys) as e (subscription, key) where e.key is not null),
            (select array_agg(e.key) from unnest(subscriptions, ordered_keys) as e (subscription, key) where e.key is not null)
        );
    end if;
end
$$;
comment on function runtime.after_end(bigint[], integer[], boolean[], boolean[], text[]) is
    'What follows the deletion of deliveries, in later statements of the same transaction.';

create function runtime.end_deliveries(ids bigint[], subscriptions integer[]) returns void
language plpgsql set search_path = '' as $$
declare
    gone record;
begin
    with ended as (
        delete from runtime.deliveries d using unnest(ids, subscriptions) as t (id, subscription)
        where d.message_id = t.id and d.subscription = t.subscription
        returning d.message_id, d.subscription, d.marks, d.sole, d.ordered_key
    )
    select array_agg(e.message_id) as ids, array_agg(e.subscription) as subscriptions,
           array_agg(e.marks) as marks, array_agg(e.sole) as soles, array_agg(e.ordered_key) as ordered_keys
    into gone from ended e;
    if gone.ids is not null then
        perform runtime.after_end(gone.ids, gone.subscriptions, gone.marks, gone.soles, gone.ordered_keys);
    end if;
end
$$;
comment on function runtime.end_deliveries(bigint[], integer[]) is
    'Ends deliveries that nothing more is to be said of, with what follows from that.';

create function runtime.dead_lease() returns uuid
language sql immutable parallel safe set search_path = '' as $$
    select '00000000-0000-0000-0000-000000000000'::uuid
$$;
comment on function runtime.dead_lease() is 'The lease of a dead letter that holds up its ordered key: nobody draws it.';

create function runtime.bury(
    ids bigint[], subscriptions integer[], reasons text[], errors text[], tracebacks text[]
) returns void
language plpgsql set search_path = '' as $$
declare
    gone record;
begin
    with victims as (
        -- Called with the rows locked, so that their places hold.
        select v.*, d.place, s.name, s.ordered and s.dead_blocks as blocks
        from unnest(ids, subscriptions, reasons, errors, tracebacks)
            as v (id, subscription, reason, error, traceback)
        cross join lateral (
            select l.ctid as place from runtime.deliveries l
            where l.message_id = v.id and l.subscription = v.subscription offset 0
        ) d
        join runtime.subscriptions s on s.id = v.subscription
    ), blocking as (
        -- It stays at the head of its key, leased to nobody for ever, until somebody redrives or discards it.
        update runtime.deliveries d set lease = runtime.dead_lease(), visible_at = 'infinity'
        from victims v
        where v.blocks and d.ctid = v.place
        returning d.message_id, d.subscription, d.ordered_key
    ), ended as (
        delete from runtime.deliveries d using victims v
        where not v.blocks and d.ctid = v.place
        returning d.message_id, d.subscription, d.marks, d.sole, d.ordered_key
    ), buried as (
        select e.message_id, e.subscription from ended e
        union all
        select b.message_id, b.subscription from blocking b
    ), letters as (
        insert into runtime.dead_letters
            (message_id, subscription, subscription_name, key, message, reason, error, traceback, attempts)
        select b.message_id, b.subscription, v.name, m.key, to_jsonb(m), v.reason, v.error, v.traceback,
               coalesce((
                   select jsonb_agg(jsonb_build_object(
                       'attempt', r.attempt, 'outcome', r.outcome, 'worker', r.worker, 'seconds', r.seconds,
                       'ended_at', r.ended_at, 'error', r.error, 'traceback', r.traceback) order by r.ended_at)
                   from runtime.runs r
                   where r.message_id = b.message_id and r.subscription = b.subscription
               ), '[]')
        from buried b
        join victims v on v.id = b.message_id and v.subscription = b.subscription
        join public.consciousness_stream m on m.id = b.message_id
    )
    select array_agg(e.message_id) as ids, array_agg(e.subscription) as subscriptions,
           array_agg(e.marks) as marks, array_agg(e.sole) as soles, array_agg(e.ordered_key) as ordered_keys,
           (select jsonb_agg(jsonb_build_array(b.subscription, b.ordered_key, b.message_id)) from blocking b) as unleased
    into gone from ended e;
    if gone.ids is not null then
        perform runtime.after_end(gone.ids, gone.subscriptions, gone.marks, gone.soles, gone.ordered_keys);
    end if;
    if gone.unleased is not null then
        perform runtime.unpark_below(gone.unleased);
    end if;
    perform runtime.answer_dead(ids, subscriptions, reasons, errors);
end
$$;
comment on function runtime.bury(bigint[], integer[], text[], text[], text[]) is
    'Ends deliveries as dead letters, each with a copy of its message and all its attempts.';
