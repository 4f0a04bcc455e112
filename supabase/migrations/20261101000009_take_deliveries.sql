-- What is taken? Fresh deliveries past the pump's cursor, and due ones when their time may have come.
-- The clock is read in a query of its own: read for each row it serves no index, and all that is delayed would be
-- walked through.

-- What is told of a delivery is carried along from where it is taken: nothing is looked up twice.
create type runtime.taken as (
    message_id bigint, subscription integer, attempts integer, crashes smallint, priority smallint
);

create type runtime.taking as (
    taken runtime.taken[],
    -- They as they cross the wire, where that is known, and whether each has a message that has not expired.
    rows json,
    is_whole boolean,
    -- Some have to be weighed before an answer is built of them.
    heavy boolean,
    cursors jsonb,
    -- The ordered ones among the wanted subscriptions: they are looked at one by one.
    ordered integer[],
    -- So many make it worth asking which subscriptions gave as many as were wanted.
    least integer,
    filled integer[],
    look_again boolean,
    more_due boolean
);

create function runtime.describe(
    taken runtime.taken[], lease uuid, at timestamptz, out rows json, out is_whole boolean
) language plpgsql stable set search_path = '' as $$
begin
    select coalesce(json_agg(
               json_build_array(
                   t.subscription, t.attempts, t.crashes, m.id, m.key, m.value, m.agent, m.created_at, m.correlation_id,
                   m.parent_id, m.headers, m.priority, m.dedup_key, m.deliver_at, m.expires_at, describe.lease
               ) order by t.priority desc, m.id), '[]'),
           count(*) = cardinality(taken)
    into rows, is_whole
    from unnest(taken) as t
    -- offset 0: looked up one by one. A planner that takes the table for empty would rather read it whole.
    cross join lateral (select * from public.consciousness_stream l where l.id = t.message_id offset 0) m
    where (m.expires_at <= at) is not true;
end
$$;
comment on function runtime.describe(runtime.taken[], uuid, timestamptz) is
    'Deliveries as they cross the wire: [subscription, attempts, crashes, id, key, value, agent, created_at, '
    'correlation_id, parent_id, headers, priority, dedup_key, deliver_at, expires_at, lease]; and whether every one '
    'has a message that had not expired at that time.';

create function runtime.weigh(value jsonb, headers jsonb, agent text, correlation_id text, exactly boolean) returns bigint
language plpgsql stable set search_path = '' as $$
begin
    return coalesce(octet_length(agent), 0) + coalesce(octet_length(correlation_id), 0)
        + case when exactly or pg_column_size(headers) > 500 or pg_column_compression(headers) is not null
               then coalesce(octet_length(headers::text), 0)
               else coalesce(pg_column_size(headers), 0) end
        + case when exactly or pg_column_size(value) > 2000 or pg_column_compression(value) is not null
               then coalesce(octet_length(value::text), 0)
               else coalesce(pg_column_size(value), 0) end;
exception when program_limit_exceeded or out_of_memory or internal_error then
    -- A number of a hundred thousand digits takes eight bytes, and thousands of them no text can hold.
    return null;
end
$$;
comment on function runtime.weigh(jsonb, jsonb, text, text, boolean) is
    'About how many bytes a message takes in an answer; null where no answer can hold it. A small value is not printed '
    'for that, unless it is wanted exactly.';

create function runtime.weights(ids bigint[], exactly boolean) returns bigint[]
language plpgsql stable set search_path = '' as $$
begin
    return array(
        -- One whose message is gone weighs nothing, but has to come along to be dropped.
        select case when m.id is null then 0
                    else runtime.weigh(m.value, m.headers, m.agent, m.correlation_id, exactly) end
        from unnest(ids) with ordinality as t (id, place)
        left join lateral (select * from public.consciousness_stream l where l.id = t.id offset 0) m on true
        order by t.place
    );
end
$$;
comment on function runtime.weights(bigint[], boolean) is 'About how many bytes each of these messages takes in an answer.';

create function runtime.fits(weights bigint[], max_bytes bigint) returns integer
language plpgsql immutable set search_path = '' as $$
declare
    total bigint := 0;
    counted integer := 0;
    weight bigint;
begin
    foreach weight in array weights loop
        total := total + weight;
        exit when total > max_bytes and counted > 0;
        counted := counted + 1;
    end loop;
    return counted;
end
$$;
comment on function runtime.fits(bigint[], bigint) is
    'How many messages of these weights, from the first, fit in one answer; at least one.';

create function runtime.take_fresh(
    want jsonb, cursors jsonb, until timestamptz, new_lease uuid, pump integer, at timestamptz, exactly boolean
) returns runtime.taking
language plpgsql set search_path = '' as $$
declare
    result runtime.taking;
begin
    -- One statement, for it is most of what a worker does that is woken: who may take, what there is, and the messages.
    with wanted as materialized (
        select s.id as subscription, w.value::integer as amount, s.ordered,
               coalesce((take_fresh.cursors ->> w.key)::bigint, 0) as past
        from jsonb_each_text(want) as w
        join runtime.subscriptions s on s.id = w.key::integer
        where s.settled and s.paused_at is null and w.value::integer > 0
    ), picked as materialized (
        select d.place
        from wanted w
        cross join lateral (
            select one.place
            from (values (1::smallint, 0::bigint), (0::smallint, w.past), (-1::smallint, 0::bigint))
                as class (priority, past)
            cross join lateral (
                select f.ctid as place from runtime.deliveries f
                where f.subscription = w.subscription and f.priority = class.priority
                  and f.visible_at is null and f.message_id + 0 > class.past
                order by f.message_id + 0
                limit w.amount
                for update skip locked
            ) one
            limit w.amount
        ) d
        where not w.ordered
    ), taken as (
        -- By its place, which cannot change while it is locked. One that has moved since the snapshot is left for later.
        update runtime.deliveries d set visible_at = until, lease = new_lease, holder = pump
        from picked p
        where d.ctid = p.place
        returning d.message_id, d.subscription, d.attempts, d.crashes, d.priority, d.heavy
    )
    select coalesce(array_agg(row(t.message_id, t.subscription, t.attempts, t.crashes, t.priority)::runtime.taken), '{}'),
           -- As runtime.describe says it; what is heavy has to be weighed first.
           json_agg(json_build_array(
               t.subscription, t.attempts, t.crashes, m.id, m.key, m.value, m.agent, m.created_at, m.correlation_id,
               m.parent_id, m.headers, m.priority, m.dedup_key, m.deliver_at, m.expires_at, new_lease
           ) order by t.priority desc, m.id) filter (where not t.heavy and not exactly),
           bool_and(m.id is not null and (m.expires_at <= at) is not true),
           bool_or(t.heavy),
           -- Of each the last to be taken: the highest, as they were picked. A lower one would cost a look at some again.
           coalesce(take_fresh.cursors, '{}')
               || coalesce(jsonb_object_agg(t.subscription, t.message_id) filter (where t.priority = 0), '{}'),
           (select array_agg(w.subscription) from wanted w where w.ordered),
           (select min(w.amount) from wanted w),
           '{}'::integer[], false, false
    into result
    from taken t
    left join lateral (select * from public.consciousness_stream l where l.id = t.message_id offset 0) m on true;
    return result;
end
$$;
comment on function runtime.take_fresh(jsonb, jsonb, timestamptz, uuid, integer, timestamptz, boolean) is
    'Leases fresh deliveries of the wanted unordered subscriptions, highest class and lowest id first; says how far it has '
    'come in each, and which of the others are ordered.';

create function runtime.settle_crashes(ids bigint[], subscriptions integer[]) returns void
language plpgsql set search_path = '' as $$
declare
    spent record;
    unleased jsonb;
begin
    -- Called with the rows locked, so that their places hold, and their old lease expired: each is one crash of its worker.
    insert into runtime.runs (message_id, subscription, ended_at, worker, attempt, outcome, error)
    select d.message_id, d.subscription, clock_timestamp(),
           (select p.worker from runtime.pumps p where p.number = d.holder),
           d.attempts + d.crashes + 1, 'crashed', 'its lease expired: the worker died, froze or lost the database'
    from unnest(ids, subscriptions) as t (id, subscription)
    cross join lateral (
        select l.message_id, l.subscription, l.holder, l.attempts, l.crashes from runtime.deliveries l
        where l.message_id = t.id and l.subscription = t.subscription offset 0
    ) d;
    if exists (select from runtime.cancels) then
        select * into ids, subscriptions from runtime.end_as_asked(ids, subscriptions, null);
    end if;
    with crashed as (
        update runtime.deliveries d set crashes = d.crashes + 1, lease = null, visible_at = clock_timestamp()
        from unnest(ids, subscriptions) as t (id, subscription)
        cross join lateral (
            select l.ctid as place from runtime.deliveries l
            where l.message_id = t.id and l.subscription = t.subscription offset 0
        ) at
        where d.ctid = at.place
        returning d.message_id, d.subscription, d.ordered_key
    )
    select jsonb_agg(jsonb_build_array(c.subscription, c.ordered_key, c.message_id)) into unleased
    from crashed c where c.ordered_key is not null;
    if unleased is not null then
        perform runtime.unpark_below(unleased);
    end if;
    select array_agg(d.message_id) as ids, array_agg(d.subscription) as subscriptions,
           array_agg('crashed'::text) as reasons,
           array_agg(format('its worker died %s times while handling it', d.crashes)) as errors
    into spent
    from unnest(ids, subscriptions) as t (id, subscription)
    cross join lateral (
        select l.message_id, l.subscription, l.crashes from runtime.deliveries l
        where l.message_id = t.id and l.subscription = t.subscription offset 0
    ) d
    join runtime.subscriptions s on s.id = d.subscription
    where d.crashes >= s.max_crashes;
    if spent.ids is not null then
        perform runtime.bury(spent.ids, spent.subscriptions, spent.reasons, spent.errors,
                             array_fill(null::text, array[cardinality(spent.ids)]));
    end if;
end
$$;
comment on function runtime.settle_crashes(bigint[], integer[]) is
    'Counts a crash for each abandoned lease; a delivery whose crashes are used up becomes a dead letter.';

create function runtime.count_crashes(wanted jsonb) returns void
language plpgsql set search_path = '' as $$
declare
    abandoned record;
begin
    select array_agg(d.message_id) as ids, array_agg(d.subscription) as subscriptions into abandoned
    from jsonb_each_text(wanted) as w
    join runtime.subscriptions s on s.id = w.key::integer and s.settled and s.paused_at is null
    cross join lateral (
        select c.message_id, c.subscription from runtime.deliveries c
        where c.subscription = w.key::integer and c.visible_at <= (select clock_timestamp())
          and case when c.lease is not null then 2 when c.crashes >= 2 then 1 else 0 end = 2
        order by c.visible_at
        limit 500
        for update skip locked
    ) d;
    if abandoned.ids is not null then
        perform runtime.settle_crashes(abandoned.ids, abandoned.subscriptions);
    end if;
end
$$;
comment on function runtime.count_crashes(jsonb) is 'Ends the abandoned leases of the wanted subscriptions.';

create function runtime.take_due(
    want jsonb, alone boolean, until timestamptz, new_lease uuid, pump integer,
    out taken runtime.taken[], out heavy boolean
) language plpgsql set search_path = '' as $$
begin
    with picked as materialized (
        select d.place
        from jsonb_each_text(want) as w
        join runtime.subscriptions s on s.id = w.key::integer
        cross join lateral (
            select one.ctid as place from runtime.deliveries one
            where one.subscription = s.id and one.visible_at <= (select clock_timestamp())
              and case when one.lease is not null then 2 when one.crashes >= 2 then 1 else 0 end = alone::integer
            order by one.visible_at
            limit w.value::integer
            for update skip locked
        ) d
        where s.settled and s.paused_at is null and not s.ordered and w.value::integer > 0
    ), taken as (
        update runtime.deliveries d set visible_at = until, lease = new_lease, holder = pump
        from picked p
        where d.ctid = p.place
        returning d.message_id, d.subscription, d.attempts, d.crashes, d.priority, d.heavy
    )
    select array_agg(row(t.message_id, t.subscription, t.attempts, t.crashes, t.priority)::runtime.taken),
           bool_or(t.heavy)
    into take_due.taken, heavy
    from taken t;
end
$$;
comment on function runtime.take_due(jsonb, boolean, timestamptz, uuid, integer) is
    'Leases delayed and retrying deliveries whose time has come; or those that are to be taken alone.';

create function runtime.take_ordered(
    wanted integer, amount integer, due boolean, alone boolean, until timestamptz, new_lease uuid, pump integer,
    out taken runtime.taken[], out heavy boolean, out is_full boolean, out look_again boolean
) language plpgsql set search_path = '' as $$
declare
    -- Each that is taken locks its key, and the server has room for some thousands of locks.
    most constant integer := 200;
    ids bigint[];
    looks integer;
    fresh bigint[];
    overdue bigint[] := '{}'::bigint[];
    seen bigint[];
    -- Of each key that was seen the one that the others wait for, whoever has it: one that is leased, else the first.
    -- Heads are those of them that can be taken.
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
            where f.subscription = wanted and f.visible_at <= (select clock_timestamp())
              and case when f.lease is not null then 2 when f.crashes >= 2 then 1 else 0 end = alone::integer
            order by f.visible_at limit 4 * amount
            for update skip locked
        );
    end if;
    -- Where many keys take turns the first look is enough; behind a hot one it goes further.
    foreach looks in array array[amount, 4 * amount] loop
        -- Locked first, judged after: the judging statement's snapshot is younger than the locks.
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
            -- None is leased and some are parked: the first may be one that waits.
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

    -- Another exchange, not committed yet, may just be taking a higher one, for a lower one came late. Whoever cannot
    -- lock the key leaves it; whoever can sees, by a younger snapshot, what the holder before it has leased.
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
    select array_agg(row(t.message_id, t.subscription, t.attempts, t.crashes, t.priority)::runtime.taken),
           coalesce(array_agg(t.message_id), '{}'), bool_or(t.heavy)
    into take_ordered.taken, ids, heavy
    from taken t;
    if cardinality(ids) = amount then
        -- As many as were wanted: what stands behind them is in nobody's way.
        return;
    end if;

    -- Park the rest, but only behind one that cannot end before this commits, and whose end lets it go: one of ours, or
    -- one whose row we hold for key share, if it is lower or leased. Else it stays as it is and is looked at again soon.
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
    -- Those of a hot key are out of the way now: what stands behind them can be seen.
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
comment on function runtime.take_ordered(integer, integer, boolean, boolean, timestamptz, uuid, integer) is
    'Leases at most one delivery per key of an ordered subscription, the lowest, and none while another of its key is '
    'leased; where that is fewer than wanted, parks what stands behind them.';

create function runtime.take_in_order(
    so_far runtime.taking, want jsonb, due boolean, until timestamptz, new_lease uuid, pump integer
) returns runtime.taking
language plpgsql set search_path = '' as $$
declare
    result runtime.taking := so_far;
    lane integer;
    one record;
begin
    foreach lane in array so_far.ordered loop
        one := runtime.take_ordered(lane, (want ->> lane::text)::integer, due, false, until, new_lease, pump);
        result.look_again := result.look_again or one.look_again;
        if one.is_full then
            result.filled := result.filled || lane;
            result.least := 0;
        end if;
        if one.taken is not null then
            -- First, so that it is not these few that do not fit behind others.
            result.taken := one.taken || result.taken;
            result.rows := null;
            result.heavy := coalesce(result.heavy, false) or one.heavy;
        end if;
    end loop;
    return result;
end
$$;
comment on function runtime.take_in_order(runtime.taking, jsonb, boolean, timestamptz, uuid, integer) is
    'Adds what can be taken of the ordered subscriptions.';

create function runtime.take_due_too(
    want jsonb, cursors jsonb, until timestamptz, new_lease uuid, pump integer, at timestamptz, exactly boolean
) returns runtime.taking
language plpgsql set search_path = '' as $$
declare
    result runtime.taking;
    overdue record := runtime.take_due(want, false, until, new_lease, pump);
    left_over jsonb;
begin
    if overdue.taken is null then
        return runtime.take_fresh(want, cursors, until, new_lease, pump, at, exactly);
    end if;
    left_over := (
        select jsonb_object_agg(w.key, w.value::integer - coalesce(t.amount, 0))
        from jsonb_each_text(want) as w
        left join (select t.subscription, count(*) as amount from unnest(overdue.taken) as t group by 1) t
            on t.subscription = w.key::integer
    );
    result := runtime.take_fresh(left_over, cursors, until, new_lease, pump, at, exactly);
    result.taken := overdue.taken || result.taken;
    result.rows := null;
    result.heavy := overdue.heavy or coalesce(result.heavy, false);
    result.least := 0;
    result.more_due := exists (
        select from jsonb_each_text(want) as w where w.value::integer > 0 and (left_over ->> w.key)::integer = 0
    );
    return result;
end
$$;
comment on function runtime.take_due_too(jsonb, jsonb, timestamptz, uuid, integer, timestamptz, boolean) is
    'Leases what is due of the wanted unordered subscriptions, and fresh deliveries where that is fewer than wanted.';

create function runtime.take_alone(want jsonb, until timestamptz, new_lease uuid, pump integer)
returns runtime.taking
language plpgsql set search_path = '' as $$
declare
    result runtime.taking;
    lane record;
    one record;
begin
    result.taken := '{}';
    result.cursors := '{}';
    result.filled := '{}';
    result.look_again := false;
    -- The longest due first: one that fails again and again, or asks for what waits here itself, holds up no other.
    for lane in
        select s.id, s.ordered
        from jsonb_each_text(want) as w
        join runtime.subscriptions s on s.id = w.key::integer
        cross join lateral (
            select n.visible_at from runtime.deliveries n
            where n.subscription = s.id and n.visible_at <= (select clock_timestamp())
              and case when n.lease is not null then 2 when n.crashes >= 2 then 1 else 0 end = 1
            order by n.visible_at limit 1
        ) d
        where s.settled and s.paused_at is null and w.value::integer > 0
        order by d.visible_at
    loop
        if lane.ordered then
            one := runtime.take_ordered(lane.id, 1, true, true, until, new_lease, pump);
            result.look_again := result.look_again or one.look_again;
        else
            one := runtime.take_due(jsonb_build_object(lane.id, 1), true, until, new_lease, pump);
        end if;
        if one.taken is not null then
            result.taken := one.taken;
            -- Whoever runs it takes nothing else meanwhile.
            result.filled := array[lane.id];
            exit;
        end if;
    end loop;
    return result;
end
$$;
comment on function runtime.take_alone(jsonb, timestamptz, uuid, integer) is
    'Leases one delivery that has crashed its worker twice, and nothing else.';

create function runtime.bury_unanswerable(taken runtime.taken[], weights bigint[], me uuid) returns boolean[]
language plpgsql set search_path = '' as $$
declare
    -- No writer within the limits of the table comes near it.
    most constant bigint := 33554432;
    buried record;
begin
    with monstrous as (
        select t.*, case when t.weight is null then 'its message takes more bytes as JSON text than any answer can hold'
                         else format('its message takes %s MB as JSON text', t.weight / 1048576) end
                    || '; at most 16 MB are delivered. Have its writer put large things into a file or a bucket' as error
        from unnest(taken, weights) as t (message_id, subscription, attempts, crashes, priority, weight)
        where t.weight is null or t.weight > most
    ), logged as (
        insert into runtime.runs (message_id, subscription, ended_at, worker, attempt, outcome, error)
        select x.message_id, x.subscription, clock_timestamp(), me, x.attempts + x.crashes + 1, 'dead', x.error
        from monstrous x
    )
    select array_agg(x.message_id) as ids, array_agg(x.subscription) as subscriptions, array_agg(x.error) as errors
    into buried from monstrous x;
    if buried.ids is not null then
        perform runtime.bury(buried.ids, buried.subscriptions, array_fill('invalid'::text, array[cardinality(buried.ids)]),
                             buried.errors, array_fill(null::text, array[cardinality(buried.ids)]));
    end if;
    return array(select w is not null and w <= most from unnest(weights) with ordinality as u (w, place) order by place);
end
$$;
comment on function runtime.bury_unanswerable(runtime.taken[], bigint[], uuid) is
    'Makes dead letters of deliveries whose messages are too large to be handed to anybody; says of each whether it is left.';

create function runtime.fit(so_far runtime.taking, max_bytes bigint, exactly boolean, me uuid) returns runtime.taking
language plpgsql set search_path = '' as $$
declare
    result runtime.taking := so_far;
    weights bigint[] := runtime.weights(array(select t.message_id from unnest(so_far.taken) as t), exactly);
    is_left boolean[];
    fitting integer;
begin
    result.rows := null;
    if 33554432 < any (weights) or array_position(weights, null) is not null then
        is_left := runtime.bury_unanswerable(so_far.taken, weights, me);
        so_far.taken := array(
            select t.one from unnest(is_left) with ordinality as l (is_left, place)
            cross join lateral (select so_far.taken[l.place::integer]) as t (one) where l.is_left order by l.place);
        weights := array(select w from unnest(weights, is_left) with ordinality as u (w, is_left, place)
                         where u.is_left order by place);
        result.taken := so_far.taken;
        result.look_again := true;
    end if;
    fitting := runtime.fits(weights, max_bytes);
    if fitting < cardinality(so_far.taken) then
        -- Given back untouched: what does not fit in one answer comes with the next.
        update runtime.deliveries d
        set lease = null,
            visible_at = case when d.attempts + d.crashes > 0 then clock_timestamp() end
        from unnest(so_far.taken[fitting + 1:]) as t
        cross join lateral (
            select l.ctid as place from runtime.deliveries l
            where l.message_id = t.message_id and l.subscription = t.subscription offset 0
        ) at
        where d.ctid = at.place;
        result.filled := array(select distinct t.subscription from unnest(so_far.taken) as t);
        result.least := null;
        result.taken := so_far.taken[:fitting];
        result.cursors := '{}';
    end if;
    return result;
end
$$;
comment on function runtime.fit(runtime.taking, bigint, boolean, uuid) is
    'Gives back what does not fit in the bytes of one answer, and buries what fits in none.';

create function runtime.filled(so_far runtime.taking, want jsonb) returns integer[]
language plpgsql stable set search_path = '' as $$
begin
    return array(
        select w.key::integer from jsonb_each_text(want) as w
        left join (select t.subscription, count(*) as amount from unnest(so_far.taken) as t group by t.subscription) t
            on t.subscription = w.key::integer
        where w.value::integer > 0 and (t.amount >= w.value::integer or w.key::integer = any (so_far.filled))
    );
end
$$;
comment on function runtime.filled(runtime.taking, jsonb) is
    'The subscriptions that gave as many as were wanted of them, so that there may be more.';

create function runtime.next_due_seconds(wanted jsonb, since timestamptz) returns double precision
language plpgsql stable set search_path = '' as $$
begin
    return (
    -- greatest() passes over a null, so that nothing due would read as due now.
    select case when min(d.visible_at) is not null
        then greatest(0, extract(epoch from min(d.visible_at) - clock_timestamp()))::double precision end
    from jsonb_each_text(wanted) as w
    join runtime.subscriptions s on s.id = w.key::integer and s.settled and s.paused_at is null
    cross join unnest(array[0, 1, 2]) as standing
    cross join lateral (
        select n.visible_at from runtime.deliveries n
        -- What came due while this exchange was taking is due now: it was too late for it, and too early for a timer.
        -- But what is to be taken alone (1) is told of apart, also where this exchange made it so.
        where n.subscription = w.key::integer and n.visible_at < 'infinity'
          and n.visible_at > case when standing = 1 then (select clock_timestamp()) else since end
          and case when n.lease is not null then 2 when n.crashes >= 2 then 1 else 0 end = standing
        order by n.visible_at limit 1
    ) d
    );
end
$$;
comment on function runtime.next_due_seconds(jsonb, timestamptz) is
    'Seconds until the next delayed, retrying or leased delivery is due that was not yet at a time; null when there is none.';

create function runtime.has_suspects(wanted jsonb) returns boolean
language plpgsql stable set search_path = '' as $$
begin
    return (
    select exists (
        select from jsonb_each_text(wanted) as w
        join runtime.subscriptions s on s.id = w.key::integer and s.settled and s.paused_at is null
        join runtime.deliveries d on d.subscription = s.id and d.visible_at <= (select clock_timestamp())
        where case when d.lease is not null then 2 when d.crashes >= 2 then 1 else 0 end = 1
    )
    );
end
$$;
comment on function runtime.has_suspects(jsonb) is
    'Whether a delivery that has crashed its worker twice waits to be taken alone.';
