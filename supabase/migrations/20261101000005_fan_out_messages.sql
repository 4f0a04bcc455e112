-- Who gets a message? One statement-level trigger, one set-based statement for all the rows of an insert.

create function runtime.keep_dedup(dedup_keys text[], ids bigint[]) returns void
language plpgsql set search_path = '' as $$
declare
    kept integer;
    forget_at timestamptz := clock_timestamp()
        + make_interval(secs => (select p.dedup_seconds from runtime.policy p));
begin
    -- stream_send has reserved its keys (message_id is null); a plain insert reserves here.
    insert into runtime.dedup as d (dedup_key, message_id, forget_at)
    select distinct on (n.dedup_key) n.dedup_key, n.id, forget_at
    from unnest(dedup_keys, ids) as n (dedup_key, id)
    order by n.dedup_key, n.id
    on conflict (dedup_key) do update
        set message_id = excluded.message_id, forget_at = excluded.forget_at
        where d.message_id is null or d.forget_at < clock_timestamp();
    get diagnostics kept = row_count;
    if kept < cardinality(dedup_keys) then
        raise exception using
            errcode = '23505',
            message = 'a message with this dedup_key was stored before',
            hint = 'Use public.stream_send(), which stores it once and says "duplicate" instead of failing.';
    end if;
end
$$;
comment on function runtime.keep_dedup(text[], bigint[]) is 'Books the dedup_keys of inserted messages; raises 23505 when one is in use.';

create function runtime.fan_out() returns trigger
language plpgsql security definer set search_path = ''
    set enable_seqscan = off set enable_bitmapscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    keys text[];
    matched integer[];
    dedup_keys text[];
    dedup_ids bigint[];
begin
    if current_setting('transaction_isolation') <> 'read committed'
        and pg_snapshot_xmax(pg_current_snapshot())::text::bigint <= (select last_value from runtime.settle_fence)
    then
        -- This snapshot may be too old to see a subscription that has already read the history.
        raise exception using
            errcode = '40001',
            message = 'a subscription has begun since this transaction''s snapshot was taken',
            hint = 'Run the transaction again.';
    end if;

    select array_agg(distinct n.key),
           array_agg(n.dedup_key) filter (where n.dedup_key is not null),
           array_agg(n.id) filter (where n.dedup_key is not null)
    into keys, dedup_keys, dedup_ids
    from new_messages n;
    if keys is null then
        return null;
    end if;
    perform runtime.check_key(k) from unnest(keys) as k;
    if dedup_keys is not null then
        perform runtime.keep_dedup(dedup_keys, dedup_ids);
    end if;

    with routes as materialized (
        select k.key, s.id, s.ordered, s.marks_processed,
               count(*) filter (where s.marks_processed) over (partition by k.key) = 1 as sole
        from unnest(keys) as k (key)
        cross join lateral (
            select distinct p.subscription
            from unnest(runtime.candidates(k.key)) as c (pattern)
            cross join lateral (
                -- offset 0: looked up one by one. A planner that knows the table would rather read it whole, per key.
                select l.subscription from runtime.patterns l where l.pattern = c.pattern offset 0
            ) p
        ) hit
        cross join lateral (select * from runtime.subscriptions l where l.id = hit.subscription offset 0) s
    ), fanned as (
        insert into runtime.deliveries
            (message_id, subscription, visible_at, priority, marks, sole, heavy, ordered_key)
        select n.id, r.id,
               case when n.deliver_at > clock_timestamp() then n.deliver_at end,
               case when r.ordered then 0 else n.priority end,
               r.marks_processed, r.sole and r.marks_processed,
               coalesce(pg_column_size(n.value) > 2000 or pg_column_compression(n.value) is not null, false),
               case when r.ordered then n.key end
        from new_messages n
        join routes r on r.key = n.key
    )
    select array_agg(r.key), array_agg(r.id) into keys, matched from routes r;

    if matched is not null then
        perform runtime.announce(keys, matched);
    end if;
    return null;
end
$$;
comment on function runtime.fan_out() is 'Makes one delivery per message and matching subscription, and announces them.';

create trigger fan_out after insert on public.consciousness_stream
    referencing new table as new_messages
    for each statement execute function runtime.fan_out();

create function runtime.refuse_rekeying() returns trigger
language plpgsql set search_path = '' as $$
begin
    raise exception using
        errcode = '55000',
        message = 'the key of a message does not change',
        hint = 'Its deliveries have been made already: write a new message under the other key.';
end
$$;

create trigger refuse_rekeying before update of id, key on public.consciousness_stream
    for each row when (old.key is distinct from new.key or old.id is distinct from new.id)
    execute function runtime.refuse_rekeying();
