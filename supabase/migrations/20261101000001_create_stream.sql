-- What people and other programs touch: one shared table of messages.

create schema if not exists runtime;
comment on schema runtime is 'The agent runtime''s own state. Private: talk to the public.stream_… functions instead.';
revoke all on schema runtime from public;

create table public.consciousness_stream (
    -- No cache: for an ordered subscription a lower id must mean an earlier insert.
    id bigint generated always as identity (cache 1) primary key,
    -- "C" makes a prefix such as 'task.>' a range of the index.
    key text collate "C" not null,
    value jsonb,
    agent text,
    processed boolean not null default false,
    created_at timestamptz not null default clock_timestamp(),
    deliver_at timestamptz,
    expires_at timestamptz,
    priority smallint not null default 0 constraint priority_is_a_class check (priority between -1 and 1),
    dedup_key text constraint dedup_key_is_short check (length(dedup_key) <= 255),
    correlation_id text,
    parent_id bigint,
    headers jsonb
) with (
    -- Room on each page for every row once more: where the new row stays on it, setting processed writes to no index.
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);

comment on table public.consciousness_stream is
    'Messages. Write a row under a key; every agent with a handler for that key is woken when it commits.';
comment on column public.consciousness_stream.key is 'Dotted name, such as task.output: at most 8 segments and 255 characters.';
comment on column public.consciousness_stream.processed is
    'True once every agent that handles exactly this key has ended its delivery; a reader of its own may set it too.';
comment on column public.consciousness_stream.deliver_at is 'Not before this time.';
comment on column public.consciousness_stream.expires_at is 'Not after this time: counted, not delivered.';
comment on column public.consciousness_stream.priority is 'A class: 1 first, 0 normal, -1 last. Ordered subscriptions ignore it.';
comment on column public.consciousness_stream.dedup_key is 'A message with the same dedup_key is stored once within the dedup retention.';
comment on column public.consciousness_stream.correlation_id is 'Shared by all messages that one message caused.';
comment on column public.consciousness_stream.parent_id is 'The message whose handler wrote this one.';

-- Two secondary indexes and no more: every one of them is paid for by each insert.
create index consciousness_stream_key on public.consciousness_stream (key, id);
create index consciousness_stream_parent on public.consciousness_stream (parent_id) where parent_id is not null;

alter table public.consciousness_stream enable row level security;
do $$
begin
    -- Supabase grants new tables of schema public to its API roles; here nobody sees anything until granted.
    if exists (select from pg_roles where rolname = 'anon') then
        revoke all on public.consciousness_stream from anon, authenticated;
        revoke all on sequence public.consciousness_stream_id_seq from anon, authenticated;
    end if;
    if exists (select from pg_roles where rolname = 'service_role') then
        grant select, insert, update, delete on public.consciousness_stream to service_role;
        grant usage on schema runtime to service_role;
    end if;
end
$$;
