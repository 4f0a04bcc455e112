-- The stream: one shared table of messages, which agents, people and other programs read and write.

create schema if not exists runtime;
comment on schema runtime is 'The agent runtime''s own state. Private: talk to the public.stream_… functions instead.';
revoke all on schema runtime from public;

create table public.consciousness_stream (
    -- No cache: for an ordered subscription a lower id must mean an earlier insert.
    id bigint generated always as identity (cache 1) primary key,
    -- "C" makes a prefix such as 'task.>' a range of the index.
    key text collate "C" not null,
    -- Any page in a browser may be allowed to insert, so the constraints refuse values that could stop workers, and their
    -- names say what is allowed. PostgreSQL prints JSON with spaces, so 16 MB on the wire may be 24 MB as text. A value
    -- that takes less than 16 MB in binary is not printed for the check: that would double the cost of its insert.
    value jsonb constraint value_takes_at_most_16_mb
        check (pg_column_size(value) <= 16777216 or octet_length(value::text) <= 25165824),
    agent text constraint agent_has_at_most_255_characters check (length(agent) <= 255),
    processed boolean not null default false,
    -- Clocks differ a little, hence the hour. Retention would never reach a message from a far future.
    created_at timestamptz not null default clock_timestamp() constraint created_at_is_finite_and_not_to_come
        check (isfinite(created_at) and created_at < clock_timestamp() + interval '1 hour'),
    deliver_at timestamptz constraint deliver_at_is_within_a_hundred_years check (
        deliver_at is null
        or (isfinite(deliver_at) and deliver_at < clock_timestamp() + interval '36601 days')),
    expires_at timestamptz,
    priority smallint not null default 0 constraint priority_is_a_class check (priority between -1 and 1),
    dedup_key text constraint dedup_key_is_short check (length(dedup_key) <= 255),
    correlation_id text constraint correlation_id_has_at_most_255_characters check (length(correlation_id) <= 255),
    parent_id bigint,
    headers jsonb constraint headers_are_an_object_of_at_most_64_kb check (
        headers is null
        or (jsonb_typeof(headers) = 'object' and pg_column_size(headers) <= 1048576
            and octet_length(headers::text) <= 98304))
) with (
    -- Leaves room on each page for a second version of every row: setting processed then writes to no index.
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);

comment on table public.consciousness_stream is
    'Messages. Write a row under a key; every agent with a handler for that key is woken when it commits.';
comment on column public.consciousness_stream.key is 'Dotted name, such as task.output: at most 8 segments and 255 characters.';
comment on column public.consciousness_stream.processed is
    'True once every agent that handles exactly this key has ended its delivery. A program that reads the table itself may set it too.';
comment on column public.consciousness_stream.deliver_at is
    'Deliver not before this time, at most a hundred years ahead. Under an ordered key all later messages wait for it, so '
    'grant this column only to writers who may cause that.';
comment on column public.consciousness_stream.expires_at is 'Deliver not after this time; an expired message is counted and not delivered.';
comment on column public.consciousness_stream.priority is 'A class: 1 first, 0 normal, -1 last. Ordered subscriptions ignore it.';
comment on column public.consciousness_stream.dedup_key is 'A message with the same dedup_key is stored once within the dedup retention.';
comment on column public.consciousness_stream.correlation_id is 'Shared by all messages that one message caused.';
comment on column public.consciousness_stream.parent_id is 'The message whose handler wrote this one.';

-- No more secondary indexes: each insert pays for every one of them. A message from outside is only in the first, one
-- that a handler emits in the second too, and in the third only from its second generation on: the first is found by
-- its parent, whose id is its correlation id.
create index consciousness_stream_key on public.consciousness_stream (key, id);
create index consciousness_stream_parent on public.consciousness_stream (parent_id) where parent_id is not null;
create index consciousness_stream_correlation on public.consciousness_stream (correlation_id, id)
    where correlation_id is not null and correlation_id is distinct from parent_id::text;

alter table public.consciousness_stream enable row level security;
do $$
begin
    -- Supabase grants every new table of schema public to its API roles; nobody should see this one until granted.
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

create function runtime.refuse_rekeying() returns trigger
language plpgsql set search_path = '' as $$
begin
    raise exception using
        errcode = '55000',
        message = 'the key of a message does not change',
        hint = 'Its deliveries have been made already: write a new message under the other key.';
end
$$;
comment on function runtime.refuse_rekeying() is 'Raises 55000: a message keeps its id and its key.';

create trigger refuse_rekeying before update of id, key on public.consciousness_stream
    for each row when (old.key is distinct from new.key or old.id is distinct from new.id)
    execute function runtime.refuse_rekeying();
