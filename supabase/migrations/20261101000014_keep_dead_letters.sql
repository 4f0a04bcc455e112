-- What is done about dead letters: look at them, deliver them again, or let them go.

-- There may be a million, of one bad deploy. What is asked for by its key, its subscription or its time is looked up.
create index dead_letters_key on runtime.dead_letters (key, id);
create index dead_letters_name on runtime.dead_letters (subscription_name, id);
create index dead_letters_died on runtime.dead_letters (died_at);

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
    -- A skip from key to key along the index.
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
    'The keys of dead letters that match a pattern; null where more than this many begin like it.';

create function runtime.find_letters(
    ids bigint[], subscription text, pattern text, older_than_seconds double precision, error text, before bigint,
    max integer, newest boolean
) returns bigint[]
language plpgsql stable set search_path = '' as $$
declare
    caller text := runtime.caller_agent();
    direction text := case when newest then 'desc' else 'asc' end;
    -- Only what is given is asked: a plan that allows for all of it could use no index.
    conditions text := concat(
        case when ids is not null then ' and l.id = any ($1)' end,
        case when subscription is not null then ' and l.subscription_name = $2' end,
        case when older_than_seconds is not null then ' and l.died_at < $3' end,
        -- Where they begin to be old enough, by their time, which ids follow but for a few of the same moment.
        case when older_than_seconds is not null and newest then
            ' and l.id <= (select max(x.id) from (select y.id from runtime.dead_letters y where y.died_at < $3'
            ' order by y.died_at desc limit 1000) x)' end,
        case when error <> '' then ' and position($4 in lower(l.error)) > 0' end,
        case when before is not null then ' and l.id < $5' end,
        case when caller is not null then ' and split_part(l.subscription_name, ''.'', 1) = $6' end);
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
        keys, runtime.regex_of(pattern), max;
    return found;
end
$$;
comment on function runtime.find_letters(bigint[], text, text, double precision, text, bigint, integer, boolean) is
    'The ids of dead letters that all given conditions hold for, the newest or the oldest first.';

create function runtime.choose_letters(
    ids bigint[], subscription text, pattern text, older_than_seconds double precision, error text, max integer
) returns bigint[]
language plpgsql volatile set search_path = '' as $$
declare
    chosen bigint[] := runtime.find_letters(ids, subscription, pattern, older_than_seconds, error, null, max, false);
begin
    return array(
        select l.id from runtime.dead_letters l where l.id = any (chosen) order by l.id for update skip locked
    );
end
$$;
comment on function runtime.choose_letters(bigint[], text, text, double precision, text, integer) is
    'Locks the dead letters that all given conditions hold for, the oldest first.';

create function public.stream_dead(
    ids bigint[] default null, subscription text default null, pattern text default null,
    older_than_seconds double precision default null, error text default null,
    before bigint default null, max integer default 100, details boolean default false
) returns json
language plpgsql security definer set search_path = ''
    set enable_seqscan = off set enable_bitmapscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
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
    'Dead letters that all given conditions hold for, the newest first; error is a part of the error''s text. With '
    'details, also the message, the traceback and every attempt. Page on with before := the last id.';

create function runtime.count_letters(letters bigint[]) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_object_agg(n.name, n.amount), '{}') from (
        select l.subscription_name as name, count(*) as amount from runtime.dead_letters l
        where l.id = any (letters) group by 1
    ) n
$$;
comment on function runtime.count_letters(bigint[]) is 'How many of these dead letters each subscription has.';

create function runtime.restore_messages(letters bigint[]) returns void
language plpgsql set search_path = '' as $$
declare
    restored bigint[];
begin
    -- Written anew under its old id, with today's date: retention must not end it before it is handled. The
    -- dedup_key stays with whoever holds it now.
    with copies as (
        select distinct on (l.message_id) l.message_id as id, l.key, l.message as m
        from runtime.dead_letters l
        where l.id = any (letters)
          and not exists (select from public.consciousness_stream s where s.id = l.message_id)
        order by l.message_id
    ), written as (
        insert into public.consciousness_stream
            (id, key, value, agent, processed, priority, correlation_id, parent_id, headers)
        overriding system value
        select c.id, c.key, nullif(c.m -> 'value', 'null'), left(c.m ->> 'agent', 255),
               -- The copy is of before its end. It was pruned, so every delivery that marks has ended.
               (c.m ->> 'processed')::boolean or exists (
                   select from runtime.patterns p join runtime.subscriptions s on s.id = p.subscription
                   where p.pattern = c.key and s.marks_processed),
               (c.m ->> 'priority')::smallint, left(c.m ->> 'correlation_id', 255), (c.m ->> 'parent_id')::bigint,
               case when jsonb_typeof(c.m -> 'headers') = 'object' then c.m -> 'headers' end
        from copies c
        on conflict (id) do nothing
        returning id
    )
    select array_agg(w.id) into restored from written w;
    -- Nobody else is due: whoever had it before has ended with it.
    delete from runtime.deliveries d where d.message_id = any (restored);
end
$$;
comment on function runtime.restore_messages(bigint[]) is 'Brings back pruned messages from the copies in their dead letters.';

create function public.stream_redrive(
    ids bigint[] default null, subscription text default null, pattern text default null,
    older_than_seconds double precision default null, error text default null,
    max integer default 1000, dry_run boolean default false
) returns json
language plpgsql security definer set search_path = ''
    set enable_seqscan = off set enable_bitmapscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    letters bigint[] := runtime.choose_letters(ids, subscription, pattern, older_than_seconds, error, max);
    counts jsonb := runtime.count_letters(letters);
    woken integer[];
begin
    -- Where the subscription is no more there is nobody to deliver to.
    letters := array(
        select l.id from runtime.dead_letters l join runtime.subscriptions s on s.id = l.subscription
        where l.id = any (letters)
    );
    if not dry_run then
        -- Pruning leaves alone what is locked, and waited for it has taken away what it took: then the copy comes back.
        perform from public.consciousness_stream m
        where m.id = any (array(select l.message_id from runtime.dead_letters l where l.id = any (letters)))
        order by m.id for key share;
        perform runtime.restore_messages(letters);
        with made as (
            insert into runtime.deliveries (message_id, subscription, priority, marks, sole, heavy, ordered_key)
            select distinct on (l.message_id, l.subscription)
                   l.message_id, l.subscription,
                   case when s.ordered then 0 else (l.message ->> 'priority')::smallint end,
                   false, false, true, case when s.ordered then l.key end
            from runtime.dead_letters l join runtime.subscriptions s on s.id = l.subscription
            where l.id = any (letters)
            order by l.message_id, l.subscription
            on conflict on constraint deliveries_pkey do update
                set lease = null, visible_at = null, attempts = 0, crashes = 0
                where deliveries.lease = runtime.dead_lease()
            returning deliveries.subscription
        )
        select array_agg(distinct m.subscription) into woken from made m;
        delete from runtime.dead_letters l where l.id = any (letters);
        if woken is not null then
            perform runtime.wake_sleepers(woken, '{}');
        end if;
    end if;
    return json_build_object('matching', counts, 'redriven', case when dry_run then 0 else cardinality(letters) end);
end
$$;
comment on function public.stream_redrive(bigint[], text, text, double precision, text, integer, boolean) is
    'Delivers dead letters again, with fresh attempts; a pruned message is brought back from its copy. The same '
    'conditions as stream_dead, the oldest first; with dry_run, only counts.';

create function runtime.release_dead(target integer) returns void
language plpgsql set search_path = '' as $$
begin
    perform runtime.end_deliveries(array_agg(d.message_id), array_agg(d.subscription)) from runtime.deliveries d
    where d.subscription = target and d.visible_at = 'infinity' and d.lease = runtime.dead_lease();
end
$$;
comment on function runtime.release_dead(integer) is 'Lets every key go that a dead letter of this subscription holds up.';

create function public.stream_discard(
    ids bigint[] default null, subscription text default null, pattern text default null,
    older_than_seconds double precision default null, error text default null,
    max integer default 1000, dry_run boolean default false
) returns json
language plpgsql security definer set search_path = ''
    set enable_seqscan = off set enable_bitmapscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    letters bigint[] := runtime.choose_letters(ids, subscription, pattern, older_than_seconds, error, max);
    counts jsonb := runtime.count_letters(letters);
    gone record;
begin
    if not dry_run then
        with discarded as (
            delete from runtime.dead_letters l where l.id = any (letters)
            returning l.message_id, l.subscription
        ), ended as (
            delete from runtime.deliveries d using discarded g
            where d.message_id = g.message_id and d.subscription = g.subscription and d.lease = runtime.dead_lease()
            returning d.message_id, d.subscription, d.marks, d.sole, d.ordered_key
        )
        select array_agg(e.message_id) as ids, array_agg(e.subscription) as subscriptions,
               array_agg(e.marks) as marks, array_agg(e.sole) as soles, array_agg(e.ordered_key) as ordered_keys,
               array_agg(distinct e.subscription) as woken
        into gone from ended e;
        if gone.ids is not null then
            perform runtime.after_end(gone.ids, gone.subscriptions, gone.marks, gone.soles, gone.ordered_keys);
            perform runtime.wake_sleepers(gone.woken, '{}');
        end if;
    end if;
    return json_build_object('matching', counts, 'discarded', case when dry_run then 0 else cardinality(letters) end);
end
$$;
comment on function public.stream_discard(bigint[], text, text, double precision, text, integer, boolean) is
    'Removes dead letters for good; a key that one of them held up goes on. The same conditions as stream_dead, the '
    'oldest first; with dry_run, only counts.';
