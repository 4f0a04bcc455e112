-- Texts: what handlers write piece by piece, such as the tokens of a model. Whoever may read a message may read its texts.

create table public.stream_texts (
    message_id bigint not null,
    name text collate "C" not null constraint name_has_at_most_255_bytes check (octet_length(name) between 1 and 255),
    subscription integer not null,
    handler text not null,
    -- Counted from 1: an attempt that writes the text again begins it anew.
    beginning integer not null default 1,
    attempt integer not null,
    -- That of the attempt that writes it.
    lease uuid not null,
    -- closed: it is whole. suspended: its handler waits, and goes on. broken: its attempt failed within it.
    state text not null default 'open' check (state in ('open', 'suspended', 'closed', 'broken')),
    length integer not null default 0,
    opened_at timestamptz not null default clock_timestamp(),
    primary key (message_id, name, subscription)
) with (fillfactor = 50);
comment on table public.stream_texts is
    'The texts that handlers write piece by piece, each with how far it has come, in characters. They go with the message.';

create table public.stream_text_parts (
    message_id bigint not null,
    name text collate "C" not null,
    subscription integer not null,
    -- Its place in the text, in characters.
    start integer not null,
    text text not null,
    primary key (message_id, name, subscription, start)
);
comment on table public.stream_text_parts is 'The parts of texts: those of the last beginning, about one for each second.';

alter table public.stream_texts enable row level security;
alter table public.stream_text_parts enable row level security;
-- The caller's own policies on the stream hold within these.
create policy "who reads a message reads its texts" on public.stream_texts for select
    using (exists (select from public.consciousness_stream m where m.id = message_id));
create policy "who reads a message reads its texts" on public.stream_text_parts for select
    using (exists (select from public.consciousness_stream m where m.id = message_id));
do $$
begin
    -- Supabase grants everything on every new table of schema public to its API roles.
    if exists (select from pg_roles where rolname = 'anon') then
        revoke all on public.stream_texts, public.stream_text_parts from anon, authenticated;
        grant select (message_id, name, subscription, handler, beginning, state, length, opened_at)
            on public.stream_texts to authenticated;
        grant select on public.stream_text_parts to authenticated;
    end if;
    if exists (select from pg_roles where rolname = 'service_role') then
        revoke all on public.stream_texts, public.stream_text_parts from service_role;
        grant select on public.stream_texts, public.stream_text_parts to service_role;
    end if;
end
$$;

create function public.stream_begin_text(
    message bigint, subscription integer, lease uuid, name text, attempt integer
) returns json
language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
    caller text := case when current_setting('request.jwt.claims', true) <> '' then runtime.caller_agent() end;
    t public.stream_texts;
begin
    if caller is not null then
        perform runtime.check_caller(caller, null, null, null, jsonb_build_object(subscription, 1));
    end if;
    -- Until the commit, so that two leases of one delivery begin one after the other.
    perform from runtime.deliveries d
    where d.message_id = message and d.subscription = stream_begin_text.subscription
      and d.lease = stream_begin_text.lease
    for no key update;
    if not found then
        return json_build_object('held', false);
    end if;
    -- A late write of an earlier attempt has ended when this lock is granted, and finds another lease afterwards.
    select x.* into t from public.stream_texts x
    where x.message_id = message and x.name = stream_begin_text.name
      and x.subscription = stream_begin_text.subscription
    for update;
    if not found then
        insert into public.stream_texts (message_id, name, subscription, handler, attempt, lease)
        select message, stream_begin_text.name, s.id, s.name, stream_begin_text.attempt, stream_begin_text.lease
        from runtime.subscriptions s where s.id = stream_begin_text.subscription;
        return json_build_object('held', true, 'beginning', 1, 'text', null);
    end if;
    if t.lease <> lease and t.attempt = attempt and t.state in ('suspended', 'closed') then
        -- The same attempt runs from its top again after a wait: what it writes once more is compared with this text.
        update public.stream_texts x set lease = stream_begin_text.lease, state = 'open'
        where x.message_id = message and x.name = t.name and x.subscription = t.subscription;
        return json_build_object('held', true, 'beginning', t.beginning, 'text', (
            select coalesce(string_agg(p.text, '' order by p.start), '') from public.stream_text_parts p
            where p.message_id = message and p.name = t.name and p.subscription = t.subscription));
    end if;
    delete from public.stream_text_parts p
    where p.message_id = message and p.name = t.name and p.subscription = t.subscription;
    update public.stream_texts x
    set beginning = x.beginning + 1, attempt = stream_begin_text.attempt, lease = stream_begin_text.lease,
        state = 'open', length = 0
    where x.message_id = message and x.name = t.name and x.subscription = t.subscription;
    return json_build_object('held', true, 'beginning', t.beginning + 1, 'text', null);
end
$$;
comment on function public.stream_begin_text(bigint, integer, uuid, text, integer) is
    'Begins a text of a delivery, by its current lease: held tells whether that was so, beginning how often it was begun. '
    'Where the same attempt runs again after a wait, it is not begun anew: text is what stands there.';

create function public.stream_write_texts(texts jsonb) returns json
language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
    caller text := case when current_setting('request.jwt.claims', true) <> '' then runtime.caller_agent() end;
    kept bigint[];
begin
    if caller is not null then
        perform runtime.check_caller(caller, null, null, null, (
            select jsonb_object_agg(t.subscription, 1) from jsonb_to_recordset(texts) as t (subscription integer)));
    end if;
    with given as materialized (
        select e.n, (e.piece ->> 'message')::bigint as message_id, e.piece ->> 'name' as name,
               (e.piece ->> 'subscription')::integer as subscription, (e.piece ->> 'lease')::uuid as lease,
               (e.piece ->> 'beginning')::integer as beginning, (e.piece ->> 'start')::integer as start,
               e.piece ->> 'text' as text, coalesce(e.piece ->> 'state', 'open') as state
        from jsonb_array_elements(texts) with ordinality as e (piece, n)
    ), held as materialized (
        select g.n, t.length from given g
        join public.stream_texts t
            on t.message_id = g.message_id and t.name = g.name and t.subscription = g.subscription
            and t.lease = g.lease and t.beginning = g.beginning
            -- What was written already, and not answered.
            and ((t.state = 'open' and t.length in (g.start, g.start + length(g.text)))
                 or (t.state = g.state and t.length = g.start + length(g.text)))
        -- Written late, by an attempt whose delivery another one has by now.
        where not exists (
            select from runtime.deliveries d
            where d.message_id = g.message_id and d.subscription = g.subscription
              and d.lease not in (g.lease, runtime.dead_lease()))
        order by t.message_id, t.name, t.subscription
        for update of t
    ), stored as (
        insert into public.stream_text_parts (message_id, name, subscription, start, text)
        select g.message_id, g.name, g.subscription, g.start, g.text
        from held h join given g on g.n = h.n
        where g.text <> '' and h.length = g.start
        on conflict on constraint stream_text_parts_pkey do nothing
    ), moved as (
        update public.stream_texts t set length = g.start + length(g.text), state = g.state
        from held h join given g on g.n = h.n
        where t.message_id = g.message_id and t.name = g.name and t.subscription = g.subscription
    )
    select array_agg(h.n) into kept from held h;
    return json_build_object(
        'kept', (select coalesce(json_agg(e.n = any (coalesce(kept, '{}')) order by e.n), '[]')
                 from jsonb_array_elements(texts) with ordinality as e (piece, n)),
        'workers', (select count(*) from runtime.workers w where w.seen_at > (select runtime.alive_since())));
end
$$;
comment on function public.stream_write_texts(jsonb) is
    'Writes texts on, each by the lease that has begun it: [{message, subscription, lease, name, beginning, start, text, '
    'state}], where start is how long the text is so far, and state ends it. kept tells of each whether it was written, '
    'workers how many workers there are.';

-- The caller's own rights and policies hold in here, as in stream_decide. So it calls no function of schema runtime.
create function public.stream_follow(
    message bigint, name text, since integer default 0, beginning integer default null, handler text default null
) returns json
language plpgsql stable security invoker set search_path = '' as $$
declare
    t record;
    first integer;
    found_text text;
    is_over boolean;
begin
    if nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role' = 'agent' then
        raise exception using errcode = '42501', message = 'an agent''s identity may not follow texts';
    end if;
    select x.subscription, x.handler, x.beginning, x.state into t
    from public.stream_texts x
    where x.message_id = message and x.name = stream_follow.name
      and (stream_follow.handler is null or x.handler = stream_follow.handler)
    order by x.opened_at, x.subscription limit 1;
    first := case when beginning = t.beginning or beginning is null then greatest(coalesce(since, 0), 0) else 0 end;
    select substr(string_agg(p.text, '' order by p.start), first - min(p.start) + 1) into found_text
    from public.stream_text_parts p
    where p.message_id = message and p.name = stream_follow.name and p.subscription = t.subscription
      and p.start >= coalesce((
          select max(q.start) from public.stream_text_parts q
          where q.message_id = message and q.name = stream_follow.name and q.subscription = t.subscription
            and q.start <= first), 0);
    -- Only the runtime's own role sees deliveries.
    if has_schema_privilege('runtime', 'usage') then
        is_over := not exists (
            select from runtime.deliveries d
            where d.message_id = message and (t.subscription is null or d.subscription = t.subscription)
              and d.lease is distinct from '00000000-0000-0000-0000-000000000000'::uuid);
    end if;
    return json_build_object(
        'handler', t.handler, 'beginning', coalesce(t.beginning, 0), 'offset', first, 'text', coalesce(found_text, ''),
        'state', t.state, 'over', is_over);
end
$$;
comment on function public.stream_follow(bigint, text, integer, integer, text) is
    'A text of a message from the character since on: {handler, beginning, offset, text, state, over}. Where beginning is '
    'another one than the text''s, it was begun anew, and comes from its first character on. state is open, suspended, '
    'closed (it is whole), broken, or null where nobody has begun it; over: its message is in no handler''s hand any more, '
    'null for callers who may not know. It runs with the rights and under the policies of its caller.';
