-- Retention: one elected worker removes old messages and forgets old dedup_keys.

create function runtime.has_older(past bigint, horizon timestamptz) returns boolean
language plpgsql stable set search_path = '' as $$
begin
    return runtime.id_at(horizon, past) > (select min(m.id) from public.consciousness_stream m where m.id > past);
end
$$;
comment on function runtime.has_older(bigint, timestamptz) is
    'Whether a message with a higher id than past is older than this time, as far as halving finds it.';

create function public.stream_prune(
    older_than_seconds double precision, max integer default 10000, after bigint default 0
) returns json
language plpgsql security definer set search_path = '' as $$
declare
    horizon timestamptz := clock_timestamp() - make_interval(secs => older_than_seconds);
    looked bigint[];
    batch bigint[];
    free bigint[];
    expired runtime.deliveries[];
    pruned bigint;
begin
    perform runtime.refuse_agent('prune the stream');
    if older_than_seconds is null or older_than_seconds < 0 then
        raise exception using errcode = '22023', message = 'older_than_seconds must be 0 or more';
    end if;
    if max is null or max < 1 then
        raise exception using errcode = '22023', message = 'max must be 1 or more';
    end if;
    -- The lowest ids are the oldest, so only the first page is read, not the whole table.
    select array_agg(page.id), coalesce(array_agg(page.id) filter (where page.created_at < horizon), '{}')
    into looked, batch
    from (
        select m.id, m.created_at from public.consciousness_stream m
        where m.id > stream_prune.after order by m.id limit max
    ) page;
    -- A delivery that was not taken within the retention ends here, so that an orphan subscription cannot fill the
    -- disk. A leased or delayed delivery is work in hand, until it has come due and waited for as long as that.
    with ended as (
        delete from runtime.deliveries d
        where d.message_id = any (batch)
          and (d.visible_at is null or d.visible_at = 'infinity' or d.visible_at < horizon)
        returning d as delivery, d.subscription
    ), counted as (
        update runtime.subscriptions s set expired = s.expired + c.amount
        from (select e.subscription, count(*) as amount from ended e group by 1) c where s.id = c.subscription
    )
    select array_agg(e.delivery) into expired from ended e;
    -- Messages are locked first and judged by the next statement: it sees what a redrive has brought back meanwhile.
    free := array(
        select m.id from public.consciousness_stream m where m.id = any (batch) order by m.id for update skip locked
    );
    delete from public.consciousness_stream m
    where m.id = any (free) and not exists (select from runtime.deliveries d where d.message_id = m.id);
    get diagnostics pruned = row_count;
    if expired is not null then
        perform runtime.after_end(expired);
        perform runtime.wake_sleepers(
            array(select distinct e.subscription from unnest(expired) as e where e.ordered_key is not null), '{}');
    end if;
    delete from runtime.runs r where r.message_id = any (batch)
        and not exists (select from public.consciousness_stream m where m.id = r.message_id);
    -- What a dead letter goes on with when it is redriven stays as long as the letter.
    delete from runtime.steps p where p.message_id = any (batch)
        and not exists (select from public.consciousness_stream m where m.id = p.message_id)
        and not exists (
            select from runtime.dead_letters l where l.message_id = p.message_id and l.subscription = p.subscription);
    delete from runtime.statuses t where t.message_id = any (batch)
        and not exists (select from public.consciousness_stream m where m.id = t.message_id)
        and not exists (
            select from runtime.dead_letters l where l.message_id = t.message_id and l.subscription = t.subscription);
    delete from public.stream_texts t where t.message_id = any (batch)
        and not exists (select from public.consciousness_stream m where m.id = t.message_id);
    delete from public.stream_text_parts p where p.message_id = any (batch)
        and not exists (select from public.consciousness_stream m where m.id = p.message_id);
    -- A handler may have ended without what it waited for.
    perform runtime.forget_waits(array_agg(w.message_id), array_agg(w.subscription))
    from (
        select w.message_id, w.subscription from runtime.waits w
        where not exists (
            select from runtime.deliveries d where d.message_id = w.message_id and d.subscription = w.subscription)
        limit 1000
    ) w having count(*) > 0;
    -- A page of messages that were brought back lately, or are dated in the future, is passed over where older ones
    -- follow.
    return json_build_object('pruned', pruned, 'expired', coalesce(cardinality(expired), 0), 'last', case
        when cardinality(looked) < max then batch[cardinality(batch)]
        when cardinality(batch) > 0 or runtime.has_older(looked[max], horizon) then looked[max] end);
end
$$;
comment on function public.stream_prune(double precision, integer, bigint) is
    'Removes one batch of messages older than this, with their runs; deliveries that were never taken are counted as '
    'expired. Page on with after := last, until last is null.';

create function public.stream_maintain(
    worker uuid, retention_seconds double precision default null, after bigint default 0, max integer default 5000
) returns json
language plpgsql security definer set search_path = '' as $$
declare
    elected uuid := (
        select w.id from runtime.workers w
        where w.seen_at > (select runtime.alive_since()) order by w.started_at, w.id limit 1
    );
    pruned json := '{}'::json;
begin
    perform runtime.refuse_agent('do the upkeep');
    -- The lock covers the moment in which two workers both believe they are the oldest.
    if elected is distinct from worker or not pg_try_advisory_xact_lock(hashtext('runtime.maintain')) then
        return json_build_object('elected', false, 'last', null);
    end if;
    delete from runtime.dedup d where d.dedup_key in (
        select f.dedup_key from runtime.dedup f
        where f.forget_at < clock_timestamp() order by f.forget_at limit max
    );
    delete from runtime.usage u where u.day < (clock_timestamp() at time zone 'UTC')::date - 400;
    delete from runtime.spent_prefixes x where x.began_at < clock_timestamp() - interval '32 days';
    delete from runtime.holds h
    where h.refused_until < clock_timestamp() and h.began_at is null;
    -- Versions of a day ago and more that no worker has, and no delivery waits for.
    delete from runtime.pins p
    where p.declared_at < clock_timestamp() - interval '1 day'
      and not exists (
          select from runtime.workers w where (w.pins ->> p.subscription::text)::integer = p.lane)
      and not exists (
          select from runtime.deliveries d
          where d.subscription = p.subscription and d.pinned = p.lane and d.visible_at is not null
            and case when d.lease is not null then 2 else coalesce(d.pinned, 0) + (d.crashes >= 2)::integer end
                = any (array[2, p.lane, p.lane + 1]));
    if retention_seconds is not null then
        pruned := public.stream_prune(retention_seconds, max, after);
    end if;
    return json_build_object('elected', true, 'pruned', coalesce((pruned ->> 'pruned')::bigint, 0),
                             'expired', coalesce((pruned ->> 'expired')::bigint, 0), 'last', pruned -> 'last');
end
$$;
comment on function public.stream_maintain(uuid, double precision, bigint, integer) is
    'One bounded batch of upkeep, for the oldest living worker only: forgets dedup_keys, and prunes where a retention '
    'is given. Page on with after := last, until last is null.';
