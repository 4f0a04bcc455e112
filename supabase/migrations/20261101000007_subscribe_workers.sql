-- A worker says who it is and what its handlers want; a new subscription settles before anything is taken from it.

create function runtime.are_keys(patterns text[]) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
    return not exists (select from unnest(patterns) as p where p ~ '[*>]');
end
$$;
comment on function runtime.are_keys(text[]) is 'Whether none of these patterns has a wildcard.';

create function public.stream_subscribe(worker jsonb, subscriptions jsonb) returns json
language plpgsql security definer set search_path = ''
    set enable_seqscan = off set enable_bitmapscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    caller text := runtime.caller_agent();
    me runtime.workers;
    declared record;
    known integer;
begin
    perform runtime.mend();
    insert into runtime.workers as w (id, name, announce, details)
    values (
        (worker ->> 'id')::uuid, coalesce(worker ->> 'name', worker ->> 'id'),
        coalesce(array(select jsonb_array_elements_text(worker -> 'announce')), '{}'),
        coalesce(worker -> 'details', '{}')
    )
    on conflict (id) do update
        set seen_at = clock_timestamp(), asleep = false, announce = excluded.announce, details = excluded.details
    returning * into me;

    -- By name, so that two workers never wait for each other in a circle.
    for declared in
        select s.* from jsonb_to_recordset(subscriptions) as s (
            name text, agent text, patterns text[], ordered boolean, max_attempts integer,
            max_crashes integer, start text, marks_processed boolean, dead_blocks boolean,
            must_exist boolean, rate_amount integer, rate_seconds double precision, concurrency_total integer
        ) order by s.name
    loop
        -- What a command has added, a command removes: who has not heard of that yet does not bring it back.
        continue when coalesce(declared.must_exist, false)
            and not exists (select from runtime.subscriptions s where s.name = declared.name);
        if caller is not null and declared.agent is distinct from caller then
            raise exception using errcode = '42501',
                message = format('agent %L may not subscribe as %L', caller, declared.agent);
        end if;
        if declared.name is null or declared.name !~ '^[A-Za-z0-9_:-]+\.[A-Za-z0-9_:-]+$' then
            raise exception using errcode = '22023',
                message = format('%L is not a subscription name', declared.name),
                hint = 'A subscription is named agent.handler.';
        end if;
        if declared.agent is distinct from split_part(declared.name, '.', 1) then
            raise exception using errcode = '22023',
                message = format('subscription %s cannot belong to agent %L', declared.name, declared.agent),
                hint = 'A subscription is named agent.handler, after the agent it belongs to.';
        end if;
        if coalesce(cardinality(declared.patterns), 0) = 0 then
            raise exception using errcode = '22023', message = format('subscription %s has no patterns', declared.name);
        end if;
        perform runtime.check_pattern(p) from unnest(declared.patterns) as p;

        -- Looked for first: an insert that meets the row uses up a number all the same.
        update runtime.subscriptions s
        set agent = declared.agent, patterns = declared.patterns, ordered = coalesce(declared.ordered, false),
            dead_blocks = coalesce(declared.dead_blocks, false),
            marks_processed = coalesce(declared.marks_processed, runtime.are_keys(declared.patterns)),
            max_attempts = coalesce(declared.max_attempts, 5), max_crashes = coalesce(declared.max_crashes, 5),
            rate_amount = declared.rate_amount,
            rate_seconds = case when declared.rate_amount is not null then coalesce(declared.rate_seconds, 1) end,
            concurrency_total = declared.concurrency_total, declared_at = me.started_at,
            -- Newly ordered: writers that still see it otherwise must end before an order can be kept.
            settled = s.settled and (s.ordered or declared.ordered is not true),
            settling_fenced = s.settling_fenced and (s.ordered or declared.ordered is not true),
            settling_xid = case when s.ordered or declared.ordered is not true then s.settling_xid end
        -- The same said again by a later worker is that worker's: one started in between does not replace it.
        where s.name = declared.name and s.declared_at < me.started_at
        returning s.id into known;
        if known is null and not exists (select from runtime.subscriptions s where s.name = declared.name) then
            insert into runtime.subscriptions as s
                (name, agent, patterns, ordered, dead_blocks, marks_processed, max_attempts, max_crashes, start,
                 rate_amount, rate_seconds, concurrency_total, declared_at)
            values (
                declared.name, declared.agent, declared.patterns, coalesce(declared.ordered, false),
                coalesce(declared.dead_blocks, false),
                coalesce(declared.marks_processed, runtime.are_keys(declared.patterns)),
                coalesce(declared.max_attempts, 5), coalesce(declared.max_crashes, 5),
                coalesce(declared.start, 'latest'), declared.rate_amount,
                case when declared.rate_amount is not null then coalesce(declared.rate_seconds, 1) end,
                declared.concurrency_total, me.started_at
            )
            returning s.id into known;
        end if;
        if known is not null then
            delete from runtime.patterns p
            where p.subscription = known and not p.pattern = any (declared.patterns);
            insert into runtime.patterns (pattern, subscription)
            select distinct p, known from unnest(declared.patterns) as p
            on conflict do nothing;
            perform runtime.keep_limits(known);
            if not coalesce(declared.dead_blocks, false) then
                perform runtime.release_dead(known);
            end if;
        end if;
    end loop;

    update runtime.workers w set subscriptions = served.ids, declared = coalesce(served.declared, '{}')
    from (
        select coalesce(array_agg(s.id), '{}') as ids, jsonb_object_agg(s.id, d.patterns) as declared
        from runtime.subscriptions s
        join jsonb_to_recordset(stream_subscribe.subscriptions) as d (name text, patterns jsonb) on d.name = s.name
    ) served
    where w.id = me.id
    returning w.* into me;

    return json_build_object(
        'worker', me.id,
        'started_at', me.started_at,
        'warnings', runtime.disorders(me.announce) || array(
            select r.warning from runtime.rivals() r where r.subscription = any (me.subscriptions)),
        'subscriptions', (
            select coalesce(json_object_agg(s.name, json_build_object(
                'id', s.id, 'settled', s.settled, 'paused', s.paused_at is not null)), '{}')
            from runtime.subscriptions s
            join jsonb_to_recordset(stream_subscribe.subscriptions) as d (name text) on d.name = s.name
        )
    );
end
$$;
comment on function public.stream_subscribe(jsonb, jsonb) is
    'Records the worker {id, name, announce} and upserts its subscriptions [{name, agent, patterns, ordered, '
    'dead_blocks, max_attempts, max_crashes, start, marks_processed, rate_amount, rate_seconds, concurrency_total}]; '
    'a declaration gives way only to a later started worker''s. Returns their numbers, and warnings: what is wrong, and whose '
    'declaration has given way to whose.';

create function runtime.backfill(target runtime.subscriptions) returns boolean
language plpgsql set search_path = '' as $$
declare
    page_end bigint;
    page_rows integer;
begin
    with page as materialized (
        select m.id, m.key, m.priority, m.deliver_at, coalesce(pg_column_size(m.value) > 2000 or pg_column_compression(m.value) is not null, false)
               or coalesce(pg_column_size(m.headers) > 500 or pg_column_compression(m.headers) is not null, false) as heavy
        from public.consciousness_stream m
        where m.id > target.backfilled_to
        order by m.id
        limit 5000
    ), wanted as (
        select k.key from (select distinct p.key from page p) k
        where runtime.candidates(k.key) && target.patterns::text[]
    ), made as (
        insert into runtime.deliveries
            (message_id, subscription, visible_at, priority, marks, sole, heavy, ordered_key)
        select p.id, target.id, case when p.deliver_at > clock_timestamp() then p.deliver_at end,
               case when target.ordered then 0 else p.priority end,
               target.marks_processed, false, p.heavy, case when target.ordered then p.key end
        from page p join wanted w on w.key = p.key
        order by p.id
        on conflict do nothing
        returning message_id
    ), shared as (
        -- These messages now have one more subscription to wait for.
        update runtime.deliveries d set sole = false
        from made where target.marks_processed and d.message_id = made.message_id and d.sole
    )
    select max(p.id), count(*) into page_end, page_rows from page p;
    update runtime.subscriptions s set backfilled_to = coalesce(page_end, s.backfilled_to) where s.id = target.id;
    return page_rows < 5000;
end
$$;
comment on function runtime.backfill(runtime.subscriptions) is
    'Delivers one page (5,000 messages) of history to a new subscription; true when there is no more.';

create function runtime.begin_order(target integer) returns void
language sql set search_path = '' as $$
    -- What was written while it was declared unordered.
    update runtime.deliveries d set ordered_key = m.key, priority = 0
    from public.consciousness_stream m
    where d.subscription = target and d.ordered_key is null and m.id = d.message_id
$$;
comment on function runtime.begin_order(integer) is 'Puts the waiting deliveries of a newly ordered subscription in order.';

create function runtime.settle(wanted integer[]) returns void
language plpgsql set search_path = '' as $$
declare
    s runtime.subscriptions;
begin
    -- A row locked by another worker counts as not settled: it is being settled there.
    for s in
        select * from runtime.subscriptions x
        where x.id = any (wanted) and not x.settled order by x.id for update skip locked
    loop
        if not s.settling_fenced then
            -- First the fence, which turns away stricter writers with an older snapshot …
            perform pg_advisory_xact_lock(hashtext('runtime.settle_fence'));
            perform setval('runtime.settle_fence', case
                when f.last_value > pg_current_xact_id()::text::bigint
                    and not runtime.is_foreign(f.last_value::text::xid8) then f.last_value
                else pg_current_xact_id()::text::bigint
            end) from runtime.settle_fence f;
            update runtime.subscriptions x set settling_fenced = true where x.id = s.id;
        elsif s.settling_xid is null then
            -- … then, in a later transaction, the mark: whoever read the fence before it rose has a lower xid.
            update runtime.subscriptions x set settling_xid = pg_current_xact_id() where x.id = s.id;
        elsif s.settling_xid > pg_current_xact_id() and runtime.is_foreign(s.settling_xid) then
            -- Half settled in another cluster, and restored here: begin again.
            update runtime.subscriptions x set settling_fenced = false, settling_xid = null where x.id = s.id;
        elsif pg_snapshot_xmin(pg_current_snapshot()) > s.settling_xid then
            -- Everyone who could have missed the subscription has ended; what they wrote is history now.
            if s.start = 'latest' or runtime.backfill(s) then
                if s.ordered then
                    perform runtime.begin_order(s.id);
                end if;
                -- It may have to settle again, but its history is read once.
                update runtime.subscriptions x set settled = true, backfilled_to = 9223372036854775807
                where x.id = s.id;
            end if;
        end if;
    end loop;
end
$$;
comment on function runtime.settle(integer[]) is
    'Brings new subscriptions one step closer to settled; three transactions and the end of every older writer are needed.';
