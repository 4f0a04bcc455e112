-- The part of a Supabase database that belongs to one database, as supabase/postgres and supabase/realtime make it.
-- Run once, as a superuser, in one transaction, in a database that has no realtime.send yet.

do $$
begin
    execute format('grant all on database %I to postgres, dashboard_user', current_database());
    execute format('grant create on database %I to supabase_realtime_admin', current_database());
end
$$;

-- Extensions, as far as this server has them.
create schema if not exists extensions;
grant usage on schema extensions to postgres, anon, authenticated, service_role, supabase_realtime_admin;
grant all on schema extensions to postgres, dashboard_user;
do $$
declare
    extension text;
begin
    foreach extension in array array['uuid-ossp', 'pgcrypto'] loop
        if exists (select from pg_available_extensions e where e.name = extension) then
            execute format('create extension if not exists %I with schema extensions', extension);
        end if;
    end loop;
end
$$;

-- Schema public: what postgres makes there is closed to the API roles until it is granted, as in projects since May 2026.
grant usage on schema public to anon, authenticated, service_role;
grant all on schema public to postgres;
grant create, usage on schema public to supabase_realtime_admin;
alter default privileges for role supabase_admin in schema public
    grant all on tables to postgres, anon, authenticated, service_role;
alter default privileges for role supabase_admin in schema public
    grant all on functions to postgres, anon, authenticated, service_role;
alter default privileges for role supabase_admin in schema public
    grant all on sequences to postgres, anon, authenticated, service_role;

-- Who is asking? Read from what the gateway sets for the transaction.
create schema if not exists auth authorization supabase_admin;
grant usage on schema auth to anon, authenticated, service_role, supabase_realtime_admin;
grant all on schema auth to postgres, dashboard_user, supabase_auth_admin;

create or replace function auth.uid() returns uuid language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
    )::uuid
$$;
create or replace function auth.role() returns text language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.role', true), ''),
        (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role')
    )::text
$$;
create or replace function auth.email() returns text language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.email', true), ''),
        (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email')
    )::text
$$;
create or replace function auth.jwt() returns jsonb language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')
    )::jsonb
$$;
alter function auth.uid() owner to supabase_auth_admin;
alter function auth.role() owner to supabase_auth_admin;
alter function auth.email() owner to supabase_auth_admin;
alter function auth.jwt() owner to supabase_auth_admin;
grant all on all routines in schema auth to postgres, dashboard_user;

-- Realtime.
do $$
begin
    if not exists (select from pg_publication p where p.pubname = 'supabase_realtime') then
        create publication supabase_realtime;
        alter publication supabase_realtime owner to postgres;
    end if;
end
$$;

create schema if not exists realtime authorization supabase_admin;
grant usage on schema realtime to postgres with grant option;
grant usage on schema realtime to anon, authenticated, service_role;
grant all on schema realtime to supabase_realtime_admin with grant option;

create table if not exists realtime.messages (
    topic text not null,
    extension text not null,
    payload jsonb,
    event text,
    private boolean default false,
    updated_at timestamp without time zone not null default timezone('utc', now()),
    inserted_at timestamp without time zone not null default timezone('utc', now()),
    id uuid not null default gen_random_uuid(),
    binary_payload bytea,
    constraint messages_payload_exclusive check (payload is null or binary_payload is null),
    constraint messages_pkey primary key (id, inserted_at)
) partition by range (inserted_at);
create index if not exists messages_inserted_at_topic_index on only realtime.messages (inserted_at desc, topic)
    where extension = 'broadcast' and private is true;
alter table realtime.messages owner to supabase_realtime_admin;
alter table realtime.messages enable row level security;
grant select, insert, update on realtime.messages to anon, authenticated, service_role;
grant select, insert on realtime.messages to postgres with grant option;

-- A project loads supautils, which lets postgres write policies on realtime.messages though it neither owns the table nor
-- is a member of who does. Here it is a member for as long as such a statement runs.
create or replace function realtime.lend_messages() returns event_trigger
language plpgsql security definer set search_path = '' as $$
begin
    if tg_event = 'ddl_command_start' and not pg_has_role('postgres', 'supabase_realtime_admin', 'member') then
        perform set_config('realtime.lent', 'yes', true);
        grant supabase_realtime_admin to postgres;
    elsif tg_event = 'ddl_command_end' and current_setting('realtime.lent', true) = 'yes' then
        perform set_config('realtime.lent', '', true);
        revoke supabase_realtime_admin from postgres;
    end if;
end
$$;
comment on function realtime.lend_messages() is
    'Lets postgres write policies on realtime.messages, as supautils does in a project; the local stack''s own function.';
revoke execute on function realtime.lend_messages() from public;
create event trigger lend_messages on ddl_command_start
    when tag in ('CREATE POLICY', 'ALTER POLICY', 'DROP POLICY') execute function realtime.lend_messages();
create event trigger take_messages_back on ddl_command_end
    when tag in ('CREATE POLICY', 'ALTER POLICY', 'DROP POLICY') execute function realtime.lend_messages();

create or replace function realtime.make_message_partitions() returns void
language plpgsql security definer set search_path = '' as $$
declare
    today date := timezone('utc', clock_timestamp())::date;
    day date;
begin
    -- Two who make the same partition at once would fail on its name.
    perform pg_advisory_xact_lock(hashtext('realtime.make_message_partitions'));
    for day in select today + i from generate_series(-1, 3) as i loop
        if to_regclass(format('realtime.%I', to_char(day, '"messages_"YYYY_MM_DD'))) is null then
            execute format(
                'create table realtime.%I partition of realtime.messages for values from (%L) to (%L)',
                to_char(day, '"messages_"YYYY_MM_DD'), day, day + 1
            );
        end if;
    end loop;
end
$$;
comment on function realtime.make_message_partitions() is
    'Makes the partitions of realtime.messages from yesterday to three days ahead; the local stack''s own function.';
alter function realtime.make_message_partitions() owner to supabase_realtime_admin;
revoke execute on function realtime.make_message_partitions() from public;
grant execute on function realtime.make_message_partitions() to postgres;

create or replace function realtime.topic() returns text language sql stable as $$
    select nullif(current_setting('realtime.topic', true), '')::text
$$;

create or replace function realtime.send(payload jsonb, event text, topic text, private boolean default true)
returns void language plpgsql as $$
declare
    generated_id uuid;
    final_payload jsonb;
begin
    begin
        generated_id := gen_random_uuid();
        if payload ? 'id' then
            final_payload := payload;
        else
            final_payload := jsonb_set(payload, '{id}', to_jsonb(generated_id));
        end if;
        execute format('set local realtime.topic to %L', topic);
        insert into realtime.messages (id, payload, event, topic, private, extension)
        values (generated_id, final_payload, event, topic, private, 'broadcast');
    exception
        when others then
            raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
    end;
end
$$;

create or replace function realtime.send_binary(payload bytea, event text, topic text, private boolean default true)
returns void language plpgsql as $$
begin
    begin
        execute format('set local realtime.topic to %L', topic);
        insert into realtime.messages (id, binary_payload, event, topic, private, extension)
        values (gen_random_uuid(), payload, event, topic, private, 'broadcast');
    exception
        when others then
            raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
    end;
end
$$;

create or replace function realtime.broadcast_changes(
    topic_name text, event_name text, operation text, table_name text, table_schema text,
    new record, old record, level text default 'ROW'
) returns void language plpgsql as $$
begin
    if level = 'STATEMENT' then
        raise exception 'function can only be triggered for each row, not for each statement';
    end if;
    perform realtime.send(
        jsonb_build_object(
            'old_record', old, 'record', new, 'operation', operation, 'table', table_name, 'schema', table_schema
        ),
        event_name, topic_name
    );
exception
    when others then
        raise exception 'Failed to process the row: %', sqlerrm;
end
$$;

alter function realtime.topic() owner to supabase_realtime_admin;
alter function realtime.send(jsonb, text, text, boolean) owner to supabase_realtime_admin;
alter function realtime.send_binary(bytea, text, text, boolean) owner to supabase_realtime_admin;
alter function realtime.broadcast_changes(text, text, text, text, text, record, record, text)
    owner to supabase_realtime_admin;

-- What Realtime streams broadcasts out of.
create publication supabase_realtime_messages_publication for table realtime.messages
    with (publish = 'insert', publish_via_partition_root = true);
alter publication supabase_realtime_messages_publication owner to supabase_realtime_admin;

select realtime.make_message_partitions();
