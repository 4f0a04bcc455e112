-- The kernel's own settings.

create table runtime.policy (
    only_row boolean primary key default true check (only_row),
    dedup_seconds double precision not null default 7 * 86400,
    -- A sleeper not seen for this long is not announced to.
    sleeper_seconds double precision not null default 60,
    -- Who was called is not called again for so long; after that the call is taken for lost.
    call_seconds double precision not null default 0.05
);
comment on table runtime.policy is 'The kernel''s own settings: one row.';
insert into runtime.policy default values;

alter table runtime.policy add column incarnation uuid not null default gen_random_uuid();
comment on column runtime.policy.incarnation is 'Drawn when the schema was made; another one means that the database was reset.';

alter table runtime.policy
    add column webhook_failures integer not null default 5,
    add column webhook_rest_seconds double precision not null default 10,
    add column webhook_longest_rest_seconds double precision not null default 900;

create function runtime.mend_rows() returns void
language plpgsql set search_path = '' as $$
begin
    insert into runtime.policy default values on conflict do nothing;
    insert into runtime.routing default values on conflict do nothing;
end
$$;
comment on function runtime.mend_rows() is 'Brings back the rows of the tables that have one: a copy of the schema alone lacks them.';

create function runtime.keep_row() returns trigger
language plpgsql set search_path = '' as $$
begin
    perform runtime.mend_rows();
    return null;
end
$$;
comment on function runtime.keep_row() is 'A table that has one row keeps it, with the defaults.';

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
comment on function runtime.rules() is 'The kernel''s own settings, whose row comes back where it is missing.';

alter table runtime.subscriptions enable row level security;
alter table runtime.patterns enable row level security;
alter table runtime.routing enable row level security;
alter table runtime.routes enable row level security;
alter table runtime.deliveries enable row level security;
alter table runtime.runs enable row level security;
alter table runtime.dead_letters enable row level security;
alter table runtime.workers enable row level security;
alter table runtime.pumps enable row level security;
alter table runtime.calls enable row level security;
alter table runtime.dedup enable row level security;
alter table runtime.unmarked enable row level security;
alter table runtime.beats enable row level security;
alter table runtime.policy enable row level security;

do $$
begin
    if exists (select from pg_roles where rolname = 'service_role') then
        grant select on all tables in schema runtime to service_role;
    end if;
end
$$;
