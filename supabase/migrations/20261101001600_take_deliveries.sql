-- Taking: fresh deliveries past the pump's cursor, and due ones when their time may have come.
-- What is due at the beginning of a look is taken: what the look itself puts off for a moment stays, however long it
-- takes. Elsewhere the clock is read in a subquery: clock_timestamp() evaluated per row cannot bound an index scan, which
-- would walk through all delayed deliveries.

-- The columns of a delivery that its answer needs, carried along from the update that takes it.
create type runtime.taken as (
    message_id bigint, subscription integer, attempts integer, crashes smallint, priority smallint, heavy boolean
);

create type runtime.taking as (
    taken runtime.taken[],
    -- Some deliveries have to be weighed before an answer is built of them.
    heavy boolean,
    cursors jsonb,
    -- The ordered subscriptions among the wanted ones; they are taken from one by one.
    ordered integer[],
    -- From this many deliveries on a subscription may have given as many as were wanted of it.
    least integer,
    filled integer[],
    look_again boolean,
    more_due boolean
);

create function runtime.take_fresh(
    want jsonb, cursors jsonb, until timestamptz, new_lease uuid, pump integer
) returns runtime.taking
language plpgsql set search_path = '' as $$
declare
    result runtime.taking;
begin
    -- One statement, since it is most of what a woken worker does.
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
        -- By the ctid, which cannot change while the row is locked. A row that has moved since the snapshot is left for
        -- later.
        update runtime.deliveries d set visible_at = until, lease = new_lease, holder = pump
        from picked p
        where d.ctid = p.place
        returning d.message_id, d.subscription, d.attempts, d.crashes, d.priority, d.heavy
    )
    select coalesce(array_agg(row(t.message_id, t.subscription, t.attempts, t.crashes, t.priority, t.heavy)::runtime.taken), '{}'),
           bool_or(t.heavy),
           -- Of each subscription the last id taken, which is the highest. A lower cursor would look at some deliveries
           -- again.
           coalesce(take_fresh.cursors, '{}')
               || coalesce(jsonb_object_agg(t.subscription, t.message_id) filter (where t.priority = 0), '{}'),
           (select array_agg(w.subscription) from wanted w where w.ordered),
           (select min(w.amount) from wanted w),
           '{}'::integer[], false, false
    into result
    from taken t;
    return result;
end
$$;
comment on function runtime.take_fresh(jsonb, jsonb, timestamptz, uuid, integer) is
    'Leases fresh deliveries of the wanted unordered subscriptions, highest class and lowest id first; returns the '
    'cursors, and which of the wanted subscriptions are ordered.';

create function runtime.take_due(
    want jsonb, alone boolean, now timestamptz, until timestamptz, new_lease uuid, pump integer, pins jsonb default null,
    out taken runtime.taken[], out heavy boolean
) language plpgsql set search_path = '' as $$
begin
    with picked as materialized (
        select d.place
        from jsonb_each_text(want) as w
        join runtime.subscriptions s on s.id = w.key::integer
        cross join lateral (
            select one.ctid as place from runtime.deliveries one
            where one.subscription = s.id and one.visible_at <= now
              and case when one.lease is not null then 2 else coalesce(one.pinned, 0) + (one.crashes >= 2)::integer end
                  = coalesce((pins ->> w.key)::integer, 0) + alone::integer
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
    select array_agg(row(t.message_id, t.subscription, t.attempts, t.crashes, t.priority, t.heavy)::runtime.taken),
           bool_or(t.heavy)
    into take_due.taken, heavy
    from taken t;
end
$$;
comment on function runtime.take_due(jsonb, boolean, timestamptz, timestamptz, uuid, integer, jsonb) is
    'Leases delayed and retrying deliveries that are due now; with alone, poison messages, which have crashed their worker '
    'twice. With pins, those of these lanes, by subscription.';

create function runtime.lanes_of(target integer) returns integer[]
language plpgsql stable set search_path = '' as $$
begin
    return array(
        select 0 union all select 1
        union all select p.lane + poison from runtime.pins p, unnest(array[0, 1]) as poison where p.subscription = target);
end
$$;
comment on function runtime.lanes_of(integer) is
    'Where deliveries of a subscription wait: for any version of its handler, and for each that is pinned.';

create function runtime.left_of(want jsonb, taken runtime.taken[]) returns jsonb
language plpgsql immutable set search_path = '' as $$
begin
    return (
        select jsonb_object_agg(w.key, w.value::integer - coalesce(t.amount, 0))
        from jsonb_each_text(want) as w
        left join (select t.subscription, count(*) as amount from unnest(taken) as t group by 1) t
            on t.subscription = w.key::integer
    );
end
$$;
comment on function runtime.left_of(jsonb, runtime.taken[]) is 'How many of the wanted deliveries are not taken yet.';

create function runtime.most_due(wanted integer) returns integer
language sql immutable set search_path = '' as $$
    select greatest(200, wanted / 4)
$$;
comment on function runtime.most_due(integer) is
    'How many due deliveries of a subscription an exchange takes at most beside fresh ones.';

create function runtime.share_of_due(want jsonb) returns jsonb
language sql volatile set search_path = '' as $$
    -- Half of an odd number is rounded by lot. Where handlers end one by one, each exchange wants one delivery, and
    -- neither the due ones nor the fresh ones may be last each time.
    select jsonb_object_agg(
        w.key, least(runtime.most_due(w.value::integer), floor(w.value::integer / 2.0 + random())::integer))
    from jsonb_each_text(want) as w
$$;
comment on function runtime.share_of_due(jsonb) is
    'How many due deliveries of each subscription are taken before its fresh ones: half of what is wanted.';

create function runtime.take_due_or_pinned(
    want jsonb, now timestamptz, until timestamptz, new_lease uuid, pump integer, pins jsonb default null,
    out taken runtime.taken[], out heavy boolean
) language plpgsql set search_path = '' as $$
declare
    overdue record := runtime.take_due(want, false, now, until, new_lease, pump);
    pinned record;
    left_over jsonb;
begin
    taken := overdue.taken;
    heavy := overdue.heavy;
    if pins is not null then
        left_over := runtime.left_of(want, overdue.taken);
        pinned := runtime.take_due(
            (select jsonb_object_agg(w.key, w.value) from jsonb_each(left_over) as w where pins ? w.key),
            false, now, until, new_lease, pump, pins);
        taken := taken || pinned.taken;
        heavy := coalesce(heavy, false) or coalesce(pinned.heavy, false);
    end if;
end
$$;
comment on function runtime.take_due_or_pinned(jsonb, timestamptz, timestamptz, uuid, integer, jsonb) is
    'Leases due deliveries of the wanted unordered subscriptions, and with pins those of these lanes.';

create function runtime.take_due_too(
    want jsonb, cursors jsonb, now timestamptz, until timestamptz, new_lease uuid, pump integer, pins jsonb default null
) returns runtime.taking
language plpgsql set search_path = '' as $$
declare
    result runtime.taking;
    share jsonb := runtime.share_of_due(want);
    overdue record := runtime.take_due_or_pinned(share, now, until, new_lease, pump, pins);
    more record;
    share_left jsonb := runtime.left_of(share, overdue.taken);
    room jsonb := runtime.left_of(want, overdue.taken);
    rest jsonb;
begin
    result := runtime.take_fresh(room, cursors, until, new_lease, pump);
    room := runtime.left_of(room, result.taken);
    -- The room that fresh deliveries leave is for due ones, too. Beside fresh ones it is bounded: those reach their
    -- worker with all that is taken along.
    rest := (
        select jsonb_object_agg(w.key, least(
            (room ->> w.key)::integer,
            case when cardinality(result.taken) > 0 then
                greatest(0, runtime.most_due(w.value::integer) - (share ->> w.key)::integer) end))
        from jsonb_each_text(want) as w
        where w.value::integer > 0 and (share_left ->> w.key)::integer = 0
          and w.key::integer <> all (coalesce(result.ordered, '{}'))
    );
    if rest is not null then
        more := runtime.take_due_or_pinned(rest, now, until, new_lease, pump, pins);
        room := runtime.left_of(rest, more.taken);
        -- A subscription that gave all that was asked of it may have more; one of which nothing was asked is looked at.
        result.filled := array(
            select r.key::integer from jsonb_each_text(rest) as r
            where case when (share ->> r.key)::integer + r.value::integer > 0 then (room ->> r.key)::integer = 0
                       else runtime.next_due_seconds(jsonb_build_object(r.key, 1), '-infinity', pins) = 0 end);
        result.more_due := cardinality(result.filled) > 0;
        overdue.taken := overdue.taken || more.taken;
        overdue.heavy := coalesce(overdue.heavy, false) or coalesce(more.heavy, false);
    end if;
    if overdue.taken is not null then
        result.taken := overdue.taken || result.taken;
        result.heavy := overdue.heavy or coalesce(result.heavy, false);
        result.least := 0;
    end if;
    return result;
end
$$;
comment on function runtime.take_due_too(jsonb, jsonb, timestamptz, timestamptz, uuid, integer, jsonb) is
    'Leases due and fresh deliveries of the wanted unordered subscriptions: due ones for half of the room, fresh ones, and '
    'due ones for what is left, so that neither wait for the end of a crowd of the others.';

create function runtime.take_alone(
    want jsonb, now timestamptz, until timestamptz, new_lease uuid, pump integer, pins jsonb default null
) returns runtime.taking
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
    -- The longest due first: a poison message that fails again and again, or waits for the answer of another one, holds
    -- up no other.
    for lane in
        select s.id, s.ordered, p.lane
        from jsonb_each_text(want) as w
        join runtime.subscriptions s on s.id = w.key::integer
        cross join unnest(array[0, (pins ->> w.key)::integer]) as p (lane)
        cross join lateral (
            select n.visible_at from runtime.deliveries n
            where n.subscription = s.id and n.visible_at <= now
              and case when n.lease is not null then 2 else coalesce(n.pinned, 0) + (n.crashes >= 2)::integer end = p.lane + 1
            order by n.visible_at limit 1
        ) d
        where s.settled and s.paused_at is null and w.value::integer > 0
        order by d.visible_at
    loop
        if lane.ordered then
            one := runtime.take_ordered(lane.id, 1, true, true, now, until, new_lease, pump, nullif(lane.lane, 0));
            result.look_again := result.look_again or one.look_again;
        else
            one := runtime.take_due(
                jsonb_build_object(lane.id, 1), true, now, until, new_lease, pump, jsonb_build_object(lane.id, lane.lane));
        end if;
        if one.taken is not null then
            result.taken := one.taken;
            -- The worker that runs a poison message takes nothing else meanwhile, so others are called.
            result.filled := array[lane.id];
            exit;
        end if;
    end loop;
    return result;
end
$$;
comment on function runtime.take_alone(jsonb, timestamptz, timestamptz, uuid, integer, jsonb) is
    'Leases one poison message, which has crashed its worker twice, and nothing else.';

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
    'The subscriptions that gave as many deliveries as were wanted of them, so that there may be more.';

create function runtime.next_due_seconds(wanted jsonb, since timestamptz, pins jsonb default null)
returns double precision
language plpgsql stable set search_path = '' as $$
begin
    return (
        -- greatest() ignores nulls, so that no due delivery would read as due now.
        select case when min(d.visible_at) is not null
            then greatest(0, extract(epoch from min(d.visible_at) - clock_timestamp()))::double precision end
        from jsonb_each_text(wanted) as w
        join runtime.subscriptions s on s.id = w.key::integer and s.settled and s.paused_at is null
        cross join unnest(
            case when pins ? w.key then array[0, 1, 2, (pins ->> w.key)::integer, (pins ->> w.key)::integer + 1]
                 else array[0, 1, 2] end) as standing
        cross join lateral (
            select n.visible_at from runtime.deliveries n
            -- A delivery that came due while this exchange was taking counts as due now: it came too late for this
            -- exchange, and too early for a timer. Poison messages (odd) are reported apart, also those made just now.
            where n.subscription = w.key::integer and n.visible_at < 'infinity'
              and n.visible_at > case when standing % 2 = 1 then (select clock_timestamp()) else since end
              and case when n.lease is not null then 2 else coalesce(n.pinned, 0) + (n.crashes >= 2)::integer end = standing
            order by n.visible_at limit 1
        ) d);
end
$$;
comment on function runtime.next_due_seconds(jsonb, timestamptz, jsonb) is
    'Seconds until the next delayed, retrying or leased delivery comes due that was not due at this time; null for '
    'none.';

create function runtime.has_poison_messages(wanted jsonb, pins jsonb default null) returns boolean
language plpgsql stable set search_path = '' as $$
begin
    return (
        select exists (
            select from jsonb_each_text(wanted) as w
            join runtime.subscriptions s on s.id = w.key::integer and s.settled and s.paused_at is null
            cross join unnest(case when pins ? w.key then array[1, (pins ->> w.key)::integer + 1] else array[1] end)
                as poison (standing)
            -- limit: looked up lane by lane.
            cross join lateral (
                select from runtime.deliveries d
                where d.subscription = s.id and d.visible_at <= (select clock_timestamp())
                  and case when d.lease is not null then 2 else coalesce(d.pinned, 0) + (d.crashes >= 2)::integer end
                      = poison.standing
                limit 1
            ) found
        ));
end
$$;
comment on function runtime.has_poison_messages(jsonb, jsonb) is
    'Whether a delivery that has crashed its worker twice waits to be taken alone.';
