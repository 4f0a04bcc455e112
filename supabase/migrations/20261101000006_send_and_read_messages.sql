-- How a message gets in, and how it is read as shared memory.

create function runtime.caller_agent() returns text
language plpgsql stable set search_path = '' as $$
declare
    claims jsonb := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
begin
    -- An agent under its own identity is who its token says, whatever the arguments claim.
    if claims ->> 'role' = 'agent' then
        if coalesce(claims ->> 'agent', '') = '' then
            raise exception using
                errcode = '42501',
                message = 'this token has the role agent and names no agent',
                hint = 'Put the agent''s name into its claim "agent".';
        end if;
        return claims ->> 'agent';
    end if;
    return null;
end
$$;
comment on function runtime.caller_agent() is 'The agent named by the caller''s token, or null for a caller that is no agent.';

create function runtime.refuse_agent(what text) returns void
language plpgsql stable set search_path = '' as $$
begin
    if runtime.caller_agent() is not null then
        raise exception using errcode = '42501', message = format('an agent''s identity may not %s', what);
    end if;
end
$$;
comment on function runtime.refuse_agent(text) is 'Raises 42501 for an agent under its own identity: this is for operators.';

create function runtime.reserve(messages jsonb) returns text[]
language sql set search_path = '' as $$
    with asked as (
        select distinct m ->> 'dedup_key' as dedup_key from jsonb_array_elements(messages) as m
        where m ->> 'dedup_key' is not null
    ), made as (
        -- In key order, so that two batches never wait for each other in a circle.
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
comment on function runtime.reserve(jsonb) is 'Reserves the dedup_keys of a batch; those it could not get are in use.';

create function runtime.store(messages jsonb) returns json
language plpgsql set search_path = '' as $$
declare
    winners jsonb := messages;
    places bigint[];
    reserved text[];
    ids bigint[];
begin
    if messages @? '$[*].dedup_key ? (@ != null)' then
        reserved := runtime.reserve(messages);
        select coalesce(jsonb_agg(w.value order by w.place), '[]'), array_agg(w.place order by w.place)
        into winners, places
        from (
            select m.value, m.place, m.value ->> 'dedup_key' as dedup_key,
                   row_number() over (partition by m.value ->> 'dedup_key' order by m.place) = 1 as is_first
            from jsonb_array_elements(messages) with ordinality as m (value, place)
        ) w
        where w.dedup_key is null or (w.is_first and w.dedup_key = any (reserved));
    end if;

    with stored as (
        insert into public.consciousness_stream
            (key, value, agent, deliver_at, expires_at, priority, dedup_key, correlation_id, parent_id, headers)
        -- In the order of the array, as they are read. A missing key is refused in the words of check_key.
        select coalesce(w.key, ''), w.value, w.agent,
               coalesce(clock_timestamp() + make_interval(secs => w.delay), w.deliver_at),
               coalesce(clock_timestamp() + make_interval(secs => w.expires_in), w.expires_at),
               coalesce(w.priority, 0), w.dedup_key, w.correlation_id, w.parent_id, w.headers
        from jsonb_to_recordset(winners) as w (
            key text, value jsonb, agent text, delay double precision, deliver_at timestamptz,
            expires_in double precision, expires_at timestamptz, priority smallint, dedup_key text,
            correlation_id text, parent_id bigint, headers jsonb
        )
        returning id
    )
    select array_agg(s.id order by s.id) into ids from stored s;

    if reserved is null then
        return (select coalesce(json_agg(s), '[]') from (select i as id, false as duplicate from unnest(ids) as i) s);
    end if;
    return (
        select coalesce(json_agg(
            json_build_object(
                'id', coalesce(mine.id, (select d.message_id from runtime.dedup d where d.dedup_key = m.value ->> 'dedup_key')),
                'duplicate', mine.id is null
            ) order by m.place), '[]')
        from jsonb_array_elements(messages) with ordinality as m (value, place)
        left join unnest(ids, places) as mine (id, place) on mine.place = m.place
    );
end
$$;
comment on function runtime.store(jsonb) is 'Inserts a batch in its order; says of each message its id and whether it was a duplicate.';

create function public.stream_send(messages jsonb) returns json
language plpgsql security definer set search_path = ''
    set enable_seqscan = off set enable_bitmapscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    caller text := runtime.caller_agent();
begin
    if jsonb_typeof(messages) = 'object' then
        messages := jsonb_build_array(messages);
    end if;
    if jsonb_typeof(messages) is distinct from 'array' then
        raise exception using
            errcode = '22023',
            message = 'messages must be an array of objects with a key and a value',
            hint = 'For example [{"key": "task.output", "value": {"title": "Hello"}}].';
    end if;
    if caller is not null then
        messages := (select coalesce(jsonb_agg(m || jsonb_build_object('agent', caller)), '[]')
                     from jsonb_array_elements(messages) as m);
    end if;
    if messages @? '$[*].dedup_key ? (@ != null)' then
        -- Requests and webhooks come this way; an agent's own name is that of its webhooks' source.
        perform runtime.refuse_reserved(min(m ->> 'dedup_key')) from jsonb_array_elements(messages) as m
        where runtime.is_reserved(m ->> 'dedup_key') and not starts_with(m ->> 'dedup_key', 'ask ')
          and not starts_with(m ->> 'dedup_key', concat('webhook ', caller || ' '));
    end if;
    return runtime.store(messages);
end
$$;
comment on function public.stream_send(jsonb) is
    'Inserts messages [{key, value, agent?, delay?, deliver_at?, expires_in?, expires_at?, priority?, dedup_key?, '
    'correlation_id?, parent_id?, headers?}]; times as seconds from now or as timestamps. Returns [{id, duplicate}].';

create function runtime.prefix_of(pattern text) returns text
language sql immutable set search_path = '' as $$
    -- The part before the first wildcard: a range of the index on key.
    select case when pattern ~ '[*>]' then regexp_replace(pattern, '[*>].*$', '') end
$$;

create function public.stream_read(
    pattern text default '>',
    after bigint default null,
    before bigint default null,
    max integer default 100,
    latest boolean default false
) returns json
language plpgsql stable security definer set search_path = ''
    set enable_seqscan = off set enable_bitmapscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    prefix text collate "C" := runtime.prefix_of(pattern);
    upper_end bigint := coalesce(before, 9223372036854775807);
    page json;
begin
    perform runtime.refuse_agent('read the stream');
    perform runtime.check_pattern(pattern);
    if max is null or max not between 1 and 10000 then
        raise exception using errcode = '22023', message = 'max must be between 1 and 10000';
    end if;
    if latest then
        -- The newest message of each key: a skip from key to key along the index.
        with recursive keys as (
            (select m.key from public.consciousness_stream m
             where m.key >= coalesce(prefix, pattern)
             order by m.key limit 1)
            union all
            select (select m.key from public.consciousness_stream m where m.key > k.key order by m.key limit 1)
            from keys k
            where k.key is not null and starts_with(k.key, prefix)
        ), newest as (
            select m.* from keys k
            cross join lateral (
                select * from public.consciousness_stream m where m.key = k.key order by m.id desc limit 1
            ) m
            where pattern = any (runtime.candidates(k.key))
        )
        select json_agg(row_to_json(n)) into page from (
            select * from newest n
            where (after is null or n.id > after) and (before is null or n.id < before)
            order by n.id desc limit max
        ) n;
    elsif prefix is null then
        -- One of the two halves; each walks the index on key and id, so a page costs what it holds.
        select json_agg(row_to_json(m) order by m.id) into page from (
            (select * from public.consciousness_stream m
             where after is not null and m.key = pattern and m.id > after and m.id < upper_end
             order by m.key, m.id limit max)
            union all
            (select * from public.consciousness_stream m
             where after is null and m.key = pattern and m.id < upper_end
             order by m.key desc, m.id desc limit max)
        ) m;
    else
        select json_agg(row_to_json(m) order by m.id) into page from runtime.page(pattern, after, upper_end, max) m;
    end if;
    return coalesce(page, '[]');
end
$$;
comment on function public.stream_read(text, bigint, bigint, integer, boolean) is
    'Messages whose key matches the pattern, in id order: the oldest after an id, or else the newest (before an id). '
    'With latest, the newest message of each key. Page by passing the last id seen.';

create function runtime.regex_of(pattern text) returns text
language sql immutable strict set search_path = '' as $$
    -- No character of a key or a pattern but the dot means anything else to a regular expression.
    select '^' || replace(replace(replace(pattern, '.', '\.'), '*', '[^.]+'), '>', '.+') || '$'
$$;
comment on function runtime.regex_of(text) is 'A regular expression for the keys that match the pattern.';

create function runtime.keys_of(pattern text, most integer) returns text[]
language plpgsql stable set search_path = '' as $$
declare
    prefix text collate "C" := runtime.prefix_of(pattern);
    regex text := runtime.regex_of(pattern);
    reached text collate "C" := prefix;
    matching text[] := '{}'::text[];
begin
    -- A skip from key to key along the index.
    for step in 0 .. most loop
        select m.key into reached from public.consciousness_stream m where m.key > reached order by m.key limit 1;
        if not found or not starts_with(reached, prefix) then
            return matching;
        end if;
        if reached ~ regex then
            matching := matching || reached;
        end if;
    end loop;
    return null;
end
$$;
comment on function runtime.keys_of(text, integer) is
    'The keys of the stream that match a pattern with wildcards; null where more than this many begin like it.';

create function runtime.page(pattern text, after bigint, before bigint, max integer)
returns setof public.consciousness_stream
language plpgsql stable set search_path = '' as $$
declare
    regex text := runtime.regex_of(pattern);
    stretch integer := greatest(5000, 2 * max);
    edge bigint;
    keys text[];
    ids bigint[];
begin
    -- What is common is found in the first stretch of ids. What is rare is looked up key by key, unless its keys are
    -- too many: then the stretch is the whole table.
    if after is not null then
        ids := array(
            select x.id from (
                select s.id, s.key from public.consciousness_stream s
                where s.id > after and s.id < before order by s.id limit stretch
            ) x where x.key ~ regex limit max);
        edge := (select s.id from public.consciousness_stream s
                 where cardinality(ids) < max and s.id > after and s.id < before order by s.id offset stretch limit 1);
    else
        ids := array(
            select x.id from (
                select s.id, s.key from public.consciousness_stream s
                where s.id < before order by s.id desc limit stretch
            ) x where x.key ~ regex limit max);
        edge := (select s.id from public.consciousness_stream s
                 where cardinality(ids) < max and s.id < before order by s.id desc offset stretch limit 1);
    end if;
    if edge is not null then
        keys := runtime.keys_of(pattern, 2000);
        if cardinality(keys) <= 500000 / max then
            ids := array(
                select x.id from unnest(keys) as k (key) cross join lateral (
                    (select m.id from public.consciousness_stream m
                     where after is not null and m.key = k.key and m.id > after and m.id < before
                     order by m.key, m.id limit max)
                    union all
                    (select m.id from public.consciousness_stream m
                     where after is null and m.key = k.key and m.id < before order by m.key desc, m.id desc limit max)
                ) x order by case when after is null then -x.id else x.id end limit max);
        elsif after is not null then
            ids := ids || array(
                select s.id from public.consciousness_stream s
                where s.id >= edge and s.id < before and s.key ~ regex order by s.id limit max - cardinality(ids));
        else
            ids := ids || array(
                select s.id from public.consciousness_stream s
                where s.id <= edge and s.key ~ regex order by s.id desc limit max - cardinality(ids));
        end if;
    end if;
    return query select s.* from public.consciousness_stream s where s.id = any (ids) order by s.id;
end
$$;
comment on function runtime.page(text, bigint, bigint, integer) is 'One page of a wildcard read.';
