-- Who may touch what: service_role runs workers, and nobody else sees or calls anything until granted.
begin;
select plan(15);

select table_privs_are('public', 'consciousness_stream', 'anon', array[]::text[]);
select table_privs_are('public', 'consciousness_stream', 'authenticated', array[]::text[]);
select sequence_privs_are('public', 'consciousness_stream_id_seq', 'anon', array[]::text[]);
select sequence_privs_are('public', 'consciousness_stream_id_seq', 'authenticated', array[]::text[]);
select ok(
    has_table_privilege('service_role', 'public.consciousness_stream', 'select, insert, update, delete'),
    'service_role reads and writes the stream'
);

select schema_privs_are('runtime', 'anon', array[]::text[]);
select schema_privs_are('runtime', 'authenticated', array[]::text[]);
select schema_privs_are('runtime', 'service_role', array['USAGE']);
select is_empty(
    $$ select c.oid::regclass, r.rolname, p.privilege
       from pg_class c
       cross join (values ('anon'), ('authenticated'), ('service_role')) as r (rolname)
       cross join unnest(array['insert', 'update', 'delete', 'truncate']) as p (privilege)
       where c.relnamespace = 'runtime'::regnamespace and c.relkind = 'r'
         and has_table_privilege(r.rolname, c.oid, p.privilege) $$,
    'none of the API roles writes the tables of runtime'
);

create temporary view our_functions as
    select p.oid, p.oid::regprocedure as signature, p.prosecdef, p.proconfig, p.pronamespace = 'public'::regnamespace as is_public
    from pg_proc p
    where p.pronamespace = 'runtime'::regnamespace
       or p.pronamespace = 'public'::regnamespace and p.proname like 'stream\_%';

select cmp_ok((select count(*) from our_functions where is_public), '>', 10::bigint, 'the functions are there');
select is_empty(
    $$ select signature from our_functions where has_function_privilege('anon', oid, 'execute') $$,
    'anon calls no function'
);
select is_empty(
    $$ select signature from our_functions where has_function_privilege('authenticated', oid, 'execute') and prosecdef $$,
    'authenticated calls no function but with its own rights'
);
select is_empty(
    $$ select signature from our_functions where has_function_privilege('service_role', oid, 'execute') <> is_public $$,
    'service_role calls the public functions and none beneath them'
);
select is_empty(
    $$ select signature from our_functions where is_public and not prosecdef and signature::text !~ '^stream_(decide|follow)' $$,
    'the public functions run as their owner, but for the one that people call under their own policies'
);
select is_empty(
    $$ select signature from our_functions where not coalesce(proconfig, '{}') @> array['search_path=""'] $$,
    'no caller''s search_path reaches a function'
);

select * from finish();
rollback;
