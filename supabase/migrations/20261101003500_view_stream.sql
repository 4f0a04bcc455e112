-- Views for people: the stream page by page, activity by the minute, and the flow between agents.

create function public.stream_page(
    pattern text default '>', before bigint default null, after bigint default null, max integer default 50,
    agent text default null, state text default null, text text default null,
    since timestamptz default null, until timestamptz default null, look integer default 5000
) returns json
language plpgsql stable security definer set search_path = '' as $$
declare
    is_exact boolean := runtime.prefix_of(pattern) is null;
    regex text := runtime.regex_of(pattern);
    keys text[];
    lowest bigint := coalesce(after, 0);
    highest bigint := coalesce(before, 9223372036854775807);
    most integer := look;
    looked bigint[];
    is_cut boolean;
    weighed bigint[];
    chosen bigint[];
    answer json;
begin
    perform runtime.refuse_agent('look at the whole stream');
    perform runtime.check_pattern(pattern);
    perform runtime.check_between('max', max, 1, 500);
    perform runtime.check_between('look', look, 1, 20000);
    if state is not null and state not in ('open', 'failed', 'dead', 'done', 'unhandled') then
        raise exception using errcode = '22023', message = 'state must be open, failed, dead, done or unhandled';
    end if;
    if since is not null then
        lowest := greatest(lowest, coalesce(runtime.id_at(since), 0) - 1);
    end if;
    if stream_page.until is not null then
        highest := least(highest, coalesce(runtime.id_at(stream_page.until), 0));
    end if;
    -- At most look rows are read: a rare text in a million rows is sought a stretch at a time.
    if is_exact then
        looked := array(
            select m.id from public.consciousness_stream m
            where m.key = pattern and m.id > lowest and m.id < highest
            order by m.key, m.id desc limit look);
    elsif state = 'dead' then
        looked := array(
            select distinct l.message_id from runtime.dead_letters l
            where l.message_id > lowest and l.message_id < highest order by 1 desc limit look);
    elsif state = 'failed' then
        looked := array(
            select distinct r.message_id from runtime.runs r
            where r.error is not null and r.message_id > lowest and r.message_id < highest order by 1 desc limit look);
    elsif state = 'open' then
        looked := array(
            select distinct d.message_id from runtime.deliveries d
            where d.message_id > lowest and d.message_id < highest order by 1 desc limit look);
    else
        -- A rare pattern is looked up key by key; a page after an id is short anyway.
        if pattern <> '>' and after is null then
            keys := runtime.keys_of(pattern, 1000);
        end if;
        if keys is null then
            looked := array(
                select m.id from public.consciousness_stream m
                where m.id > lowest and m.id < highest order by m.id desc limit look);
        else
            most := least(look, greatest(max + 1, 100000 / greatest(cardinality(keys), 1)));
            looked := array(
                select x.id from unnest(keys) as k (key) cross join lateral (
                    select m.id from public.consciousness_stream m
                    where m.key = k.key and m.id > lowest and m.id < highest order by m.key desc, m.id desc limit most
                ) x order by x.id desc limit most);
        end if;
    end if;
    is_cut := cardinality(looked) = most;
    if stream_page.text is not null then
        -- Values are weighed before they are read and searched.
        weighed := array(
            select x.id from (
                select l.id, l.place, sum(pg_column_size(m.value)) over (order by l.place) as weight
                from unnest(looked) with ordinality as l (id, place)
                join public.consciousness_stream m on m.id = l.id
            ) x where x.weight <= 2000000 or x.place = 1 order by x.place);
        is_cut := is_cut or cardinality(weighed) < cardinality(looked);
        looked := weighed;
    end if;
    if pattern = '>' and stream_page.agent is null and state is null and stream_page.text is null then
        chosen := looked[1:max];
    else
        chosen := array(
            select m.id from unnest(looked) with ordinality as l (id, place)
            join public.consciousness_stream m on m.id = l.id
            where (is_exact or keys is not null or pattern = '>' or m.key ~ regex)
              and (stream_page.agent is null or m.agent = stream_page.agent)
              and (stream_page.text is null or position(lower(stream_page.text) in lower(m.value::text)) > 0)
              and case state
                  when 'open' then exists (
                      select from runtime.deliveries d where d.message_id = m.id
                        and not (d.visible_at is not distinct from 'infinity' and d.lease is not null))
                  when 'dead' then exists (select from runtime.dead_letters x where x.message_id = m.id)
                  when 'failed' then exists (
                      select from runtime.runs r where r.message_id = m.id and r.error is not null)
                  when 'done' then exists (select from runtime.runs r where r.message_id = m.id and r.outcome = 'done')
                      and not exists (select from runtime.deliveries d where d.message_id = m.id)
                      and not exists (select from runtime.dead_letters x where x.message_id = m.id)
                  when 'unhandled' then not exists (select from runtime.runs r where r.message_id = m.id)
                      and not exists (select from runtime.deliveries d where d.message_id = m.id)
                      and not exists (select from runtime.dead_letters x where x.message_id = m.id)
                  else true end
            order by l.place limit max);
    end if;
    select json_build_object(
        'messages', coalesce((
            select json_agg(json_build_object(
                'id', m.id, 'key', m.key, 'agent', m.agent, 'processed', m.processed, 'created_at', m.created_at,
                'age_seconds', runtime.age_seconds(m.created_at),
                'deliver_at', m.deliver_at, 'expires_at', m.expires_at, 'priority', m.priority,
                'correlation_id', m.correlation_id, 'parent_id', m.parent_id,
                -- A page of large values would take megabytes; the message's own page shows them whole.
                'value', case when pg_column_size(m.value) <= 8000 then m.value end,
                'large', case when pg_column_size(m.value) > 8000 then pg_column_size(m.value) end,
                'handled', coalesce(h.handled, '[]')) order by m.id desc)
            from public.consciousness_stream m
            left join runtime.handling(chosen) h on h.message_id = m.id
            where m.id = any (chosen)), '[]'),
        -- Where to go on: below the last message shown, or below the last one read; null at the end.
        'next', case
            when cardinality(chosen) = max then chosen[max]
            when is_cut then looked[cardinality(looked)] end,
        'looked', cardinality(looked),
        'newest', (select max(m.id) from public.consciousness_stream m)
    ) into answer;
    return answer;
end
$$;
comment on function public.stream_page(text, bigint, bigint, integer, text, text, text, timestamptz, timestamptz, integer) is
    'Messages for a person, the newest first, each with its state at every subscription. Reads at most look rows, and '
    'returns with next where to go on: before := next. state is open, failed, dead, done or unhandled.';

create function public.stream_activity(
    since_seconds double precision default 3600, until_seconds double precision default 0
) returns json
language plpgsql stable security definer set search_path = '' as $$
declare
    -- In variables: expressions evaluated per row could not bound an index scan.
    since timestamptz := date_trunc('minute', clock_timestamp() - make_interval(secs => since_seconds));
    until timestamptz := case when until_seconds > 0
        then date_trunc('minute', clock_timestamp() - make_interval(secs => until_seconds)) else 'infinity' end;
begin
    perform runtime.refuse_agent('look at the whole stream');
    perform runtime.check_between('since_seconds', since_seconds, 0, 86400);
    perform runtime.check_between('until_seconds', until_seconds, 0, since_seconds);
    -- By the BRIN index, as in runtime.recent_runs: only recent blocks are read.
    return json_build_object(
        'minute', floor(extract(epoch from clock_timestamp()) / 60)::bigint,
        'minutes', coalesce((
            select json_agg(json_build_array(x.minute, x.subscription, x.done, x.failed, x.seconds)
                            order by x.minute, x.subscription)
            from (
                select floor(extract(epoch from r.ended_at) / 60)::bigint as minute, r.subscription,
                       count(*) filter (where r.outcome = 'done') as done,
                       count(*) filter (where r.outcome in ('failed', 'dead', 'crashed')) as failed,
                       coalesce(avg(r.seconds) filter (where r.outcome = 'done'), 0) as seconds
                from runtime.runs r
                where r.ended_at >= since and r.ended_at < until
                group by 1, 2
            ) x), '[]'));
end
$$;
comment on function public.stream_activity(double precision, double precision) is
    'Attempts that ended between these two ages, by whole minutes: [minute since 1970, subscription, done, failed, '
    'mean seconds].';

create function public.stream_flow(look integer default 2000) returns json
language plpgsql stable security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('look at the whole stream');
    perform runtime.check_between('look', look, 1, 20000);
    return (
        with last as materialized (
            select m.id, m.key, m.agent, m.created_at from public.consciousness_stream m order by m.id desc limit look
        )
        select json_build_object(
            'messages', (select count(*) from last),
            'seconds', (select runtime.age_seconds(min(l.created_at) filter (where isfinite(l.created_at))) from last l),
            'written', coalesce((
                select json_agg(json_build_object('agent', w.agent, 'key', w.key, 'count', w.amount)
                                order by w.amount desc, w.key, w.agent)
                from (select l.agent, l.key, count(*) as amount from last l group by 1, 2
                      order by 3 desc limit 200) w), '[]'),
            'handled', coalesce((
                select json_agg(json_build_object('key', h.key, 'subscription', h.name, 'count', h.amount)
                                order by h.amount desc, h.key, h.name)
                from (select l.key, s.name, count(distinct l.id) as amount
                      from last l
                      cross join lateral (
                          select x.subscription from runtime.runs x where x.message_id = l.id offset 0) r
                      join runtime.subscriptions s on s.id = r.subscription
                      group by 1, 2 order by 3 desc limit 400) h), '[]'))
    );
end
$$;
comment on function public.stream_flow(integer) is
    'What the last messages did: how many each agent wrote under each key, and how many each subscription handled.';
