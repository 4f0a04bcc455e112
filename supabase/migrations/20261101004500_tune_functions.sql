-- Planner settings, which no function repeats in its own text.

create function runtime.keep_settings() returns void
language plpgsql set search_path = '' as $$
declare
    wanted record;
begin
    for wanted in
        select p.oid::regprocedure as function, s.setting
        from (values
            -- Look-ups by an index, whatever the statistics: a planner that takes a table for empty, as it was when it
            -- was last analysed, would read it whole. A plan for all arguments: planning costs more than most calls.
            ('{amend,answers,approvals,begin_text,cancel,dead,decide,discard,due,exchange,flow,follow,fork,install_realtime,last_good,leave,maintain,page,pause,
               prune,read,redrive,remove,remove_webhook,replay,resume,send,stats,step,steps,subscribe,tools,usage,wait,waits,webhooks,write_texts}', 'stream_',
             '{enable_seqscan,enable_bitmapscan,plan_cache_mode}'),
            ('{answer_waits,backlog,buried,end_overdue_waits,fan_out,first_answer,forget_unsettled,go_on,holding,is_suspended,phase_of,settle_waits,unsettle_held}', '', '{enable_seqscan,enable_bitmapscan,plan_cache_mode}'),
            ('{correlated,tree}', '', '{enable_seqscan,enable_bitmapscan}'),
            -- A summary of blocks (BRIN) and a list of ids are read by a bitmap.
            ('{activity,conversation,trace}', 'stream_', '{enable_seqscan,plan_cache_mode}'),
            ('{handling,id_at,has_older,recent_runs}', '', '{enable_seqscan}'),
            ('{horizon}', 'stream_', '{enable_seqscan,enable_hashjoin,enable_mergejoin}'),
            ('{dead_groups,handling}', 'stream_', '{plan_cache_mode}')
        ) as w (names, prefix, settings)
        cross join unnest(w.names::text[]) as n (name)
        -- Compiling a query takes longer than any of these runs.
        cross join unnest(w.settings::text[] || 'jit'::text) as s (setting)
        join pg_catalog.pg_proc p on p.proname = w.prefix || n.name
            and p.pronamespace in ('public'::regnamespace, 'runtime'::regnamespace)
    loop
        execute format('alter function %s set %s = %s', wanted.function, wanted.setting,
                       case wanted.setting when 'plan_cache_mode' then 'force_generic_plan' else 'off' end);
    end loop;
end
$$;
comment on function runtime.keep_settings() is
    'Gives functions their planner settings, which a function that is replaced has lost.';
