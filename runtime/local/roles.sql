-- The part of a Supabase database that is shared by a whole cluster: its roles. Applied at every start, so each
-- statement does nothing when there is nothing to do, and a role that exists keeps its attributes.

do $$
declare
    wanted record;
begin
    for wanted in
        select * from (values
            ('supabase_admin', 'superuser createdb createrole replication bypassrls',
                'search_path to "$user", public, auth, extensions'),
            ('postgres', 'login createdb createrole replication bypassrls',
                'search_path to "$user", public, extensions'),
            ('anon', '', 'statement_timeout to ''3s'''),
            ('authenticated', '', 'statement_timeout to ''8s'''),
            ('service_role', 'bypassrls', null),
            ('authenticator', 'login noinherit', 'statement_timeout to ''8s'''),
            ('supabase_auth_admin', 'login noinherit', 'search_path to auth'),
            ('supabase_storage_admin', 'login noinherit', 'search_path to storage'),
            ('supabase_realtime_admin', 'login noinherit createrole replication',
                'search_path to public, extensions, realtime'),
            ('dashboard_user', 'createdb createrole replication', null)
        ) as t (name, attributes, setting)
    loop
        if not exists (select from pg_roles r where r.rolname = wanted.name) then
            execute format('create role %I %s', wanted.name, wanted.attributes);
            if wanted.setting is not null then
                execute format('alter role %I set %s', wanted.name, wanted.setting);
            end if;
            if wanted.name = 'authenticator' then
                alter role authenticator set lock_timeout to '8s';
            end if;
        end if;
    end loop;
end
$$;

do $$
declare
    wanted record;
begin
    for wanted in
        select * from (values
            ('anon', 'authenticator', false),
            ('authenticated', 'authenticator', false),
            ('service_role', 'authenticator', false),
            ('anon', 'supabase_realtime_admin', false),
            ('authenticated', 'supabase_realtime_admin', false),
            ('service_role', 'supabase_realtime_admin', false),
            ('anon', 'postgres', true),
            ('authenticated', 'postgres', true),
            ('service_role', 'postgres', true),
            ('authenticator', 'postgres', true),
            ('pg_monitor', 'postgres', true),
            ('pg_read_all_data', 'postgres', true),
            ('pg_signal_backend', 'postgres', true),
            -- Whatever role a token may name, Realtime looks with its eyes.
            ('authenticator', 'supabase_realtime_admin', false)
        ) as t (role, member, admin)
    loop
        if not exists (
            select from pg_auth_members m
            where m.roleid = wanted.role::regrole and m.member = wanted.member::regrole
        ) then
            execute format(
                'grant %I to %I %s', wanted.role, wanted.member, case when wanted.admin then 'with admin option' end
            );
        end if;
    end loop;
end
$$;
