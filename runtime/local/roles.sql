-- The roles of a Supabase database, and what they may do. They belong to the cluster, so this may run often.

do $$
declare
    wanted record;
begin
    for wanted in
        select * from (values
            ('anon', 'nologin noinherit'),
            ('authenticated', 'nologin noinherit'),
            ('service_role', 'nologin noinherit bypassrls'),
            ('authenticator', 'login noinherit'),
            ('postgres', 'login createdb createrole replication bypassrls'),
            ('supabase_realtime_admin', 'nologin noinherit'),
            ('supabase_auth_admin', 'login noinherit createrole')
        ) as t (name, options)
    loop
        if not exists (select from pg_roles r where r.rolname = wanted.name) then
            execute format('create role %I %s', wanted.name, wanted.options);
            if wanted.options like 'login%' then
                -- The password that everyone knows: the CLI's.
                execute format('alter role %I password %L', wanted.name, 'postgres');
            end if;
        end if;
    end loop;
end
$$;

grant anon, authenticated, service_role to authenticator;
grant anon, authenticated, service_role, supabase_realtime_admin to postgres with admin option;
