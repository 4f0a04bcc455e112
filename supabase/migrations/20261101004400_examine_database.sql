-- What only the database can tell of itself: its version, and facts for `runtime doctor`.

create function public.stream_version() returns json
language plpgsql security definer set search_path = '' as $$
begin
    return json_build_object('version', 1, 'serves', 1, 'incarnation', (runtime.rules()).incarnation);
end
$$;
comment on function public.stream_version() is
    'The version of this schema, the oldest version whose workers it still serves, and the incarnation of the database. '
    'A migration that changes what workers call replaces this function.';

create function public.stream_examine() returns json
language plpgsql stable security definer set search_path = '' as $$
declare
    messages regclass := to_regclass('realtime.messages');
    applied json := '[]'::json;
begin
    perform runtime.refuse_agent('examine the set-up');
    if to_regclass('supabase_migrations.schema_migrations') is not null
        and has_table_privilege('supabase_migrations.schema_migrations', 'select') then
        execute 'select coalesce(json_agg(m.version order by m.version), ''[]'') from supabase_migrations.schema_migrations m'
            into applied;
    end if;
    return json_build_object(
        'now', extract(epoch from clock_timestamp()),
        'server_version', current_setting('server_version_num')::integer,
        'migrations', applied,
        -- Over the API this is the default of its role; a stricter isolation allows no exchange.
        'isolation', current_setting('transaction_isolation'),
        'publication', (select p.pubinsert from pg_catalog.pg_publication p where p.pubname = 'supabase_realtime'),
        'published', (
            select coalesce(json_agg(t.schemaname || '.' || t.tablename), '[]')
            from pg_catalog.pg_publication_tables t
            where t.pubname = 'supabase_realtime' and t.schemaname in ('public', 'runtime')
        ),
        'forbidden', (
            select coalesce(json_agg(p.oid::regprocedure::text order by p.proname), '[]') from pg_catalog.pg_proc p
            where p.pronamespace = 'public'::regnamespace and p.proname like 'stream\_%'
              and not has_function_privilege('service_role', p.oid, 'execute')
        ),
        'unreadable', (
            select coalesce(json_agg(w.name), '[]') from (values
                ('public.consciousness_stream', 'select, insert, update, delete'), ('runtime.beats', 'select')
            ) as w (name, privilege)
            where not has_table_privilege('service_role', w.name, split_part(w.privilege, ',', 1))
               or exists (
                    select from unnest(string_to_array(w.privilege, ', ')) as x (one)
                    where not has_table_privilege('service_role', w.name, x.one))
               or not has_schema_privilege('service_role', split_part(w.name, '.', 1), 'usage')
        ),
        'open', (
            select coalesce(json_agg(p.oid::regprocedure::text order by p.proname), '[]') from pg_catalog.pg_proc p
            where p.pronamespace = 'public'::regnamespace and p.proname like 'stream\_%'
              and (has_function_privilege('anon', p.oid, 'execute')
                   or (has_function_privilege('authenticated', p.oid, 'execute') and p.prosecdef))
        ),
        'unguarded', (
            select coalesce(json_agg(c.oid::regclass::text order by c.relname), '[]') from pg_catalog.pg_class c
            where c.relkind = 'r' and not c.relrowsecurity
              and (c.oid = 'public.consciousness_stream'::regclass or c.relnamespace = 'runtime'::regnamespace)
        ),
        'fans_out', (
            select t.tgenabled in ('O', 'A') from pg_catalog.pg_trigger t
            where t.tgrelid = 'public.consciousness_stream'::regclass and t.tgname = 'fan_out'
        ),
        'webhooks', (
            select coalesce(json_agg(t.tgname order by t.tgname), '[]') from pg_catalog.pg_trigger t
            join pg_catalog.pg_proc p on p.oid = t.tgfoid
            where t.tgrelid = 'public.consciousness_stream'::regclass and p.proname = 'http_request' and t.tgenabled <> 'D'
        ),
        -- Newer minor releases list the output plugins that may be loaded; Realtime needs wal2json.
        'output_plugins', current_setting('output_plugin_libraries', true),
        'can_broadcast', runtime.realtime_is_there(),
        'messages_granted', messages is not null
            and has_schema_privilege('service_role', 'realtime', 'usage')
            and has_table_privilege('service_role', messages, 'select')
            and has_table_privilege('service_role', messages, 'insert'),
        'bypasses', (select r.rolbypassrls from pg_catalog.pg_roles r where r.rolname = 'service_role'),
        'messages_policy', exists (
            select from pg_catalog.pg_policy p
            where p.polrelid = messages and p.polcmd in ('r', '*')
              and (p.polroles = '{0}' or 'service_role'::regrole = any (p.polroles))
        ),
        -- Realtime names its partitions by the day in UTC.
        'messages_partition', messages is not null and to_regclass(
            'realtime.' || to_char(timezone('utc', clock_timestamp()), '"messages_"YYYY_MM_DD')) is not null,
        'held_back', (
            select coalesce(json_agg(json_build_object('subscription', s.name, 'version', h.version, 'count', h.amount)
                                     order by s.name, h.version), '[]')
            from runtime.held_back() h join runtime.subscriptions s on s.id = h.subscription)
    );
end
$$;
comment on function public.stream_examine() is
    'Facts about the set-up: publication, grants, policies, partitions, triggers, migrations, the clock, and versions of '
    'handlers that work waits for.';
