-- Figures: what waits, what failed, who works.

create function runtime.recent_runs(seconds double precision)
returns table (subscription integer, done bigint, failed bigint)
language plpgsql stable set search_path = '' as $$
declare
    most constant integer := 20000;
    span double precision := seconds;
    since timestamptz;
    counted record;
begin
    -- By the BRIN index, so that only recent blocks are read; of a busy minute the last tenth, or the tenth of that,
    -- stands for the whole.
    loop
        since := clock_timestamp() - make_interval(secs => span);
        select array_agg(x.subscription) as subscriptions, array_agg(x.done) as done, array_agg(x.failed) as failed,
               coalesce(sum(x.amount), 0) as amount
        into counted from (
            select r.subscription, count(*) filter (where r.outcome = 'done') as done,
                   count(*) filter (where r.outcome in ('failed', 'dead', 'crashed')) as failed, count(*) as amount
            from (select y.subscription, y.outcome from runtime.runs y where y.ended_at > since limit most) r
            group by r.subscription
        ) x;
        exit when counted.amount < most or span < seconds / 50;
        span := span / 10;
    end loop;
    return query
    select x.subscription, (x.done * seconds / span)::bigint, (x.failed * seconds / span)::bigint
    from unnest(counted.subscriptions, counted.done, counted.failed) as x (subscription, done, failed);
end
$$;
comment on function runtime.recent_runs(double precision) is
    'How many attempts of each subscription ended well and badly in the last seconds; where they are many, estimated '
    'from the last part of that time.';

create function runtime.sampled_percent(relation regclass) returns real
language plpgsql stable set search_path = '' as $$
begin
    return least(100, 30000.0 / greatest(1, pg_relation_size(relation) / current_setting('block_size')::integer));
end
$$;
comment on function runtime.sampled_percent(regclass) is
    'The share of a table that a sample reads: some 300 blocks; all of a small table.';

create function runtime.is_suspended(d runtime.deliveries) returns boolean
language plpgsql stable set search_path = '' as $$
begin
    return d.heavy and d.lease is null and d.visible_at > clock_timestamp() and d.visible_at < 'infinity' and exists (
        select from runtime.waits w where w.message_id = d.message_id and w.subscription = d.subscription);
end
$$;
comment on function runtime.is_suspended(runtime.deliveries) is
    'Whether a handler waits with this delivery, for a message that has not come or a time that is not over.';

create function runtime.phase_of(d runtime.deliveries) returns text
language plpgsql stable set search_path = '' as $$
begin
    return case
        when runtime.is_suspended(d) then 'suspended'
        when d.visible_at < 'infinity' and runtime.is_undoing(d.message_id, d.subscription) then 'undoing' end;
end
$$;
comment on function runtime.phase_of(runtime.deliveries) is
    'Whether a delivery that has not ended is suspended or undoing, whoever has it in hand; null for any other.';

create function runtime.backlog()
returns table (
    subscription integer, fresh bigint, running bigint, scheduled bigint, suspended bigint, undoing bigint, parked bigint,
    blocked bigint, since timestamptz, about boolean
)
language plpgsql stable set search_path = '' as $$
declare
    most constant integer := 1000;
    -- Repeatable, so that the figures shown do not flicker.
    portion constant real := runtime.sampled_percent('runtime.deliveries');
begin
    return query
    with sample as materialized (
        select d.subscription as id,
               count(*) filter (where d.visible_at is null) as fresh,
               count(*) filter (where d.lease is not null and d.visible_at < 'infinity' and p.phase is null) as running,
               count(*) filter (where d.lease is null and d.visible_at < 'infinity' and p.phase is null) as scheduled,
               count(*) filter (where p.phase = 'suspended') as suspended,
               count(*) filter (where p.phase = 'undoing') as undoing,
               count(*) filter (where d.lease is null and d.visible_at = 'infinity') as parked,
               count(*) filter (where d.lease is not null and d.visible_at = 'infinity') as blocked
        from runtime.deliveries d tablesample system (portion) repeatable (1)
        -- Most deliveries are not heavy, which tells without a call.
        cross join lateral (select case when d.heavy then runtime.phase_of(d) end as phase offset 0) p
        group by 1
    ), counted as materialized (
        -- Up to a thousand are counted exactly, by the indexes that taking uses.
        select s.id, f.fresh, h.leased, h.running, h.blocked, w.unleased, w.scheduled, w.suspended, p.parked,
               h.undoing + w.undoing as undoing,
               -- A message that was sent with a delay waits from when it was over.
               least(w.since, (
                   select min(greatest(m.created_at, m.deliver_at)) from public.consciousness_stream m
                   where m.id in (o.oldest, h.oldest, w.oldest))) as since,
               greatest(f.fresh, h.leased + h.blocked, w.unleased, p.parked) > most and portion < 100 as about
        from runtime.subscriptions s
        cross join lateral (
            select count(*) as fresh from (
                select from runtime.deliveries d
                where d.subscription = s.id and d.visible_at is null limit most + 1) x
        ) f
        cross join lateral (
            select min(x.id) as oldest from unnest('{-1,0,1}'::smallint[]) as c (class)
            cross join lateral (
                select d.message_id as id from runtime.deliveries d
                where d.subscription = s.id and d.visible_at is null and d.priority = c.class
                order by d.message_id + 0 limit 1) x
        ) o
        cross join lateral (
            select count(*) filter (where x.visible_at < 'infinity') as leased,
                   count(*) filter (where x.visible_at < 'infinity' and x.phase is null) as running,
                   count(*) filter (where x.phase = 'undoing') as undoing,
                   count(*) filter (where x.visible_at = 'infinity') as blocked, min(x.message_id) as oldest
            from (
                select d.visible_at, d.message_id, case when d.heavy then runtime.phase_of(d) end as phase
                from runtime.deliveries d
                where d.subscription = s.id and d.visible_at is not null
                  and case when d.lease is not null then 2 else coalesce(d.pinned, 0) + (d.crashes >= 2)::integer end = 2
                limit most + 1) x
        ) h
        cross join lateral (
            -- What is suspended waits for others, so it is no sign of being late.
            select count(*) as unleased, count(*) filter (where x.phase is null) as scheduled,
                   count(*) filter (where x.phase = 'suspended') as suspended,
                   count(*) filter (where x.phase = 'undoing') as undoing,
                   min(x.message_id) filter (where x.phase is distinct from 'suspended' and x.attempts > 0) as oldest,
                   min(x.visible_at) filter (
                       where x.phase is distinct from 'suspended' and x.attempts = 0 and x.visible_at <= clock_timestamp()
                   ) as since
            from unnest(runtime.lanes_of(s.id)) as c (standing)
            cross join lateral (
                select d.message_id, d.visible_at, d.attempts, case when d.heavy then runtime.phase_of(d) end as phase
                from runtime.deliveries d
                where d.subscription = s.id and d.visible_at < 'infinity'
                  and case when d.lease is not null then 2 else coalesce(d.pinned, 0) + (d.crashes >= 2)::integer end = c.standing
                limit most + 1) x
        ) w
        cross join lateral (
            -- No oldest of these: a parked delivery waits behind an older one.
            select count(*) as parked from unnest(runtime.lanes_of(s.id)) as c (standing)
            cross join lateral (
                select from runtime.deliveries d
                where d.subscription = s.id and d.visible_at = 'infinity'
                  and case when d.lease is not null then 2 else coalesce(d.pinned, 0) + (d.crashes >= 2)::integer end = c.standing
                limit most + 1) x
        ) p
    )
    select c.id,
           case when c.fresh > most then greatest(c.fresh, (x.fresh * 100 / portion)::bigint) else c.fresh end,
           case when c.leased > most then greatest(c.running, (x.running * 100 / portion)::bigint) else c.running end,
           case when c.unleased > most then greatest(c.scheduled, (x.scheduled * 100 / portion)::bigint) else c.scheduled end,
           case when c.unleased > most then greatest(c.suspended, (x.suspended * 100 / portion)::bigint) else c.suspended end,
           case when greatest(c.leased, c.unleased) > most then greatest(c.undoing, (x.undoing * 100 / portion)::bigint)
                else c.undoing end,
           case when c.parked > most then greatest(c.parked, (x.parked * 100 / portion)::bigint) else c.parked end,
           case when c.blocked > most then greatest(c.blocked, (x.blocked * 100 / portion)::bigint) else c.blocked end,
           c.since, c.about
    from counted c left join sample x on x.id = c.id;
end
$$;
comment on function runtime.backlog() is
    'What waits for each subscription, and since when. A small table is counted whole, and so is up to a '
    'thousand of a kind; about: larger figures are estimated from a sample of the table''s blocks.';

create function runtime.awaited() returns table (subscription integer, awaited json)
language plpgsql stable set search_path = '' as $$
declare
    portion constant real := runtime.sampled_percent('runtime.waits');
begin
    return query
    select x.subscription, json_agg(json_build_object('pattern', x.pattern, 'count', x.amount) order by x.place)
    from (
        select w.subscription, v.pattern, (count(*) * 100 / portion)::bigint as amount,
               row_number() over (partition by w.subscription order by count(*) desc, v.pattern) as place
        from runtime.waits w tablesample system (portion) repeatable (1)
        -- Each asker has a key of its own for its answers.
        cross join lateral (select case when w.parent is null then w.pattern else 'answer.>' end as pattern) v
        group by 1, 2
    ) x
    where x.place <= 5 group by 1;
end
$$;
comment on function runtime.awaited() is
    'What the handlers of each subscription wait for: the five patterns with most waits, null for a time. Of many '
    'waits, estimated from a sample of the table''s blocks.';

create function runtime.held_back() returns table (subscription integer, version text, amount bigint)
language plpgsql stable set search_path = '' as $$
begin
    return query
    select p.subscription, p.version, x.amount
    from runtime.pins p
    cross join lateral (
        select count(*) as amount from unnest(array[0, 1]) as poison
        cross join lateral (
            select from runtime.deliveries d
            where d.subscription = p.subscription and d.visible_at <= (select clock_timestamp())
              and case when d.lease is not null then 2 else coalesce(d.pinned, 0) + (d.crashes >= 2)::integer end
                  = p.lane + poison
            limit 1000) y
    ) x
    where x.amount > 0 and not exists (
        select from runtime.workers w
        where w.seen_at > (select runtime.alive_since()) and (w.pins ->> p.subscription::text)::integer = p.lane);
end
$$;
comment on function runtime.held_back() is
    'The deliveries that are due and that no worker takes, since only one of a version that does not run may; up to two '
    'thousand of each are counted.';

create function runtime.rate_of(s runtime.subscriptions) returns text
language plpgsql immutable set search_path = '' as $$
begin
    return s.rate_amount || '/' || case s.rate_seconds
        when 1 then 's' when 60 then 'm' when 3600 then 'h' when 86400 then 'd' else s.rate_seconds || 's' end;
end
$$;
comment on function runtime.rate_of(runtime.subscriptions) is
    'A subscription''s rate as it is declared: 10/s, 600/m; null without one.';

create function runtime.buried() returns table (subscription integer, amount bigint, about boolean)
language plpgsql stable set search_path = '' as $$
declare
    most constant integer := 1000;
    portion constant real := runtime.sampled_percent('runtime.dead_letters');
begin
    return query
    with sample as materialized (
        select l.subscription as id, count(*) as amount
        from runtime.dead_letters l tablesample system (portion) repeatable (1) group by 1
    ), counted as materialized (
        select s.id, c.amount from runtime.subscriptions s
        cross join lateral (
            select count(*) as amount from (
                select from runtime.dead_letters l where l.subscription = s.id limit most + 1) x
        ) c
    )
    -- Letters outlive their subscription; then only the sample knows of them.
    select coalesce(c.id, x.id),
           case when c.amount <= most then c.amount
                else greatest(c.amount, (x.amount * 100 / portion)::bigint) end,
           portion < 100 and (c.id is null or c.amount > most)
    from counted c full join sample x on x.id = c.id
    where c.amount > 0 or c.id is null;
end
$$;
comment on function runtime.buried() is
    'How many dead letters each subscription has, also removed subscriptions; counted and estimated like the backlog.';

create function runtime.age_seconds(at timestamptz) returns double precision
language plpgsql stable set search_path = '' as $$
begin
    -- An infinite time has no age.
    return case when isfinite(at) then greatest(0, extract(epoch from clock_timestamp() - at)) end;
end
$$;
comment on function runtime.age_seconds(timestamptz) is
    'How long ago a time was, in seconds; null for an infinite time.';

create function runtime.holding() returns table (worker uuid, running bigint)
language plpgsql stable set search_path = '' as $$
begin
    return query
    select u.worker, count(*) from runtime.subscriptions s
    cross join lateral (
        select d.holder from runtime.deliveries d
        where d.subscription = s.id and d.visible_at is not null
          and case when d.lease is not null then 2 else coalesce(d.pinned, 0) + (d.crashes >= 2)::integer end = 2
          and d.visible_at < 'infinity'
        limit 1000) x
    join runtime.pumps u on u.number = x.holder
    group by u.worker;
end
$$;
comment on function runtime.holding() is 'How many deliveries each worker holds, up to a thousand of a subscription counted.';

create function runtime.counted_messages()
returns table (amount bigint, about boolean)
language plpgsql stable set search_path = '' as $$
declare
    most constant integer := 10000;
    stream constant regclass := 'public.consciousness_stream';
    live bigint;
begin
    select count(*), count(*) > most into amount, about from (select from public.consciousness_stream limit most + 1) x;
    if about then
        -- The server counts what is written and deleted. After its crash it begins at nothing; the planner's figure, which
        -- is nothing until the first vacuum, is the best there is then.
        live := pg_stat_get_live_tuples(stream);
        if live < most then
            select c.reltuples into live from pg_catalog.pg_class c where c.oid = stream;
        end if;
        amount := greatest(amount, live);
    end if;
    return next;
end
$$;
comment on function runtime.counted_messages() is
    'How many messages there are. Ten thousand are counted exactly; about: more by the server''s statistics.';

create function public.stream_stats() returns json
language plpgsql stable security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('look at everything');
    return (
        select json_build_object(
            'now', clock_timestamp(),
            'messages', c.amount,
            'messages_about', c.about,
            'last_message', (select max(m.id) from public.consciousness_stream m),
            'dead_letters', (select coalesce(sum(l.amount), 0) from runtime.buried() l),
            'dead_about', (select coalesce(bool_or(l.about), false) from runtime.buried() l),
            'approvals', runtime.open_approvals(),
            'statuses', runtime.statuses_now(),
            'broadcast', runtime.realtime_is_there(),
            'warnings', runtime.disorders('{}') || array(select distinct r.warning from runtime.rivals() r) || array(
                select format(
                    'Work that version %s of %s has begun waits for a worker of that version, and none runs (%s due). Run '
                    'one, or cancel the messages and redrive their dead letters, which any version takes.',
                    h.version, s.name, h.amount)
                from runtime.held_back() h join runtime.subscriptions s on s.id = h.subscription order by s.name, h.version),
            'oldest_transaction_seconds', (
                select extract(epoch from clock_timestamp() - min(a.xact_start)) from pg_catalog.pg_stat_activity a
                where a.backend_xid is not null and a.pid <> pg_backend_pid()),
            'subscriptions', coalesce((
                select json_agg(json_build_object(
                    'id', s.id, 'name', s.name, 'agent', s.agent, 'patterns', s.patterns, 'ordered', s.ordered,
                    'settled', s.settled, 'paused', s.paused_at is not null, 'expired', s.expired,
                    'rate', runtime.rate_of(s), 'concurrency_total', s.concurrency_total,
                    'waiting', coalesce(b.fresh + b.parked, 0), 'running', coalesce(b.running, 0),
                    'scheduled', coalesce(b.scheduled, 0), 'parked', coalesce(b.parked, 0), 'blocked', coalesce(b.blocked, 0),
                    'suspended', coalesce(b.suspended, 0), 'awaited', coalesce(a.awaited, '[]'),
                    'undoing', coalesce(b.undoing, 0),
                    'held_back', coalesce(k.held_back, '[]'),
                    'held', runtime.hold_of(s), 'budget', runtime.budget_of(s), 'usage_today', u.usage,
                    'about', coalesce(b.about, false),
                    'dead', coalesce(l.amount, 0), 'dead_about', coalesce(l.about, false),
                    'lag_seconds', runtime.age_seconds(b.since),
                    'done_last_minute', coalesce(r.done, 0), 'failed_last_minute', coalesce(r.failed, 0),
                    'last_error', (
                        select json_build_object('message', e.message_id, 'error', e.error, 'at', e.ended_at)
                        from runtime.runs e where e.subscription = s.id and e.error is not null
                        order by e.ended_at desc limit 1),
                    'workers', runtime.workers_of(s.id)
                ) order by s.name)
                from runtime.subscriptions s
                left join runtime.backlog() b on b.subscription = s.id
                left join runtime.awaited() a on a.subscription = s.id
                left join (
                    select h.subscription,
                           json_agg(json_build_object('version', h.version, 'count', h.amount) order by h.version) as held_back
                    from runtime.held_back() h group by 1
                ) k on k.subscription = s.id
                left join runtime.usage_today() u on u.handler = s.name
                left join runtime.buried() l on l.subscription = s.id
                left join runtime.recent_runs(60) r on r.subscription = s.id), '[]'),
            'workers', coalesce((
                select json_agg(json_build_object(
                    'id', w.id, 'name', w.name, 'started_at', w.started_at,
                    'seen_seconds', extract(epoch from clock_timestamp() - w.seen_at),
                    'asleep', w.asleep, 'running', coalesce(h.running, 0), 'announce', w.announce, 'details', w.details
                ) order by w.started_at)
                from runtime.workers w left join runtime.holding() h on h.worker = w.id), '[]')
        )
        from runtime.counted_messages() c
    );
end
$$;
comment on function public.stream_stats() is 'Figures of everything: subscriptions, deliveries, workers, dead letters.';

create function public.stream_due(subscriptions text[], versions jsonb default null) returns json
language plpgsql stable security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('look at what is due');
    return (
        with mine as materialized (
            select s.id, versions is null as is_any, coalesce((
                select p.lane from runtime.pins p
                where p.subscription = s.id and p.version = versions ->> s.name), 0) as lane
            from runtime.subscriptions s
            where s.name = any (stream_due.subscriptions) and s.settled and s.paused_at is null
              and runtime.held_until(s.id) is null
        )
        select json_build_object(
            -- Parked deliveries are not counted: the one they wait for is.
            'due',
            (select count(*) from mine join runtime.deliveries d on d.subscription = mine.id where d.visible_at is null)
            + (select count(*) from mine join runtime.deliveries d on d.subscription = mine.id
               where d.visible_at <= clock_timestamp() and (mine.is_any or coalesce(d.pinned, mine.lane) = mine.lane)),
            'next_due_seconds', least(
            (select extract(epoch from min(d.visible_at) - clock_timestamp())
             from mine join runtime.deliveries d on d.subscription = mine.id
             where d.visible_at > clock_timestamp() and d.visible_at < 'infinity'
               and (mine.is_any or coalesce(d.pinned, mine.lane) = mine.lane)),
            (select extract(epoch from min(runtime.held_until(s.id)) - clock_timestamp())
             from runtime.holds h join runtime.subscriptions s on s.id = h.subscription
             where s.name = any (stream_due.subscriptions) and s.settled and s.paused_at is null and runtime.waits(s.id)))
        )
    );
end
$$;
comment on function public.stream_due(text[], jsonb) is
    'How many deliveries of these subscriptions are due, and in how many seconds the next one comes due; without '
    'paused and held ones. Given the versions that run, {subscription: version} of the pinned ones, without what another version '
    'has begun.';
