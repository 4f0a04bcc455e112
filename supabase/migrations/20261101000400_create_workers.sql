-- The processes that run handlers, their last exchanges, and the wake-ups sent to them.

create table runtime.workers (
    id uuid primary key,
    name text not null,
    started_at timestamptz not null default clock_timestamp(),
    seen_at timestamptz not null default clock_timestamp(),
    asleep boolean not null default false,
    -- The subscriptions it had free slots for when it fell asleep.
    free integer[] not null default '{}',
    -- The pump whose exchanges put it to sleep.
    pump uuid,
    -- The push paths that reach it: realtime, notify.
    announce text[] not null default '{}',
    subscriptions integer[] not null default '{}',
    -- The patterns it declared, by subscription: so that two programs of one name are noticed.
    declared jsonb not null default '{}',
    -- The lanes of its handlers' versions, by subscription; null where no handler is pinned.
    pins jsonb,
    -- How far its sweeps have come in healing ordered keys; null: at the beginning.
    healed_lane integer,
    healed_key text collate "C",
    details jsonb not null default '{}',
    -- When a delivery it runs was cancelled last. On this row, which each exchange reads anyway.
    cancelled_at timestamptz
) with (fillfactor = 50);
comment on table runtime.workers is 'Running processes, and whether they sleep. The name is random at each start.';

create table runtime.pumps (
    id uuid primary key,
    number integer not null unique generated always as identity,
    worker uuid not null,
    n bigint not null default 0,
    -- The two exchanges before it: not n - 1 and n - 2, since a refused exchange uses up its number.
    previous bigint not null default 0,
    last_but_one bigint not null default 0,
    lease uuid,
    refused jsonb not null default '[]'
) with (fillfactor = 50);
comment on table runtime.pumps is
    'The last exchange of each pump, so that an exchange whose answer was lost is answered again and not applied again.';

-- Unlogged: after a crash every sleeper is called once more.
create unlogged table runtime.calls (
    pump uuid not null,
    n bigint not null,
    called_at timestamptz not null default clock_timestamp()
);
comment on table runtime.calls is
    'Wake-ups sent lately, so that not every writer sends one; obsolete once the pump has made another exchange than n.';
create index calls_pump on runtime.calls (pump, n, called_at);

create table runtime.beats (
    nonce text primary key,
    worker uuid not null,
    sent_at timestamptz not null default clock_timestamp()
);
comment on table runtime.beats is 'Nonces a worker asked for, to prove the path of postgres_changes from end to end.';

alter table runtime.workers enable row level security;
alter table runtime.pumps enable row level security;
alter table runtime.calls enable row level security;
alter table runtime.beats enable row level security;
create index beats_worker on runtime.beats (worker);
