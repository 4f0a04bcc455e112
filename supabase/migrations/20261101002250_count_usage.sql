-- Usage: what handlers tell of the language models they use, by day, handler and model; and what holds a subscription's
-- work back for it, its own budget or the word of a provider. Reports carry the usage, so it takes no call of its own.
-- The log of runs has it for each attempt, as long as the messages are there; these sums stay longer.

create table runtime.usage (
    -- In UTC.
    day date not null,
    handler text not null,
    -- Empty where the handler named none.
    model text not null,
    -- Workers that report at once have rows of their own, and do not wait for each other.
    part smallint not null,
    calls bigint not null,
    tokens_in numeric not null,
    tokens_out numeric not null,
    -- In US dollars.
    cost numeric not null,
    primary key (day, handler, model, part)
) with (fillfactor = 50);
comment on table runtime.usage is
    'What handlers told of the language models they used, in sums of a day; calls counts the attempts and steps that told '
    'something. Kept for 400 days.';

create table runtime.holds (
    subscription integer primary key references runtime.subscriptions on delete cascade,
    -- The budget's period, and what was spent in it.
    began_at timestamptz,
    spent numeric not null default 0,
    -- Nothing is taken before these: the budget is spent, or a provider lets nobody through.
    spent_until timestamptz,
    refused_until timestamptz
) with (fillfactor = 50);
comment on table runtime.holds is
    'The subscriptions that have a budget, or that a provider of theirs refuses for a time; nothing is taken of those that '
    'are held.';

create table runtime.spent_prefixes (
    subscription integer not null references runtime.subscriptions on delete cascade,
    prefix text collate "C" not null,
    began_at timestamptz not null,
    spent numeric not null,
    spent_until timestamptz,
    primary key (subscription, prefix)
) with (fillfactor = 50);
comment on table runtime.spent_prefixes is
    'What each prefix of keys has spent of its budget, of subscriptions whose budget is for each prefix.';
create index spent_prefixes_began on runtime.spent_prefixes (began_at);

alter table runtime.spent_prefixes enable row level security;
alter table runtime.usage enable row level security;
alter table runtime.holds enable row level security;

create function runtime.figure(told jsonb) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
    -- A worker in another language may report anything.
    return case when jsonb_typeof(told) = 'number' then
        case when told::numeric between 0 and 1e12 then trim_scale(round(told::numeric, 12)) else 0 end else 0 end;
end
$$;
comment on function runtime.figure(jsonb) is 'A number of tokens or a cost as it was told; 0 for what is none.';

create function runtime.told_usage(usage jsonb) returns table (model text, tokens_in numeric, tokens_out numeric, cost numeric)
language plpgsql immutable set search_path = '' as $$
begin
    return query
    select left(coalesce(u.value ->> 'model', ''), 200), runtime.figure(u.value -> 'tokens_in'),
           runtime.figure(u.value -> 'tokens_out'), runtime.figure(u.value -> 'cost')
    from jsonb_array_elements(
        case when jsonb_typeof(usage -> 'by_model') = 'array' then usage -> 'by_model' else jsonb_build_array(usage) end) as u
    where jsonb_typeof(u.value) = 'object';
end
$$;
comment on function runtime.told_usage(jsonb) is
    'A report''s usage by model: {tokens_in, tokens_out, cost, model}, or under by_model a list of such.';

create function runtime.usage_reports(done json, failed json)
returns table (message bigint, subscription integer, usage jsonb, hold double precision)
language plpgsql immutable set search_path = '' as $$
begin
    return query
    select r.message, r.subscription, r.usage, r.hold
    from unnest(array[done, failed]) as reports (list)
    cross join lateral json_to_recordset(coalesce(reports.list, '[]'))
        as r (message bigint, subscription integer, usage jsonb, hold double precision)
    where r.usage is not null or r.hold is not null;
end
$$;
comment on function runtime.usage_reports(json, json) is
    'The reports of an exchange that tell of usage, or by how many seconds a provider puts everybody off.';

create function runtime.prefix_of(key text, segments integer) returns text
language plpgsql immutable set search_path = '' as $$
begin
    return array_to_string((string_to_array(key, '.'))[1:segments], '.');
end
$$;
comment on function runtime.prefix_of(text, integer) is 'The first so many segments of a key, or all it has.';

create function runtime.period_of(unit text, at timestamptz, out began timestamptz, out ends timestamptz)
language plpgsql immutable set search_path = '' as $$
begin
    began := date_trunc(unit, at at time zone 'UTC') at time zone 'UTC';
    ends := (date_trunc(unit, at at time zone 'UTC') + ('1 ' || unit)::interval) at time zone 'UTC';
end
$$;
comment on function runtime.period_of(text, timestamptz) is
    'The hour, day or month in UTC that a time lies in: where it began, and where it ends.';

create function runtime.count_usage(done json, failed json, me uuid) returns void
language plpgsql set search_path = '' as $$
declare
    today date := (clock_timestamp() at time zone 'UTC')::date;
    one record;
    period record;
begin
    -- Also of reports that were refused: the models were paid. Everything in the order of the names, so that two workers
    -- never deadlock.
    insert into runtime.usage as u (day, handler, model, part, calls, tokens_in, tokens_out, cost)
    select today, s.name, t.model, abs(hashtext(me::text) % 8), count(*), sum(t.tokens_in), sum(t.tokens_out), sum(t.cost)
    from runtime.usage_reports(done, failed) r
    join runtime.subscriptions s on s.id = r.subscription
    cross join lateral runtime.told_usage(r.usage) t
    group by s.name, t.model
    order by s.name, t.model
    on conflict on constraint usage_pkey do update
    set calls = u.calls + excluded.calls, tokens_in = u.tokens_in + excluded.tokens_in,
        tokens_out = u.tokens_out + excluded.tokens_out, cost = u.cost + excluded.cost;
    for one in
        select s.id, s.budget, s.budget_period, s.budget_per, coalesce(sum(t.cost), 0) as cost, max(r.hold) as hold
        from runtime.usage_reports(done, failed) r
        join runtime.subscriptions s on s.id = r.subscription
        left join lateral (select sum(x.cost) as cost from runtime.told_usage(r.usage) x) t on true
        group by s.id
        order by s.name
    loop
        if one.budget is not null and one.cost > 0 then
            period := runtime.period_of(one.budget_period, clock_timestamp());
            update runtime.holds h
            set began_at = period.began,
                spent = case when h.began_at = period.began then h.spent else 0 end + one.cost,
                spent_until = case
                    when one.budget_per is not null then null
                    when case when h.began_at = period.began then h.spent else 0 end + one.cost >= one.budget
                    then period.ends end
            where h.subscription = one.id;
        end if;
        if one.budget_per is not null and one.cost > 0 then
            insert into runtime.spent_prefixes as x (subscription, prefix, began_at, spent, spent_until)
            select one.id, p.prefix, period.began, sum(p.cost), case when sum(p.cost) >= one.budget then period.ends end
            from (
                select runtime.prefix_of(m.key, one.budget_per) as prefix, u.cost
                from runtime.usage_reports(done, failed) r
                join public.consciousness_stream m on m.id = r.message
                cross join lateral runtime.told_usage(r.usage) u
                where r.subscription = one.id
            ) p
            group by p.prefix order by p.prefix
            on conflict (subscription, prefix) do update
            set began_at = excluded.began_at,
                spent = case when x.began_at = excluded.began_at then x.spent else 0 end + excluded.spent,
                spent_until = case
                    when case when x.began_at = excluded.began_at then x.spent else 0 end + excluded.spent >= one.budget
                    then period.ends end;
        end if;
        if one.hold > 0 then
            insert into runtime.holds as h (subscription, refused_until)
            values (one.id, clock_timestamp() + make_interval(secs => least(one.hold, 3600)))
            on conflict (subscription) do update
            set refused_until = greatest(h.refused_until, excluded.refused_until);
        end if;
    end loop;
end
$$;
comment on function runtime.count_usage(json, json, uuid) is
    'Adds the usage of reports to the sums of the day and to what is spent of budgets, and holds subscriptions as their '
    'providers ask: for so many seconds, an hour at most.';

create function runtime.keep_budget(target integer) returns void
language plpgsql set search_path = '' as $$
declare
    s runtime.subscriptions;
    period record;
    before numeric := 0;
    was_held boolean := exists (
        select from runtime.holds h where h.subscription = target and h.spent_until > clock_timestamp());
begin
    select * into s from runtime.subscriptions x where x.id = target;
    if s.budget is null then
        delete from runtime.spent_prefixes x where x.subscription = target;
        delete from runtime.holds h
        where h.subscription = target and coalesce(h.refused_until, '-infinity') < clock_timestamp();
        update runtime.holds h set began_at = null, spent = 0, spent_until = null
        where h.subscription = target and h.began_at is not null;
        if was_held then
            perform runtime.wake_sleepers(array[target], '{}');
        end if;
        return;
    end if;
    period := runtime.period_of(s.budget_period, clock_timestamp());
    if s.budget_period <> 'hour' then
        -- A budget that is new counts what its period has cost before.
        before := (
            select coalesce(sum(u.cost), 0) from runtime.usage u
            where u.handler = s.name and u.day >= (period.began at time zone 'UTC')::date);
    end if;
    insert into runtime.holds as h (subscription, began_at, spent)
    values (target, period.began, before)
    on conflict (subscription) do update
    set began_at = excluded.began_at,
        spent = case when h.began_at = excluded.began_at then greatest(h.spent, excluded.spent) else excluded.spent end;
    update runtime.holds h
    set spent_until = case when h.spent >= s.budget and s.budget_per is null then period.ends end
    where h.subscription = target;
    delete from runtime.spent_prefixes x
    where x.subscription = target and (s.budget_per is null or x.began_at <> period.began);
    update runtime.spent_prefixes x set spent_until = case when x.spent >= s.budget then period.ends end
    where x.subscription = target;
    if was_held and runtime.held_until(target) is null then
        perform runtime.wake_sleepers(array[target], '{}');
    end if;
end
$$;
comment on function runtime.keep_budget(integer) is
    'Begins or ends the book-keeping for a subscription''s budget, as it is declared.';

create function runtime.held_until(target integer) returns timestamptz
language plpgsql stable set search_path = '' as $$
begin
    return (
        select greatest(h.spent_until, h.refused_until) from runtime.holds h
        where h.subscription = target and greatest(h.spent_until, h.refused_until) > clock_timestamp());
end
$$;
comment on function runtime.held_until(integer) is
    'Until when nothing is taken of a subscription, for its budget or a provider''s word; null where it is not held.';

create function runtime.put_off_spent(so_far runtime.taking) returns runtime.taking
language plpgsql set search_path = '' as $$
declare
    result runtime.taking := so_far;
    put_off record;
begin
    with spent as materialized (
        select t.message_id, t.subscription, x.spent_until
        from unnest(so_far.taken) as t
        join runtime.subscriptions s on s.id = t.subscription and s.budget_per is not null
        join public.consciousness_stream m on m.id = t.message_id
        join runtime.spent_prefixes x on x.subscription = s.id and x.prefix = runtime.prefix_of(m.key, s.budget_per)
        where x.spent_until > clock_timestamp() and not (t.heavy and runtime.is_undoing(t.message_id, t.subscription))
    ), gone as (
        update runtime.deliveries d set visible_at = e.spent_until, lease = null
        from spent e
        where d.message_id = e.message_id and d.subscription = e.subscription
        returning d.message_id, d.subscription
    )
    select array_agg(g.message_id) as ids, array_agg(g.subscription) as subscriptions into put_off from gone g;
    if put_off.ids is not null then
        result.taken := array(
            select t from unnest(so_far.taken) as t
            where not exists (
                select from unnest(put_off.ids, put_off.subscriptions) as p (id, subscription)
                where p.id = t.message_id and p.subscription = t.subscription));
        -- Those of other prefixes behind them may go now.
        result.look_again := true;
        result.least := 0;
    end if;
    return result;
end
$$;
comment on function runtime.put_off_spent(runtime.taking) is
    'Puts off the deliveries whose prefix has spent its budget, until the period ends: of a prefix each is taken once.';
