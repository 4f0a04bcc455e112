-- Steps: parts of a handler whose results are kept for the later attempts of their delivery.

create function runtime.label_of(s runtime.steps) returns text
language sql immutable set search_path = '' as $$
    select s.name || case when s.key <> '' then format(' [%s]', s.key) else '' end
                  || case when s.occurrence > 1 then format(' (%s)', s.occurrence) else '' end
$$;
comment on function runtime.label_of(runtime.steps) is
    'A step as runtime trace shows it: its name, its key in brackets, and its occurrence where it is not the first.';

create function public.stream_step(
    message bigint, subscription integer, lease uuid, name text, key text, occurrence integer, value jsonb,
    version text default null, undo jsonb default null, asking boolean default false
) returns json
language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
    caller text := case when current_setting('request.jwt.claims', true) <> '' then runtime.caller_agent() end;
    is_known boolean;
    is_pinned boolean;
    earlier record;
begin
    if caller is not null then
        perform runtime.check_caller(caller, null, null, null, jsonb_build_object(subscription, 1));
    end if;
    -- The row is locked until the commit: whoever takes the delivery next finds the step. Other steps of the same
    -- attempt may be stored at the same time.
    select d.heavy, d.pinned is not null into is_known, is_pinned from runtime.deliveries d
    where d.message_id = message and d.subscription = stream_step.subscription and d.lease = stream_step.lease
    for key share;
    if not found then
        return json_build_object('held', false);
    end if;
    if asking then
        -- Asked after a commit without an answer: whoever may be keeping the step has ended before this lock is granted.
        perform from runtime.deliveries d
        where d.message_id = message and d.subscription = stream_step.subscription
        for update;
        return json_build_object('held', true, 'earlier', coalesce((
            select json_agg(s.value) from runtime.steps s
            where s.message_id = message and s.subscription = stream_step.subscription
              and s.name = stream_step.name and s.key = stream_step.key and s.occurrence = stream_step.occurrence), '[]'));
    end if;
    insert into runtime.steps (message_id, subscription, name, key, occurrence, value, version, undo)
    values (message, subscription, name, key, occurrence, value, version, undo)
    on conflict on constraint steps_pkey do nothing;
    if not found then
        select s.value into earlier from runtime.steps s
        where s.message_id = message and s.subscription = stream_step.subscription
          and s.name = stream_step.name and s.key = stream_step.key and s.occurrence = stream_step.occurrence;
        return json_build_object('held', true, 'earlier', json_build_array(earlier.value));
    end if;
    if not is_known then
        -- From now on the delivery is weighed, and brings its steps along.
        update runtime.deliveries d set heavy = true
        where d.message_id = message and d.subscription = stream_step.subscription;
    end if;
    if version is not null and not is_pinned then
        perform runtime.pin(message, subscription);
    end if;
    return json_build_object('held', true);
end
$$;
comment on function public.stream_step(bigint, integer, uuid, text, text, integer, jsonb, text, jsonb, boolean) is
    'Keeps the result of a step for the later attempts of a delivery, by its current lease: held tells whether that '
    'was so. A step that is kept already stays as it is; its value is then told as [earlier]. undo says what undoes the '
    'step, {step, arguments}. Who is asking keeps nothing, and is told whether the step is kept, once a transaction that '
    'may be keeping it has ended.';

create function runtime.pin(message bigint, subscription integer) returns void
language plpgsql set search_path = '' as $$
begin
    update runtime.deliveries d set pinned = (w.pins ->> pin.subscription::text)::integer
    from runtime.pumps p
    join runtime.workers w on w.id = p.worker
    where d.message_id = message and d.subscription = pin.subscription and d.pinned is null
      and p.number = d.holder and w.pins ? pin.subscription::text;
end
$$;
comment on function runtime.pin(bigint, integer) is
    'Leaves what is begun with a delivery to the version of the handler that has it in hand, if that is pinned.';

create function runtime.told(outcome jsonb) returns jsonb
language sql stable set search_path = '' as $$
    select case when outcome ? 'answer' then outcome || jsonb_build_object(
        'answer', (select to_jsonb(m) from public.consciousness_stream m where m.id = (outcome -> 'answer')::bigint),
        'id', outcome -> 'answer') else outcome end
$$;
comment on function runtime.told(jsonb) is 'The outcome of a wait, with its message where that is there.';

create function runtime.steps_of(message bigint, subscription integer) returns json
language sql stable set search_path = '' as $$
    select json_agg(json_build_array(
        s.name, s.key, s.occurrence, case when starts_with(s.name, 'wait.') then runtime.told(s.value) else s.value end,
        s.version, s.undo) order by s.created_at, s.name)
    from runtime.steps s
    where s.message_id = message and s.subscription = steps_of.subscription
$$;
comment on function runtime.steps_of(bigint, integer) is
    'The steps of a delivery as they cross the wire: [name, key, occurrence, value, version, undo] of each; null for '
    'none.';
