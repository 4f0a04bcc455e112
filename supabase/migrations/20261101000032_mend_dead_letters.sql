-- How does a person mend dead letters? By their errors, beside the last good value, and with an edited value.

create function runtime.error_kind(error text, reason text) returns text
language sql immutable set search_path = '' as $$
    -- The first line, without numbers and quoted values: what differs from message to message.
    select left(coalesce(nullif(regexp_replace(regexp_replace(split_part(error, E'\n', 1),
        '''[^'']*''|"[^"]*"', '…', 'g'), '[0-9]+', '#', 'g'), ''), reason), 200)
$$;

create function public.stream_dead_groups(look integer default 5000) returns json
language plpgsql stable security definer set search_path = ''
    set jit = off set plan_cache_mode = force_generic_plan as $$
begin
    perform runtime.refuse_agent('look at all dead letters');
    if look is null or look not between 1 and 100000 then
        raise exception using errcode = '22023', message = 'look must be between 1 and 100000';
    end if;
    return (
        select coalesce(json_agg(json_build_object(
            'subscription', g.subscription_name, 'kind', g.kind, 'count', g.amount, 'first_at', g.first_at,
            'last_at', g.last_at, 'ids', g.ids, 'key', g.key, 'error', g.error) order by g.last_at desc), '[]')
        from (
            select l.subscription_name, l.kind, count(*) as amount, min(l.died_at) as first_at,
                   max(l.died_at) as last_at, (array_agg(l.id order by l.id desc)) as ids, max(l.key) as key,
                   (array_agg(l.error order by l.id desc))[1] as error
            from (
                select x.*, runtime.error_kind(x.error, x.reason) as kind
                from runtime.dead_letters x order by x.id desc limit look
            ) l
            group by 1, 2
        ) g
    );
end
$$;
comment on function public.stream_dead_groups(integer) is
    'The newest dead letters, grouped by subscription and kind of error, with their ids, the newest first.';

create function public.stream_last_good(letter bigint) returns json
language plpgsql stable security definer set search_path = ''
    set enable_seqscan = off set enable_bitmapscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
begin
    perform runtime.refuse_agent('look at all dead letters');
    return (
        -- The nearest before it under its key that this subscription handled well; not sought for ever.
        select json_build_object('id', m.id, 'value', m.value, 'created_at', m.created_at)
        from runtime.dead_letters l
        cross join lateral (
            select x.id, x.value, x.created_at from public.consciousness_stream x
            where x.key = l.key and x.id < l.message_id order by x.key desc, x.id desc limit 1000
        ) m
        where l.id = letter and exists (
            select from runtime.runs r
            where r.message_id = m.id and r.subscription = l.subscription and r.outcome = 'done')
        order by m.id desc limit 1
    );
end
$$;
comment on function public.stream_last_good(bigint) is
    'The last message under the same key, before this dead letter''s, that its subscription handled well; or null.';

create function public.stream_amend(letter bigint, value jsonb) returns json
language plpgsql security definer set search_path = ''
    set enable_seqscan = off set enable_bitmapscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
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
            errcode = 'P0002', message = format('the subscription %L is no more', dead.subscription_name),
            hint = 'Discard the letter, or send its value under a key that somebody handles.';
    end if;
    -- A new message, since others have handled the old one as it was; its headers say whose place it takes.
    insert into public.consciousness_stream (key, value, agent, priority, correlation_id, parent_id, headers)
    values (
        dead.key, stream_amend.value, left(dead.message ->> 'agent', 255), (dead.message ->> 'priority')::smallint,
        coalesce(left(dead.message ->> 'correlation_id', 255), dead.message_id::text),
        dead.message_id,
        case when jsonb_typeof(dead.message -> 'headers') = 'object' then dead.message -> 'headers' else '{}' end || jsonb_build_object('amends', dead.message_id)
    ) returning id into written;
    -- Nobody else is due: whoever else has this key has had the old one.
    delete from runtime.deliveries d where d.message_id = written and d.subscription <> target.id;
    insert into runtime.deliveries (message_id, subscription, priority, marks, sole, heavy, ordered_key)
    values (written, target.id, case when target.ordered then 0 else (dead.message ->> 'priority')::smallint end,
            false, false, true, case when target.ordered then dead.key end)
    on conflict on constraint deliveries_pkey do nothing;
    update runtime.deliveries d set sole = false where d.message_id = written;
    perform public.stream_discard(ids => array[letter]);
    perform runtime.wake_sleepers(array[target.id], '{}');
    return json_build_object('id', written, 'letter', letter, 'subscription', target.name);
end
$$;
comment on function public.stream_amend(bigint, jsonb) is
    'Writes a dead letter''s message anew with another value, for its subscription alone, and removes the letter. In an '
    'ordered subscription it comes at the end of its key.';
