-- What keeps the tables small: one elected worker prunes, and an operator removes what nobody serves any more.

create function public.stream_maintain(
    worker uuid, retention_seconds double precision default null, after bigint default 0, max integer default 5000
) returns json
language plpgsql security definer set search_path = ''
    set enable_seqscan = off set enable_bitmapscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    elected uuid := (
        select w.id from runtime.workers w
        where w.seen_at > clock_timestamp()
            - make_interval(secs => (select p.sleeper_seconds from runtime.policy p))
        order by w.started_at, w.id limit 1
    );
    pruned json := '{}'::json;
begin
    perform runtime.refuse_agent('do the upkeep');
    -- The lock bridges the moment in which two workers take themselves for the oldest.
    if elected is distinct from worker or not pg_try_advisory_xact_lock(hashtext('runtime.maintain')) then
        return json_build_object('elected', false, 'last', null);
    end if;
    delete from runtime.dedup d where d.dedup_key in (
        select f.dedup_key from runtime.dedup f
        where f.forget_at < clock_timestamp() order by f.forget_at limit max
    );
    if retention_seconds is not null then
        pruned := public.stream_prune(retention_seconds, max, after);
    end if;
    return json_build_object('elected', true, 'pruned', coalesce((pruned ->> 'pruned')::bigint, 0),
                             'expired', coalesce((pruned ->> 'expired')::bigint, 0), 'last', pruned -> 'last');
end
$$;
comment on function public.stream_maintain(uuid, double precision, bigint, integer) is
    'One bounded batch of upkeep, done for the oldest living worker only: forgets dedup_keys, and prunes where a '
    'retention is given. Page on with after := last, until last is null.';

create function public.stream_remove(subscription text, dry_run boolean default false) returns json
language plpgsql security definer set search_path = ''
    set enable_seqscan = off set enable_bitmapscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    s runtime.subscriptions := runtime.subscription_of(subscription);
    served bigint := (
        select count(*) from runtime.workers w
        where s.id = any (w.subscriptions) and w.seen_at > clock_timestamp()
            - make_interval(secs => (select p.sleeper_seconds from runtime.policy p))
    );
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
        -- A fan-out under way that has seen it may still add to it; pruning takes that away.
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
