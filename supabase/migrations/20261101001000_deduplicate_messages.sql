-- Deduplication: a message with a dedup_key is stored once within the dedup retention.

create function runtime.is_reserved(dedup_key text) returns boolean
language sql immutable set search_path = '' as $$
    select dedup_key ~ '^(tick|answer|failed|ask|webhook|decision) '
$$;
comment on function runtime.is_reserved(text) is
    'Whether the runtime itself makes dedup_keys of this kind: for ticks, answers, requests, webhooks and '
    'decisions.';

create function runtime.refuse_reserved(dedup_key text) returns void
language plpgsql set search_path = '' as $$
begin
    if dedup_key is not null then
        raise exception using
            errcode = '22023',
            message = format('the dedup_key %L is reserved for the runtime', left(dedup_key, 80)),
            hint = 'Keys that begin with "tick ", "answer ", "failed ", "ask ", "webhook " or "decision " are the runtime''s own, '
                   'so that no writer can make its messages vanish as duplicates: begin yours with another word.';
    end if;
end
$$;
comment on function runtime.refuse_reserved(text) is
    'Raises 22023 for a dedup_key that its writer may not use; null passes.';

create function runtime.reserve(messages jsonb) returns text[]
language sql set search_path = '' as $$
    with asked as (
        select distinct m ->> 'dedup_key' as dedup_key from jsonb_array_elements(messages) as m
        where m ->> 'dedup_key' is not null
    ), made as (
        -- In the order of the keys, so that two batches never deadlock.
        insert into runtime.dedup as d (dedup_key, message_id, forget_at)
        select a.dedup_key, null,
               clock_timestamp() + make_interval(secs => (select (runtime.rules()).dedup_seconds))
        from asked a order by a.dedup_key
        on conflict (dedup_key) do update
            set message_id = null, forget_at = excluded.forget_at
            where d.forget_at < clock_timestamp()
        returning d.dedup_key
    )
    select coalesce(array_agg(m.dedup_key), '{}') from made m
$$;
comment on function runtime.reserve(jsonb) is
    'Reserves the dedup_keys of a batch; returns those it got, the others are in use.';

create function runtime.keep_dedup(dedup_keys text[], ids bigint[]) returns void
language plpgsql set search_path = '' as $$
declare
    kept integer;
    -- Set by stream_decide while it writes a decision.
    deciding text := nullif(current_setting('runtime.deciding', true), '');
    forget_at timestamptz := clock_timestamp()
        + make_interval(secs => (runtime.rules()).dedup_seconds);
begin
    -- stream_send has reserved its keys already (message_id is null); a plain insert reserves them here, and may not
    -- take a key that the runtime is about to use.
    perform runtime.refuse_reserved(min(n.dedup_key)) from unnest(dedup_keys) as n (dedup_key)
    where runtime.is_reserved(n.dedup_key) and n.dedup_key is distinct from deciding
      and not exists (select from runtime.dedup d where d.dedup_key = n.dedup_key and d.message_id is null);
    insert into runtime.dedup as d (dedup_key, message_id, forget_at)
    select distinct on (n.dedup_key) n.dedup_key, n.id, forget_at
    from unnest(dedup_keys, ids) as n (dedup_key, id)
    order by n.dedup_key, n.id
    on conflict (dedup_key) do update
        set message_id = excluded.message_id, forget_at = excluded.forget_at
        where d.message_id is null or d.forget_at < clock_timestamp();
    get diagnostics kept = row_count;
    if kept < cardinality(dedup_keys) or (
        -- A decision is final, however long ago its dedup_key was forgotten and whoever may see it.
        deciding = any (dedup_keys) and exists (
            select from public.consciousness_stream m
            where m.parent_id = split_part(deciding, ' ', 2)::bigint and m.key = 'approval.decided'
              and m.dedup_key = deciding and m.id <> all (ids))
    ) then
        raise exception using
            errcode = '23505',
            message = 'a message with this dedup_key was stored before',
            hint = 'Use public.stream_send(), which stores it once and says "duplicate" instead of failing.';
    end if;
end
$$;
comment on function runtime.keep_dedup(text[], bigint[]) is
    'Records the dedup_keys of inserted messages; raises 23505 when one is in use.';
