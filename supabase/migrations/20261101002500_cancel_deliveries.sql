-- Cancelling: an operator ends a delivery. A waiting delivery ends at once. A running one is ended by its worker: the
-- request is kept here, for that lease, so that it is carried out whatever becomes of the worker.

create table runtime.cancels (
    message_id bigint not null,
    subscription integer not null,
    -- The lease that is cancelled. Under another lease the request is void.
    lease uuid not null,
    worker uuid,
    outcome text not null check (outcome in ('dead', 'done')),
    primary key (message_id, subscription)
);
comment on table runtime.cancels is 'Running deliveries that are to end, and how; nearly always empty.';

alter table runtime.cancels enable row level security;
create index cancels_worker on runtime.cancels (worker);

create function runtime.end_cancelled(ids bigint[], subscriptions integer[], outcome text, worker uuid) returns void
language plpgsql set search_path = '' as $$
begin
    insert into runtime.runs (message_id, subscription, ended_at, worker, attempt, outcome, error)
    select d.message_id, d.subscription, clock_timestamp(), end_cancelled.worker, d.attempts + d.crashes + 1,
           'cancelled', 'cancelled by an operator'
    from unnest(ids, subscriptions) as t (id, subscription)
    join runtime.deliveries d on d.message_id = t.id and d.subscription = t.subscription;
    if outcome = 'dead' then
        perform runtime.bury(
            ids, subscriptions, array_fill('cancelled'::text, array[cardinality(ids)]),
            array_fill('cancelled by an operator'::text, array[cardinality(ids)]));
    else
        perform runtime.end_deliveries(ids, subscriptions);
    end if;
end
$$;
comment on function runtime.end_cancelled(bigint[], integer[], text, uuid) is
    'Ends deliveries whose rows are locked as an operator asked: as dead letters, or as done.';

create function runtime.end_as_asked(inout ids bigint[], inout subscriptions integer[], worker uuid)
language plpgsql set search_path = '' as $$
declare
    asked record;
    called_off jsonb := '[]'::jsonb;
begin
    -- The caller has locked the rows in an earlier statement, so a request that came in between is visible.
    for asked in
        with met as (
            delete from runtime.cancels c
            using unnest(ids, subscriptions) as t (id, subscription)
            join runtime.deliveries d on d.message_id = t.id and d.subscription = t.subscription
            where c.message_id = t.id and c.subscription = t.subscription and c.lease = d.lease
            returning c.message_id, c.subscription, c.outcome
        )
        select m.outcome, array_agg(m.message_id) as ids, array_agg(m.subscription) as subscriptions
        from met m group by m.outcome
    loop
        perform runtime.end_cancelled(asked.ids, asked.subscriptions, asked.outcome, worker);
        called_off := called_off || (
            select jsonb_agg(jsonb_build_array(t.id, t.subscription))
            from unnest(asked.ids, asked.subscriptions) as t (id, subscription));
    end loop;
    if called_off <> '[]' then
        select array_agg(t.id), array_agg(t.subscription) into ids, subscriptions
        from unnest(ids, subscriptions) as t (id, subscription)
        where not called_off @> jsonb_build_array(jsonb_build_array(t.id, t.subscription));
    end if;
end
$$;
comment on function runtime.end_as_asked(bigint[], integer[], uuid) is
    'Of deliveries whose attempts did not succeed, ends those that an operator has cancelled; returns the others.';

create function runtime.cancelled_of(me runtime.workers) returns jsonb
language plpgsql set search_path = '' as $$
declare
    asked jsonb;
begin
    delete from runtime.cancels c
    where c.worker = me.id and not exists (
        select from runtime.deliveries d
        where d.message_id = c.message_id and d.subscription = c.subscription and d.lease = c.lease);
    asked := (
        select jsonb_agg(jsonb_build_array(c.message_id, c.subscription))
        from runtime.cancels c where c.worker = me.id);
    if asked is null then
        -- The comparison fails where another delivery was cancelled meanwhile.
        update runtime.workers w set cancelled_at = null where w.id = me.id and w.cancelled_at = me.cancelled_at;
    end if;
    -- Repeated with each exchange until they have ended, since an answer can be lost.
    return coalesce(asked, '[]');
end
$$;
comment on function runtime.cancelled_of(runtime.workers) is
    'The deliveries that a worker runs and is to end: [message, subscription].';

create function runtime.recall(worker uuid) returns void
language plpgsql set search_path = '' as $$
declare
    announce text[];
begin
    update runtime.workers w set cancelled_at = clock_timestamp() where w.id = recall.worker
    returning w.announce into announce;
    perform runtime.push(worker, announce, 'cancel');
end
$$;
comment on function runtime.recall(uuid) is
    'Has a worker ask at once which deliveries it is to end. Without a push path it learns of them when it renews its '
    'leases.';

create function public.stream_cancel(message bigint, subscription text default null, outcome text default 'dead') returns json
language plpgsql security definer set search_path = '' set lock_timeout = '5s' as $$
declare
    caller text := runtime.caller_agent();
    of_one integer;
    one record;
    ended integer[] := '{}'::integer[];
    became jsonb := '[]'::jsonb;
begin
    if stream_cancel.outcome is null or stream_cancel.outcome not in ('dead', 'done') then
        raise exception using errcode = '22023',
            message = format('outcome must be dead or done, not %L', stream_cancel.outcome);
    end if;
    if stream_cancel.subscription is not null then
        of_one := (runtime.subscription_of(stream_cancel.subscription)).id;
    end if;
    -- Requests whose lease is over.
    delete from runtime.cancels c where not exists (
        select from runtime.deliveries d
        where d.message_id = c.message_id and d.subscription = c.subscription and d.lease = c.lease);
    for one in
        -- Waits for an exchange that is just reporting the delivery, and then sees it as that exchange left it.
        select d.message_id, d.subscription, d.lease, d.visible_at, s.name,
               (select p.worker from runtime.pumps p where p.number = d.holder) as worker
        from runtime.deliveries d
        join runtime.subscriptions s on s.id = d.subscription
        where d.message_id = stream_cancel.message and (of_one is null or d.subscription = of_one)
          and (caller is null or s.agent = caller)
        order by d.subscription
        for update of d
    loop
        if one.lease = runtime.dead_lease() then
            became := became || jsonb_build_object('subscription', one.name, 'state', 'dead');
        elsif one.lease is not null and one.visible_at > clock_timestamp() then
            insert into runtime.cancels as c (message_id, subscription, lease, worker, outcome)
            values (one.message_id, one.subscription, one.lease, one.worker, stream_cancel.outcome)
            on conflict on constraint cancels_pkey do update
                set lease = excluded.lease, worker = excluded.worker, outcome = excluded.outcome;
            perform runtime.recall(one.worker);
            became := became || jsonb_build_object('subscription', one.name, 'state', 'told');
        else
            perform runtime.end_cancelled(
                array[one.message_id], array[one.subscription], stream_cancel.outcome, null);
            ended := ended || one.subscription;
            became := became || jsonb_build_object('subscription', one.name, 'state', case when exists (
                select from runtime.deliveries d
                where d.message_id = one.message_id and d.subscription = one.subscription and d.visible_at < 'infinity'
            ) then 'undoing' else 'ended' end);
        end if;
    end loop;
    if cardinality(ended) > 0 then
        -- Deliveries of the same key behind it may go now.
        perform runtime.wake_sleepers(ended, '{}');
    end if;
    return json_build_object(
        'message', stream_cancel.message,
        'known', exists (select from public.consciousness_stream m where m.id = stream_cancel.message),
        'deliveries', became);
end
$$;
comment on function public.stream_cancel(bigint, text, text) is
    'Ends the deliveries of a message, of one subscription or of all, as dead letters or as done: waiting ones at once '
    '(ended), or when the undos of their steps have run (undoing); running ones when their workers have stopped them '
    '(told); dead: a dead letter already.';
