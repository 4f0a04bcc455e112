-- Schedules: the last slot of each, so that exactly one worker writes a tick, and slots that were missed are known.

create table runtime.schedules (
    name text primary key,
    key text not null,
    spec text not null,
    missed text not null check (missed in ('one', 'all', 'none')),
    last_slot timestamptz not null,
    declared_at timestamptz not null
);
comment on table runtime.schedules is
    'One row per handler with a schedule: agent.handler, the key of its ticks, and its slots as text.';

alter table runtime.schedules enable row level security;
comment on column runtime.schedules.last_slot is 'Every slot up to this one was ticked or passed over.';

create function public.stream_schedule(worker uuid, schedules jsonb) returns json
language plpgsql security definer set search_path = '' as $$
declare
    started timestamptz := (select w.started_at from runtime.workers w where w.id = worker);
begin
    perform runtime.check_own('schedule', array_agg(d.name)) from jsonb_to_recordset(schedules) as d (name text);
    perform runtime.check_key(d.key) from jsonb_to_recordset(schedules) as d (key text, spec text) where d.spec is not null;
    -- A handler that no longer has a schedule. Like every declaration, it gives way only to that of a worker started
    -- later.
    delete from runtime.schedules s
    using jsonb_to_recordset(schedules) as d (name text, spec text)
    where s.name = d.name and d.spec is null and s.declared_at < started;
    -- A last slot in the future was ticked before the clock was set back: the schedule goes on from now. Its dedup_key
    -- keeps a slot from ticking twice.
    update runtime.schedules s set last_slot = clock_timestamp()
    from jsonb_to_recordset(schedules) as d (name text)
    where s.name = d.name and s.last_slot > clock_timestamp() + interval '1 minute';
    insert into runtime.schedules as s (name, key, spec, missed, last_slot, declared_at)
    select d.name, d.key, d.spec, d.missed, clock_timestamp(), started
    from jsonb_to_recordset(schedules) as d (name text, key text, spec text, missed text)
    where d.spec is not null and started is not null
    order by d.name
    on conflict (name) do update
        set key = excluded.key, spec = excluded.spec, missed = excluded.missed, declared_at = excluded.declared_at,
            -- A changed schedule has missed no slot yet.
            last_slot = case when s.spec = excluded.spec then s.last_slot else excluded.last_slot end
        where s.declared_at < excluded.declared_at;
    return json_build_object(
        'now', clock_timestamp(),
        'known', started is not null,
        'schedules', (
            select coalesce(json_object_agg(s.name, json_build_object(
                'last_slot', s.last_slot, 'current', s.spec = d.spec and s.key = d.key)), '{}')
            from jsonb_to_recordset(schedules) as d (name text, key text, spec text)
            join runtime.schedules s on s.name = d.name
        )
    );
end
$$;
comment on function public.stream_schedule(uuid, jsonb) is
    'Declares the schedules of a worker''s handlers [{name, key, spec, missed}], those without one as {name}. Returns '
    'the time, and of each schedule its last slot and whether this declaration is the current one.';

create function public.stream_tick(
    schedule text, spec text, after timestamptz, reached timestamptz, ticks jsonb
) returns json
language plpgsql security definer set search_path = '' as $$
declare
    s runtime.schedules;
begin
    perform runtime.check_own('tick for', array[schedule]);
    select * into s from runtime.schedules x where x.name = schedule for update;
    if s.spec is distinct from stream_tick.spec then
        return json_build_object('current', false, 'now', clock_timestamp());
    end if;
    -- The second worker to tick finds that the last slot is no longer the one it started from.
    if s.last_slot = after and reached between after and clock_timestamp() then
        perform runtime.store((
            select coalesce(jsonb_agg(jsonb_build_object(
                'key', s.key, 'agent', split_part(s.name, '.', 1), 'dedup_key', 'tick ' || s.name || ' ' || (t ->> 'slot'),
                'value', jsonb_build_object('slot', t -> 'slot', 'schedule', s.name, 'missed', t -> 'missed')
            ) order by t ->> 'slot'), '[]')
            from jsonb_array_elements(ticks) as t
        ));
        update runtime.schedules x set last_slot = reached where x.name = s.name returning * into s;
    end if;
    return json_build_object('current', true, 'last_slot', s.last_slot, 'now', clock_timestamp());
end
$$;
comment on function public.stream_tick(text, text, timestamptz, timestamptz, jsonb) is
    'Writes the ticks [{slot, missed}] of a schedule and moves its last slot from after to reached: for only one of '
    'the workers that ask for it, and never ahead of time.';

create function public.stream_schedules() returns json
language plpgsql stable security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('look at all timers');
    return (select coalesce(json_agg(json_build_object(
        'name', s.name, 'key', s.key, 'spec', s.spec, 'missed', s.missed, 'last_slot', s.last_slot,
        'paused', case when x.id is not null then x.paused_at is not null end,
        'workers', coalesce(runtime.workers_of(x.id), 0)
    ) order by s.name), '[]')
    from runtime.schedules s
    left join runtime.subscriptions x on x.name = s.name);
end
$$;
comment on function public.stream_schedules() is
    'The schedules: their slots as text, the last one, and how many workers serve them.';
