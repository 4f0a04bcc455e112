-- Tracing: what caused a message, how each subscription handled it, and what that caused.

create function runtime.handling(messages bigint[], details boolean default false)
returns table (message_id bigint, handled json)
language sql stable set search_path = '' as $$
    with run as materialized (
        select r.message_id, r.subscription, r.ended_at, r.worker, r.attempt, r.outcome, r.seconds, r.error, r.traceback,
               r.usage
        from runtime.runs r where r.message_id = any (messages)
    ), waiting as materialized (
        select d.message_id, d.subscription, d.visible_at, d.attempts + d.crashes as attempts,
               case when d.lease is not null then d.holder end as holder,
               case
                   when d.visible_at is null then 'waiting'
                   when d.visible_at = 'infinity' and d.lease is null then 'parked'
                   when d.visible_at = 'infinity' then 'blocked'
                   when d.heavy and runtime.is_undoing(d.message_id, d.subscription) then 'undoing'
                   when d.lease is not null then 'running'
                   when d.heavy and runtime.is_suspended(d) then 'suspended'
                   when d.attempts + d.crashes > 0 then 'retrying'
                   else 'scheduled'
               end as state
        from runtime.deliveries d where d.message_id = any (messages)
    ), buried as materialized (
        select l.message_id, l.subscription, max(l.id) as letter
        from runtime.dead_letters l where l.message_id = any (messages) group by 1, 2
    ), pair as (
        select r.message_id, r.subscription from run r
        union select w.message_id, w.subscription from waiting w
        union select b.message_id, b.subscription from buried b
    )
    select p.message_id, json_agg(json_build_object(
        'subscription', coalesce(s.name, '#' || p.subscription),
        'state', coalesce(
            case when w.state = 'blocked' then 'dead' else w.state end,
            case when b.letter is not null then 'dead' end, last.outcome),
        'paused', s.paused_at is not null and w.state in ('waiting', 'scheduled', 'retrying', 'parked', 'suspended', 'undoing'),
        'due_seconds', case when w.state in ('scheduled', 'retrying')
            then extract(epoch from w.visible_at - clock_timestamp()) end,
        'letter', b.letter,
        'status', runtime.status_of(p.message_id, p.subscription),
        'attempts', greatest(w.attempts, last.attempt, 0),
        'seconds', last.seconds,
        -- The attempt that has run the undos may have none.
        'error', coalesce(last.error, (select l.error from runtime.dead_letters l where l.id = b.letter)),
        'ended_at', last.ended_at,
        'worker', case when w.holder is not null and w.state in ('running', 'undoing')
            then (select k.name from runtime.pumps u join runtime.workers k on k.id = u.worker where u.number = w.holder)
            else (select k.name from runtime.workers k where k.id = last.worker) end,
        'runs', case when details then coalesce((
            select json_agg(json_build_object(
                'attempt', r.attempt, 'outcome', r.outcome, 'seconds', r.seconds, 'ended_at', r.ended_at,
                'worker', coalesce((select k.name from runtime.workers k where k.id = r.worker), left(r.worker::text, 8)),
                'error', r.error, 'traceback', r.traceback, 'usage', r.usage) order by r.ended_at)
            from run r where r.message_id = p.message_id and r.subscription = p.subscription), '[]') end,
        'steps', case when details then coalesce((
            select json_agg(json_build_object(
                'name', t.name, 'key', t.key, 'occurrence', t.occurrence,
                'value', case when starts_with(t.name, 'wait.') and jsonb_typeof(t.value) = 'object'
                    then t.value - 'trace' else t.value end,
                'created_at', t.created_at)
                order by t.created_at, t.name)
            from runtime.steps t where t.message_id = p.message_id and t.subscription = p.subscription), '[]') end,
        'waits', case when details then runtime.waits_of(p.message_id, p.subscription) end
    ) order by s.name, p.subscription)
    from pair p
    left join runtime.subscriptions s on s.id = p.subscription
    left join waiting w on w.message_id = p.message_id and w.subscription = p.subscription
    left join buried b on b.message_id = p.message_id and b.subscription = p.subscription
    left join lateral (
        select r.* from run r where r.message_id = p.message_id and r.subscription = p.subscription
        order by r.ended_at desc limit 1
    ) last on true
    group by p.message_id
$$;
comment on function runtime.handling(bigint[], boolean) is
    'Of each message, what became of it at each subscription: the state (waiting, running, scheduled, retrying, '
    'parked, dead, or the outcome of the last attempt), attempts, seconds and error; with details, every attempt and '
    'every step.';

create function runtime.tree(message bigint, max integer)
returns table (id bigint, depth integer, path bigint[])
language plpgsql stable set search_path = '' as $$
declare
    root bigint := message;
    above bigint;
    conversation text;
begin
    -- Up to the first message whose parent is gone or that has none; ids rise from cause to effect, so the loop ends. A
    -- message that names a conversation and no parent, such as a person's decision, goes back to its first message.
    for step in 1..1000 loop
        select p.id into above from public.consciousness_stream m
        join public.consciousness_stream p on p.id = m.parent_id and p.id < m.id
        where m.id = root;
        if above is null then
            select f.id into above from public.consciousness_stream m
            cross join lateral (
                select min(c.id) as id from runtime.correlated(
                    m.correlation_id, '>', 0, 9223372036854775807, '-infinity', 'infinity', 1) c offset 0
            ) f
            where m.id = root and m.correlation_id is not null and f.id < m.id;
        end if;
        exit when above is null;
        root := above;
    end loop;
    conversation := (
        select coalesce(m.correlation_id, m.id::text) from public.consciousness_stream m where m.id = root);
    -- Down level by level, the oldest first; one message may have caused a million.
    return query
    with recursive down as (
        select root as id, 0 as depth, array[root] as path
        union all
        (select m.id, d.depth + 1, d.path || m.id
         from down d cross join lateral (
            (select c.id from public.consciousness_stream c
             where c.parent_id = d.id and c.id > d.id order by c.parent_id, c.id limit max)
            union all
            -- What was written into the conversation without a parent.
            select o.id from (
                select l.id, l.parent_id from public.consciousness_stream l
                where d.depth = 0 and l.correlation_id = conversation
                  and l.correlation_id is distinct from l.parent_id::text and l.id > d.id
                order by l.correlation_id, l.id limit 10 * max
            ) o where o.parent_id is null
         ) m where d.depth < 200)
    )
    select d.id, d.depth, d.path from down d limit max;
end
$$;
comment on function runtime.tree(bigint, integer) is
    'The messages that go back to the same first message as this one, at most max, level by level.';

create function public.stream_trace(message bigint, max integer default 200) returns json
language plpgsql stable security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('trace messages');
    perform runtime.check_between('max', max, 1, 2000);
    return (
        with tree as materialized (
            select t.* from runtime.tree(stream_trace.message, max + 1) t
        ), shown as materialized (
            -- The message asked for is shown in any case.
            (select t.* from tree t order by t.depth, t.id limit max)
            union
            select stream_trace.message, 0, array[stream_trace.message]
            where not exists (select from tree t where t.id = stream_trace.message)
        )
        select json_build_object(
            'message', stream_trace.message,
            'more', (select count(*) > max from tree),
            'messages', coalesce((
                select json_agg(json_build_object(
                    'id', m.id, 'key', m.key, 'value', m.value, 'agent', m.agent, 'processed', m.processed,
                    'created_at', m.created_at, 'deliver_at', m.deliver_at, 'expires_at', m.expires_at,
                    'priority', m.priority, 'dedup_key', m.dedup_key, 'correlation_id', m.correlation_id,
                    'parent_id', m.parent_id, 'headers', m.headers, 'depth', s.depth,
                    'handled', coalesce(h.handled, '[]')) order by s.path)
                from shown s
                join public.consciousness_stream m on m.id = s.id
                left join runtime.handling(array(select x.id from shown x), true) h on h.message_id = s.id), '[]')
        )
    );
end
$$;
comment on function public.stream_trace(bigint, integer) is
    'One message''s whole story: every message of its tree, from the first cause down, each with its depth and, under '
    'handled, its state at each subscription with every attempt. more: the tree has more than max messages.';

create function runtime.spent(runs jsonb) returns json
language sql immutable set search_path = '' as $$
    -- A worker in another language may have reported anything.
    select json_build_object(
        'tokens_in', coalesce(sum((u.usage ->> 'tokens_in')::numeric)
            filter (where jsonb_typeof(u.usage -> 'tokens_in') = 'number'), 0),
        'tokens_out', coalesce(sum((u.usage ->> 'tokens_out')::numeric)
            filter (where jsonb_typeof(u.usage -> 'tokens_out') = 'number'), 0),
        'cost', coalesce(sum((u.usage ->> 'cost')::numeric) filter (where jsonb_typeof(u.usage -> 'cost') = 'number'), 0),
        'models', coalesce(json_agg(distinct u.usage ->> 'model') filter (where u.usage ->> 'model' <> ''), '[]'))
    from jsonb_array_elements(runs) as u (usage)
$$;
comment on function runtime.spent(jsonb) is 'The sums of what attempts told of the models they used.';

create function public.stream_conversation(correlation text, after bigint default 0, max integer default 200) returns json
language plpgsql stable security definer set search_path = '' as $$
declare
    counted bigint[];
    shown bigint[];
begin
    perform runtime.refuse_agent('look at the whole stream');
    perform runtime.check_between('max', max, 1, 1000);
    counted := array(
        select c.id from runtime.correlated(
            correlation, '>', 0, 9223372036854775807, '-infinity', 'infinity', 5000) c order by c.id);
    shown := array(
        select c.id from runtime.correlated(
            correlation, '>', after, 9223372036854775807, '-infinity', 'infinity', max + 1) c order by c.id);
    return json_build_object(
        'correlation', correlation,
        'next', case when cardinality(shown) > max then shown[max] end,
        'totals', (
            select json_build_object(
                'messages', cardinality(counted), 'is_cut', cardinality(counted) >= 5000,
                'began_at', min(m.created_at), 'ended_at', greatest(max(m.created_at), max(r.ended_at)),
                'attempts', coalesce(sum(r.attempts), 0), 'failed', coalesce(sum(r.failed), 0),
                'open', (select count(*) from unnest(counted) as c (id) cross join lateral (
                    select from runtime.deliveries d where d.message_id = c.id
                      and not (d.visible_at is not distinct from 'infinity' and d.lease is not null) offset 0) o),
                'spent', runtime.spent(coalesce(jsonb_path_query_array(jsonb_agg(r.usage), '$[*][*] ? (@ != null)'), '[]')))
            from unnest(counted) as c (id)
            join public.consciousness_stream m on m.id = c.id
            left join lateral (
                select max(e.ended_at) as ended_at, count(*) as attempts,
                       count(*) filter (where e.outcome in ('failed', 'dead', 'crashed')) as failed,
                       jsonb_agg(e.usage) filter (where e.usage is not null) as usage
                from runtime.runs e where e.message_id = c.id
            ) r on true),
        'messages', coalesce((
            select json_agg(json_build_object(
                'id', m.id, 'key', m.key, 'agent', m.agent, 'created_at', m.created_at, 'deliver_at', m.deliver_at,
                'correlation_id', m.correlation_id, 'parent_id', m.parent_id, 'headers', m.headers,
                -- A page of large values would take megabytes; the message's own page shows them whole.
                'value', case when pg_column_size(m.value) <= 32000 then m.value end,
                'large', case when pg_column_size(m.value) > 32000 then pg_column_size(m.value) end,
                'handled', coalesce(h.handled, '[]')) order by m.id)
            from public.consciousness_stream m
            left join runtime.handling(shown[1:max], true) h on h.message_id = m.id
            where m.id = any (shown[1:max])), '[]'));
end
$$;
comment on function public.stream_conversation(text, bigint, integer) is
    'The messages that share a correlation_id, or go back to the message of that id, with every attempt, in the order of '
    'their ids; next: go on with after := next. totals are of the whole conversation, up to 5,000 messages of it: what '
    'handlers told of the models they used is under spent.';

create function public.stream_handling(ids bigint[]) returns json
language plpgsql stable security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('look at the whole stream');
    return (select coalesce(json_object_agg(h.message_id, h.handled), '{}') from runtime.handling(ids) h);
end
$$;
comment on function public.stream_handling(bigint[]) is
    'The state of each of these messages at every subscription, by id.';
