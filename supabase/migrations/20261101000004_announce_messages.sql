-- Whom to wake? Only workers that sleep: while a worker is awake it looks anyway, and writers pay nothing.

create function runtime.notify_channel(worker uuid) returns text
language plpgsql immutable set search_path = '' as $$
begin
    return (
    select 'runtime_' || replace(worker::text, '-', '_')
    );
end
$$;
comment on function runtime.notify_channel(uuid) is 'The NOTIFY channel of one worker.';

create function runtime.realtime_is_there() returns boolean
language plpgsql stable set search_path = '' as $$
begin
    return (
    select to_regprocedure('realtime.send(jsonb,text,text,boolean)') is not null
    );
end
$$;
comment on function runtime.realtime_is_there() is 'Whether this database can broadcast: realtime.send exists.';

create function runtime.wake(target uuid, announce text[], keys text[]) returns void
language plpgsql set search_path = '' as $$
begin
    if 'notify' = any (announce) then
        perform pg_notify(runtime.notify_channel(target), 'wake');
    end if;
    if 'realtime' = any (announce) and runtime.realtime_is_there() then
        -- No exception block: realtime.send swallows its own errors, and a block would cost every writer.
        perform realtime.send(
            jsonb_build_object('keys', to_jsonb(keys[1:4])), 'wake', 'runtime:' || target::text, true
        );
    end if;
end
$$;
comment on function runtime.wake(uuid, text[], text[]) is 'Sends one hint to one worker, by each way it can be reached: keys only, under 1 kB.';

create function runtime.wake_sleepers(matched integer[], keys text[]) returns void
language plpgsql set search_path = '' as $$
declare
    target record;
begin
    for target in
        select distinct on (chosen.id) chosen.id, chosen.announce
        from unnest(matched) as m (subscription)
        cross join lateral (
            -- A sleeper that is not seen any more must not swallow the only wake-up.
            select w.id, w.announce from runtime.workers w
            where w.asleep and w.free @> array[m.subscription]
              and w.seen_at > clock_timestamp()
                  - make_interval(secs => (select p.sleeper_seconds from runtime.policy p))
            order by random()
            limit 2
        ) chosen
    loop
        perform runtime.wake(target.id, target.announce, keys);
    end loop;
end
$$;
comment on function runtime.wake_sleepers(integer[], text[]) is
    'Wakes, for each subscription, two sleeping workers at random that have free slots for it.';

create function runtime.announce(keys text[], matched integer[]) returns void
language plpgsql set search_path = '' as $$
declare
    everywhere boolean := current_setting('transaction_isolation') <> 'read committed';
    -- What this transaction has announced: keys between line feeds, or * when it became too long to remember.
    said text := coalesce(current_setting('runtime.announced', true), '');
    fresh_since timestamptz;
    unsaid text[];
    target record;
begin
    if said = '*' or cardinality(matched) = 0
        or not (everywhere or exists (select from runtime.workers w where w.asleep)) then
        return;
    end if;
    unsaid := array(select k from unnest(keys) as k where position(E'\n' || k || E'\n' in said) = 0);
    if cardinality(unsaid) = 0 then
        return;
    end if;
    if length(said) > 4000 then
        everywhere := true;
        perform set_config('runtime.announced', '*', true);
    else
        perform set_config(
            'runtime.announced',
            coalesce(nullif(said, ''), E'\n') || array_to_string(unsaid, E'\n') || E'\n', true
        );
    end if;
    fresh_since := clock_timestamp() - make_interval(secs => (select p.sleeper_seconds from runtime.policy p));
    if everywhere then
        -- An old snapshot cannot tell who sleeps, and a huge transaction is for everybody.
        for target in
            select w.id, w.announce from runtime.workers w
            where w.seen_at > fresh_since and (w.asleep or current_setting('transaction_isolation') <> 'read committed')
        loop
            perform runtime.wake(target.id, target.announce, unsaid);
        end loop;
        return;
    end if;
    perform runtime.wake_sleepers(matched, unsaid);
end
$$;
comment on function runtime.announce(text[], integer[]) is
    'Wakes, for each subscription, two sleeping workers at random, at most once per transaction and key.';
