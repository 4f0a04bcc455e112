-- Limits: how much of a subscription all workers together may take in a time, have in hand, and spend. Decided where
-- deliveries are taken, by the database's clock; a subscription without limits has no row here, and pays nothing.

create table runtime.limits (
    subscription integer primary key references runtime.subscriptions on delete cascade,
    -- A token bucket: the tokens left at filled_at. It holds one token and those of a tenth of a second: a worker may
    -- look that late without a loss, and no crowd is let through at once.
    tokens double precision not null,
    filled_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
comment on table runtime.limits is 'The limited subscriptions, and the tokens left of their rates.';

alter table runtime.limits enable row level security;

create function runtime.capacity_of(s runtime.subscriptions) returns double precision
language plpgsql immutable set search_path = '' as $$
begin
    return 1 + 0.1 * s.rate_amount / s.rate_seconds;
end
$$;
comment on function runtime.capacity_of(runtime.subscriptions) is
    'The capacity of the token bucket: how many deliveries of a rate may be taken at once.';

create function runtime.keep_limits(target integer) returns void
language plpgsql set search_path = '' as $$
declare
    s runtime.subscriptions;
begin
    select * into s from runtime.subscriptions x where x.id = target;
    if s.rate_amount is null and s.concurrency_total is null then
        delete from runtime.limits l where l.subscription = target;
    else
        -- A declaration repeated by a restart does not refill the bucket.
        insert into runtime.limits as l (subscription, tokens)
        values (target, coalesce(runtime.capacity_of(s), 1))
        on conflict (subscription) do update set tokens = least(l.tokens, excluded.tokens);
    end if;
end
$$;
comment on function runtime.keep_limits(integer) is
    'Begins or ends the book-keeping for a subscription''s limits, as it is declared.';

create function runtime.leased_now(target integer) returns bigint
language plpgsql stable set search_path = '' as $$
begin
    return (
        select count(*) from runtime.deliveries d
        where d.subscription = target and d.visible_at > (select clock_timestamp()) and d.visible_at < 'infinity'
          and case when d.lease is not null then 2 else coalesce(d.pinned, 0) + (d.crashes >= 2)::integer end = 2);
end
$$;
comment on function runtime.leased_now(integer) is
    'How many deliveries of a subscription are leased, by any worker; a dead worker''s until its leases end.';

create function runtime.waits(target integer) returns boolean
language plpgsql stable set search_path = '' as $$
begin
    return exists (select from runtime.deliveries d where d.subscription = target and d.visible_at is null)
        or exists (
            select from unnest(runtime.lanes_of(target) || 2) as standing
            cross join lateral (
                select d.message_id from runtime.deliveries d
                where d.subscription = target and d.visible_at <= (select clock_timestamp())
                  and case when d.lease is not null then 2 else coalesce(d.pinned, 0) + (d.crashes >= 2)::integer end = standing
                limit 1
            ) due
        );
end
$$;
comment on function runtime.waits(integer) is
    'Whether any delivery of a subscription could be taken if there were no limit.';

create function runtime.allow(inout want jsonb, out bound jsonb)
language plpgsql set search_path = '' as $$
declare
    one record;
    allowed integer;
    tokens double precision;
    per_second double precision;
    seconds double precision;
begin
    bound := '{}';
    for one in
        select h.subscription, greatest(h.spent_until, h.refused_until) as until
        from jsonb_each_text(want) as w
        join runtime.holds h on h.subscription = w.key::integer
        where w.value::integer > 0 and greatest(h.spent_until, h.refused_until) > clock_timestamp()
    loop
        want := want || jsonb_build_object(one.subscription::text, 0);
        bound := bound || jsonb_build_object(
            one.subscription::text, jsonb_build_array(0, extract(epoch from one.until - clock_timestamp())));
    end loop;
    for one in
        select l.subscription, w.value::integer as amount from jsonb_each_text(want) as w
        join runtime.limits l on l.subscription = w.key::integer
        where w.value::integer > 0
        order by l.subscription
    loop
        allowed := one.amount;
        seconds := null;
        -- Two exchanges that counted at once would each take the rest. The one that does not get the lock looks again
        -- soon.
        if not pg_try_advisory_xact_lock(hashtext('runtime.limits'), one.subscription) then
            allowed := 0;
            seconds := 0.02;
        else
            -- Statements of their own, so that they see what the last holder of the lock has taken. A time of filling
            -- in the future is from before the clock was set back: the bucket fills from now on.
            update runtime.limits l set filled_at = clock_timestamp()
            where l.subscription = one.subscription and l.filled_at > clock_timestamp();
            select least(runtime.capacity_of(s), l.tokens
                         + extract(epoch from clock_timestamp() - l.filled_at) * s.rate_amount / s.rate_seconds),
                   s.rate_amount / s.rate_seconds, s.concurrency_total
            into tokens, per_second, allowed
            from runtime.limits l join runtime.subscriptions s on s.id = l.subscription
            where l.subscription = one.subscription;
            if allowed is not null then
                allowed := greatest(0, allowed - runtime.leased_now(one.subscription));
                if allowed < one.amount then
                    -- A worker that frees a slot wakes another; the slot of a dead worker comes free when its lease
                    -- ends.
                    seconds := (
                        select extract(epoch from min(d.visible_at) - clock_timestamp())
                        from runtime.deliveries d
                        where d.subscription = one.subscription and d.visible_at > (select clock_timestamp())
                          and d.visible_at < 'infinity'
                          and case when d.lease is not null then 2 else coalesce(d.pinned, 0) + (d.crashes >= 2)::integer end = 2);
                end if;
            end if;
            allowed := least(allowed, one.amount);
            if floor(tokens)::integer < allowed then
                allowed := floor(tokens)::integer;
                -- At a fast rate wait for several tokens, so that no worker looks for each.
                seconds := (allowed + greatest(1, 0.05 * per_second) - tokens) / per_second;
            end if;
        end if;
        if allowed < one.amount then
            want := want || jsonb_build_object(one.subscription::text, allowed);
            bound := bound || jsonb_build_object(one.subscription::text, jsonb_build_array(allowed, seconds));
        end if;
    end loop;
end
$$;
comment on function runtime.allow(jsonb) is
    'How many of the wanted deliveries may be taken; bound: by limited subscription, how many, and in how many seconds '
    'there may be more.';

create function runtime.spend(
    want jsonb, bound jsonb, subscriptions integer[], inout filled integer[], out seconds double precision
) language plpgsql set search_path = '' as $$
declare
    one record;
begin
    for one in
        select s.id as subscription, s.rate_amount, s.rate_seconds, runtime.capacity_of(s) as capacity,
               coalesce(t.amount, 0) as amount, (bound -> s.id::text ->> 0)::integer as allowed,
               (bound -> s.id::text ->> 1)::double precision as seconds
        from jsonb_object_keys(want) as w (subscription)
        join runtime.subscriptions s on s.id = w.subscription::integer
        left join (
            select u.id as subscription, count(*) as amount from unnest(subscriptions) as u (id) group by u.id
        ) t on t.subscription = s.id
        where t.amount > 0 and s.rate_amount is not null or bound ? s.id::text
    loop
        if one.amount > 0 and one.rate_amount is not null then
            update runtime.limits l
            set tokens = least(one.capacity, l.tokens + extract(epoch from clock_timestamp() - l.filled_at)
                               * one.rate_amount / one.rate_seconds) - one.amount,
                filled_at = clock_timestamp()
            where l.subscription = one.subscription;
        end if;
        if one.amount >= one.allowed then
            -- There may be more, but no worker may take it now.
            filled := array_remove(filled, one.subscription);
            if one.seconds is not null and runtime.waits(one.subscription) then
                spend.seconds := least(spend.seconds, one.seconds);
            end if;
        end if;
    end loop;
end
$$;
comment on function runtime.spend(jsonb, jsonb, integer[], integer[]) is
    'Takes tokens for deliveries of limited subscriptions; returns when there may be more of those that wait, and the '
    'subscriptions others should look at.';

create function runtime.hand_on_slots(me runtime.workers, done json, failed json) returns void
language plpgsql set search_path = '' as $$
declare
    free integer[] := array(
        select s.id
        from (
            select r.subscription from json_to_recordset(coalesce(done, '[]')) as r (subscription integer)
            union
            select r.subscription from json_to_recordset(coalesce(failed, '[]')) as r (subscription integer)
        ) reported
        join runtime.limits l on l.subscription = reported.subscription
        join runtime.subscriptions s on s.id = l.subscription
        where s.concurrency_total is not null and s.settled and s.paused_at is null
          and runtime.leased_now(s.id) < s.concurrency_total and runtime.waits(s.id)
    );
begin
    if cardinality(free) > 0 then
        perform runtime.wake_sleepers(free, '{}', but => me.id);
    end if;
end
$$;
comment on function runtime.hand_on_slots(runtime.workers, json, json) is
    'Wakes another worker for the slots that ended attempts have freed and this worker has not taken again.';
