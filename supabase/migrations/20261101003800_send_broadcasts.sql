-- Broadcasts: values that are not stored, for processes that listen at that moment.

create function public.stream_broadcast(payload text) returns json
language plpgsql security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('broadcast');
    perform pg_notify('runtime_broadcast', payload);
    return 'true'::json;
end
$$;
comment on function public.stream_broadcast(text) is
    'Notifies the channel runtime_broadcast of {"broadcasts": [...]}, less than 8,000 bytes; stores nothing.';
