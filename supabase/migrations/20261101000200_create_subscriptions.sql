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
    -- Limits for all workers together: messages taken in so many seconds, and in hand at once; null for no limit.
    rate_amount integer check (rate_amount >= 1),
    rate_seconds double precision check (rate_seconds > 0),
    concurrency_total integer check (concurrency_total >= 1),
    -- What its handler may cost in a period, in US dollars, for all workers together; null for no limit.
    budget numeric check (budget > 0),
    budget_period text check (budget_period in ('hour', 'day', 'month')),
    -- Each prefix of so many segments of the key has a budget of its own; null for one of all messages.
    budget_per integer check (budget_per is null or budget_per >= 1 and not ordered),
    -- Whether a dead letter holds up its key until it is redriven or discarded; else the next message passes.
    dead_blocks boolean not null default false check (ordered or not dead_blocks),
    start text not null default 'latest' check (start in ('latest', 'earliest')),
    -- What the handler offers language models {name, key, description, input, output}: a server without its code lists it.
    tool jsonb check (jsonb_typeof(tool) = 'object' and octet_length(tool::text) <= 262144),
    -- When the declaring worker started: a declaration gives way only to that of a worker started later.
    declared_at timestamptz not null,
    created_at timestamptz not null default clock_timestamp(),
    paused_at timestamptz,
    settled boolean not null default false,
    settling_fenced boolean not null default false,
    settling_xid xid8,
    backfilled_to bigint not null default 0,
    expired bigint not null default 0
);
comment on table runtime.subscriptions is 'One durable row per handler, named agent.handler; it outlives processes.';
-- Answers whether there is any ordered subscription, which each exchange that reports asks.
create index subscriptions_ordered on runtime.subscriptions (id) where ordered;

-- Numbers begin at random, so that a worker that outlives a reset of the database never takes the number of another's
-- new subscription for one of its own. In the lower half of all integers: each new subscription uses one up.
do $$
begin
    execute format(
        'alter table runtime.subscriptions alter column id restart with %s', 1 + floor(random() * 1000000000)::integer);
end
$$;

-- In steps of two: of each pair of lanes the second one is for poison messages.
create table runtime.pins (
    lane integer primary key generated always as identity (start with 4 increment by 2),
    subscription integer not null references runtime.subscriptions on delete cascade,
    version text not null check (octet_length(version) <= 255),
    declared_at timestamptz not null default clock_timestamp(),
    unique (subscription, version)
);
comment on table runtime.pins is
    'The versions of handlers that alone go on with what they have begun, each with the lane its deliveries wait in.';

create table runtime.patterns (
    pattern text collate "C" not null,
    subscription integer not null references runtime.subscriptions on delete cascade,
    primary key (pattern, subscription)
);
comment on table runtime.patterns is 'The patterns of the subscriptions, one a row, so that fan-out looks them up.';
create index patterns_subscription on runtime.patterns (subscription);

create table runtime.routing (
    only_row boolean primary key default true check (only_row),
    -- Rises with every change of the patterns. It begins at random: when the row was lost and comes back, routes written
    -- down before must not count as current.
    generation bigint not null default floor(random() * 4e18)::bigint,
    changed_by xid8
) with (fillfactor = 50);
comment on table runtime.routing is 'One row: the generation of the patterns. Two changes of patterns wait for each other here.';
insert into runtime.routing default values;

-- Unlogged: a cache, which a crash may empty.
create unlogged table runtime.routes (
    -- By the hash of the key, so that there are never more than 4,096 rows and none to tidy up.
    slot integer primary key,
    key text collate "C" not null,
    generation bigint not null,
    subscriptions integer[] not null,
    ordered boolean[] not null,
    marks boolean[] not null,
    sole boolean not null
) with (fillfactor = 70);
comment on table runtime.routes is
    'Cache: the subscriptions that get the messages of a key, as worked out at one generation of the patterns; valid at no other.';

-- Each table is closed where it is made: a later statement would lock it against workers that run already.
alter table runtime.subscriptions enable row level security;
alter table runtime.pins enable row level security;
alter table runtime.patterns enable row level security;
alter table runtime.routing enable row level security;
alter table runtime.routes enable row level security;

-- The highest transaction after which a subscription settled. A sequence, since every snapshot sees its current value.
create sequence runtime.settle_fence as bigint minvalue 0 start 0;
