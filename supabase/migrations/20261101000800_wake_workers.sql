-- Waking workers that sleep. A worker that is awake looks for work anyway, so writers pay nothing for it.

create function runtime.notify_channel(worker uuid) returns text
language plpgsql immutable set search_path = '' as $$
begin
    return 'runtime_' || replace(worker::text, '-', '_');
end
$$;
comment on function runtime.notify_channel(uuid) is 'The NOTIFY channel of one worker.';

create function runtime.realtime_is_there() returns boolean
language plpgsql stable set search_path = '' as $$
begin
    return to_regprocedure('realtime.send(jsonb,text,text,boolean)') is not null;
end
$$;
comment on function runtime.realtime_is_there() is 'Whether this database can broadcast: whether realtime.send exists.';

create function runtime.push(target uuid, announce text[], event text, payload jsonb default '{}') returns void
language plpgsql set search_path = '' as $$
begin
    if 'notify' = any (announce) then
        perform pg_notify(runtime.notify_channel(target), concat_ws(':', event, payload ->> 'nonce'));
    end if;
    if 'realtime' = any (announce) and runtime.realtime_is_there() then
        -- No exception block: realtime.send swallows its own errors, and a block would cost every writer.
        perform realtime.send(payload, event, 'runtime:' || target::text, true);
    end if;
end
$$;
comment on function runtime.push(uuid, text[], text, jsonb) is
    'Sends a worker or a requester one event by each of these push paths: wake with at most three keys, due (what is due is '
    'looked at as well, at once), nonce, cancel, answer.';

create function runtime.is_stricter() returns boolean
language plpgsql stable set search_path = '' as $$
begin
    return current_setting('transaction_isolation') <> 'read committed';
end
$$;
comment on function runtime.is_stricter() is
    'Whether this transaction sees one old snapshot, which cannot tell which workers sleep.';

create function runtime.wake_everybody(keys text[]) returns void
language plpgsql set search_path = '' as $$
declare
    stricter boolean := runtime.is_stricter();
    fresh_since timestamptz;
    target record;
begin
    -- In an old snapshot all heartbeats are old, so their age is measured from the latest of them.
    fresh_since := case when stricter then (select max(w.seen_at) from runtime.workers w) else clock_timestamp() end
        - make_interval(secs => (select p.sleeper_seconds from runtime.policy p));
    if stricter then
        -- A worker may have started since the snapshot, so its row is not visible: the common channel reaches it. (Over
        -- Realtime postgres_changes tells it of the INSERT, or its next sweep finds it.)
        perform pg_notify('runtime_workers', 'wake');
    end if;
    for target in
        select w.id, case when stricter then array_remove(w.announce, 'notify') else w.announce end as announce
        from runtime.workers w
        where (stricter or w.asleep) and (w.seen_at > fresh_since) is not false
    loop
        perform runtime.push(target.id, target.announce, 'wake', jsonb_build_object('keys', to_jsonb(keys[1:3])));
    end loop;
end
$$;
comment on function runtime.wake_everybody(text[]) is
    'Wakes every sleeping worker; in stricter isolation every worker, by a common channel.';

create function runtime.wake_sleepers(
    matched integer[], keys text[], but uuid default null, lanes integer[] default '{}', event text default 'wake'
) returns void
language plpgsql set search_path = '' as $$
declare
    target record;
begin
    if runtime.is_stricter() then
        perform runtime.wake_everybody(keys);
        return;
    end if;
    for target in
        select distinct on (chosen.id) chosen.*
        from (
            select t.now, t.now - make_interval(secs => p.call_seconds) as since,
                   t.now - make_interval(secs => p.sleeper_seconds) as fresh_since
            from (select clock_timestamp() as now) t left join runtime.policy p on true
            -- offset 0: the clock is read once, not for each row.
            offset 0
        ) called
        cross join unnest(matched, lanes) as m (subscription, lane)
        cross join lateral (
            select w.id, w.announce, w.pump, e.n, c.is_called
            from runtime.workers w
            left join runtime.pumps e on e.id = w.pump
            cross join lateral (
                -- A call made after the pump's last exchange n is still to be answered, by a look that sees this
                -- transaction or waits for it (runtime.fall_asleep). A call in the future was made before the clock was
                -- set back.
                select max(l.called_at) between called.since and called.now as is_called,
                       case
                           when min(l.called_at) not between called.since and called.now then 2
                           when min(l.called_at) is not null then 0
                           else 1
                       end as standing
                from runtime.calls l where l.pump = w.pump and l.n = e.n
            ) c
            -- A worker without a fresh heartbeat, or one that has left a call unanswered, is probably dead and must not
            -- swallow the only wake-up: the former is never called, the latter only where there are not two others.
            where w.asleep and w.free @> array[m.subscription] and w.id is distinct from but
              and (m.lane is null or (w.pins ->> m.subscription::text)::integer = m.lane)
              and (w.seen_at > called.fresh_since) is not false
            order by c.standing, random()
            limit 2
        ) chosen
    loop
        continue when target.is_called;
        insert into runtime.calls (pump, n) select target.pump, target.n where target.n is not null;
        perform runtime.push(target.id, target.announce, event, jsonb_build_object('keys', to_jsonb(keys[1:3])));
    end loop;
end
$$;
comment on function runtime.wake_sleepers(integer[], text[], uuid, integer[], text) is
    'Wakes, for each subscription, two sleeping workers with free slots for it, chosen at random and never the caller, '
    'unless two are being woken already. Workers that left a call unanswered are chosen last. With a lane, only workers '
    'whose version takes from it.';

create function runtime.alive_since() returns timestamptz
language plpgsql stable set search_path = '' as $$
begin
    return clock_timestamp() - make_interval(secs => (select p.sleeper_seconds from runtime.policy p));
end
$$;
comment on function runtime.alive_since() is 'A worker that was last seen before this time counts as gone.';

create function runtime.workers_of(target integer) returns bigint
language plpgsql stable set search_path = '' as $$
begin
    return (
        select count(*) from runtime.workers w
        where target = any (w.subscriptions) and w.seen_at > (select runtime.alive_since()));
end
$$;
comment on function runtime.workers_of(integer) is 'How many living workers serve a subscription.';

create function runtime.announce(keys text[], subscriptions integer[]) returns void
language plpgsql set search_path = '' as $$
declare
    -- The keys this transaction has announced, between line feeds; * when they are too many to remember.
    announced text := coalesce(nullif(current_setting('runtime.announced', true), ''), E'\n');
    fresh text[];
    matched integer[];
begin
    if announced = '*' then
        return;
    end if;
    select array_agg(distinct r.key), array_agg(distinct r.subscription) into fresh, matched
    from unnest(keys, subscriptions) as r (key, subscription)
    where position(E'\n' || r.key || E'\n' in announced) = 0;
    if fresh is null then
        return;
    end if;
    announced := announced || array_to_string(fresh, E'\n') || E'\n';
    if length(announced) > 4000 then
        -- A huge transaction wakes every worker, once.
        perform set_config('runtime.announced', '*', true);
        perform runtime.wake_everybody(fresh);
    else
        perform set_config('runtime.announced', announced, true);
        perform runtime.wake_sleepers(matched, fresh);
    end if;
end
$$;
comment on function runtime.announce(text[], integer[]) is
    'Announces messages, given as pairs of a key and a matching subscription: at most once per transaction and key.';

create function runtime.announce_one(key text, subscriptions integer[]) returns void
language plpgsql set search_path = '' as $$
begin
    -- Asked first since most writers find that every sleeper is being woken already (as in runtime.wake_sleepers).
    if cardinality(announce_one.subscriptions) > 0 and (runtime.is_stricter() or exists (
        select from runtime.workers w
        where w.asleep and w.free && announce_one.subscriptions and not exists (
            select from runtime.pumps e join runtime.calls c on c.pump = e.id and c.n = e.n
            where e.id = w.pump and c.called_at
                > (select clock_timestamp() - make_interval(secs => p.call_seconds) from runtime.policy p)
        )
    )) then
        perform runtime.announce(
            array_fill(key, array[cardinality(announce_one.subscriptions)]), announce_one.subscriptions
        );
    end if;
end
$$;
comment on function runtime.announce_one(text, integer[]) is
    'Announces a single message, given its key and the matching subscriptions, if a sleeping worker is still to be '
    'called.';

create function runtime.hand_on(me runtime.workers, want jsonb, failed json) returns void
language plpgsql set search_path = '' as $$
declare
    waiting integer[] := array(
        select s.id from runtime.subscriptions s
        where s.id = any (me.subscriptions) and s.ordered and s.settled and s.paused_at is null
          and coalesce((want ->> s.id::text)::integer, 0) = 0
          and exists (
              select from runtime.deliveries d
              where d.subscription = s.id and d.priority = 0 and d.visible_at is null offset 0
          )
        union
        -- Given back, or to be tried again: a worker that is leaving neither looks again nor sets a timer for these.
        select r.subscription from json_to_recordset(failed) as r (subscription integer)
        where r.subscription is not null and coalesce((want ->> r.subscription::text)::integer, 0) = 0
    );
begin
    if cardinality(waiting) > 0 then
        perform runtime.wake_sleepers(waiting, '{}', but => me.id);
        if me.pins is not null then
            perform runtime.wake_sleepers(
                array_agg(w), '{}', but => me.id, lanes => array_agg((me.pins ->> w::text)::integer))
            from unnest(waiting) as w where me.pins ? w::text;
        end if;
    end if;
end
$$;
comment on function runtime.hand_on(runtime.workers, jsonb, json) is
    'Wakes another worker for ordered deliveries that an end let go, and for attempts given back, where this worker '
    'has no room.';

create function runtime.fall_asleep(me runtime.workers, pump runtime.pumps, free integer[], fence xid8)
returns table (new_fence xid8, quiet boolean)
language plpgsql set search_path = '' as $$
declare
    called bigint := (select max(c.n) from runtime.calls c where c.pump = fall_asleep.pump.id and c.n >= fall_asleep.pump.last_but_one);
begin
    if not me.asleep or me.free is distinct from fall_asleep.free or me.pump is distinct from fall_asleep.pump.id then
        update runtime.workers w set asleep = true, free = fall_asleep.free, pump = fall_asleep.pump.id
        where w.id = me.id;
        return query select null::xid8, false;
        return;
    elsif called = fall_asleep.pump.previous then
        -- Writers may rely on that call until this exchange commits.
        return query select null::xid8, false;
        return;
    elsif called is not null then
        -- Writers could rely on a call until the last exchange committed, so the fence begins anew.
        fence := null;
    end if;
    -- An earlier exchange has committed the mark. A writer that could not see it has a lower xid than this worker's
    -- first exchange after the mark; once all such writers have ended, their messages can be taken.
    fence := least(fence, pg_current_xact_id());
    return query select fence, pg_snapshot_xmin(pg_current_snapshot()) >= fence;
end
$$;
comment on function runtime.fall_asleep(runtime.workers, runtime.pumps, integer[], xid8) is
    'Marks a worker asleep. From the next exchange on, quiet tells whether every writer that could not see the mark '
    'has ended.';
