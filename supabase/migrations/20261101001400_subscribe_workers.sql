-- A worker registers itself and the subscriptions of its handlers, and signs off.

create function runtime.missed(fresh integer[]) returns table (subscription integer, amount bigint)
language plpgsql stable set search_path = '' as $$
begin
    return query
    with recent as materialized (
        -- A bounded look, since other declarations wait for this transaction.
        select m.key, count(*) as amount
        from (select l.key from public.consciousness_stream l order by l.id desc limit 5000) m group by m.key
    )
    select s.id, x.amount
    from runtime.subscriptions s
    cross join lateral (
        select string_agg(runtime.regex_of(p.pattern), '|') as regex from unnest(s.patterns) as p (pattern)) r
    cross join lateral (select sum(c.amount)::bigint as amount from recent c where c.key ~ r.regex) x
    where s.id = any (fresh) and s.start = 'latest' and x.amount > 0;
end
$$;
comment on function runtime.missed(integer[]) is
    'How many of the last 5,000 messages match these new subscriptions, and are not delivered to them.';

create function public.stream_subscribe(worker jsonb, subscriptions jsonb) returns json
language plpgsql security definer set search_path = '' as $$
declare
    caller text := runtime.caller_agent();
    me runtime.workers;
    declared record;
    known integer;
    fresh integer[] := '{}'::integer[];
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

    -- In the order of the names, so that two workers never deadlock.
    for declared in
        select s.name, s.agent, s.patterns, s.must_exist, s.rate_amount, s.concurrency_total, s.tool,
               coalesce(s.ordered, false) as ordered, coalesce(s.dead_blocks, false) as dead_blocks,
               coalesce(s.marks_processed, runtime.are_keys(s.patterns)) as marks_processed,
               coalesce(s.max_attempts, 5) as max_attempts, coalesce(s.max_crashes, 5) as max_crashes,
               coalesce(s.start, 'latest') as start,
               case when s.rate_amount is not null then coalesce(s.rate_seconds, 1) end as rate_seconds,
               s.budget, case when s.budget is not null then coalesce(s.budget_period, 'day') end as budget_period,
               case when s.budget is not null then s.budget_per end as budget_per
        from jsonb_to_recordset(subscriptions) as s (
            name text, agent text, patterns text[], ordered boolean, max_attempts integer,
            max_crashes integer, start text, marks_processed boolean, dead_blocks boolean,
            must_exist boolean, rate_amount integer, rate_seconds double precision, concurrency_total integer,
            tool jsonb, budget numeric, budget_period text, budget_per integer
        ) order by s.name
    loop
        -- Webhooks are added and removed by commands: a worker that has not heard of a removal yet must not bring one
        -- back.
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

        -- An upsert would use up a number even where the row exists, so the update comes first.
        update runtime.subscriptions s
        set agent = declared.agent, patterns = declared.patterns, ordered = declared.ordered,
            dead_blocks = declared.dead_blocks, marks_processed = declared.marks_processed,
            max_attempts = declared.max_attempts, max_crashes = declared.max_crashes,
            rate_amount = declared.rate_amount, rate_seconds = declared.rate_seconds,
            budget = declared.budget, budget_period = declared.budget_period, budget_per = declared.budget_per,
            concurrency_total = declared.concurrency_total, tool = declared.tool, declared_at = me.started_at,
            -- Newly ordered: writers that still see it as unordered must end before an order can be kept.
            settled = s.settled and (s.ordered or not declared.ordered),
            settling_fenced = s.settling_fenced and (s.ordered or not declared.ordered),
            settling_xid = case when s.ordered or not declared.ordered then s.settling_xid end
        -- Also where nothing changes, so that the declaration is the later worker's: one started in between does not
        -- replace it.
        where s.name = declared.name and s.declared_at < me.started_at
        returning s.id into known;
        if known is null and not exists (select from runtime.subscriptions s where s.name = declared.name) then
            insert into runtime.subscriptions as s
                (name, agent, patterns, ordered, dead_blocks, marks_processed, max_attempts, max_crashes, start,
                 rate_amount, rate_seconds, concurrency_total, budget, budget_period, budget_per, tool,
                 declared_at)
            values (
                declared.name, declared.agent, declared.patterns, declared.ordered, declared.dead_blocks,
                declared.marks_processed, declared.max_attempts, declared.max_crashes, declared.start,
                declared.rate_amount, declared.rate_seconds, declared.concurrency_total, declared.budget,
                declared.budget_period, declared.budget_per, declared.tool, me.started_at
            )
            returning s.id into known;
            fresh := fresh || known;
        end if;
        if known is not null then
            delete from runtime.patterns p
            where p.subscription = known and not p.pattern = any (declared.patterns);
            insert into runtime.patterns (pattern, subscription)
            select distinct p, known from unnest(declared.patterns) as p
            on conflict do nothing;
            perform runtime.keep_limits(known);
            perform runtime.keep_budget(known);
            if not declared.dead_blocks then
                perform runtime.release_dead(known);
            end if;
        end if;
    end loop;

    insert into runtime.pins (subscription, version)
    select s.id, d.version from jsonb_to_recordset(stream_subscribe.subscriptions) as d (name text, version text, pin boolean)
    join runtime.subscriptions s on s.name = d.name
    where d.pin and d.version is not null
    order by s.id
    -- Its upkeep leaves alone what was declared lately.
    on conflict on constraint pins_subscription_version_key do update set declared_at = clock_timestamp();
    update runtime.workers w
    set subscriptions = served.ids, declared = coalesce(served.declared, '{}'), pins = served.pins
    from (
        select coalesce(array_agg(s.id), '{}') as ids, jsonb_object_agg(s.id, d.patterns) as declared,
               jsonb_object_agg(s.id, p.lane) filter (where p.lane is not null) as pins
        from runtime.subscriptions s
        join jsonb_to_recordset(stream_subscribe.subscriptions) as d (name text, patterns jsonb, version text)
            on d.name = s.name
        left join runtime.pins p on p.subscription = s.id and p.version = d.version
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
                'id', s.id, 'settled', s.settled, 'paused', s.paused_at is not null, 'missed', x.amount)), '{}')
            from runtime.subscriptions s
            left join runtime.missed(fresh) x on x.subscription = s.id
            join jsonb_to_recordset(stream_subscribe.subscriptions) as d (name text) on d.name = s.name
        )
    );
end
$$;
comment on function public.stream_subscribe(jsonb, jsonb) is
    'Registers the worker {id, name, announce} and upserts its subscriptions [{name, agent, patterns, ordered, '
    'dead_blocks, max_attempts, max_crashes, start, marks_processed, rate_amount, rate_seconds, concurrency_total, '
    'budget, budget_period, budget_per, version, pin, tool}]; a declaration gives way only to that of a worker started later. Returns their numbers, how many of the '
    'last messages match a new one and are not delivered, and warnings: faults of the set-up, and declarations that '
    'have given way.';

create function public.stream_leave(worker uuid) returns json
language plpgsql security definer set search_path = '' as $$
declare
    caller text := runtime.caller_agent();
begin
    if caller is not null and exists (
        select from runtime.workers w join runtime.subscriptions s on s.id = any (w.subscriptions)
        where w.id = stream_leave.worker and s.agent <> caller) then
        raise exception using errcode = '42501', message = format('agent %L does not own worker %s', caller, worker);
    end if;
    delete from runtime.pumps p where p.worker = stream_leave.worker;
    delete from runtime.beats b where b.worker = stream_leave.worker;
    delete from runtime.workers w where w.id = stream_leave.worker;
    return json_build_object('worker', worker, 'left', found);
end
$$;
comment on function public.stream_leave(uuid) is 'Forgets a worker that has ended in good order.';
