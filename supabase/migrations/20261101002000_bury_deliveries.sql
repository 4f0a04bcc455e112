-- A delivery that may not be tried again becomes a dead letter, with a copy of its message and its attempts.

create function runtime.dead_lease() returns uuid
language sql immutable parallel safe set search_path = '' as $$
    select '00000000-0000-0000-0000-000000000000'::uuid
$$;
comment on function runtime.dead_lease() is
    'The lease of a dead letter that holds up its ordered key; no exchange ever draws this one.';

create function runtime.bury(
    ids bigint[], subscriptions integer[], reasons text[], errors text[], tracebacks text[] default '{}'
) returns void
language plpgsql set search_path = '' as $$
declare
    gone runtime.deliveries[];
    unleased jsonb;
begin
    -- Finished steps that have undos are undone first; then it comes here once more.
    select u.* into ids, subscriptions, reasons, errors, tracebacks
    from runtime.undo_first(ids, subscriptions, reasons, errors, tracebacks) u;
    if ids is null then
        return;
    end if;
    with victims as (
        -- The caller has locked the rows, so their ctids hold.
        select v.*, d.place, s.name, s.ordered and s.dead_blocks as blocks
        from unnest(ids, subscriptions, reasons, errors, tracebacks)
            as v (id, subscription, reason, error, traceback)
        cross join lateral (
            select l.ctid as place from runtime.deliveries l
            where l.message_id = v.id and l.subscription = v.subscription offset 0
        ) d
        join runtime.subscriptions s on s.id = v.subscription
    ), blocking as (
        -- A blocking dead letter stays at the head of its key, leased to no worker, until it is redriven or discarded.
        update runtime.deliveries d set lease = runtime.dead_lease(), visible_at = 'infinity'
        from victims v
        where v.blocks and d.ctid = v.place
        returning d.message_id, d.subscription, d.ordered_key
    ), ended as (
        delete from runtime.deliveries d using victims v
        where not v.blocks and d.ctid = v.place
        returning d as delivery, d.message_id, d.subscription
    ), buried as (
        select e.message_id, e.subscription from ended e
        union all
        select b.message_id, b.subscription from blocking b
    ), letters as (
        insert into runtime.dead_letters
            (message_id, subscription, subscription_name, key, message, reason, error, traceback, attempts)
        select b.message_id, b.subscription, v.name, m.key, to_jsonb(m), v.reason, v.error, v.traceback,
               coalesce((
                   select jsonb_agg(jsonb_build_object(
                       'attempt', r.attempt, 'outcome', r.outcome, 'worker', r.worker, 'seconds', r.seconds,
                       'ended_at', r.ended_at, 'error', r.error, 'traceback', r.traceback) order by r.ended_at)
                   from runtime.runs r
                   where r.message_id = b.message_id and r.subscription = b.subscription
               ), '[]')
        from buried b
        join victims v on v.id = b.message_id and v.subscription = b.subscription
        join public.consciousness_stream m on m.id = b.message_id
    )
    select array_agg(e.delivery),
           (select jsonb_agg(jsonb_build_array(b.subscription, b.ordered_key, b.message_id)) from blocking b)
    into gone, unleased from ended e;
    perform runtime.after_end(gone);
    if unleased is not null then
        perform runtime.unpark_below(unleased);
    end if;
    perform runtime.answer_dead(ids, subscriptions, reasons, errors);
    -- What a worker was writing when it was killed.
    update public.stream_texts t set state = 'broken'
    from unnest(ids, subscriptions) as v (id, subscription)
    where t.message_id = v.id and t.subscription = v.subscription and t.state in ('open', 'suspended');
end
$$;
comment on function runtime.bury(bigint[], integer[], text[], text[], text[]) is
    'Ends deliveries as dead letters, each with a copy of its message and all its attempts.';

create function runtime.release_dead(target integer) returns void
language plpgsql set search_path = '' as $$
begin
    perform runtime.end_deliveries(array_agg(d.message_id), array_agg(d.subscription)) from runtime.deliveries d
    where d.subscription = target and d.visible_at = 'infinity' and d.lease = runtime.dead_lease();
end
$$;
comment on function runtime.release_dead(integer) is
    'Lets go every key that a dead letter of this subscription holds up.';
