-- service_role runs workers; nobody else may call anything. Kept last, so that it speaks of every function.

do $$
declare
    f regprocedure;
begin
    for f in
        select p.oid::regprocedure from pg_proc p
        where (p.pronamespace = 'public'::regnamespace and p.proname like 'stream\_%')
           or p.pronamespace = 'runtime'::regnamespace
    loop
        execute format('revoke execute on function %s from public', f);
        if exists (select from pg_roles where rolname = 'anon') then
            execute format('revoke execute on function %s from anon, authenticated', f);
        end if;
        if f::text ~ '^(public\.)?stream_' and exists (select from pg_roles where rolname = 'service_role') then
            execute format('grant execute on function %s to service_role', f);
        end if;
    end loop;
end
$$;
