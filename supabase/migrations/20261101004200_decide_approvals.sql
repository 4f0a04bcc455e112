-- Approvals: a handler asks people, and is suspended until one of them decides. The request is a message, and so is the
-- decision; all else follows from waits. The first decision counts, since its dedup_key is made of the request.

-- The caller's own rights and policies hold in here: who sees the request and may write a decision decides. So it calls
-- no function of schema runtime, which are closed to callers.
create function public.stream_decide(
    request bigint, approved boolean, answer jsonb default null, by text default null, why text default null
) returns json
language plpgsql security invoker set search_path = '' set lock_timeout = '5s' as $$
declare
    claims jsonb := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
    decision text := format('decision %s', request);
    requested jsonb;
    conversation text;
    has_decided boolean := false;
begin
    if claims ->> 'role' = 'agent' then
        raise exception using errcode = '42501', message = 'an agent''s identity may not decide';
    end if;
    if approved is null then
        raise exception using errcode = '22023', message = 'approved must be true or false';
    end if;
    select m.value, m.correlation_id into requested, conversation from public.consciousness_stream m
    where m.id = request and m.key = 'approval.requested' and jsonb_typeof(m.value) = 'object';
    if not found then
        raise exception using errcode = '22023', message = format('message %s is no request for approval', request),
            hint = 'Open ones are listed by `runtime approvals list` (in SQL, stream_approvals()).';
    end if;
    if not exists (
        select from public.consciousness_stream m
        where m.parent_id = request and m.key = 'approval.decided' and m.dedup_key = decision
    ) then
        if (requested ->> 'until')::timestamptz <= clock_timestamp() then
            return json_build_object('request', request, 'decided', false, 'expired', true);
        end if;
        begin
            -- Such a dedup_key is for this function alone (runtime.keep_dedup).
            perform set_config('runtime.deciding', decision, true);
            insert into public.consciousness_stream (key, value, parent_id, correlation_id, dedup_key)
            values ('approval.decided', jsonb_build_object(
                'request', request, 'approved', approved, 'answer', answer, 'why', why,
                -- Whom row-level security binds decides in their own name.
                'by', coalesce(
                    case when not row_security_active('public.consciousness_stream') then by end,
                    claims ->> 'email', claims ->> 'sub', session_user::text)),
                request, coalesce(left(conversation, 255), request::text), decision);
            has_decided := true;
        exception when unique_violation then
            -- Somebody else was first.
        end;
        perform set_config('runtime.deciding', '', true);
    end if;
    return json_build_object(
        'request', request, 'decided', has_decided, 'expired', false, 'decision', (
            select jsonb_build_object(
                'id', m.id, 'approved', m.value -> 'approved', 'answer', m.value -> 'answer', 'by', m.value -> 'by',
                'why', m.value -> 'why', 'at', m.created_at)
            from public.consciousness_stream m
            where m.parent_id = request and m.key = 'approval.decided' and m.dedup_key = decision
            order by m.id limit 1));
end
$$;
comment on function public.stream_decide(bigint, boolean, jsonb, text, text) is
    'Decides a request for approval: decided tells whether this was the first decision, which counts; decision is that '
    'one {id, approved, answer, by, why, at}. expired: its time was over. It runs with the rights and under the policies '
    'of its caller. by is the name in the caller''s token, or the database role, unless a caller whom row-level security '
    'does not bind gives another. The answer is not held to the request''s schema here: where it does not fit, the handler '
    'asks again by another request, which says why.';

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
                   r.correlation_id, r.created_at as since, w.until, r.value -> 'refused' as refused
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
    'subscription, message, correlation_id, since, until, refused}]. refused {decision, by, why} is there where a decision was '
    'made already whose answer does not fit.';
