-- Approvals: a handler asks people, and is suspended until one of them decides. The request is a message, and so is the
-- decision; all else follows from waits. The first decision counts, since its dedup_key is made of the request.

create function runtime.decision_of(request bigint) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'id', m.id, 'approved', m.value -> 'approved', 'answer', m.value -> 'answer', 'by', m.value -> 'by',
        'why', m.value -> 'why', 'at', m.created_at)
    from public.consciousness_stream m
    where m.parent_id = request and m.key = 'approval.decided' and m.dedup_key = format('decision %s', request)
    order by m.id limit 1
$$;
comment on function runtime.decision_of(bigint) is 'The decision about a request for approval; null while there is none.';

create function public.stream_decide(
    request bigint, approved boolean, answer jsonb default null, by text default null, why text default null
) returns json
language plpgsql security definer set search_path = '' set lock_timeout = '5s' as $$
declare
    claims jsonb := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
    asked public.consciousness_stream;
    earlier jsonb;
    sent jsonb;
begin
    perform runtime.refuse_agent('decide');
    if approved is null then
        raise exception using errcode = '22023', message = 'approved must be true or false';
    end if;
    select * into asked from public.consciousness_stream m
    where m.id = request and m.key = 'approval.requested' and jsonb_typeof(m.value) = 'object';
    if not found then
        raise exception using errcode = '22023', message = format('message %s is no request for approval', request),
            hint = 'Open ones are listed by `runtime approvals list` (in SQL, stream_approvals()).';
    end if;
    earlier := runtime.decision_of(request);
    if earlier is null and (asked.value ->> 'until')::timestamptz <= clock_timestamp() then
        return json_build_object('request', request, 'decided', false, 'expired', true);
    end if;
    if earlier is null then
        sent := runtime.store(jsonb_build_array(jsonb_build_object(
            'key', 'approval.decided', 'parent_id', request,
            'correlation_id', coalesce(left(asked.correlation_id, 255), request::text),
            'dedup_key', format('decision %s', request),
            'value', jsonb_build_object(
                'request', request, 'approved', approved, 'answer', answer, 'why', why,
                'by', coalesce(by, claims ->> 'email', claims ->> 'sub', session_user::text)))))::jsonb;
        earlier := runtime.decision_of(request);
    end if;
    return json_build_object(
        'request', request, 'decided', sent is not null and not coalesce((sent -> 0 ->> 'duplicate')::boolean, false),
        'expired', false, 'decision', earlier);
end
$$;
comment on function public.stream_decide(bigint, boolean, jsonb, text, text) is
    'Decides a request for approval: decided tells whether this was the first decision, which counts; decision is that '
    'one {id, approved, answer, by, why, at}. expired: its time was over. by is the name in the caller''s token, or the '
    'database role, unless it is given.';

create function runtime.open_approvals() returns bigint
language sql stable set search_path = '' as $$
    select count(distinct r.id)
    from runtime.waits w
    cross join lateral (
        select m.id from public.consciousness_stream m
        where m.id = (w.filter ->> 'request')::bigint and m.key = 'approval.requested' offset 0
    ) r
    where w.pattern = 'approval.decided' and jsonb_typeof(w.filter -> 'request') = 'number'
$$;
comment on function runtime.open_approvals() is 'How many requests for approval nobody has decided yet.';

create function public.stream_approvals(max integer default 100) returns json
language plpgsql stable security definer set search_path = '' as $$
declare
    caller text := runtime.caller_agent();
begin
    perform runtime.check_between('max', max, 1, 10000);
    return (
        select coalesce(json_agg(row_to_json(x)), '[]') from (
            select r.id as request, r.value ->> 'title' as title, r.value -> 'details' as details,
                   r.value -> 'schema' as schema, s.name as subscription, w.message_id as message,
                   r.correlation_id, r.created_at as since, w.until
            from runtime.waits w
            join runtime.subscriptions s on s.id = w.subscription
            cross join lateral (
                select * from public.consciousness_stream m
                where m.id = (w.filter ->> 'request')::bigint and m.key = 'approval.requested' offset 0
            ) r
            where w.pattern = 'approval.decided' and jsonb_typeof(w.filter -> 'request') = 'number'
              -- Who else waits for the decision, to remind people of it for example, has not asked.
              and r.parent_id = w.message_id
              and (caller is null or s.agent = caller)
            order by r.id limit max
        ) x);
end
$$;
comment on function public.stream_approvals(integer) is
    'The requests for approval that nobody has decided yet, the oldest first: [{request, title, details, schema, '
    'subscription, message, correlation_id, since, until}].';
