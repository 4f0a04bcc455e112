-- Reading the stream as shared memory: page by page, or the newest message of each key.

create function runtime.id_at(moment timestamptz, past bigint default 0) returns bigint
language plpgsql stable set search_path = '' as $$
declare
    low bigint := (select min(m.id) from public.consciousness_stream m where m.id > past);
    high bigint := (select max(m.id) + 1 from public.consciousness_stream m);
    -- The time of a message that is dated later than now says nothing about the ids beside it.
    latest timestamptz := clock_timestamp() + interval '1 hour';
    middle bigint;
    found_id bigint;
    found_at timestamptz;
begin
    -- Ids rise nearly with the time of writing: halving finds the place in some twenty looks, without an index.
    while low < high loop
        middle := low + (high - low) / 2;
        select m.id, m.created_at into found_id, found_at
        from public.consciousness_stream m where m.id >= middle and m.created_at <= latest order by m.id limit 1;
        if found_id is null or found_at >= moment then
            high := middle;
        else
            low := found_id + 1;
        end if;
    end loop;
    return low;
end
$$;
comment on function runtime.id_at(timestamptz, bigint) is
    'The lowest id above past that was written at this time or later.';

create function runtime.keys_of(pattern text, most integer) returns text[]
language plpgsql stable set search_path = '' as $$
declare
    prefix text collate "C" := runtime.prefix_of(pattern);
    regex text := runtime.regex_of(pattern);
    reached text collate "C" := prefix;
    matching text[] := '{}'::text[];
begin
    -- Skips from key to key along the index.
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
    'The keys of the stream that match a pattern with wildcards; null where more than this many keys have its prefix.';

create function runtime.page(
    pattern text, after bigint, before bigint, since timestamptz, until timestamptz, max integer
) returns setof public.consciousness_stream
language plpgsql stable set search_path = '' as $$
declare
    regex text := runtime.regex_of(pattern);
    stretch integer := greatest(5000, 2 * max);
    edge bigint;
    keys text[];
    ids bigint[];
begin
    -- Common keys are found in the first stretch of ids. Rare keys are looked up one by one, unless they are too many:
    -- then the whole table is read.
    if after is not null then
        ids := array(
            select x.id from (
                select s.id, s.key, s.created_at from public.consciousness_stream s
                where s.id > after and s.id < before order by s.id limit stretch
            ) x where x.key ~ regex and x.created_at >= since and coalesce(x.created_at < until, true) limit max);
        edge := (select s.id from public.consciousness_stream s
                 where cardinality(ids) < max and s.id > after and s.id < before order by s.id offset stretch limit 1);
    else
        ids := array(
            select x.id from (
                select s.id, s.key, s.created_at from public.consciousness_stream s
                where s.id < before order by s.id desc limit stretch
            ) x where x.key ~ regex and x.created_at >= since and coalesce(x.created_at < until, true) limit max);
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
                       and m.created_at >= since and coalesce(m.created_at < until, true)
                     order by m.key, m.id limit max)
                    union all
                    (select m.id from public.consciousness_stream m
                     where after is null and m.key = k.key and m.id < before and coalesce(m.created_at < until, true)
                     order by m.key desc, m.id desc limit max)
                ) x order by case when after is null then -x.id else x.id end limit max);
        elsif after is not null then
            ids := ids || array(
                select s.id from public.consciousness_stream s
                where s.id >= edge and s.id < before and s.key ~ regex
                  and s.created_at >= since and coalesce(s.created_at < until, true)
                order by s.id limit max - cardinality(ids));
        else
            ids := ids || array(
                select s.id from public.consciousness_stream s
                where s.id <= edge and s.key ~ regex and coalesce(s.created_at < until, true)
                order by s.id desc limit max - cardinality(ids));
        end if;
    end if;
    return query select s.* from public.consciousness_stream s where s.id = any (ids) order by s.id;
end
$$;
comment on function runtime.page(text, bigint, bigint, timestamptz, timestamptz, integer) is
    'One page of a wildcard read.';

create function runtime.correlated(
    correlation text, pattern text, after bigint, before bigint, since timestamptz, until timestamptz, max integer
) returns setof public.consciousness_stream
language plpgsql stable set search_path = '' as $$
declare
    regex text := runtime.regex_of(pattern);
    -- A message without a correlation id gives its id to those it causes.
    first bigint := case when correlation ~ '^[1-9][0-9]{0,17}$' then correlation::bigint end;
    ids bigint[];
begin
    ids := array(
        select x.id from (
            (select m.id from public.consciousness_stream m
             where after is not null and m.correlation_id = correlation
               and m.correlation_id is distinct from m.parent_id::text and m.id > after and m.id < before
               and m.key ~ regex and m.created_at >= since and coalesce(m.created_at < until, true)
             order by m.correlation_id, m.id limit max)
            union all
            (select m.id from public.consciousness_stream m
             where after is null and m.correlation_id = correlation
               and m.correlation_id is distinct from m.parent_id::text and m.id < before
               and m.key ~ regex and coalesce(m.created_at < until, true)
             order by m.correlation_id desc, m.id desc limit max)
            union all
            -- Those that the first message itself caused are not in the index on the correlation id.
            (select m.id from public.consciousness_stream m
             where m.parent_id = first and m.correlation_id = correlation
               and m.id > coalesce(after, 0) and m.id < before
               and m.key ~ regex and m.created_at >= since and coalesce(m.created_at < until, true)
             order by case when after is null then -m.id else m.id end limit max)
            union all
            select m.id from public.consciousness_stream m
            where m.id = first and coalesce(m.correlation_id, '') = '' and m.id > coalesce(after, 0) and m.id < before
              and m.key ~ regex and m.created_at >= since and coalesce(m.created_at < until, true)
        ) x order by case when after is null then -x.id else x.id end limit max);
    return query select s.* from public.consciousness_stream s where s.id = any (ids) order by s.id;
end
$$;
comment on function runtime.correlated(text, text, bigint, bigint, timestamptz, timestamptz, integer) is
    'One page of the messages with a correlation id, the first of them included, which may bear none.';

create function public.stream_read(
    pattern text default '>',
    after bigint default null,
    before bigint default null,
    max integer default 100,
    latest boolean default false,
    since timestamptz default null,
    until timestamptz default null,
    correlation_id text default null
) returns json
language plpgsql stable security definer set search_path = '' as $$
declare
    prefix text collate "C" := runtime.prefix_of(pattern);
    low bigint := after;
    reached bigint := 9223372036854775807;
    high bigint;
    first timestamptz := coalesce(since, '-infinity');
    last timestamptz := stream_read.until;
    page json;
begin
    perform runtime.refuse_agent('read the stream');
    perform runtime.check_pattern(pattern);
    perform runtime.check_between('max', max, 1, 10000);
    if latest and stream_read.correlation_id is not null then
        raise exception using
            errcode = '22023',
            message = 'latest and correlation_id exclude each other',
            hint = 'The newest message of a key and a correlation id: pattern => the key, max => 1.';
    end if;
    -- Ids rise with the time of writing, but for writers that are at it within the same second.
    if since is not null then
        low := greatest(low, coalesce(runtime.id_at(since - interval '1 second'), 1) - 1);
    end if;
    if stream_read.until is not null then
        reached := coalesce(runtime.id_at(stream_read.until + interval '1 second'), reached);
    end if;
    high := least(before, reached);
    if stream_read.correlation_id is not null then
        select json_agg(row_to_json(m) order by m.id) into page
        from runtime.correlated(stream_read.correlation_id, pattern, low, high, first, last, max) m;
    elsif latest then
        -- The newest message of each key: skips from key to key along the index.
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
                select * from public.consciousness_stream m
                where m.key = k.key and m.id < reached and coalesce(m.created_at < last, true)
                order by m.key desc, m.id desc limit 1
            ) m
            where pattern = any (runtime.candidates(k.key))
        )
        select json_agg(row_to_json(n)) into page from (
            select * from newest n
            where (low is null or n.id > low) and (before is null or n.id < before) and n.created_at >= first
            order by n.id desc limit max
        ) n;
    elsif prefix is null then
        -- Only one half runs. It walks the index on key and id, so a page costs as much as it holds.
        select json_agg(row_to_json(m) order by m.id) into page from (
            (select * from public.consciousness_stream m
             where low is not null and m.key = pattern and m.id > low and m.id < high
               and m.created_at >= first and coalesce(m.created_at < last, true)
             order by m.key, m.id limit max)
            union all
            (select * from public.consciousness_stream m
             where low is null and m.key = pattern and m.id < high and coalesce(m.created_at < last, true)
             order by m.key desc, m.id desc limit max)
        ) m;
    else
        select json_agg(row_to_json(m) order by m.id) into page
        from runtime.page(pattern, low, high, first, last, max) m;
    end if;
    return coalesce(page, '[]');
end
$$;
comment on function public.stream_read(
    text, bigint, bigint, integer, boolean, timestamptz, timestamptz, text
) is
    'Messages whose key matches the pattern, in the order of their ids: the oldest after an id or since a time, or else '
    'the newest (before an id, until a time); only those with a correlation id, and the first message that gave it. '
    'With latest, the newest message of each key. Page by passing the last id seen.';

create function public.stream_horizon(look integer default 0) returns json
language plpgsql security definer set search_path = '' as $$
declare
    -- Ids are drawn before their transactions commit. The transactions that drew the ids up to this one have lower xids
    -- than the one assigned next.
    drawn bigint := (select case when s.is_called then s.last_value else 0 end from public.consciousness_stream_id_seq s);
    xid xid8 := pg_current_xact_id();
    earliest bigint := greatest(1, drawn - look + 1);
begin
    perform runtime.refuse_agent('listen to the whole stream');
    return json_build_object(
        'drawn', drawn,
        'xid', xid::text::bigint,
        'xmin', pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
        -- Below the first gap among the last ids: its message may still come, or was rolled back.
        'floor', coalesce((
            select n.id - 1 from generate_series(earliest, drawn) as n (id)
            where not exists (select from public.consciousness_stream m where m.id = n.id)
            order by n.id limit 1), drawn)
    );
end
$$;
comment on function public.stream_horizon(integer) is
    'The highest id that was drawn, an xid above those that drew it, the lowest xid that is still open, and the id '
    'below the first gap among the last so many. Once xmin has passed an earlier xid, the fate of all its ids is '
    'decided.';
