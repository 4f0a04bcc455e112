-- Ending dead letters: deliver them again, discard them, or write them anew with another value.

create function runtime.restore_messages(letters bigint[]) returns void
language plpgsql set search_path = '' as $$
declare
    restored bigint[];
begin
    -- Written anew under its old id, with today's date, so that retention does not end it before it is handled. Without
    -- its dedup_key, which a newer message may hold by now.
    with copies as (
        select distinct on (l.message_id) l.message_id as id, l.key, l.message as m
        from runtime.dead_letters l
        where l.id = any (letters)
          and not exists (select from public.consciousness_stream s where s.id = l.message_id)
        order by l.message_id
    ), written as (
        insert into public.consciousness_stream
            (id, key, value, agent, processed, priority, correlation_id, parent_id, headers)
        overriding system value
        select c.id, c.key, nullif(c.m -> 'value', 'null'), left(c.m ->> 'agent', 255),
               -- The copy is older than the delivery's end. The message was pruned, so every delivery that marks has
               -- ended.
               (c.m ->> 'processed')::boolean or exists (
                   select from runtime.patterns p join runtime.subscriptions s on s.id = p.subscription
                   where p.pattern = c.key and s.marks_processed),
               (c.m ->> 'priority')::smallint, left(c.m ->> 'correlation_id', 255), (c.m ->> 'parent_id')::bigint,
               case when jsonb_typeof(c.m -> 'headers') = 'object' then c.m -> 'headers' end
        from copies c
        on conflict (id) do nothing
        returning id
    )
    select array_agg(w.id) into restored from written w;
    -- The insert has fanned out to every subscription; the others have handled the message before.
    delete from runtime.deliveries d where d.message_id = any (restored);
end
$$;
comment on function runtime.restore_messages(bigint[]) is
    'Brings back pruned messages from the copies in their dead letters.';

create function runtime.wait_anew(letters bigint[]) returns void
language plpgsql set search_path = '' as $$
begin
    with letter as materialized (
        select distinct l.message_id, l.subscription from runtime.dead_letters l
        where l.id = any (letters) and l.error ~ '^(WaitTimeout|AskTimeout)\M'
    ), over as (
        delete from runtime.steps w
        using letter l
        where w.message_id = l.message_id and w.subscription = l.subscription
          and starts_with(w.name, 'wait.') and w.name <> 'wait.sleep' and w.value ? 'timeout'
          -- A timeout that the handler went past has decided what it did next.
          and not exists (
              select from runtime.steps s
              where s.message_id = w.message_id and s.subscription = w.subscription and s.created_at > w.created_at
                and not starts_with(s.name, 'wait.') and s.name not in ('undo', 'undone')
                and not starts_with(s.name, 'undo.'))
        returning w.message_id, w.subscription, w.name, w.key, w.occurrence
    ), asked as (
        -- A request for approval bears its deadline, so it is made anew; that of an answer runs from its step.
        delete from runtime.steps s
        using over o
        where s.message_id = o.message_id and s.subscription = o.subscription and (
            (o.name = 'wait.approval.decided' and starts_with(s.name, 'approve ') and s.value #>> '{}' = o.key)
            or (starts_with(o.name, 'wait.ask ') and s.name = substr(o.name, 6) and s.key = o.key
                and s.occurrence = o.occurrence))
        returning s.message_id, s.subscription, s.name, s.key, s.occurrence
    )
    -- With another idempotency key, or the new request would be taken for the old one.
    insert into runtime.steps (message_id, subscription, name, key, occurrence, value)
    select a.message_id, a.subscription, 'undone', '',
           1 + (select count(*) from runtime.steps e
                where e.message_id = a.message_id and e.subscription = a.subscription and e.name = 'undone'),
           jsonb_agg(jsonb_build_array(a.name, a.key, a.occurrence))
    from asked a group by a.message_id, a.subscription;
end
$$;
comment on function runtime.wait_anew(bigint[]) is
    'Of dead letters that died of a timeout, forgets the waits that time has ended last, and the requests they were for: a '
    'redrive waits and asks anew.';

create function runtime.redrive(letters bigint[]) returns void
language plpgsql set search_path = '' as $$
declare
    woken integer[];
begin
    -- Pruning skips locked messages. Where pruning came first, this waits for it, and the message comes back from its
    -- copy.
    perform from public.consciousness_stream m
    where m.id = any (array(select l.message_id from runtime.dead_letters l where l.id = any (letters)))
    order by m.id for key share;
    perform runtime.restore_messages(letters);
    perform runtime.forget_undone(letters);
    perform runtime.wait_anew(letters);
    with made as (
        insert into runtime.deliveries (message_id, subscription, priority, marks, sole, heavy, ordered_key)
        select distinct on (l.message_id, l.subscription)
               l.message_id, l.subscription,
               case when s.ordered then 0 else (l.message ->> 'priority')::smallint end,
               false, false, true, case when s.ordered then l.key end
        from runtime.dead_letters l join runtime.subscriptions s on s.id = l.subscription
        where l.id = any (letters)
        order by l.message_id, l.subscription
        on conflict on constraint deliveries_pkey do update
            set lease = null, visible_at = null, attempts = 0, crashes = 0, pinned = null
            where deliveries.lease = runtime.dead_lease()
        returning deliveries.subscription
    )
    select array_agg(distinct m.subscription) into woken from made m;
    delete from runtime.dead_letters l where l.id = any (letters);
    if woken is not null then
        perform runtime.wake_sleepers(woken, '{}');
    end if;
end
$$;
comment on function runtime.redrive(bigint[]) is
    'Delivers these dead letters again, with fresh attempts; their subscriptions must exist.';

create function runtime.discard(letters bigint[]) returns void
language plpgsql set search_path = '' as $$
declare
    gone runtime.deliveries[];
begin
    with discarded as (
        delete from runtime.dead_letters l where l.id = any (letters)
        returning l.message_id, l.subscription
    ), forgotten as (
        delete from runtime.steps p using discarded g
        where p.message_id = g.message_id and p.subscription = g.subscription
          and not exists (select from public.consciousness_stream m where m.id = p.message_id)
    ), untold as (
        delete from runtime.statuses t using discarded g
        where t.message_id = g.message_id and t.subscription = g.subscription
          and not exists (select from public.consciousness_stream m where m.id = t.message_id)
    ), ended as (
        delete from runtime.deliveries d using discarded g
        where d.message_id = g.message_id and d.subscription = g.subscription and d.lease = runtime.dead_lease()
        returning d as delivery
    )
    select array_agg(e.delivery) into gone from ended e;
    if gone is not null then
        perform runtime.after_end(gone);
        perform runtime.wake_sleepers(array(select distinct g.subscription from unnest(gone) as g), '{}');
    end if;
end
$$;
comment on function runtime.discard(bigint[]) is 'Removes these dead letters; a key that one of them held up goes on.';

create function runtime.check_steps(l runtime.dead_letters, steps text[]) returns void
language plpgsql stable set search_path = '' as $$
begin
    if not runtime.has_steps(l.message_id, l.subscription, steps) then
        raise exception using
            errcode = 'P0002',
            message = format('dead letter %s has not kept %s', l.id, array_to_string(steps, ' and ')),
            hint = format('It has kept %s.', runtime.labels_of(l.message_id, l.subscription));
    end if;
end
$$;
comment on function runtime.check_steps(runtime.dead_letters, text[]) is
    'Refuses a step that was asked for by name and that a dead letter has not kept.';

create function runtime.end_letters(
    action text, ids bigint[], subscription text, pattern text, older_than_seconds double precision, error text,
    max integer, dry_run boolean, from_step text default null, edits jsonb default null
) returns json
language plpgsql set search_path = '' as $$
declare
    steps text[] := runtime.labels_in(from_step, edits);
    letters bigint[] := runtime.find_letters(
        ids, subscription, pattern, older_than_seconds, error, null, max, false, steps);
    counts jsonb;
    one record;
    from_time timestamptz;
begin
    if ids is not null and cardinality(steps) > 0 then
        perform runtime.check_steps(l, steps) from runtime.dead_letters l where l.id = any (ids);
    end if;
    letters := array(
        select l.id from runtime.dead_letters l where l.id = any (letters) order by l.id for update skip locked
    );
    select coalesce(jsonb_object_agg(n.name, n.amount), '{}') into counts from (
        select l.subscription_name as name, count(*) as amount from runtime.dead_letters l
        where l.id = any (letters) group by 1
    ) n;
    if action = 'redriven' then
        -- A letter whose subscription was removed cannot be delivered.
        letters := array(
            select l.id from runtime.dead_letters l join runtime.subscriptions s on s.id = l.subscription
            where l.id = any (letters)
        );
    end if;
    if dry_run then
        letters := '{}';
    elsif action = 'redriven' then
        for one in
            select d.message_id, d.subscription, array_agg(d.id) as ids from runtime.dead_letters d
            where cardinality(steps) > 0 and d.id = any (letters)
              -- What a replay has made due again meanwhile goes on as it is.
              and not exists (
                  select from runtime.deliveries e
                  where e.message_id = d.message_id and e.subscription = d.subscription
                    and e.lease is distinct from runtime.dead_lease())
            group by 1, 2
        loop
            perform runtime.refuse_undone(one.message_id, one.subscription, edits);
            -- The step itself may be forgotten with what was undone, and what finished after it is to go, too.
            from_time := runtime.finished_at(one.message_id, one.subscription, from_step);
            -- Before steps are forgotten that tell what was undone.
            perform runtime.forget_undone(one.ids);
            perform runtime.mend_steps(one.message_id, one.subscription, from_time, edits);
        end loop;
        perform runtime.redrive(letters);
    else
        perform runtime.discard(letters);
    end if;
    return json_build_object('matching', counts, action, cardinality(letters));
end
$$;
comment on function
    runtime.end_letters(text, bigint[], text, text, double precision, text, integer, boolean, text, jsonb) is
    'Chooses dead letters by the given conditions, and redrives or discards them; with dry_run, only counts.';

create function public.stream_redrive(
    ids bigint[] default null, subscription text default null, pattern text default null,
    older_than_seconds double precision default null, error text default null,
    max integer default 1000, dry_run boolean default false, from_step text default null, edits jsonb default null
) returns json
language plpgsql security definer set search_path = '' as $$
begin
    return runtime.end_letters(
        'redriven', ids, subscription, pattern, older_than_seconds, error, max, dry_run, from_step, edits);
end
$$;
comment on function public.stream_redrive(bigint[], text, text, double precision, text, integer, boolean, text, jsonb) is
    'Delivers dead letters again, with fresh attempts; a pruned message comes back from its copy. What died of a timeout '
    'waits and asks anew. The same conditions as stream_dead, the oldest first; with dry_run, only counts. Kept steps '
    'stay: with from_step, that one and what finished after it are forgotten, and edits {step: result} gives others new '
    'results; then only letters that have kept these steps are meant.';

create function public.stream_discard(
    ids bigint[] default null, subscription text default null, pattern text default null,
    older_than_seconds double precision default null, error text default null,
    max integer default 1000, dry_run boolean default false
) returns json
language plpgsql security definer set search_path = '' as $$
begin
    return runtime.end_letters('discarded', ids, subscription, pattern, older_than_seconds, error, max, dry_run);
end
$$;
comment on function public.stream_discard(bigint[], text, text, double precision, text, integer, boolean) is
    'Removes dead letters for good; a key that one of them held up goes on. The same conditions as stream_dead, the '
    'oldest first; with dry_run, only counts.';

create function public.stream_amend(letter bigint, value jsonb) returns json
language plpgsql security definer set search_path = '' as $$
declare
    dead runtime.dead_letters;
    target runtime.subscriptions;
    written bigint;
begin
    perform runtime.refuse_agent('amend messages');
    select l.* into dead from runtime.dead_letters l where l.id = letter for update;
    if not found then
        raise exception using
            errcode = 'P0002',
            message = format('there is no dead letter %s', letter),
            hint = 'It may have been redriven or discarded: stream_dead() lists those that are there.';
    end if;
    select s.* into target from runtime.subscriptions s where s.id = dead.subscription;
    if not found then
        raise exception using
            errcode = 'P0002', message = format('the subscription %L was removed', dead.subscription_name),
            hint = 'Discard the letter, or send its value under a key that has a handler.';
    end if;
    -- A new message, since other subscriptions have handled the old one as it was; its headers name the message it
    -- amends.
    insert into public.consciousness_stream (key, value, agent, priority, correlation_id, parent_id, headers)
    values (
        dead.key, stream_amend.value, left(dead.message ->> 'agent', 255), (dead.message ->> 'priority')::smallint,
        coalesce(left(dead.message ->> 'correlation_id', 255), dead.message_id::text),
        dead.message_id,
        case when jsonb_typeof(dead.message -> 'headers') = 'object' then dead.message -> 'headers' else '{}' end || jsonb_build_object('amends', dead.message_id)
    ) returning id into written;
    -- The insert has fanned out to every subscription; the others have handled the old message.
    delete from runtime.deliveries d where d.message_id = written and d.subscription <> target.id;
    insert into runtime.deliveries (message_id, subscription, priority, marks, sole, heavy, ordered_key)
    values (written, target.id, case when target.ordered then 0 else (dead.message ->> 'priority')::smallint end,
            false, false, true, case when target.ordered then dead.key end)
    on conflict on constraint deliveries_pkey do nothing;
    update runtime.deliveries d set sole = false where d.message_id = written;
    perform runtime.discard(array[letter]);
    perform runtime.wake_sleepers(array[target.id], '{}');
    return json_build_object('id', written, 'letter', letter, 'subscription', target.name);
end
$$;
comment on function public.stream_amend(bigint, jsonb) is
    'Writes a dead letter''s message anew with another value, for its subscription alone, and removes the letter. In '
    'an ordered subscription it comes at the end of its key.';
