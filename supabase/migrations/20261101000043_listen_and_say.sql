-- For who listens and keeps nothing. What is said and not stored, where there is no Realtime: one notification.

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

-- Ids are drawn before their transactions commit. Up to where is every one of them decided?

create function public.stream_horizon(look integer default 0) returns json
language plpgsql security definer set search_path = ''
    set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
    -- Every id up to this one has been drawn, by transactions below the xid that is assigned after it.
    drawn bigint := (select case when s.is_called then s.last_value else 0 end from public.consciousness_stream_id_seq s);
    xid xid8 := pg_current_xact_id();
    earliest bigint := greatest(1, drawn - look + 1);
begin
    perform runtime.refuse_agent('listen to the whole stream');
    return json_build_object(
        'drawn', drawn,
        'xid', xid::text::bigint,
        'xmin', pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
        -- Below the first of the last ids that is not there: it may come yet, or was rolled back.
        'floor', coalesce((
            select n.id - 1 from generate_series(earliest, drawn) as n (id)
            where not exists (select from public.consciousness_stream m where m.id = n.id)
            order by n.id limit 1), drawn)
    );
end
$$;
comment on function public.stream_horizon(integer) is
    'The highest id that was drawn, an xid above those that drew it, the lowest xid that is still open, and the id '
    'below the first gap among the last so many. Once xmin has passed an earlier xid, its ids are all decided.';
