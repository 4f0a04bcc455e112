-- What a Supabase database has before any migration, as far as agents, their tests and this gateway use it.

create schema if not exists extensions;
create schema if not exists auth authorization supabase_auth_admin;
create schema if not exists realtime;
create schema if not exists supabase_migrations authorization postgres;
grant usage on schema extensions, auth, realtime to postgres, anon, authenticated, service_role;
grant all on schema public to postgres;
grant usage on schema public to anon, authenticated, service_role;
alter schema public owner to postgres;

alter default privileges for role postgres in schema public
    grant all on tables to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public
    grant all on functions to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public
    grant all on sequences to postgres, anon, authenticated, service_role;

create or replace function auth.jwt() returns jsonb language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')
    )::jsonb
$$;
create or replace function auth.uid() returns uuid language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
    )::uuid
$$;
create or replace function auth.role() returns text language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.role', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
    )
$$;
create or replace function auth.email() returns text language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.email', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email'
    )
$$;

create table if not exists supabase_migrations.schema_migrations (
    version text primary key,
    statements text[],
    name text
);
alter table supabase_migrations.schema_migrations owner to postgres;

do $$
begin
    if not exists (select from pg_publication where pubname = 'supabase_realtime') then
        create publication supabase_realtime;
    end if;
end
$$;
alter publication supabase_realtime owner to postgres;

create table if not exists realtime.messages (
    topic text not null,
    extension text not null,
    payload jsonb,
    event text,
    private boolean default false,
    updated_at timestamp without time zone not null default now(),
    inserted_at timestamp without time zone not null default now(),
    id uuid not null default gen_random_uuid(),
    primary key (id, inserted_at)
) partition by range (inserted_at);
alter table realtime.messages enable row level security;
alter table realtime.messages owner to supabase_realtime_admin;
grant select, insert, update on realtime.messages to postgres, anon, authenticated, service_role;
grant usage, create on schema realtime to supabase_realtime_admin;

create or replace function realtime.make_message_partitions() returns void language plpgsql as $$
declare
    day date;
begin
    -- Yesterday to three days on, as the server's janitor keeps them; what is older than three days goes.
    for day in select generate_series(current_date - 1, current_date + 3, interval '1 day')::date loop
        execute format(
            'create table if not exists realtime.%I partition of realtime.messages for values from (%L) to (%L)',
            'messages_' || to_char(day, 'YYYY_MM_DD'), day, day + 1);
    end loop;
    for day in
        select to_date(substr(c.relname, 10), 'YYYY_MM_DD') from pg_class c
        where c.relnamespace = 'realtime'::regnamespace and c.relname ~ '^messages_\d{4}_\d\d_\d\d$'
          and to_date(substr(c.relname, 10), 'YYYY_MM_DD') < current_date - 3
    loop
        execute format('drop table realtime.%I', 'messages_' || to_char(day, 'YYYY_MM_DD'));
    end loop;
end
$$;
select realtime.make_message_partitions();

create or replace function realtime.topic() returns text language sql stable as $$
    select nullif(current_setting('realtime.topic', true), '')::text
$$;

create or replace function realtime.send(payload jsonb, event text, topic text, private boolean default true)
returns void language plpgsql as $$
declare
    generated_id uuid := gen_random_uuid();
begin
    begin
        insert into realtime.messages (id, payload, event, topic, private, extension)
        values (
            generated_id,
            case when payload ? 'id' then payload else payload || jsonb_build_object('id', generated_id) end,
            event, topic, private, 'broadcast');
    exception when others then
        -- As the real one: a broadcast never fails its writer.
        raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
    end;
end
$$;
grant execute on function realtime.send(jsonb, text, text, boolean), realtime.topic() to postgres, anon, authenticated, service_role;
