-- service_role runs workers; nobody else may call anything. A hosted project opens every new function of schema public to
-- anon and authenticated: so each later migration ends, as this one does, with `select runtime.keep_grants();`.

create function runtime.keep_grants() returns void
language plpgsql set search_path = '' as $$
declare
    has_api boolean := exists (select from pg_catalog.pg_roles r where r.rolname = 'anon');
    has_service boolean := exists (select from pg_catalog.pg_roles r where r.rolname = 'service_role');
    f regprocedure;
begin
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
            -- Nothing of schema runtime, whatever a default has granted.
            execute format(
                case when f::text like 'public.%' then 'grant execute on function %s to service_role'
                     else 'revoke execute on function %s from service_role' end, f);
        end if;
    end loop;
end
$$;
comment on function runtime.keep_grants() is
    'Closes every function to all but service_role, which may call the public ones. Every migration ends with it.';

select runtime.keep_grants();
