-- Steps: parts of a handler whose results are kept for the later attempts of their delivery.

create function runtime.label_of(s runtime.steps) returns text
language sql immutable set search_path = '' as $$
    select s.name || case when s.key <> '' then format(' [%s]', s.key) else '' end
                  || case when s.occurrence > 1 then format(' (%s)', s.occurrence) else '' end
$$;
comment on function runtime.label_of(runtime.steps) is
    'A step as runtime trace shows it: its name, its key in brackets, and its occurrence where it is not the first.';

create function runtime.keep_steps(steps jsonb) returns json
language plpgsql set search_path = '' as $$
declare
    held bigint[];
    kept bigint[];
    unpinned bigint[];
begin
    with given as materialized (
        select e.n, (e.step ->> 'message')::bigint as message_id, (e.step ->> 'subscription')::integer as subscription,
               (e.step ->> 'lease')::uuid as lease, e.step ->> 'name' as name, e.step ->> 'key' as key,
               (e.step ->> 'occurrence')::integer as occurrence, e.step -> 'value' as value,
               e.step ->> 'version' as version, e.step -> 'undo' as undo
        from jsonb_array_elements(steps) with ordinality as e (step, n)
    ), locked as materialized (
        -- Until the commit, so that whoever takes the delivery next finds the step; in one order, so that calls for
        -- several deliveries do not wait for each other.
        select g.n, d.heavy, d.pinned from given g
        join runtime.deliveries d
            on d.message_id = g.message_id and d.subscription = g.subscription and d.lease = g.lease
        order by d.message_id, d.subscription
        for no key update of d
    ), stored as (
        insert into runtime.steps (message_id, subscription, name, key, occurrence, value, version, undo)
        select g.message_id, g.subscription, g.name, g.key, g.occurrence, g.value, g.version, g.undo
        from locked l join given g on g.n = l.n
        on conflict on constraint steps_pkey do nothing
        returning message_id, subscription, name, key, occurrence
    ), weighed as (
        -- From now on the delivery is weighed, and brings its steps along.
        update runtime.deliveries d set heavy = true from locked l join given g on g.n = l.n
        where not l.heavy and d.message_id = g.message_id and d.subscription = g.subscription
    )
    select array_agg(l.n), array_agg(l.n) filter (where s.message_id is not null),
           array_agg(l.n) filter (where s.message_id is not null and l.pinned is null and g.version is not null)
    into held, kept, unpinned
    from locked l join given g on g.n = l.n
    left join stored s on s.message_id = g.message_id and s.subscription = g.subscription and s.name = g.name
        and s.key = g.key and s.occurrence = g.occurrence;
    if unpinned is not null then
        perform runtime.pin((steps -> (u.n - 1)::integer ->> 'message')::bigint,
                            (steps -> (u.n - 1)::integer ->> 'subscription')::integer)
        from unnest(unpinned) as u (n);
    end if;
    return (
        select json_agg(case
            when e.n = any (kept) then json_build_object('held', true)
            when e.n = any (held) then json_build_object('held', true, 'earlier', (
                select json_build_array(s.value) from runtime.steps s
                where s.message_id = (e.step ->> 'message')::bigint
                  and s.subscription = (e.step ->> 'subscription')::integer
                  and s.name = e.step ->> 'name' and s.key = e.step ->> 'key'
                  and s.occurrence = (e.step ->> 'occurrence')::integer))
            else json_build_object('held', false) end order by e.n)
        from jsonb_array_elements(steps) with ordinality as e (step, n)
    );
end
$$;
comment on function runtime.keep_steps(jsonb) is
    'Keeps the results of steps by the current leases of their deliveries, [{message, subscription, lease, name, key, '
    'occurrence, value, version, undo}], and tells of each whether the lease was held, and the value of one that was '
    'kept already.';

create function public.stream_steps(steps jsonb) returns json
language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
    caller text := case when current_setting('request.jwt.claims', true) <> '' then runtime.caller_agent() end;
begin
    if caller is not null then
        perform runtime.check_caller(caller, null, null, null, (
            select jsonb_object_agg(t.subscription, 1) from jsonb_to_recordset(steps) as t (subscription integer)));
    end if;
    return runtime.keep_steps(steps);
end
$$;
comment on function public.stream_steps(jsonb) is
    'Keeps the results of steps of several deliveries, each as stream_step does; tells {held, earlier} of each in turn.';

create function public.stream_step(
    message bigint, subscription integer, lease uuid, name text, key text, occurrence integer, value jsonb,
    version text default null, undo jsonb default null, asking boolean default false
) returns json
language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
    caller text := case when current_setting('request.jwt.claims', true) <> '' then runtime.caller_agent() end;
begin
    if caller is not null then
        perform runtime.check_caller(caller, null, null, null, jsonb_build_object(subscription, 1));
    end if;
    if asking then
        -- Asked after a commit without an answer: whoever may be keeping the step has ended before this lock is granted.
        perform from runtime.deliveries d
        where d.message_id = message and d.subscription = stream_step.subscription and d.lease = stream_step.lease
        for update;
        return json_build_object('held', found, 'earlier', coalesce((
            select json_agg(s.value) from runtime.steps s
            where s.message_id = message and s.subscription = stream_step.subscription
              and s.name = stream_step.name and s.key = stream_step.key and s.occurrence = stream_step.occurrence), '[]'));
    end if;
    return runtime.keep_steps(jsonb_build_array(jsonb_build_object(
        'message', message, 'subscription', subscription, 'lease', lease, 'name', name, 'key', key,
        'occurrence', occurrence, 'value', value, 'version', version) || case
        when undo is null then '{}' else jsonb_build_object('undo', undo) end)) -> 0;
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
