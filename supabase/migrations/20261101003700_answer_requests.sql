-- Request-reply: the headers of a request name the key for its answers, as reply_to. An answer is a message under that
-- key whose parent is the request, so that it can be traced, and stays when the requester no longer waits. Only keys
-- below "answer." count: the answer bears the name of the answering agent, and a requester must not make that agent
-- write under a key of the requester's choice.

create function runtime.announce_answer(under text, parent bigint) returns void
language plpgsql set search_path = '' as $$
declare
    -- The requesters that this transaction has told: their keys between line feeds.
    told text := coalesce(nullif(current_setting('runtime.answered', true), ''), E'\n');
    ways text[];
begin
    if under !~ '^answer\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' or position(E'\n' || under || E'\n' in told) > 0 then
        return;
    end if;
    if length(told) < 4000 then
        perform set_config('runtime.answered', told || under || E'\n', true);
    end if;
    -- The push paths that reach the requester, from the headers of its request.
    select array(select jsonb_array_elements_text(m.headers -> 'reachable_by')) into ways
    from public.consciousness_stream m
    where m.id = parent and jsonb_typeof(m.headers -> 'reachable_by') = 'array';
    perform runtime.push(substr(under, 8)::uuid, ways, 'answer');
end
$$;
comment on function runtime.announce_answer(text, bigint) is
    'Tells a requester that there is an answer: at most once per transaction and requester.';

create function runtime.answer_dead(ids bigint[], subscriptions integer[], reasons text[], errors text[]) returns void
language plpgsql set search_path = '' as $$
declare
    answers jsonb;
begin
    select jsonb_agg(jsonb_build_object(
        'key', m.headers ->> 'reply_to', 'agent', s.agent, 'parent_id', m.id,
        'correlation_id', coalesce(left(m.correlation_id, 255), m.id::text),
        -- A redrive may still bring the real answer, which has a dedup_key of its own.
        'dedup_key', format('failed %s %s', m.id, s.id),
        'headers', jsonb_build_object('answers', m.id, 'handler', s.name, 'failed', v.reason),
        'value', jsonb_build_object('error', coalesce(v.error, v.reason), 'reason', v.reason)
    ) order by m.id)
    into answers
    from unnest(ids, subscriptions, reasons, errors) as v (id, subscription, reason, error)
    join public.consciousness_stream m on m.id = v.id
    join runtime.subscriptions s on s.id = v.subscription
    where starts_with(m.headers ->> 'reply_to', 'answer.')
      and jsonb_typeof(m.headers -> 'reply_to') = 'string' and runtime.is_key(m.headers ->> 'reply_to')
      -- A replay that dies does not revoke an answer already given.
      and not exists (select from runtime.dedup d where d.dedup_key = format('answer %s %s', m.id, s.id));
    if answers is not null then
        perform runtime.store(answers);
    end if;
end
$$;
comment on function runtime.answer_dead(bigint[], integer[], text[], text[]) is
    'Answers the requests among these dead letters with the error, so that no requester waits for an answer that will '
    'not come.';

create function runtime.addressees(key text) returns integer[]
language plpgsql stable set search_path = '' as $$
begin
    -- The subscriptions to this very key. Only where there are none, those to a matching pattern, which may merely keep
    -- a log.
    return (
        select coalesce(
            array_agg(p.subscription) filter (where p.pattern = addressees.key), array_agg(distinct p.subscription), '{}')
        from unnest(runtime.candidates(addressees.key)) as c (pattern)
        cross join lateral (select * from runtime.patterns l where l.pattern = c.pattern offset 0) p);
end
$$;
comment on function runtime.addressees(text) is 'The subscriptions that are to answer a request under this key.';

create function public.stream_answers(requests bigint[]) returns json
language plpgsql stable security definer set search_path = '' as $$
declare
    caller text := runtime.caller_agent();
begin
    return (
        select coalesce(json_agg(json_build_object(
            'request', q.id, 'reply_to', m.headers ->> 'reply_to', 'listeners', cardinality(a.subscriptions),
            'waiting', (
                select count(*) from runtime.deliveries d
                where d.message_id = m.id and d.subscription = any (a.subscriptions)
                  and d.lease is distinct from runtime.dead_lease()),
            'handled', exists (
                select from runtime.runs r
                where r.message_id = m.id and r.subscription = any (a.subscriptions) and r.outcome = 'done'),
            'answers', (
                select coalesce(json_agg(row_to_json(x) order by x.id), '[]')
                from public.consciousness_stream x
                left join runtime.subscriptions s on s.name = x.headers ->> 'handler'
                where x.parent_id = m.id and x.key = m.headers ->> 'reply_to'
                  -- An answer that no handler gave counts, too.
                  and (s.id is null or s.id = any (a.subscriptions))),
            'seen', (
                select coalesce(json_agg(x.id order by x.id), '[]') from public.consciousness_stream x
                where x.parent_id = m.id and x.key = m.headers ->> 'reply_to')
        ) order by q.id), '[]')
        from (select distinct r as id from unnest(requests) as r) q
        join public.consciousness_stream m on m.id = q.id and (caller is null or m.agent = caller)
        cross join lateral (select runtime.addressees(m.key) as subscriptions) a
    );
end
$$;
comment on function public.stream_answers(bigint[]) is
    'The state of requests [{request, reply_to, listeners, waiting, handled, answers, seen}]: how many subscriptions are '
    'to answer, how many of their deliveries are unfinished, the answers, and the ids of all that was written as an '
    'answer. A request that does not exist is left out.';
