-- The kernel's own settings.

create table runtime.policy (
    only_row boolean primary key default true check (only_row),
    dedup_seconds double precision not null default 7 * 86400,
    -- A worker not seen for this long counts as gone, and is not woken.
    sleeper_seconds double precision not null default 60,
    -- A worker that was called is not called again for this long; then the call counts as lost.
    call_seconds double precision not null default 0.05,
    -- Drawn when the schema is made; another one tells a worker that the database was reset.
    incarnation uuid not null default gen_random_uuid(),
    -- Failures in a row after which a webhook's target rests, and for how long.
    webhook_failures integer not null default 5,
    webhook_rest_seconds double precision not null default 10,
    webhook_longest_rest_seconds double precision not null default 900
);
comment on table runtime.policy is 'The kernel''s own settings: one row.';

alter table runtime.policy enable row level security;
insert into runtime.policy default values;

create function runtime.mend_rows() returns void
language plpgsql set search_path = '' as $$
begin
    insert into runtime.policy default values on conflict do nothing;
    insert into runtime.routing default values on conflict do nothing;
end
$$;
comment on function runtime.mend_rows() is 'Brings back the only rows of policy and routing, which a copy of the schema alone lacks.';

create function runtime.keep_row() returns trigger
language plpgsql set search_path = '' as $$
begin
    perform runtime.mend_rows();
    return null;
end
$$;
comment on function runtime.keep_row() is 'A table with one row keeps it, with the defaults.';

create trigger keep_row after delete on runtime.policy for each statement execute function runtime.keep_row();
create trigger keep_row_all after truncate on runtime.policy for each statement execute function runtime.keep_row();
create trigger keep_row after delete on runtime.routing for each statement execute function runtime.keep_row();
create trigger keep_row_all after truncate on runtime.routing for each statement execute function runtime.keep_row();

create function runtime.rules() returns runtime.policy
language plpgsql set search_path = '' as $$
declare
    kept runtime.policy;
begin
    select * into kept from runtime.policy;
    if not found then
        perform runtime.mend_rows();
        select * into kept from runtime.policy;
    end if;
    return kept;
end
$$;
comment on function runtime.rules() is 'The kernel''s own settings; brings their row back where it is missing.';
