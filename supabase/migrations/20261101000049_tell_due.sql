-- What is due, and when is the next? Asked by whoever wakes agents that sleep, once a call.

create function public.stream_due(subscriptions text[]) returns json
language plpgsql stable security definer set search_path = ''
    set enable_seqscan = off set enable_bitmapscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
begin
    perform runtime.refuse_agent('look at what is due');
    return (
        with mine as materialized (
            select s.id from runtime.subscriptions s
            where s.name = any (stream_due.subscriptions) and s.settled and s.paused_at is null
        )
        select json_build_object(
            -- What waits behind another of its key is not counted: its head is.
            'due',
            (select count(*) from mine join runtime.deliveries d on d.subscription = mine.id where d.visible_at is null)
            + (select count(*) from mine join runtime.deliveries d on d.subscription = mine.id
               where d.visible_at <= clock_timestamp()),
            'next_due_seconds',
            (select extract(epoch from min(d.visible_at) - clock_timestamp())
             from mine join runtime.deliveries d on d.subscription = mine.id
             where d.visible_at > clock_timestamp() and d.visible_at < 'infinity')
        )
    );
end
$$;
comment on function public.stream_due(text[]) is
    'How many deliveries of these subscriptions are due, and in how many seconds the next one comes due; paused ones aside.';
