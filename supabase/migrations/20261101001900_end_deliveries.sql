-- The end of a delivery: its message is marked as processed, and the next delivery of its ordered key is let go.

create function runtime.mark_processed(sole bigint[], shared bigint[]) returns void
language plpgsql set search_path = '' as $$
declare
    marked integer;
    locked bigint[];
begin
    if sole is not null then
        -- skip locked: an exchange never waits for a program that locks rows of the table itself.
        with free as (
            select m.ctid as place from public.consciousness_stream m
            where m.id = any (sole) and not m.processed
            order by m.id for no key update skip locked
        )
        -- By the ctid, which cannot change while the row is locked. A row that has moved since the snapshot is marked
        -- later.
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
        -- A statement of its own, whose snapshot is younger than the locks and sees the deliveries that ended before.
        update public.consciousness_stream m set processed = true
        where m.id = any (locked)
          and not exists (select from runtime.deliveries d where d.message_id = m.id and d.marks);
        -- Not "do nothing": a sweep that has just looked at the message may be about to delete it from this list. The
        -- update waits for that sweep, and then puts the message back.
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
comment on function runtime.mark_unmarked() is
    'The sweep''s part of processed: marks messages that were locked before.';

create function runtime.after_end(ended runtime.deliveries[]) returns void
language plpgsql set search_path = '' as $$
begin
    perform runtime.mark_processed(
        array_agg(e.message_id) filter (where e.sole), array_agg(distinct e.message_id) filter (where e.marks and not e.sole)
    ) from unnest(ended) as e;
    perform runtime.unpark(array_agg(e.subscription), array_agg(e.ordered_key))
    from unnest(ended) as e where e.ordered_key is not null having count(*) > 0;
    perform runtime.forget_waits(array_agg(e.message_id), array_agg(e.subscription))
    from unnest(ended) as e where e.heavy having count(*) > 0;
end
$$;
comment on function runtime.after_end(runtime.deliveries[]) is
    'What follows the deletion of deliveries, in later statements of the same transaction.';

create function runtime.end_deliveries(ids bigint[], subscriptions integer[]) returns void
language plpgsql set search_path = '' as $$
declare
    gone runtime.deliveries[];
begin
    with ended as (
        delete from runtime.deliveries d using unnest(ids, subscriptions) as t (id, subscription)
        where d.message_id = t.id and d.subscription = t.subscription
        returning d as delivery
    )
    select array_agg(e.delivery) into gone from ended e;
    perform runtime.after_end(gone);
end
$$;
comment on function runtime.end_deliveries(bigint[], integer[]) is
    'Ends deliveries without a run or a dead letter, with what follows from their end.';

create function runtime.drop_undeliverable(taken runtime.taken[], at timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    gone runtime.deliveries[];
begin
    with hopeless as (
        -- Locked by this exchange, which has taken them, so their ctids hold.
        select d.place, m.id is not null as expired
        from unnest(taken) as t
        cross join lateral (
            select l.ctid as place from runtime.deliveries l
            where l.message_id = t.message_id and l.subscription = t.subscription offset 0
        ) d
        left join lateral (
            select l.id, l.expires_at from public.consciousness_stream l where l.id = t.message_id offset 0
        ) m on true
        where m.id is null
           or (m.expires_at <= at and not (t.heavy and runtime.has_begun(t.message_id, t.subscription)))
    ), ended as (
        delete from runtime.deliveries d using hopeless h
        where d.ctid = h.place
        returning d as delivery, d.message_id, d.subscription, d.attempts, h.expired
    ), logged as (
        insert into runtime.runs (message_id, subscription, ended_at, attempt, outcome)
        select e.message_id, e.subscription, clock_timestamp(), e.attempts, 'expired' from ended e where e.expired
    ), counted as (
        update runtime.subscriptions s set expired = s.expired + c.amount
        from (select e.subscription, count(*) as amount from ended e where e.expired group by 1) c
        where s.id = c.subscription
    )
    select array_agg(e.delivery) into gone from ended e;
    perform runtime.after_end(gone);
end
$$;
comment on function runtime.drop_undeliverable(runtime.taken[], timestamptz) is
    'Ends deliveries whose message is gone or had expired at that time.';
