-- Mending: damage by a copy of the schema, a restored dump, a truncate or a clock that was set back is repaired when a
-- worker subscribes, and with its heartbeats. Faults that cannot be repaired from here are reported with their cure.

create function runtime.mend_sequences() returns void
language plpgsql set search_path = '' as $$
begin
    -- Rows that were copied without their sequences have taken the next numbers already.
    perform setval('public.consciousness_stream_id_seq', m.highest)
    from (select max(x.id) as highest from public.consciousness_stream x) m, public.consciousness_stream_id_seq s
    where m.highest >= s.last_value + s.is_called::integer;
    perform setval('runtime.subscriptions_id_seq', m.highest)
    from (select max(x.id) as highest from runtime.subscriptions x) m, runtime.subscriptions_id_seq s
    where m.highest >= s.last_value + s.is_called::integer;
    perform setval('runtime.pumps_number_seq', m.highest)
    from (select max(x.number) as highest from runtime.pumps x) m, runtime.pumps_number_seq s
    where m.highest >= s.last_value + s.is_called::integer;
    perform setval('runtime.dead_letters_id_seq', m.highest)
    from (select max(x.id) as highest from runtime.dead_letters x) m, runtime.dead_letters_id_seq s
    where m.highest >= s.last_value + s.is_called::integer;
end
$$;
comment on function runtime.mend_sequences() is 'Moves every sequence past the numbers that are in use.';

create function runtime.mend_fences() returns void
language plpgsql set search_path = '' as $$
declare
    lock constant integer := hashtext('runtime.settle_fence');
begin
    -- Unlocked at once, not at the end of the transaction: setval is not rolled back, and settling waits for this lock.
    if runtime.is_foreign((select f.last_value::text::xid8 from runtime.settle_fence f)) and pg_try_advisory_lock(lock) then
        perform setval('runtime.settle_fence', 0) from runtime.settle_fence f
        where runtime.is_foreign(f.last_value::text::xid8);
        perform pg_advisory_unlock(lock);
    end if;
    update runtime.subscriptions s set settling_fenced = false, settling_xid = null
    where not s.settled and s.settling_xid is not null and runtime.is_foreign(s.settling_xid);
    update runtime.routing r set changed_by = null where r.changed_by is not null and runtime.is_foreign(r.changed_by);
end
$$;
comment on function runtime.mend_fences() is
    'Forgets the transaction ids of another cluster, which a restored dump brings along: in this cluster they are '
    'future ones.';

create function runtime.mend_clock() returns void
language plpgsql set search_path = '' as $$
declare
    -- A jump of up to a minute repairs itself within a minute.
    slack constant interval := interval '1 minute';
    jump interval;
begin
    if not exists (select from runtime.workers w where w.seen_at > clock_timestamp() + slack)
        or not pg_try_advisory_xact_lock(hashtext('runtime.mend_clock')) then
        return;
    end if;
    jump := (select max(w.seen_at) from runtime.workers w) - clock_timestamp();
    if jump < slack then
        return;
    end if;
    -- A lease outlives its worker's last heartbeat by as much as before. A lease taken by the new clock ends before the
    -- old heartbeat, and stays as it is.
    update runtime.deliveries d set visible_at = d.visible_at - (l.seen_at - clock_timestamp())
    from (
        select x.message_id, x.subscription, w.seen_at
        from runtime.subscriptions s
        cross join lateral (
            select y.message_id, y.subscription, y.holder, y.visible_at from runtime.deliveries y
            where y.subscription = s.id and y.visible_at > (select clock_timestamp() + slack) and y.visible_at < 'infinity'
              and case when y.lease is not null then 2 else coalesce(y.pinned, 0) + (y.crashes >= 2)::integer end = 2
            for update skip locked
        ) x
        join runtime.pumps p on p.number = x.holder
        join runtime.workers w on w.id = p.worker
        where w.seen_at > clock_timestamp() + slack and x.visible_at > w.seen_at
    ) l
    where d.message_id = l.message_id and d.subscription = l.subscription;
    -- Retries as well, but not a message that its writer has delayed until a time. Bounded, since a worker's exchange
    -- waits for this.
    update runtime.deliveries d set visible_at = d.visible_at - jump
    from runtime.subscriptions s
    cross join unnest(runtime.lanes_of(s.id)) as standing
    cross join lateral (
        select y.message_id, y.subscription, y.attempts, y.crashes from runtime.deliveries y
        where y.subscription = s.id and y.visible_at > (select clock_timestamp() + jump) and y.visible_at < 'infinity'
          and case when y.lease is not null then 2 else coalesce(y.pinned, 0) + (y.crashes >= 2)::integer end = standing
        order by y.visible_at limit 10000
        for update skip locked
    ) r
    where d.message_id = r.message_id and d.subscription = r.subscription and r.attempts + r.crashes > 0;
    update runtime.webhooks h set rests_until = h.rests_until - jump
    where h.rests_until > clock_timestamp() + jump and h.rests_until < 'infinity';
    update runtime.holds h set refused_until = h.refused_until - jump
    where h.refused_until > clock_timestamp() + interval '1 hour';
    -- Last, since the heartbeats are the evidence of the jump.
    update runtime.workers w
    set seen_at = least(w.seen_at, clock_timestamp()), started_at = least(w.started_at, clock_timestamp())
    where w.id in (
        select x.id from runtime.workers x
        where greatest(x.seen_at, x.started_at) > clock_timestamp() for update skip locked);
end
$$;
comment on function runtime.mend_clock() is
    'Moves times stamped before the database''s clock was set back to where it stands now: heartbeats, leases, '
    'retries.';

create function runtime.mend() returns void
language plpgsql set search_path = '' as $$
begin
    perform runtime.mend_rows();
    -- Every transaction that may change patterns locks this row first, so that no two of them deadlock.
    perform from runtime.routing for update;
    perform runtime.mend_sequences();
    perform runtime.mend_fences();
    perform runtime.mend_clock();
    -- Declarations made before the clock was set back must give way to a worker that starts now.
    update runtime.subscriptions s set declared_at = clock_timestamp() where s.declared_at > clock_timestamp();
    update runtime.schedules s set declared_at = clock_timestamp() where s.declared_at > clock_timestamp();
end
$$;
comment on function runtime.mend() is
    'Repairs all that a starting worker may find damaged, and keeps other transactions from changing patterns '
    'meanwhile.';

create function runtime.rivals(of_worker uuid default null)
returns table (worker uuid, subscription integer, warning text)
language plpgsql stable set search_path = '' as $$
begin
    return query
    select w.id, s.id, format(
        '%s listens to %s, as a worker started later declares, and no longer to %s, as worker %s declares, which '
        'still runs. A deploy ends that worker; if these are two projects on one stream, give the agent of one of them '
        'another name.',
        s.name, array_to_string(s.patterns, ', '), array_to_string(mine.patterns, ', '), w.name)
    from runtime.workers w
    cross join lateral jsonb_each(w.declared) as d (id, patterns)
    cross join lateral (select array(select jsonb_array_elements_text(d.patterns)) as patterns) mine
    join runtime.subscriptions s on s.id = d.id::integer
    where (of_worker is null or w.id = of_worker)
      and (w.seen_at > (select runtime.alive_since())) is not false
      and not (s.patterns @> mine.patterns and s.patterns <@ mine.patterns)
    order by s.name, w.name;
end
$$;
comment on function runtime.rivals(uuid) is
    'Running workers, or this one, whose declaration of a subscription has given way to other patterns.';

create function runtime.disorders(announce text[]) returns text[]
language plpgsql stable set search_path = '' as $$
declare
    found text[] := '{}'::text[];
begin
    if not coalesce((
        select t.tgenabled in ('O', 'A') from pg_catalog.pg_trigger t
        where t.tgrelid = 'public.consciousness_stream'::regclass and t.tgname = 'fan_out'), false) then
        found := found || (
            'The trigger fan_out of consciousness_stream is off or gone, so no agent gets new messages. '
            || 'Run ' || runtime.fan_out_cure() || ' Messages written meanwhile are delivered by `runtime replay`.');
    end if;
    if 'realtime' = any (announce) and not exists (
        select from pg_catalog.pg_publication p
        where p.pubname = 'supabase_realtime' and p.pubinsert and (
            p.puballtables
            or exists (select from pg_catalog.pg_publication_namespace n where n.pnpubid = p.oid)
            or (select count(*) = 2 from pg_catalog.pg_publication_rel r
                where r.prpubid = p.oid
                  and r.prrelid in ('public.consciousness_stream'::regclass, 'runtime.beats'::regclass)))
    ) then
        found := found || (
            'The publication supabase_realtime is missing or does not publish inserts into consciousness_stream and '
            'runtime.beats, so postgres_changes wakes no worker. Run `create publication supabase_realtime;` where it is '
            'missing, then `select public.stream_install_realtime();`')::text;
    end if;
    return found;
end
$$;
comment on function runtime.disorders(text[]) is
    'Faults of the set-up that cannot be repaired from here, a sentence each, for a worker that is reached by these '
    'push paths.';

create function runtime.fan_out_cure() returns text
language sql immutable set search_path = '' as $$
    select '`create or replace trigger fan_out after insert on public.consciousness_stream referencing new table as '
        'new_messages for each statement execute function runtime.fan_out(); alter table public.consciousness_stream '
        'enable trigger fan_out;`'
$$;
comment on function runtime.fan_out_cure() is 'The statements that bring the trigger back.';
