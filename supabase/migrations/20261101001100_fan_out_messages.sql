-- Fan-out: one statement-level trigger, one set-based statement for all the rows of an insert.

create function runtime.is_foreign(id xid8) returns boolean
language plpgsql stable set search_path = '' as $$
begin
    perform pg_xact_status(id);
    return false;
-- The error is: transaction ID … is in the future.
exception when invalid_parameter_value then
    return true;
end
$$;
comment on function runtime.is_foreign(xid8) is
    'Whether a transaction id comes from another cluster, out of a restored dump: this cluster has not reached it yet.';

create function runtime.check_snapshot() returns void
language plpgsql set search_path = '' as $$
declare
    fence bigint := (select f.last_value from runtime.settle_fence f);
begin
    -- is_foreign is asked last, since it costs most: a fence from another cluster refuses no writer.
    if pg_snapshot_xmax(pg_current_snapshot())::text::bigint <= fence and not runtime.is_foreign(fence::text::xid8) then
        raise exception using
            errcode = '40001',
            message = 'a subscription has begun since this transaction''s snapshot was taken',
            hint = 'Run the transaction again.';
    end if;
end
$$;
comment on function runtime.check_snapshot() is
    'Raises 40001 where this snapshot may be too old to see a subscription that has already read the history.';

create function runtime.fan_out() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
    is_stricter boolean := current_setting('transaction_isolation') <> 'read committed';
    single record;
    routes runtime.routes[];
    unknown text[];
    dedup_keys text[];
    dedup_ids bigint[];
    has_answers boolean;
    somebody_sleeps boolean;
    somebody_waits boolean;
    unheard text[];
begin
    if is_stricter then
        perform runtime.check_snapshot();
    end if;

    -- Most inserts are of one row under a known key: one statement reads all that such an insert needs.
    select n.id, n.key, n.deliver_at, n.priority, n.dedup_key, n.parent_id,
           coalesce(pg_column_size(n.value) > 2000 or pg_column_compression(n.value) is not null, false)
               or coalesce(pg_column_size(n.headers) > 500 or pg_column_compression(n.headers) is not null, false) as heavy,
           exists (select from new_messages offset 1) as has_more,
           r.subscriptions, r.ordered, r.marks, r.sole,
           exists (select from runtime.workers w where w.asleep) as somebody_sleeps,
           exists (
               select from runtime.waits w
               where case when w.pattern ~ '[*>]' then '*' else w.pattern end in (n.key, '*')
           ) as somebody_waits
    into single
    from new_messages n
    left join lateral (
        select l.* from runtime.routes l
        where l.slot = hashtext(n.key) & 4095 and l.key = n.key
          and l.generation = (select g.generation from runtime.routing g) offset 0
    ) r on true
    limit 1;
    if not found then
        return null;
    elsif not single.has_more and single.subscriptions is not null then
        if single.dedup_key is not null then
            perform runtime.keep_dedup(array[single.dedup_key], array[single.id]);
        end if;
        -- A message that a suspended handler may wait for goes to somebody.
        if cardinality(single.subscriptions) = 0 and not single.somebody_waits
            and not starts_with(single.key, 'answer.') then
            perform runtime.note_unheard(array[single.key]);
        end if;
        -- One insert of values per subscription costs half as much as one insert that reads them from the arrays.
        for i in 1..cardinality(single.subscriptions) loop
            insert into runtime.deliveries
                (message_id, subscription, visible_at, priority, marks, sole, heavy, ordered_key)
            values (
                single.id, single.subscriptions[i],
                case when single.deliver_at > clock_timestamp() then single.deliver_at end,
                case when single.ordered[i] then 0 else single.priority end,
                single.marks[i], single.sole and single.marks[i], single.heavy,
                case when single.ordered[i] then single.key end
            );
        end loop;
        if is_stricter or single.somebody_sleeps then
            perform runtime.announce_one(single.key, single.subscriptions);
        end if;
        if single.parent_id is not null and starts_with(single.key, 'answer.') then
            perform runtime.announce_answer(single.key, single.parent_id);
        end if;
        if single.somebody_waits then
            perform runtime.answer_waits(array[single.id], array[single.key]);
        end if;
        return null;
    end if;

    -- One snapshot sees both the route and the generation, so a cached route is what would be worked out now.
    select array_agg(r) filter (where r.key is not null),
           array_agg(k.key) filter (where r.key is null),
           (select array_agg(n.dedup_key) from new_messages n where n.dedup_key is not null),
           (select array_agg(n.id) from new_messages n where n.dedup_key is not null),
           exists (select from new_messages n where n.parent_id is not null and starts_with(n.key, 'answer.'))
    into routes, unknown, dedup_keys, dedup_ids, has_answers
    from (select distinct n.key from new_messages n) k
    left join runtime.routes r on r.slot = hashtext(k.key) & 4095 and r.key = k.key
        and r.generation = (select g.generation from runtime.routing g);
    if unknown is not null then
        routes := routes || runtime.route(unknown);
    end if;
    if dedup_keys is not null then
        perform runtime.keep_dedup(dedup_keys, dedup_ids);
    end if;

    with route as materialized (
        select r.key, s.id, s.ordered, s.marks, r.sole and s.marks as sole
        from unnest(routes) as r
        cross join unnest(r.subscriptions, r.ordered, r.marks) as s (id, ordered, marks)
    ), fanned as (
        insert into runtime.deliveries
            (message_id, subscription, visible_at, priority, marks, sole, heavy, ordered_key)
        select n.id, r.id,
               case when n.deliver_at > clock_timestamp() then n.deliver_at end,
               case when r.ordered then 0 else n.priority end,
               r.marks, r.sole,
               coalesce(pg_column_size(n.value) > 2000 or pg_column_compression(n.value) is not null, false)
               or coalesce(pg_column_size(n.headers) > 500 or pg_column_compression(n.headers) is not null, false),
               case when r.ordered then n.key end
        from new_messages n
        join route r on r.key = n.key
    )
    select exists (select from runtime.workers w where w.asleep),
           (select array_agg(r.key) from unnest(routes) as r
            where cardinality(r.subscriptions) = 0 and not starts_with(r.key, 'answer.')),
           exists (select from unnest(routes) as r where exists (
               select from runtime.waits w
               where case when w.pattern ~ '[*>]' then '*' else w.pattern end in (r.key, '*') offset 0))
    into somebody_sleeps, unheard, somebody_waits;

    if unheard is not null and not somebody_waits then
        perform runtime.note_unheard(unheard);
    end if;
    if somebody_sleeps or is_stricter then
        perform runtime.announce(
            array_agg(r.key), array_agg(s.id)
        ) from unnest(routes) as r cross join unnest(r.subscriptions) as s (id) having count(*) > 0;
    end if;
    if has_answers then
        perform runtime.announce_answer(n.key, n.parent_id)
        from new_messages n where n.parent_id is not null and starts_with(n.key, 'answer.');
    end if;
    if somebody_waits then
        perform runtime.answer_waits(array_agg(n.id), array_agg(distinct n.key)) from new_messages n;
    end if;
    return null;
end
$$;
comment on function runtime.fan_out() is
    'Makes one delivery per message and matching subscription, and announces the messages; notes keys that nobody '
    'listens to, tells requesters of their answers, and ends the waits that are answered.';

create trigger fan_out after insert on public.consciousness_stream
    referencing new table as new_messages
    for each statement execute function runtime.fan_out();
