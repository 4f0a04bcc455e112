-- What the kernel refuses, and in which words.
begin;
select plan(24);

-- Keys.
create function pg_temp.insertion(key text) returns text language sql as $$
    select format('insert into public.consciousness_stream (key) values (%L)', key)
$$;
select lives_ok(pg_temp.insertion('a.b.c.d.e.f.g.h'), 'eight segments are a key');
select throws_ok(pg_temp.insertion('a.b.c.d.e.f.g.h.i'), '22023', '''a.b.c.d.e.f.g.h.i'' is not a key');
select throws_ok(pg_temp.insertion('task.*'), '22023', '''task.*'' is not a key');
select throws_ok(pg_temp.insertion(''), '22023', ''''' is not a key');
select lives_ok(pg_temp.insertion(repeat('x', 255)), '255 characters are a key');
select throws_ok(pg_temp.insertion(repeat('x', 256)), '22023', format('%L is not a key', repeat('x', 80)));
select throws_ok(
    $$ update public.consciousness_stream set key = 'another' where key = 'a.b.c.d.e.f.g.h' $$,
    '55000', 'the key of a message does not change'
);
select throws_ok(
    $$ insert into public.consciousness_stream (key, priority) values ('task.output', 2) $$,
    '23514', null, 'a priority is one of three classes'
);

-- Deduplication.
select lives_ok(
    $$ insert into public.consciousness_stream (key, dedup_key) values ('task.output', 'pgtap once') $$,
    'a dedup_key is stored once'
);
select throws_ok(
    $$ insert into public.consciousness_stream (key, dedup_key) values ('task.output', 'pgtap once') $$,
    '23505', 'a message with this dedup_key was stored before'
);
select is(
    public.stream_send('[{"key": "task.output", "dedup_key": "pgtap once"}]') -> 0 ->> 'duplicate', 'true',
    'where an insert fails, stream_send says "duplicate"'
);

-- Arguments.
select throws_ok(
    $$ select public.stream_send('"task.output"') $$,
    '22023', 'messages must be an array of objects with a key and a value'
);
select throws_ok($$ select public.stream_read(max => 0) $$, '22023', 'max must be between 1 and 10000');
select throws_ok($$ select public.stream_pause('nobody.here') $$, '22023', 'there is no subscription ''nobody.here''');
select throws_ok($$ select public.stream_prune(-1) $$, '22023', 'older_than_seconds must be 0 or more');

-- Subscriptions.
create function pg_temp.subscription(declared jsonb) returns text language sql as $$
    select format(
        'select public.stream_subscribe(%L, %L)', '{"id": "00000000-0000-0000-0000-000000000001"}',
        jsonb_build_array(declared)
    )
$$;
select throws_ok(
    pg_temp.subscription('{"name": "nameless", "agent": "nameless", "patterns": [">"]}'),
    '22023', '''nameless'' is not a subscription name'
);
select throws_ok(
    pg_temp.subscription('{"name": "tester.hear", "agent": "publisher", "patterns": [">"]}'),
    '22023', 'subscription tester.hear cannot belong to agent ''publisher'''
);
select throws_ok(
    pg_temp.subscription('{"name": "tester.hear", "agent": "tester", "patterns": []}'),
    '22023', 'subscription tester.hear has no patterns'
);
select throws_ok(
    pg_temp.subscription('{"name": "tester.hear", "agent": "tester", "patterns": ["task.>.output"]}'),
    '22023', '''task.>.output'' is not a pattern'
);

-- The fence: a report that does not hold the current lease changes nothing.
select lives_ok(pg_temp.subscription('{"name": "tester.hear", "agent": "tester", "patterns": ["task.ask"]}'));
insert into public.consciousness_stream (key) values ('task.ask');
select is(
    (select public.stream_exchange(
        '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000002', 1,
        done => json_build_array(json_build_object(
            'message', d.message_id, 'subscription', d.subscription, 'lease', gen_random_uuid()))
     )::jsonb -> 'refused' = jsonb_build_array(jsonb_build_array(d.message_id, d.subscription))
     from runtime.deliveries d join runtime.subscriptions s on s.id = d.subscription
     where s.name = 'tester.hear'),
    true, 'a report under another lease is refused'
);
select is(
    (select count(*) from runtime.deliveries d join runtime.subscriptions s on s.id = d.subscription
     where s.name = 'tester.hear'),
    1::bigint, 'and the delivery stays'
);

-- Identities.
set local request.jwt.claims = '{"role": "agent", "agent": "publisher"}';
select throws_ok(
    pg_temp.subscription('{"name": "tester.hear", "agent": "tester", "patterns": [">"]}'),
    '42501', 'agent ''publisher'' may not subscribe as ''tester'''
);
set local request.jwt.claims = '{"role": "agent"}';
select throws_ok(
    $$ select public.stream_send('{"key": "task.output"}') $$,
    '42501', 'this token has the role agent and names no agent'
);

select * from finish();
rollback;
