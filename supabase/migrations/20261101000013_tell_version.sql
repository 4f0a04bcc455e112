-- Which schema is this, and since when? So that a worker of another release says so and names the command that mends
-- it, and one that outlives a reset of the database notices that everything in it is new.

alter table runtime.policy add column incarnation uuid not null default gen_random_uuid();
comment on column runtime.policy.incarnation is 'Drawn when the schema was made; another one means that the database was reset.';

create function public.stream_version() returns json
language plpgsql security definer set search_path = '' as $$
begin
    return json_build_object('version', 1, 'serves', 1, 'incarnation', (runtime.rules()).incarnation);
end
$$;
comment on function public.stream_version() is
    'The version of this schema, the oldest version whose workers it still serves, and the incarnation of the database. '
    'A migration that changes what workers call replaces this function.';
