-- Deliveries as they cross the wire, and how many of them fit in one answer.

create function runtime.has_begun(message bigint, subscription integer) returns boolean
language plpgsql stable set search_path = '' as $$
begin
    return exists (
        select from runtime.steps s
        where s.message_id = message and s.subscription = has_begun.subscription
    ) or exists (
        select from runtime.waits w
        where w.message_id = message and w.subscription = has_begun.subscription);
end
$$;
comment on function runtime.has_begun(bigint, integer) is
    'Whether an attempt of a delivery has kept a step or begun a wait: then it goes on though its message has expired.';

create function runtime.describe(
    taken runtime.taken[], lease uuid, at timestamptz, out rows json, out is_whole boolean
) language plpgsql stable set search_path = '' as $$
begin
    select coalesce(json_agg(
               json_build_array(
                   t.subscription, t.attempts, t.crashes, m.id, m.key, m.value, m.agent, m.created_at, m.correlation_id,
                   m.parent_id, m.headers, m.priority, m.dedup_key, m.deliver_at, m.expires_at, describe.lease, kept.steps
               ) order by t.priority desc, m.id), '[]'),
           count(*) = cardinality(taken)
    into rows, is_whole
    from unnest(taken) as t
    -- offset 0: messages are looked up one by one. A planner that takes the table for empty would read it whole.
    cross join lateral (select * from public.consciousness_stream l where l.id = t.message_id offset 0) m
    cross join lateral (select case when t.heavy then runtime.steps_of(t.message_id, t.subscription) end as steps) kept
    where (m.expires_at <= at) is not true or (t.heavy and runtime.has_begun(t.message_id, t.subscription));
end
$$;
comment on function runtime.describe(runtime.taken[], uuid, timestamptz) is
    'Deliveries as they cross the wire: [subscription, attempts, crashes, id, key, value, agent, created_at, '
    'correlation_id, parent_id, headers, priority, dedup_key, deliver_at, expires_at, lease, steps]; is_whole: every message '
    'exists and had not expired at that time, before any step of its handler was kept.';

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
    -- A number of a hundred thousand digits takes eight bytes in binary; no text can hold thousands of such numbers.
    return null;
end
$$;
comment on function runtime.weigh(jsonb, jsonb, text, text, boolean) is
    'About how many bytes a message takes in an answer; null where no answer can hold it. A small value is printed to '
    'be weighed only with exactly.';

create function runtime.weights(taken runtime.taken[], exactly boolean) returns bigint[]
language plpgsql stable set search_path = '' as $$
begin
    return array(
        -- A delivery whose message is gone weighs nothing, but has to come along to be dropped.
        select case when m.id is null then 0
                    else runtime.weigh(m.value, m.headers, m.agent, m.correlation_id, exactly)
                        + coalesce(case when t.heavy then octet_length(
                            runtime.steps_of(t.message_id, t.subscription)::text) end, 0) end
        from unnest(taken) with ordinality
            as t (message_id, subscription, attempts, crashes, priority, heavy, place)
        left join lateral (select * from public.consciousness_stream l where l.id = t.message_id offset 0) m on true
        order by t.place
    );
end
$$;
comment on function runtime.weights(runtime.taken[], boolean) is
    'About how many bytes each of these deliveries takes in an answer, with its steps.';

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

create function runtime.bury_unanswerable(taken runtime.taken[], weights bigint[], me uuid) returns boolean[]
language plpgsql set search_path = '' as $$
declare
    -- Far above what the limits of the table let a writer store.
    most constant bigint := 33554432;
    buried record;
begin
    with monstrous as (
        select t.*, case when t.weight is null then 'its message takes more bytes as JSON text than any answer can hold'
                         else format('its message takes %s MB as JSON text', t.weight / 1048576) end
                    || '; at most 16 MB are delivered. Have its writer put large things into a file or a bucket' as error
        from unnest(taken, weights) as t (message_id, subscription, attempts, crashes, priority, heavy, weight)
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
                             buried.errors);
    end if;
    return array(select w is not null and w <= most from unnest(weights) with ordinality as u (w, place) order by place);
end
$$;
comment on function runtime.bury_unanswerable(runtime.taken[], bigint[], uuid) is
    'Makes dead letters of deliveries whose messages are too large for any answer; returns of each whether it is left.';

create function runtime.fit(so_far runtime.taking, max_bytes bigint, exactly boolean, me uuid) returns runtime.taking
language plpgsql set search_path = '' as $$
declare
    result runtime.taking := so_far;
    weights bigint[] := runtime.weights(so_far.taken, exactly);
    is_left boolean[];
    fitting integer;
begin
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
        -- Given back untouched: deliveries that do not fit in this answer come with the next.
        update runtime.deliveries d
        set lease = null,
            visible_at = case when d.attempts + d.crashes > 0 or d.pinned is not null then clock_timestamp() end
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
    'Gives back the deliveries that do not fit in the bytes of one answer, and buries those that fit in none.';
