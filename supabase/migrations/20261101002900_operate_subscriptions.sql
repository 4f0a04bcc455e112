-- Operating subscriptions: pause, resume, replay, remove.

create function public.stream_pause(subscription text) returns json
language plpgsql security definer set search_path = '' as $$
declare
    s runtime.subscriptions := runtime.subscription_of(subscription);
begin
    perform runtime.forget_rest(s.name);
    update runtime.subscriptions x set paused_at = clock_timestamp() where x.id = s.id and x.paused_at is null;
    return json_build_object('subscription', s.name, 'paused', true);
end
$$;
comment on function public.stream_pause(text) is 'Stops taking deliveries of a subscription; they gather until it is resumed.';

create function public.stream_resume(subscription text) returns json
language plpgsql security definer set search_path = '' as $$
declare
    s runtime.subscriptions := runtime.subscription_of(subscription);
begin
    perform runtime.forget_rest(s.name);
    update runtime.subscriptions x set paused_at = null where x.id = s.id;
    perform runtime.wake_sleepers(array[s.id], '{}');
    perform runtime.wake_sleepers(array_agg(p.subscription), '{}', lanes => array_agg(p.lane))
    from runtime.pins p where p.subscription = s.id having count(*) > 0;
    return json_build_object('subscription', s.name, 'paused', false);
end
$$;
comment on function public.stream_resume(text) is 'Takes deliveries of a paused subscription again.';

create function public.stream_replay(
    subscription text, since timestamptz default null, until timestamptz default null,
    pattern text default '>', ids bigint[] default null, dry_run boolean default false
) returns json
language plpgsql security definer set search_path = '' as $$
declare
    s runtime.subscriptions := runtime.subscription_of(subscription);
    counted record;
begin
    perform runtime.check_pattern(pattern);
    with wanted as materialized (
        -- The keys that may match both the pattern and one of the subscription's, as ranges of the index.
        select greatest(asked.lowest collate "C", own.lowest) as lowest,
               least(asked.highest collate "C", own.highest) as highest
        from runtime.range_of(pattern) asked, unnest(s.patterns) as p (pattern), runtime.range_of(p.pattern) own
    ), found as (
        select m.* from public.consciousness_stream m where m.id = any (stream_replay.ids)
        union all
        select m.* from wanted w
        cross join lateral (
            select * from public.consciousness_stream m where m.key between w.lowest and w.highest
        ) m
        where stream_replay.ids is null
    ), history as materialized (
        select distinct m.id, m.key, m.priority,
               coalesce(pg_column_size(m.value) > 2000 or pg_column_compression(m.value) is not null, false)
               or coalesce(pg_column_size(m.headers) > 500 or pg_column_compression(m.headers) is not null, false) as heavy
        from found m
        where (since is null or m.created_at >= since)
          and (stream_replay.until is null or m.created_at < stream_replay.until)
          and runtime.candidates(m.key) @> array[pattern]
          and runtime.candidates(m.key) && s.patterns
    ), made as (
        insert into runtime.deliveries (message_id, subscription, priority, marks, sole, heavy, ordered_key)
        select h.id, s.id, case when s.ordered then 0 else h.priority end, false, false, h.heavy,
               case when s.ordered then h.key end
        from history h
        where not dry_run
        order by h.id
        on conflict do nothing
        returning message_id
    ), forgotten as (
        -- A replay starts anew: a step is kept for its delivery, and this is another one.
        delete from runtime.steps p using made
        where p.message_id = made.message_id and p.subscription = s.id
    ), untold as (
        delete from runtime.statuses t using made
        where t.message_id = made.message_id and t.subscription = s.id
    ), unwritten as (
        -- Its texts are begun anew, and their readers wait for that.
        update public.stream_texts t set state = 'broken' from made
        where t.message_id = made.message_id and t.subscription = s.id
    ), ended as (
        delete from runtime.waits w using made
        where w.message_id = made.message_id and w.subscription = s.id
    )
    select (select count(*) from history) as matching, (select count(*) from made) as replayed into counted;
    if counted.replayed > 0 then
        perform runtime.wake_sleepers(array[s.id], '{}');
    end if;
    return json_build_object('subscription', s.name, 'matching', counted.matching, 'replayed', counted.replayed);
end
$$;
comment on function public.stream_replay(text, timestamptz, timestamptz, text, bigint[], boolean) is
    'Delivers history to a subscription again; a delivery that is still pending stays as it is. With dry_run, only '
    'counts.';

create function public.stream_remove(subscription text, dry_run boolean default false) returns json
language plpgsql security definer set search_path = '' as $$
declare
    s runtime.subscriptions := runtime.subscription_of(subscription);
    served bigint := runtime.workers_of(s.id);
    waiting bigint := (select count(*) from runtime.deliveries d where d.subscription = s.id);
    gone record;
begin
    if not dry_run then
        if served > 0 then
            raise exception using errcode = '55006',
                message = format('subscription %s is served by %s workers', s.name, served),
                hint = 'Stop them first: a worker that runs would declare it again.';
        end if;
        perform from runtime.routing for update;
        -- A fan-out under way may have seen the subscription and still add deliveries; pruning removes them.
        delete from runtime.subscriptions x where x.id = s.id;
        delete from runtime.schedules x where x.name = s.name;
        delete from runtime.webhooks x where x.name = s.name;
        with ended as (
            delete from runtime.deliveries d where d.subscription = s.id
            returning d.message_id, d.marks, d.sole
        )
        select array_agg(e.message_id) filter (where e.sole) as sole,
               array_agg(e.message_id) filter (where e.marks and not e.sole) as shared
        into gone from ended e;
        perform runtime.mark_processed(gone.sole, gone.shared);
    end if;
    return json_build_object('subscription', s.name, 'waiting', waiting, 'workers', served, 'removed', not dry_run);
end
$$;
comment on function public.stream_remove(text, boolean) is
    'Removes a subscription that no worker serves, with its deliveries; dead letters and the log of its runs stay.';
