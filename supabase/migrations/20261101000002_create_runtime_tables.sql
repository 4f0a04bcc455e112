-- What the kernel keeps beside the messages. No foreign keys to stream, deliveries or runs: they would double
-- the time of an insert.

create table runtime.subscriptions (
    id integer generated always as identity primary key,
    name text not null unique,
    agent text not null,
    patterns text[] not null,
    ordered boolean not null default false,
    marks_processed boolean not null,
    max_attempts integer not null default 5 check (max_attempts >= 1),
    max_crashes integer not null default 5 check (max_crashes >= 1),
    -- Limits across all workers: messages taken in so many seconds, and in hand at once; null where there is none.
    rate_amount integer check (rate_amount >= 1),
    rate_seconds double precision check (rate_seconds > 0),
    concurrency_total integer check (concurrency_total >= 1),
    -- Whether a dead letter holds up its key until it is redriven or discarded; else the next passes.
    dead_blocks boolean not null default false check (ordered or not dead_blocks),
    start text not null default 'latest' check (start in ('latest', 'earliest')),
    -- The start of the worker that declared it: an older worker may not take a declaration back.
    declared_at timestamptz not null,
    created_at timestamptz not null default clock_timestamp(),
    paused_at timestamptz,
    settled boolean not null default false,
    settling_fenced boolean not null default false,
    settling_xid xid8,
    backfilled_to bigint not null default 0,
    expired bigint not null default 0
);
comment on table runtime.subscriptions is 'One durable row per handler, agent.handler; it outlives processes.';
-- Whether there is any, which each exchange that reports asks.
create index subscriptions_ordered on runtime.subscriptions (id) where ordered;

create table runtime.patterns (
    pattern text collate "C" not null,
    subscription integer not null references runtime.subscriptions on delete cascade,
    primary key (pattern, subscription)
);
comment on table runtime.patterns is 'The patterns of the subscriptions, one a row, so that fan-out is a look-up.';
create index patterns_subscription on runtime.patterns (subscription);

create table runtime.routing (
    only_row boolean primary key default true check (only_row),
    -- Higher after every change of who gets what. It begins where it never was: a row that was lost and came back must
    -- not give worth to what was written down before.
    generation bigint not null default floor(random() * 4e18)::bigint,
    changed_by xid8
) with (fillfactor = 50);
comment on table runtime.routing is 'One row: how often the patterns have changed. Two changes wait for each other here.';
insert into runtime.routing default values;

-- Unlogged: what a crash takes away is worked out again.
create unlogged table runtime.routes (
    -- A key has one place, which it shares with others: so there are never more than 4,096 rows, and none to tidy up.
    slot integer primary key,
    key text collate "C" not null,
    generation bigint not null,
    subscriptions integer[] not null,
    ordered boolean[] not null,
    marks boolean[] not null,
    sole boolean not null
) with (fillfactor = 70);
comment on table runtime.routes is
    'Who gets the messages of a key, as it was worked out at a generation of the patterns; without worth at any other.';

create table runtime.deliveries (
    message_id bigint not null,
    -- null: fresh, take it now. A time: not before it (delay, retry, or a running lease's end). infinity: parked.
    visible_at timestamptz,
    lease uuid,
    subscription integer not null,
    -- The pump that took it last: who crashed, when its lease ends by itself.
    holder integer,
    attempts integer not null default 0,
    crashes smallint not null default 0,
    priority smallint not null default 0,
    -- Its end counts towards the message's processed.
    marks boolean not null,
    -- It is the only one that does.
    sole boolean not null,
    -- The value is large enough to be weighed before an answer is built.
    heavy boolean not null default false,
    -- The message's key, for an ordered subscription only.
    ordered_key text collate "C",
    primary key (message_id, subscription)
) with (
    -- Room on each page for every row once more: one that is taken stays on its page.
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.1
);
comment on table runtime.deliveries is 'One row per message and subscription that is due, leased, delayed or parked. It leaves when finished.';
-- + 0: asked for by that expression, it is the only index that has the order. The primary key would have it too, and
-- walks through everybody's deliveries of a message; a planner takes it for the cheaper one as statistics have it.
create index deliveries_fresh on runtime.deliveries (subscription, priority, (message_id + 0)) where visible_at is null;
-- By standing, so that a crowd that is due hides neither a lease that ended (2) nor one to be taken alone (1).
create index deliveries_due on runtime.deliveries (
    subscription, (case when lease is not null then 2 when crashes >= 2 then 1 else 0 end), visible_at
) where visible_at is not null;
-- Of each key first what is leased (0), then what is parked (1), then the rest (2), a dead letter that holds up its key
-- included: the first entry of a key says at once whether another of it runs.
create index deliveries_ordered on runtime.deliveries (
    subscription, ordered_key,
    (case when lease is not null and visible_at < 'infinity' then 0 when lease is null and visible_at = 'infinity' then 1 else 2 end),
    message_id
) where ordered_key is not null;

create table runtime.runs (
    message_id bigint not null,
    subscription integer not null,
    ended_at timestamptz not null,
    worker uuid,
    attempt integer not null,
    outcome text not null,
    seconds real,
    error text,
    traceback text,
    primary key (message_id, subscription, ended_at)
);
-- Attempts end nearly in the order of time, so a summary of blocks finds the last minute at hardly any cost.
create index runs_ended on runtime.runs using brin (ended_at) with (pages_per_range = 16, autosummarize = on);
create index runs_failed on runtime.runs (subscription, ended_at) where error is not null;
comment on table runtime.runs is 'One log line per finished attempt: done, failed, later, dead, crashed or expired.';

create table runtime.dead_letters (
    id bigint generated always as identity primary key,
    message_id bigint not null,
    subscription integer not null,
    subscription_name text not null,
    -- "C" as in the stream, so that what begins alike is a range of the index.
    key text collate "C" not null,
    message jsonb not null,
    reason text not null,
    error text,
    traceback text,
    attempts jsonb not null,
    died_at timestamptz not null default clock_timestamp()
);
comment on table runtime.dead_letters is 'Deliveries that used up their attempts or may not be retried, with their own copy of the message.';
create index dead_letters_subscription on runtime.dead_letters (subscription, id);

create table runtime.workers (
    id uuid primary key,
    name text not null,
    started_at timestamptz not null default clock_timestamp(),
    seen_at timestamptz not null default clock_timestamp(),
    asleep boolean not null default false,
    -- Subscriptions it had free slots for when it fell asleep.
    free integer[] not null default '{}',
    -- Whose exchanges put it to sleep.
    pump uuid,
    -- How it can be reached: realtime, notify.
    announce text[] not null default '{}',
    subscriptions integer[] not null default '{}',
    -- The patterns it declared, by subscription: so that two programs of one name are noticed.
    declared jsonb not null default '{}',
    -- How far its sweeps have come in looking for ordered keys that stand still; null: at the beginning.
    healed_lane integer,
    healed_key text collate "C",
    details jsonb not null default '{}'
) with (fillfactor = 50);
comment on table runtime.workers is 'Running processes and whether they sleep; the name is random at each start.';

create table runtime.pumps (
    id uuid primary key,
    number integer not null unique generated always as identity,
    worker uuid not null,
    n bigint not null default 0,
    -- The two before it: not n - 1 and n - 2, for a refused exchange takes its number with it.
    previous bigint not null default 0,
    last_but_one bigint not null default 0,
    lease uuid,
    refused jsonb not null default '[]'
) with (fillfactor = 50);
comment on table runtime.pumps is 'The last exchange of each pump, so that one whose answer was lost is answered again, not applied again.';

-- Unlogged: after a crash whoever sleeps is called once more.
create unlogged table runtime.calls (
    pump uuid not null,
    n bigint not null,
    called_at timestamptz not null default clock_timestamp()
);
comment on table runtime.calls is
    'Who was called out of sleep lately, so that not every writer calls; worth nothing once the pump has made another exchange than n.';
create index calls_pump on runtime.calls (pump, n, called_at);

create table runtime.dedup (
    dedup_key text primary key,
    -- null only between the reservation and the insert of one transaction
    message_id bigint,
    forget_at timestamptz not null
);
comment on table runtime.dedup is 'The dedup_keys in use; they outlive their messages.';
create index dedup_forget on runtime.dedup (forget_at);

create table runtime.unmarked (message_id bigint primary key);
comment on table runtime.unmarked is 'Messages whose processed could not be set because somebody held the row; the sweep sets it.';

create table runtime.beats (
    nonce text primary key,
    worker uuid not null,
    sent_at timestamptz not null default clock_timestamp()
);
comment on table runtime.beats is 'Nonces a worker asked for, to prove the path of postgres_changes end to end.';
create index beats_worker on runtime.beats (worker);

-- The highest transaction after which a subscription settled. A sequence, since no snapshot hides its value.
create sequence runtime.settle_fence as bigint minvalue 0 start 0;

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
