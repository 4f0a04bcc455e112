-- Broadcasts: values that are not stored, for whoever listens just now.

create function public.stream_say(said text) returns json
language plpgsql security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('say what is not stored');
    perform pg_notify('runtime_said', said);
    return 'true'::json;
end
$$;
comment on function public.stream_say(text) is
    'Sends {"said": [...]} to who listens on runtime_said, less than 8,000 bytes; nothing is stored.';
