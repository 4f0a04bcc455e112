-- Statuses: where a long delivery is, in its handler's own words. The last one stays when the delivery has ended.

create table runtime.statuses (
    message_id bigint not null,
    subscription integer not null,
    -- A worker cuts it to 200 characters.
    text text not null check (octet_length(text) <= 1000),
    -- That of the attempt that told it.
    lease uuid not null,
    told_at timestamptz not null default clock_timestamp(),
    primary key (message_id, subscription)
);
comment on table runtime.statuses is
    'The last status that a handler has told of each delivery. It goes with the message, or with the dead letter that '
    'outlives it.';
create index statuses_told on runtime.statuses (told_at);

alter table runtime.statuses enable row level security;

create function public.stream_status(statuses jsonb) returns json
language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
    caller text := case when current_setting('request.jwt.claims', true) <> '' then runtime.caller_agent() end;
    told bigint;
begin
    if caller is not null then
        perform runtime.check_caller(caller, null, null, null, (
            select jsonb_object_agg(t.subscription, 1) from jsonb_to_recordset(statuses) as t (subscription integer)));
    end if;
    -- Nothing depends on it: a crash of the database may lose the last second of them.
    perform set_config('synchronous_commit', 'off', true);
    with status as (
        select distinct on (t.message, t.subscription) t.*
        from jsonb_to_recordset(statuses) as t (message bigint, subscription integer, lease uuid, text text)
        where exists (select from public.consciousness_stream m where m.id = t.message)
          and exists (select from runtime.subscriptions s where s.id = t.subscription)
          -- Told late, by an attempt whose delivery another one has by now.
          and not exists (
              select from runtime.deliveries d
              where d.message_id = t.message and d.subscription = t.subscription
                and d.lease not in (t.lease, runtime.dead_lease()))
        order by t.message, t.subscription
    ), kept as (
        insert into runtime.statuses as k (message_id, subscription, text, lease)
        select s.message, s.subscription, left(s.text, 200), s.lease from status s
        on conflict (message_id, subscription) do update
        set text = excluded.text, lease = excluded.lease, told_at = excluded.told_at
        returning 1
    )
    select count(*) into told from kept;
    return json_build_object('told', told);
end
$$;
comment on function public.stream_status(jsonb) is
    'Keeps where deliveries are, in their handlers'' own words: [{message, subscription, lease, text}]. Those of '
    'attempts whose delivery another one has by now are left out; told counts the others.';

create function runtime.status_of(message bigint, subscription integer) returns json
language sql stable set search_path = '' as $$
    select json_build_object('text', t.text, 'told_at', t.told_at)
    from runtime.statuses t where t.message_id = message and t.subscription = status_of.subscription
$$;
comment on function runtime.status_of(bigint, integer) is
    'The last status of a delivery, and when it was told; null for none.';

create function runtime.statuses_now() returns json
language sql stable set search_path = '' as $$
    select coalesce(json_agg(json_build_object(
        'message', x.message_id, 'subscription', s.name, 'text', x.text,
        'seconds', greatest(0, extract(epoch from clock_timestamp() - x.told_at))) order by x.told_at desc), '[]')
    from (
        select t.* from (select n.* from runtime.statuses n order by n.told_at desc limit 1000) t
        where exists (
            select from runtime.deliveries d
            where d.message_id = t.message_id and d.subscription = t.subscription and d.lease = t.lease)
        order by t.told_at desc limit 10
    ) x
    join runtime.subscriptions s on s.id = x.subscription
$$;
comment on function runtime.statuses_now() is 'The ten last statuses of deliveries that run now, the latest first.';
