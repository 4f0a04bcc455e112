-- What Realtime needs to push wake-ups. May be run again, since Realtime's own tables may come after these migrations.

create function public.stream_install_realtime() returns json
language plpgsql security definer set search_path = '' as $$
declare
    published boolean := exists (select from pg_catalog.pg_publication p where p.pubname = 'supabase_realtime');
    messages regclass := to_regclass('realtime.messages');
    refused text;
    wanted record;
begin
    perform runtime.refuse_agent('change the set-up');
    if published then
        for wanted in
            select * from (values ('public', 'consciousness_stream'), ('runtime', 'beats')) as t (schema_name, table_name)
        loop
            if not exists (
                select from pg_catalog.pg_publication_tables t
                where t.pubname = 'supabase_realtime'
                  and t.schemaname = wanted.schema_name and t.tablename = wanted.table_name
            ) then
                execute format('alter publication supabase_realtime add table %I.%I', wanted.schema_name, wanted.table_name);
            end if;
        end loop;
        -- Newer Realtime servers look the tables up as this role, and runtime.beats is in a private schema.
        if exists (select from pg_catalog.pg_roles r where r.rolname = 'supabase_realtime_admin') then
            grant usage on schema runtime to supabase_realtime_admin;
        end if;
    end if;
    if messages is not null and exists (select from pg_catalog.pg_roles r where r.rolname = 'service_role') then
        -- No catalog tells whether policies on Realtime's tables may be written: in a project supautils lets postgres
        -- do it, though postgres neither owns the table nor is a member of its owner. So it is tried, and a refusal is
        -- reported.
        begin
            if not (has_table_privilege('service_role', messages, 'select')
                    and has_table_privilege('service_role', messages, 'insert')) then
                grant select, insert on realtime.messages to service_role;
            end if;
        exception
            when insufficient_privilege then
                refused := sqlerrm;
        end;
        begin
            if not exists (
                select from pg_catalog.pg_policy p
                where p.polrelid = messages and p.polname = 'runtime workers hear their wake-ups'
            ) then
                create policy "runtime workers hear their wake-ups" on realtime.messages for select to service_role
                    using (realtime.topic() like 'runtime:%' and extension = 'broadcast');
            end if;
            -- Workers send broadcasts to these topics, and to no other.
            if not exists (
                select from pg_catalog.pg_policy p where p.polrelid = messages and p.polname = 'runtime workers broadcast'
            ) then
                create policy "runtime workers broadcast" on realtime.messages for insert to service_role
                    with check (realtime.topic() like 'runtime:broadcast%' and extension = 'broadcast');
            end if;
        exception
            when insufficient_privilege then
                refused := sqlerrm;
        end;
    end if;
    return json_build_object(
        'postgres_changes', published, 'broadcast', messages is not null and runtime.realtime_is_there(),
        'refused', refused);
end
$$;
comment on function public.stream_install_realtime() is
    'Publishes the stream, lets workers hear their private topics, and returns what the database refused; may be '
    'called again at any time.';

select public.stream_install_realtime();
