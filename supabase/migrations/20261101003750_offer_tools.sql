-- Tools: the handlers that language models may call, as their agents declared them. A call is a request.

create function public.stream_tools() returns json
language plpgsql stable security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('look at the tools');
    return (
        select coalesce(json_agg(json_build_object(
            'subscription', s.name, 'tool', s.tool, 'paused', s.paused_at is not null,
            'workers', runtime.workers_of(s.id)) order by s.name), '[]')
        from runtime.subscriptions s where s.tool is not null);
end
$$;
comment on function public.stream_tools() is
    'The handlers that are tools of language models: [{subscription, tool, paused, workers}], by the subscription''s name. '
    'tool {name, key, description, input, output} is as its agent declared it: a call asks under the key, and input and '
    'output are JSON schemas, null for any value.';
