-- Finding dead letters: by conditions, grouped by kind of error, and the last good message before one.

create function runtime.dead_keys(pattern text, most integer) returns text[]
language plpgsql stable set search_path = '' as $$
declare
    prefix text collate "C" := runtime.prefix_of(pattern);
    regex text := runtime.regex_of(pattern);
    reached text collate "C" := prefix;
    matching text[] := '{}'::text[];
begin
    if prefix is null then
        return array[pattern];
    end if;
    -- Skips from key to key along the index.
    for step in 0 .. most loop
        select l.key into reached from runtime.dead_letters l where l.key > reached order by l.key limit 1;
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
comment on function runtime.dead_keys(text, integer) is
    'The keys of dead letters that match a pattern; null where more than this many keys have its prefix.';

create function runtime.find_letters(
    ids bigint[], subscription text, pattern text, older_than_seconds double precision, error text, before bigint,
    max integer, newest boolean, steps text[] default '{}'
) returns bigint[]
language plpgsql stable set search_path = '' as $$
declare
    caller text := runtime.caller_agent();
    direction text := case when newest then 'desc' else 'asc' end;
    -- Only the given conditions: a plan that allows for every condition could use no index.
    conditions text := concat(
        case when ids is not null then ' and l.id = any ($1)' end,
        case when subscription is not null then ' and l.subscription_name = $2' end,
        case when older_than_seconds is not null then ' and l.died_at < $3' end,
        -- Starts at the newest letter that is old enough, found by its time; ids follow the times but for a few of the
        -- same moment.
        case when older_than_seconds is not null and newest then
            ' and l.id <= (select max(x.id) from (select y.id from runtime.dead_letters y where y.died_at < $3'
            ' order by y.died_at desc limit 1000) x)' end,
        case when error <> '' then ' and position($4 in lower(l.error)) > 0' end,
        case when before is not null then ' and l.id < $5' end,
        case when caller is not null then ' and split_part(l.subscription_name, ''.'', 1) = $6' end,
        -- Most letters have kept no such step, which the first look tells without a call.
        case when cardinality(steps) > 0 then
            ' and exists (select from runtime.steps s where s.message_id = l.message_id'
            ' and s.subscription = l.subscription'
            ' and (s.name = any ($10) or s.key <> '''' or s.occurrence > 1) offset 0)'
            ' and runtime.has_steps(l.message_id, l.subscription, $10)' end);
    keys text[];
    source text := 'runtime.dead_letters l where true';
    found bigint[];
begin
    if pattern is not null then
        perform runtime.check_pattern(pattern);
    end if;
    if pattern <> '>' then
        keys := case when ids is null then runtime.dead_keys(pattern, 2000) end;
        if keys is not null then
            source := format(
                'unnest($7) as k (key) cross join lateral (select l.id from runtime.dead_letters l where l.key = k.key'
                '%s order by l.key %2$s, l.id %2$s limit $9) l where true', conditions, direction);
            conditions := '';
        else
            conditions := conditions || ' and l.key ~ $8';
        end if;
    end if;
    execute format('select array(select l.id from %s%s order by l.id %s limit $9)', source, conditions, direction)
    into found
    using ids, subscription, clock_timestamp() - make_interval(secs => older_than_seconds), lower(error), before, caller,
        keys, runtime.regex_of(pattern), max, steps;
    return found;
end
$$;
comment on function runtime.find_letters(bigint[], text, text, double precision, text, bigint, integer, boolean, text[]) is
    'The ids of dead letters for which all given conditions hold, the newest or the oldest first; of those that have '
    'kept all of these steps.';

create function public.stream_dead(
    ids bigint[] default null, subscription text default null, pattern text default null,
    older_than_seconds double precision default null, error text default null,
    before bigint default null, max integer default 100, details boolean default false
) returns json
language plpgsql security definer set search_path = '' as $$
declare
    found bigint[] := runtime.find_letters(
        ids, subscription, pattern, older_than_seconds, error, before, max, newest => true);
begin
    return (
        select coalesce(json_agg(case when details
            then to_jsonb(page) || jsonb_build_object(
                'message', page.message, 'traceback', page.traceback, 'attempts', page.attempts)
            else to_jsonb(page) - '{message,traceback,attempts}'::text[] end order by page.id desc), '[]')
        from (
            select l.id, l.message_id, l.subscription_name as subscription, l.key, l.reason, l.error, l.died_at,
                   jsonb_array_length(l.attempts) as attempt_count, l.message, l.traceback, l.attempts
            from runtime.dead_letters l where l.id = any (found)
        ) page
    );
end
$$;
comment on function public.stream_dead(bigint[], text, text, double precision, text, bigint, integer, boolean) is
    'Dead letters for which all given conditions hold, the newest first; error is a part of the error''s text. With '
    'details, also the message, the traceback and every attempt. Page on with before := the last id.';

create function runtime.error_kind(error text, reason text) returns text
language sql immutable set search_path = '' as $$
    select left(coalesce(nullif(regexp_replace(regexp_replace(split_part(error, E'\n', 1),
        '''[^'']*''|"[^"]*"', '…', 'g'), '[0-9]+', '#', 'g'), ''), reason), 200)
$$;
comment on function runtime.error_kind(text, text) is
    'The first line of an error, without the numbers and quoted values that differ from message to message.';

create function public.stream_dead_groups(
    look integer default 5000, subscription text default null, since timestamptz default null
) returns json
language plpgsql stable security definer set search_path = '' as $$
declare
    newest bigint[];
begin
    perform runtime.refuse_agent('look at all dead letters');
    perform runtime.check_between('look', look, 1, 100000);
    newest := runtime.find_letters(
        null, stream_dead_groups.subscription, null, null, null, null, look, newest => true);
    return (
        select coalesce(json_agg(json_build_object(
            'subscription', g.subscription_name, 'kind', g.kind, 'count', g.amount, 'first_at', g.first_at,
            'last_at', g.last_at, 'ids', g.ids, 'key', g.key, 'errors', g.errors) order by g.last_at desc), '[]')
        from (
            select l.subscription_name, l.kind, count(*) as amount, min(l.died_at) as first_at,
                   max(l.died_at) as last_at, (array_agg(l.id order by l.id desc)) as ids, max(l.key) as key,
                   (array_agg(left(coalesce(nullif(split_part(l.error, E'\n', 1), ''), l.reason), 200)
                              order by l.id desc))[1:5] as errors
            from (
                select x.*, runtime.error_kind(x.error, x.reason) as kind
                from runtime.dead_letters x
                where x.id = any (newest)
                  and (stream_dead_groups.since is null or x.died_at >= stream_dead_groups.since)
            ) l
            group by 1, 2
        ) g
    );
end
$$;
comment on function public.stream_dead_groups(integer, text, timestamptz) is
    'The newest dead letters, of one subscription and since a time if these are given, grouped by subscription and kind of '
    'error, with their ids, the newest first, and the first lines of the newest errors.';

create function public.stream_last_good(letter bigint) returns json
language plpgsql stable security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('look at all dead letters');
    return (
        -- The nearest earlier message under its key that this subscription handled well, among a thousand.
        select json_build_object('id', m.id, 'value', m.value, 'created_at', m.created_at)
        from runtime.dead_letters l
        cross join lateral (
            select x.id, x.value, x.created_at from public.consciousness_stream x
            where x.key = l.key and x.id < l.message_id order by x.key desc, x.id desc limit 1000
        ) m
        where l.id = letter and exists (
            select from runtime.runs r
            where r.message_id = m.id and r.subscription = l.subscription and r.outcome = 'done')
        order by m.id desc limit 1
    );
end
$$;
comment on function public.stream_last_good(bigint) is
    'The last message before this dead letter''s, under the same key, that its subscription handled well; or null.';
