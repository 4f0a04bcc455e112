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

create function runtime.unpark(subscriptions integer[], keys text[]) returns void
language plpgsql set search_path = '' as $$
begin
    update runtime.deliveries d
    set visible_at = case when d.crashes > 0 then clock_timestamp() end
    from (select distinct * from unnest(subscriptions, keys) as e (subscription, key)) ended
    cross join lateral (
        select n.message_id from runtime.deliveries n
        where n.subscription = ended.subscription and n.ordered_key = ended.key
        order by n.message_id limit 1
    ) next
    -- Where the first of its key is not parked, it lets the others go when it ends itself.
    where d.message_id = next.message_id and d.subscription = ended.subscription
      and d.visible_at = 'infinity' and d.lease is null;
end
$$;
comment on function runtime.unpark(integer[], text[]) is 'Lets the first delivery of each ended ordered key go, if it is parked.';

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
        returning d.message_id, d.subscription
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
           array_agg(e.marks) as marks, array_agg(e.sole) as soles, array_agg(e.ordered_key) as ordered_keys
    into gone from ended e;
    if gone.ids is not null then
        perform runtime.after_end(gone.ids, gone.subscriptions, gone.marks, gone.soles, gone.ordered_keys);
    end if;
    perform runtime.answer_dead(ids, subscriptions, reasons, errors);
end
$$;
comment on function runtime.bury(bigint[], integer[], text[], text[], text[]) is
    'Ends deliveries as dead letters, each with a copy of its message and all its attempts.';
