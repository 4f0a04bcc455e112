-- What it costs: the sums of usage by day, and what budgets and providers hold back.

create function runtime.usage_today() returns table (handler text, usage json)
language plpgsql stable set search_path = '' as $$
begin
    return query
    select u.handler, json_build_object(
        'calls', sum(u.calls), 'tokens_in', sum(u.tokens_in), 'tokens_out', sum(u.tokens_out), 'cost', sum(u.cost))
    from runtime.usage u where u.day = (clock_timestamp() at time zone 'UTC')::date group by 1;
end
$$;
comment on function runtime.usage_today() is 'What each handler has told of the models it used since midnight, UTC.';

create function runtime.budget_of(s runtime.subscriptions) returns json
language plpgsql stable set search_path = '' as $$
begin
    return case when s.budget is not null then (
        select json_build_object(
            'cost', s.budget, 'period', s.budget_period, 'per', s.budget_per,
            'held', coalesce((
                select json_agg(json_build_object('prefix', y.prefix, 'spent', y.spent, 'until', y.spent_until) order by y.prefix)
                from (
                    select x.* from runtime.spent_prefixes x
                    where x.subscription = s.id and x.spent_until > clock_timestamp() order by x.prefix limit 10) y), '[]'),
            'spent', case when h.began_at = (runtime.period_of(s.budget_period, clock_timestamp())).began then h.spent else 0 end)
        from runtime.holds h where h.subscription = s.id) end;
end
$$;
comment on function runtime.budget_of(runtime.subscriptions) is
    'A subscription''s budget {cost, period, per, spent, held}, in US dollars; null without one. Of one for each prefix of '
    'keys, of per segments, held are up to ten that have spent theirs: [{prefix, spent, until}].';

create function runtime.hold_of(s runtime.subscriptions) returns json
language plpgsql stable set search_path = '' as $$
begin
    return (
        select json_build_object(
            'until', greatest(h.spent_until, h.refused_until),
            'seconds', extract(epoch from greatest(h.spent_until, h.refused_until) - clock_timestamp()),
            'by', case when h.spent_until > clock_timestamp() then 'budget' else 'provider' end)
        from runtime.holds h
        where h.subscription = s.id and greatest(h.spent_until, h.refused_until) > clock_timestamp());
end
$$;
comment on function runtime.hold_of(runtime.subscriptions) is
    'What a subscription is held by, its budget or a provider, and until when {by, until, seconds}; null where nothing '
    'holds it.';

create function public.stream_usage(days integer default 30) returns json
language plpgsql stable security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('look at what everything costs');
    perform runtime.check_between('days', days, 1, 400);
    return (
        select coalesce(json_agg(json_build_object(
            'day', x.day, 'handler', x.handler, 'model', x.model, 'calls', x.calls, 'tokens_in', x.tokens_in,
            'tokens_out', x.tokens_out, 'cost', x.cost) order by x.day desc, x.handler, x.model), '[]')
        from (
            select u.day, u.handler, u.model, sum(u.calls) as calls, sum(u.tokens_in) as tokens_in,
                   sum(u.tokens_out) as tokens_out, sum(u.cost) as cost
            from runtime.usage u where u.day > (clock_timestamp() at time zone 'UTC')::date - days
            group by 1, 2, 3
        ) x);
end
$$;
comment on function public.stream_usage(integer) is
    'What handlers told of the models they used [{day, handler, model, calls, tokens_in, tokens_out, cost}], of so many '
    'days, today''s first; days are those of UTC, costs are in US dollars, and the model is empty where none was named.';
