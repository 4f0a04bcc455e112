-- The processes that run handlers, and what each was told last.

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

create table runtime.beats (
    nonce text primary key,
    worker uuid not null,
    sent_at timestamptz not null default clock_timestamp()
);
comment on table runtime.beats is 'Nonces a worker asked for, to prove the path of postgres_changes end to end.';
create index beats_worker on runtime.beats (worker);
