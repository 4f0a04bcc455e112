-- What is said and not stored, where there is no Realtime: one notification for all who listen.

create function public.stream_say(said text) returns json
language plpgsql security definer set search_path = '' as $$
begin
    perform pg_notify('runtime_said', said);
    return 'true';
end
$$;
comment on function public.stream_say(text) is
    'Sends {"said": [...]} to who listens on runtime_said, less than 8,000 bytes; nothing is stored.';
