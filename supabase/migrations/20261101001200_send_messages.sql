-- Sending: a batch of messages in one call.

create function runtime.store(messages jsonb) returns json
language plpgsql set search_path = '' as $$
declare
    winners jsonb := messages;
    places bigint[];
    reserved text[];
    ids bigint[];
begin
    if messages @? '$[*].dedup_key ? (@ != null)' then
        reserved := runtime.reserve(messages);
        select coalesce(jsonb_agg(w.value order by w.place), '[]'), array_agg(w.place order by w.place)
        into winners, places
        from (
            select m.value, m.place, m.value ->> 'dedup_key' as dedup_key,
                   row_number() over (partition by m.value ->> 'dedup_key' order by m.place) = 1 as is_first
            from jsonb_array_elements(messages) with ordinality as m (value, place)
        ) w
        where w.dedup_key is null or (w.is_first and w.dedup_key = any (reserved));
    end if;

    with stored as (
        insert into public.consciousness_stream
            (key, value, agent, deliver_at, expires_at, priority, dedup_key, correlation_id, parent_id, headers)
        -- In the order of the array, in which they are read. A missing key becomes '', which check_key refuses in its
        -- words.
        select coalesce(w.key, ''), w.value, w.agent,
               coalesce(clock_timestamp() + make_interval(secs => w.delay), w.deliver_at),
               coalesce(clock_timestamp() + make_interval(secs => w.expires_in), w.expires_at),
               coalesce(w.priority, 0), w.dedup_key, w.correlation_id, w.parent_id, w.headers
        from jsonb_to_recordset(winners) as w (
            key text, value jsonb, agent text, delay double precision, deliver_at timestamptz,
            expires_in double precision, expires_at timestamptz, priority smallint, dedup_key text,
            correlation_id text, parent_id bigint, headers jsonb
        )
        returning id
    )
    select array_agg(s.id order by s.id) into ids from stored s;

    if reserved is null then
        return (select coalesce(json_agg(s), '[]') from (select i as id, false as duplicate from unnest(ids) as i) s);
    end if;
    return (
        select coalesce(json_agg(
            json_build_object(
                'id', coalesce(mine.id, (select d.message_id from runtime.dedup d where d.dedup_key = m.value ->> 'dedup_key')),
                'duplicate', mine.id is null
            ) order by m.place), '[]')
        from jsonb_array_elements(messages) with ordinality as m (value, place)
        left join unnest(ids, places) as mine (id, place) on mine.place = m.place
    );
end
$$;
comment on function runtime.store(jsonb) is
    'Inserts a batch in its order; returns of each message its id and whether it was a duplicate.';

create function public.stream_send(messages jsonb, require_listener boolean default false) returns json
language plpgsql security definer set search_path = '' as $$
declare
    caller text := runtime.caller_agent();
    sent json;
    unheard text[];
begin
    if jsonb_typeof(messages) = 'object' then
        messages := jsonb_build_array(messages);
    end if;
    if jsonb_typeof(messages) is distinct from 'array' then
        raise exception using
            errcode = '22023',
            message = 'messages must be an array of objects with a key and a value',
            hint = 'For example [{"key": "task.output", "value": {"title": "Hello"}}].';
    end if;
    if caller is not null then
        messages := (select coalesce(jsonb_agg(m || jsonb_build_object('agent', caller)), '[]')
                     from jsonb_array_elements(messages) as m);
    end if;
    if messages @? '$[*].dedup_key ? (@ != null)' then
        -- Requests and incoming webhooks are sent by this function; an agent's webhooks carry its own name as their
        -- source.
        perform runtime.refuse_reserved(min(m ->> 'dedup_key')) from jsonb_array_elements(messages) as m
        where runtime.is_reserved(m ->> 'dedup_key') and not starts_with(m ->> 'dedup_key', 'ask ')
          and not starts_with(m ->> 'dedup_key', concat('webhook ', caller || ' '));
    end if;
    -- An earlier call in this transaction may have noted some.
    if current_setting('runtime.unheard', true) <> '' then
        perform set_config('runtime.unheard', '', true);
    end if;
    sent := runtime.store(messages);
    if current_setting('runtime.unheard', true) <> '' then
        unheard := runtime.unheard();
    end if;
    if unheard is null then
        return sent;
    elsif require_listener then
        raise exception using
            errcode = 'RT001',
            message = format('no handler listens to %s, and the message requires one', array_to_string(unheard, ', '));
    end if;
    return (
        select json_agg(case
            when m.value ->> 'key' = any (unheard) and not (s.value ->> 'duplicate')::boolean
            then json_build_object('id', s.value -> 'id', 'duplicate', false, 'unheard', true)
            else s.value end order by s.place)
        from json_array_elements(sent) with ordinality as s (value, place)
        join jsonb_array_elements(messages) with ordinality as m (value, place) on m.place = s.place);
end
$$;
comment on function public.stream_send(jsonb, boolean) is
    'Inserts messages [{key, value, agent?, delay?, deliver_at?, expires_in?, expires_at?, priority?, dedup_key?, '
    'correlation_id?, parent_id?, headers?}]; times as seconds from now or as timestamps. Returns [{id, duplicate, '
    'unheard?}], unheard where no handler listens to the key; with require_listener such messages are refused (RT001).';
