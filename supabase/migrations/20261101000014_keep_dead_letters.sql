-- What is done about dead letters: look at them, deliver them again, or let them go.

create function runtime.choose_letters(
    ids bigint[], subscription text, pattern text, older_than_seconds double precision, error text, max integer
) returns bigint[]
language plpgsql volatile set search_path = '' as $$
declare
    caller text := runtime.caller_agent();
begin
    if pattern is not null then
        perform runtime.check_pattern(pattern);
    end if;
    return array(
        select l.id from runtime.dead_letters l
        where (choose_letters.ids is null or l.id = any (choose_letters.ids))
          and (choose_letters.subscription is null or l.subscription_name = choose_letters.subscription)
          and (pattern is null or pattern = any (runtime.candidates(l.key)))
          and (older_than_seconds is null
               or l.died_at < clock_timestamp() - make_interval(secs => older_than_seconds))
          and (choose_letters.error is null
               or position(lower(choose_letters.error) in lower(coalesce(l.error, ''))) > 0)
          and (caller is null or split_part(l.subscription_name, '.', 1) = caller)
        order by l.id limit max
        for update skip locked
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
    caller text := runtime.caller_agent();
begin
    if pattern is not null then
        perform runtime.check_pattern(pattern);
    end if;
    return (
        select coalesce(json_agg(case when details
            then to_jsonb(page) || jsonb_build_object(
                'message', page.message, 'traceback', page.traceback, 'attempts', page.attempts)
            else to_jsonb(page) - '{message,traceback,attempts}'::text[] end order by page.id desc), '[]')
        from (
            select l.id, l.message_id, l.subscription_name as subscription, l.key, l.reason, l.error, l.died_at,
                   jsonb_array_length(l.attempts) as attempt_count, l.message, l.traceback, l.attempts
            from runtime.dead_letters l
            where (stream_dead.ids is null or l.id = any (stream_dead.ids))
              and (stream_dead.subscription is null or l.subscription_name = stream_dead.subscription)
              and (pattern is null or pattern = any (runtime.candidates(l.key)))
              and (older_than_seconds is null
                   or l.died_at < clock_timestamp() - make_interval(secs => older_than_seconds))
              and (stream_dead.error is null
                   or position(lower(stream_dead.error) in lower(coalesce(l.error, ''))) > 0)
              and (stream_dead.before is null or l.id < stream_dead.before)
              and (caller is null or split_part(l.subscription_name, '.', 1) = caller)
            order by l.id desc limit max
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
        select c.id, c.key, nullif(c.m -> 'value', 'null'), c.m ->> 'agent', (c.m ->> 'processed')::boolean,
               (c.m ->> 'priority')::smallint, c.m ->> 'correlation_id', (c.m ->> 'parent_id')::bigint,
               nullif(c.m -> 'headers', 'null')
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
    woken integer[];
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
