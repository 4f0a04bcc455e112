-- Order: an ordered subscription has one delivery of each key leased at a time, the lowest first; those behind it are
-- parked.

create function runtime.take_ordered(
    wanted integer, amount integer, due boolean, alone boolean, now timestamptz, until timestamptz, new_lease uuid,
    pump integer, pinned integer default null,
    out taken runtime.taken[], out heavy boolean, out is_full boolean, out look_again boolean
) language plpgsql set search_path = '' as $$
declare
    -- Each delivery taken locks its key, and the server has room for some thousands of locks.
    most constant integer := 200;
    ids bigint[];
    looks integer;
    fresh bigint[];
    overdue bigint[] := '{}'::bigint[];
    seen bigint[];
    -- Firsts: of each key seen the delivery that the others wait for, which is the leased one, else the lowest. Heads:
    -- the firsts that can be taken.
    firsts bigint[];
    keys text[];
    heads bigint[];
    free bigint[];
    locked record;
    parked integer;
begin
    is_full := amount > most;
    amount := least(amount, most);
    look_again := false;
    if due then
        overdue := array(
            select f.message_id from runtime.deliveries f
            where f.subscription = wanted and f.visible_at <= now
              and case when f.lease is not null then 2 else coalesce(f.pinned, 0) + (f.crashes >= 2)::integer end = alone::integer
            order by f.visible_at limit 4 * amount
            for update skip locked
        );
        if pinned is not null then
            overdue := overdue || array(
                select f.message_id from runtime.deliveries f
                where f.subscription = wanted and f.visible_at <= now
                  and case when f.lease is not null then 2 else coalesce(f.pinned, 0) + (f.crashes >= 2)::integer end
                      = take_ordered.pinned + alone::integer
                order by f.visible_at limit 4 * amount
                for update skip locked
            );
        end if;
    end if;
    -- Where many keys take turns the first look is enough; behind a hot key the second one looks further.
    foreach looks in array array[amount, 4 * amount] loop
        -- Rows are locked first and judged by the next statement, whose snapshot is younger than the locks.
        fresh := array(
            select f.message_id from runtime.deliveries f
            where f.subscription = wanted and f.priority = 0 and f.visible_at is null and not alone
            order by f.message_id + 0 limit looks
            for update skip locked
        );
        seen := fresh || overdue;
        select array_agg(case when top.turn = 1 then least(top.message_id, waiting.message_id) else top.message_id end),
               array_agg(m.ordered_key)
        into firsts, keys
        from (
            select distinct d.ordered_key from runtime.deliveries d
            where d.subscription = wanted and d.message_id = any (seen)
        ) m
        cross join lateral (
            select n.message_id,
                   case when n.lease is not null and n.visible_at < 'infinity' then 0
                        when n.lease is null and n.visible_at = 'infinity' then 1 else 2 end as turn
            from runtime.deliveries n
            where n.subscription = wanted and n.ordered_key = m.ordered_key
            order by 2, 1 limit 1
        ) top
        left join lateral (
            -- No delivery is leased and some are parked: the lowest may be one that is neither.
            select w.message_id from runtime.deliveries w
            where top.turn = 1 and w.subscription = wanted and w.ordered_key = m.ordered_key
              and case when w.lease is not null and w.visible_at < 'infinity' then 0
                       when w.lease is null and w.visible_at = 'infinity' then 1 else 2 end = 2
            order by w.message_id limit 1
        ) waiting on true;
        heads := array(
            select f from unnest(firsts) as f where f = any (seen)
            order by f limit amount
        );
        exit when cardinality(heads) = amount or cardinality(fresh) < looks;
    end loop;
    if cardinality(seen) = 0 then
        is_full := false;
        return;
    end if;

    -- A lower delivery may come late, while another exchange, not committed yet, is taking a higher one. An exchange
    -- that cannot lock the key leaves it; one that can sees, by its younger snapshot, what the holder before it has
    -- leased.
    free := array(
        select f.id from unnest(firsts, keys) as f (id, key)
        where case when f.id = any (heads) then pg_try_advisory_xact_lock(hashtextextended(f.key, wanted)) end
    );
    with taken as (
        update runtime.deliveries d set visible_at = until, lease = new_lease, holder = pump
        where d.subscription = wanted and d.message_id = any (free)
          and not exists (
              select from runtime.deliveries r
              where r.subscription = wanted and r.ordered_key = d.ordered_key
                and case when r.lease is not null and r.visible_at < 'infinity' then 0
                         when r.lease is null and r.visible_at = 'infinity' then 1 else 2 end = 0
              offset 0
          )
        returning d.message_id, d.subscription, d.attempts, d.crashes, d.priority, d.heavy
    )
    select array_agg(row(t.message_id, t.subscription, t.attempts, t.crashes, t.priority, t.heavy)::runtime.taken),
           coalesce(array_agg(t.message_id), '{}'), bool_or(t.heavy)
    into take_ordered.taken, ids, heavy
    from taken t;
    if cardinality(ids) = amount then
        -- As many as were wanted, so the deliveries behind them are not in the way.
        return;
    end if;

    -- Park the rest, but only behind a delivery that cannot end before this exchange commits, and whose end will let
    -- them go: one taken here, or one whose row is held here for key share, if it is lower or leased. Else it stays as
    -- it is, and is looked at again soon.
    select coalesce(array_agg(l.message_id), '{}') as ids, array_agg(l.ordered_key) as keys,
           array_agg(l.lease is not null and l.visible_at < 'infinity') as leased
    into locked
    from (
        select n.message_id, n.ordered_key, n.lease, n.visible_at from runtime.deliveries n
        where n.subscription = wanted and n.message_id = any (firsts)
        for key share skip locked
    ) l;
    with rest as materialized (
        select d.ctid as place, d.message_id, d.ordered_key from runtime.deliveries d
        where d.subscription = wanted and d.message_id = any (seen) and not d.message_id = any (ids)
    )
    update runtime.deliveries d set visible_at = 'infinity'
    from rest r
    join unnest(locked.ids, locked.keys, locked.leased) as h (id, key, is_leased)
        on h.key = r.ordered_key and (h.id < r.message_id or h.is_leased)
    where d.ctid = r.place;
    get diagnostics parked = row_count;
    -- The deliveries of a hot key are out of the way now, so the next look sees those behind them.
    is_full := parked > 0 and 4 * amount in (cardinality(fresh), cardinality(overdue));
    look_again := cardinality(ids) < cardinality(heads) or exists (
        select from runtime.deliveries d
        where d.subscription = wanted and d.message_id = any (seen)
          and not d.message_id = any (ids)
          and d.visible_at is distinct from 'infinity'
          and not d.message_id = any (locked.ids)
    );
end
$$;
comment on function runtime.take_ordered(integer, integer, boolean, boolean, timestamptz, timestamptz, uuid, integer, integer) is
    'Leases at most one delivery per key of an ordered subscription, the lowest, and none while another of its key is '
    'leased. Where that is fewer than wanted, parks the deliveries behind them. With a lane in pinned, also those that '
    'wait in it.';

create function runtime.take_in_order(
    so_far runtime.taking, want jsonb, due boolean, now timestamptz, until timestamptz, new_lease uuid, pump integer,
    pins jsonb default null
) returns runtime.taking
language plpgsql set search_path = '' as $$
declare
    result runtime.taking := so_far;
    lane integer;
    one record;
begin
    foreach lane in array so_far.ordered loop
        one := runtime.take_ordered(
            lane, (want ->> lane::text)::integer, due, false, now, until, new_lease, pump,
            (pins ->> lane::text)::integer);
        result.look_again := result.look_again or one.look_again;
        if one.is_full then
            result.filled := result.filled || lane;
            result.least := 0;
        end if;
        if one.taken is not null then
            -- In front, so that these few are not the ones for which an answer has no room.
            result.taken := one.taken || result.taken;
            result.heavy := coalesce(result.heavy, false) or one.heavy;
        end if;
    end loop;
    return result;
end
$$;
comment on function runtime.take_in_order(runtime.taking, jsonb, boolean, timestamptz, timestamptz, uuid, integer, jsonb) is
    'Adds deliveries of the ordered subscriptions to those taken so far.';

create function runtime.unpark(subscriptions integer[], keys text[], below bigint[] default '{}') returns void
language plpgsql set search_path = '' as $$
begin
    with next as materialized (
        select lowest.place
        from (
            -- Without below, any id.
            select e.subscription, e.key, max(coalesce(e.below, 9223372036854775807)) as below
            from unnest(subscriptions, keys, below) as e (subscription, key, below) group by 1, 2
        ) ended
        cross join lateral (
            -- The lowest parked delivery, not the lowest one if that is parked: of two deliveries that end at the same
            -- time each transaction still sees the other's row. Skip locked: the transaction that has the lock lets
            -- that delivery go, or ends it and lets another go.
            select n.ctid as place from runtime.deliveries n
            where n.subscription = ended.subscription and n.ordered_key = ended.key and n.message_id < ended.below
              and case when n.lease is not null and n.visible_at < 'infinity' then 0
                       when n.lease is null and n.visible_at = 'infinity' then 1 else 2 end = 1
            order by n.message_id limit 1
            for no key update skip locked
        ) lowest
    )
    update runtime.deliveries d
    set visible_at = case when d.crashes > 0 or d.pinned is not null then clock_timestamp() end
    from next where d.ctid = next.place;
end
$$;
comment on function runtime.unpark(integer[], text[], bigint[]) is
    'Lets the lowest parked delivery of each ordered key go; where below is given, only one with a lower id.';

create function runtime.unpark_below(unleased jsonb) returns void
language plpgsql set search_path = '' as $$
begin
    -- While a delivery runs, lower ones of its key that came late wait for it. It has not ended, so they go first now.
    perform runtime.unpark(array_agg((u ->> 0)::integer), array_agg(u ->> 1), array_agg((u ->> 2)::bigint))
    from jsonb_array_elements(unleased) as u;
end
$$;
comment on function runtime.unpark_below(jsonb) is
    'Lets parked deliveries go below ordered ones [[subscription, key, message]] whose leases are over, but which have '
    'not ended.';

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
        -- From key to key by one look into the index each: the first entry of a key tells the state of the whole key.
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
                   -- No delivery is leased, and none that waits is lower: no end will ever let this one go.
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
    'The sweep''s part of order: lets the lowest delivery of a key go that is parked though no end will let it go. '
    'Looks at a thousand keys of the worker''s subscriptions, and continues there in its next sweep.';
