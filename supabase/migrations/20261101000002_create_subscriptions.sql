-- Who wants which messages: subscriptions, their patterns, and the routes worked out from them.

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

do $$
begin
    execute format(
        'alter table runtime.subscriptions alter column id restart with %s', 1 + floor(random() * 1000000000)::integer);
end
$$;

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

-- The highest transaction after which a subscription settled. A sequence, since no snapshot hides its value.
create sequence runtime.settle_fence as bigint minvalue 0 start 0;
