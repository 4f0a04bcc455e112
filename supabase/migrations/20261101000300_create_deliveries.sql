-- What becomes of messages: deliveries that are due, attempts that ended, dead letters.
-- No foreign keys to the stream, to deliveries or to runs: they would double the time of an insert.

create table runtime.deliveries (
    message_id bigint not null,
    -- null: fresh, due now. A time: due then (a delay, a retry, or the end of a running lease). infinity: parked.
    visible_at timestamptz,
    lease uuid,
    subscription integer not null,
    -- The pump that took it last: whose crash it is when the lease runs out.
    holder integer,
    attempts integer not null default 0,
    crashes smallint not null default 0,
    priority smallint not null default 0,
    -- The message's processed waits for the end of this delivery.
    marks boolean not null,
    -- No other delivery of the message marks.
    sole boolean not null,
    -- It is weighed before an answer is built: its value is large, or steps come with it.
    heavy boolean not null default false,
    -- The message's key, for an ordered subscription only.
    ordered_key text collate "C",
    -- The lane (runtime.pins) of the version that has begun it, which alone goes on with it. Such a delivery is never
    -- fresh, so that fresh ones are taken without a look at this.
    pinned integer,
    primary key (message_id, subscription)
) with (
    -- Leaves room on each page for a second version of every row: a delivery that is taken stays on its page.
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.1
);
comment on table runtime.deliveries is
    'One row per message and subscription that is due, leased, delayed or parked. A finished delivery is deleted.';
-- The + 0 makes this the only index in the order of taking. By the plain column the primary key would serve it too, by a
-- walk through every subscription's deliveries, and statistics make the planner think that cheaper.
create index deliveries_fresh on runtime.deliveries (subscription, priority, (message_id + 0)) where visible_at is null;
-- First by standing, so that a crowd of due deliveries hides neither an expired lease (2) nor a poison message (1), nor
-- what a version of its handler alone may take: its lane, or the one after it for a poison message.
create index deliveries_due on runtime.deliveries (
    subscription, (case when lease is not null then 2 else coalesce(pinned, 0) + (crashes >= 2)::integer end), visible_at
) where visible_at is not null;
-- Of each key first the leased delivery (0), then the parked ones (1), then the rest (2), also a dead letter that holds
-- up its key: the first entry of a key tells whether one of its deliveries runs.
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
    -- What the handler told of the models it used: tokens_in, tokens_out, cost, model.
    usage jsonb,
    primary key (message_id, subscription, ended_at)
);
comment on table runtime.runs is 'One log line per finished attempt: done, failed, later, dead, crashed, cancelled, undone or '
    'expired.';
-- Attempts end nearly in the order of time, so a summary of blocks finds the last minute at hardly any cost.
create index runs_ended on runtime.runs using brin (ended_at) with (pages_per_range = 16, autosummarize = on);
create index runs_failed on runtime.runs (subscription, ended_at) where error is not null;
create index runs_failed_message on runtime.runs (message_id) where error is not null;

create table runtime.steps (
    message_id bigint not null,
    subscription integer not null,
    name text not null check (name <> '' and octet_length(name) <= 255),
    -- Of several steps with one name, the one that the handler calls so; '' where it names none.
    key text not null check (octet_length(key) <= 255),
    -- Counted from 1 in each attempt, over the steps of this name and key.
    occurrence integer not null check (occurrence between 1 and 10000),
    -- Binary JSON takes more bytes than text does; a worker refuses texts of more than 1 MiB.
    value jsonb check (pg_column_size(value) <= 8388608),
    version text check (octet_length(version) <= 255),
    -- What undoes it, and with which arguments: {"step": the declared name, "arguments": {…}}; null for nothing.
    undo jsonb check (pg_column_size(undo) <= 8388608),
    created_at timestamptz not null default clock_timestamp(),
    primary key (message_id, subscription, name, key, occurrence)
);
comment on table runtime.steps is
    'The results of steps, which a handler never works out again for their delivery. They go with the message, or with '
    'the dead letter that outlives it.';

create table runtime.waits (
    message_id bigint not null,
    subscription integer not null,
    -- Its place within the handler, as a step has it.
    name text not null check (name <> '' and octet_length(name) <= 255),
    key text not null check (octet_length(key) <= 255),
    occurrence integer not null check (occurrence between 1 and 10000),
    -- The keys of the messages that end it; null for a sleep, which time alone ends.
    pattern text collate "C" check (length(pattern) <= 255),
    -- What the value of such a message contains; null for any.
    filter jsonb check (pg_column_size(filter) <= 65536),
    -- One field of the filter as runtime.probe writes it, or the parent, by which a message finds its waits; '' for none.
    probe text collate "C" not null default '',
    -- The message whose answers end it; null where any message under the pattern may.
    parent bigint,
    -- Messages up to this id do not count.
    since_id bigint not null,
    -- Nor do these: answers that the asker knows. They are named one by one, since ids are not committed in their order.
    seen bigint[] not null default '{}',
    -- The W3C trace context of the attempt that waits, for the one that goes on.
    trace text check (length(trace) <= 255),
    -- null: for ever.
    until timestamptz,
    created_at timestamptz not null default clock_timestamp(),
    -- No writer can have missed it since its delivery was suspended, so that its time ends it without another look.
    settled boolean not null default false,
    primary key (message_id, subscription, name, key, occurrence)
);
comment on table runtime.waits is
    'What handlers wait for that has not come yet. A wait that is over is a step with its outcome.';
create index waits_pattern on runtime.waits (pattern, probe);
-- One look-up tells a writer whether anything may wait for a key: a pattern with a wildcard may, whatever the key.
create index waits_awaited on runtime.waits ((case when pattern ~ '[*>]' then '*' else pattern end));

create table runtime.unsettled_waits (
    id bigint generated always as identity primary key,
    message_id bigint not null,
    subscription integer not null,
    -- The places [name, key, occurrence] that are to be looked at once more; null where a writer held a settled wait when
    -- its delivery was taken, which is settled no more as soon as that writer has ended.
    places jsonb,
    fenced boolean not null default false,
    xid xid8,
    looked integer not null default 0
);
comment on table runtime.unsettled_waits is
    'Deliveries whose waits a writer may have missed that was under way when they began; nearly always empty.';
create index unsettled_waits_subscription on runtime.unsettled_waits (subscription, id);
create index unsettled_waits_delivery on runtime.unsettled_waits (message_id, subscription);

create table runtime.dead_letters (
    id bigint generated always as identity primary key,
    message_id bigint not null,
    subscription integer not null,
    subscription_name text not null,
    -- "C" as in the stream, so that the keys with one prefix are a range of the index.
    key text collate "C" not null,
    message jsonb not null,
    reason text not null,
    error text,
    traceback text,
    attempts jsonb not null,
    died_at timestamptz not null default clock_timestamp()
);
comment on table runtime.dead_letters is
    'Deliveries that used up their attempts or may not be retried, each with its own copy of the message.';
-- One bad deploy may leave a million of them, so each condition that can be asked for has its index.
create index dead_letters_subscription on runtime.dead_letters (subscription, id);
create index dead_letters_key on runtime.dead_letters (key, id);
create index dead_letters_name on runtime.dead_letters (subscription_name, id);
create index dead_letters_died on runtime.dead_letters (died_at);
create index dead_letters_message on runtime.dead_letters (message_id);

create table runtime.dedup (
    dedup_key text primary key,
    -- null only between the reservation and the insert of one transaction
    message_id bigint,
    forget_at timestamptz not null
);
comment on table runtime.dedup is 'The dedup_keys in use; they outlive their messages.';
create index dedup_forget on runtime.dedup (forget_at);

create table runtime.unmarked (message_id bigint primary key);
comment on table runtime.unmarked is
    'Messages whose processed could not be set because another transaction held the row; the next sweep sets it.';

alter table runtime.deliveries enable row level security;
alter table runtime.runs enable row level security;
alter table runtime.steps enable row level security;
alter table runtime.waits enable row level security;
alter table runtime.unsettled_waits enable row level security;
alter table runtime.dead_letters enable row level security;
alter table runtime.dedup enable row level security;
alter table runtime.unmarked enable row level security;
