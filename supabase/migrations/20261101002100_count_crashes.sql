-- Crashes: a lease that ran out means that its worker died, froze or lost the database.

create function runtime.settle_crashes(ids bigint[], subscriptions integer[]) returns void
language plpgsql set search_path = '' as $$
declare
    spent record;
    unleased jsonb;
begin
    -- The caller has locked the rows, so their ctids hold, and their leases have run out: each is one crash of its
    -- worker.
    insert into runtime.runs (message_id, subscription, ended_at, worker, attempt, outcome, error)
    select d.message_id, d.subscription, clock_timestamp(),
           (select p.worker from runtime.pumps p where p.number = d.holder),
           d.attempts + d.crashes + 1, 'crashed', 'its lease expired: the worker died, froze or lost the database'
    from unnest(ids, subscriptions) as t (id, subscription)
    cross join lateral (
        select l.message_id, l.subscription, l.holder, l.attempts, l.crashes from runtime.deliveries l
        where l.message_id = t.id and l.subscription = t.subscription offset 0
    ) d;
    if exists (select from runtime.cancels) then
        select * into ids, subscriptions from runtime.end_as_asked(ids, subscriptions, null);
    end if;
    with crashed as (
        update runtime.deliveries d set crashes = d.crashes + 1, lease = null, visible_at = clock_timestamp()
        from unnest(ids, subscriptions) as t (id, subscription)
        cross join lateral (
            select l.ctid as place from runtime.deliveries l
            where l.message_id = t.id and l.subscription = t.subscription offset 0
        ) at
        where d.ctid = at.place
        returning d.message_id, d.subscription, d.ordered_key
    )
    select jsonb_agg(jsonb_build_array(c.subscription, c.ordered_key, c.message_id)) into unleased
    from crashed c where c.ordered_key is not null;
    if unleased is not null then
        perform runtime.unpark_below(unleased);
    end if;
    select array_agg(d.message_id) as ids, array_agg(d.subscription) as subscriptions,
           array_agg('crashed'::text) as reasons,
           array_agg(format('its worker died %s times while handling it', d.crashes)) as errors
    into spent
    from unnest(ids, subscriptions) as t (id, subscription)
    cross join lateral (
        select l.message_id, l.subscription, l.crashes from runtime.deliveries l
        where l.message_id = t.id and l.subscription = t.subscription offset 0
    ) d
    join runtime.subscriptions s on s.id = d.subscription
    where d.crashes >= s.max_crashes;
    if spent.ids is not null then
        perform runtime.bury(spent.ids, spent.subscriptions, spent.reasons, spent.errors);
    end if;
end
$$;
comment on function runtime.settle_crashes(bigint[], integer[]) is
    'Counts a crash for each abandoned lease; a delivery whose crashes are used up becomes a dead letter.';

create function runtime.count_crashes(wanted jsonb) returns void
language plpgsql set search_path = '' as $$
declare
    abandoned record;
begin
    select array_agg(d.message_id) as ids, array_agg(d.subscription) as subscriptions into abandoned
    from jsonb_each_text(wanted) as w
    join runtime.subscriptions s on s.id = w.key::integer and s.settled and s.paused_at is null
    cross join lateral (
        select c.message_id, c.subscription from runtime.deliveries c
        where c.subscription = w.key::integer and c.visible_at <= (select clock_timestamp())
          and case when c.lease is not null then 2 else coalesce(c.pinned, 0) + (c.crashes >= 2)::integer end = 2
        order by c.visible_at
        limit 500
        for update skip locked
    ) d;
    if abandoned.ids is not null then
        perform runtime.settle_crashes(abandoned.ids, abandoned.subscriptions);
    end if;
end
$$;
comment on function runtime.count_crashes(jsonb) is 'Ends the abandoned leases of the wanted subscriptions.';
