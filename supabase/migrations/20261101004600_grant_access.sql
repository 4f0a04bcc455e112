-- Who may touch what: service_role runs workers; nobody else sees anything, or calls anything but stream_decide and
-- stream_follow.
-- A hosted project opens every new function of schema public to anon and authenticated, and a function that is replaced
-- loses its planner settings: so each later migration ends, as this one does, with `select runtime.finish_migration();`.

create function runtime.finish_migration() returns void
language plpgsql set search_path = '' as $$
declare
    has_api boolean := exists (select from pg_catalog.pg_roles r where r.rolname = 'anon');
    has_service boolean := exists (select from pg_catalog.pg_roles r where r.rolname = 'service_role');
    t regclass;
    f regprocedure;
begin
    perform runtime.keep_settings();
    for t in
        select c.oid::regclass from pg_catalog.pg_class c
        where c.relnamespace = 'runtime'::regnamespace and c.relkind = 'r' and not c.relrowsecurity
    loop
        execute format('alter table %s enable row level security', t);
    end loop;
    for f in
        select p.oid::regprocedure from pg_catalog.pg_proc p
        where (p.pronamespace = 'public'::regnamespace and p.proname like 'stream\_%')
           or p.pronamespace = 'runtime'::regnamespace
    loop
        execute format('revoke execute on function %s from public', f);
        if has_api then
            execute format('revoke execute on function %s from anon, authenticated', f);
        end if;
        if has_service then
            -- No function of schema runtime, whatever a default has granted.
            execute format(
                case when f::text like 'public.%' then 'grant execute on function %s to service_role'
                     else 'revoke execute on function %s from service_role' end, f);
        end if;
    end loop;
    if has_api then
        -- They run under the policies of their caller, and there is none until somebody makes one.
        grant execute on function public.stream_decide(bigint, boolean, jsonb, text, text) to authenticated;
        grant execute on function public.stream_follow(bigint, text, integer, integer, text) to authenticated;
    end if;
end
$$;
comment on function runtime.finish_migration() is
    'Ends every migration: gives functions their planner settings, tables their row level security, and closes every '
    'function but stream_decide and stream_follow to all but service_role, which may call the public ones.';

do $$
begin
    if exists (select from pg_roles where rolname = 'service_role') then
        grant select on
            runtime.subscriptions, runtime.pins, runtime.patterns, runtime.routing, runtime.routes, runtime.deliveries,
            runtime.runs, runtime.steps, runtime.statuses, runtime.waits, runtime.unsettled_waits, runtime.dead_letters,
            runtime.dedup, runtime.unmarked, runtime.usage, runtime.holds, runtime.spent_prefixes,
            runtime.workers, runtime.pumps, runtime.calls,
            runtime.beats, runtime.policy
        to service_role;
    end if;
end
$$;

select runtime.finish_migration();
