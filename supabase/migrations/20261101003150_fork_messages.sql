-- Forking: a message written anew, whose handlers go on from steps that were kept for the first one.

create function public.stream_fork(
    message bigint, from_step text default null, subscription text default null, edits jsonb default null
) returns json
language plpgsql security definer set search_path = '' as $$
declare
    labels text[] := runtime.labels_in(from_step, edits);
    original public.consciousness_stream;
    targets integer[];
    written bigint;
begin
    perform runtime.refuse_agent('fork messages');
    -- Pruning skips locked messages, so its steps stay until they are copied.
    select m.* into original from public.consciousness_stream m where m.id = message for key share;
    if not found then
        raise exception using
            errcode = 'P0002', message = format('there is no message %s', message),
            hint = 'It was never written, or it is pruned; a dead letter that is redriven brings its message back.';
    end if;
    targets := array(
        select s.id from runtime.subscriptions s
        where s.id in (select p.subscription from runtime.steps p where p.message_id = message)
          and (stream_fork.subscription is null or s.name = stream_fork.subscription)
          and runtime.has_steps(message, s.id, labels));
    if cardinality(targets) = 0 then
        raise exception using
            errcode = 'P0002',
            message = format('no handler%s has kept %s for message %s', ' ' || stream_fork.subscription,
                             coalesce(nullif(array_to_string(labels, ' and '), ''), 'a step'), message),
            hint = coalesce((
                select 'There is: ' || string_agg(s.name || ' with ' || runtime.labels_of(message, s.id), '; ' order by s.name)
                from runtime.subscriptions s
                where s.id in (select p.subscription from runtime.steps p where p.message_id = message)
            ), 'Nothing is kept for it: runtime replay delivers it again from the top.');
    end if;
    insert into public.consciousness_stream (key, value, agent, priority, correlation_id, parent_id, headers)
    values (
        original.key, original.value, original.agent, original.priority,
        coalesce(original.correlation_id, original.id::text), original.id,
        coalesce(original.headers, '{}') || jsonb_build_object('forks', original.id)
    ) returning id into written;
    -- The insert has fanned out to every subscription; those that share no step would do all of their work again.
    delete from runtime.deliveries d where d.message_id = written and d.subscription <> all (targets);
    insert into runtime.deliveries (message_id, subscription, priority, marks, sole, heavy, ordered_key)
    select written, s.id, case when s.ordered then 0 else original.priority end, false, false, true,
           case when s.ordered then original.key end
    from runtime.subscriptions s where s.id = any (targets)
    on conflict on constraint deliveries_pkey do update set sole = false, heavy = true;
    insert into runtime.steps (message_id, subscription, name, key, occurrence, value, version, created_at)
    select written, s.subscription, s.name, s.key, s.occurrence, s.value, s.version, s.created_at
    from runtime.steps s
    where s.message_id = message and s.subscription = any (targets)
      -- What undoes a step is the first message's affair, and a step that was undone is done again.
      and s.name not in ('undo', 'undone') and not starts_with(s.name, 'undo.')
      and not exists (
          select from runtime.steps u
          where u.message_id = s.message_id and u.subscription = s.subscription and u.name = 'undo.' || s.name
            and u.key = s.key and u.occurrence = s.occurrence and u.value = 'true');
    perform runtime.refuse_undone(message, t, edits),
            runtime.mend_steps(written, t, runtime.finished_at(message, t, from_step), edits)
    from unnest(targets) as t;
    perform runtime.wake_sleepers(targets, '{}');
    return json_build_object(
        'id', written, 'message', message,
        'subscriptions', array(select s.name from runtime.subscriptions s where s.id = any (targets) order by s.name),
        'steps', (select count(*) from runtime.steps s where s.message_id = written));
end
$$;
comment on function public.stream_fork(bigint, text, text, jsonb) is
    'Writes a message anew, caused by the first one, for the handlers that have kept this step of it, or for one of them: '
    'they begin with the steps that finished before it, and with other results for those in edits {step: result}. The '
    'first message stays as it is.';
