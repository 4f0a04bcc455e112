-- Row-level security: closed until a policy opens it, and then open for exactly what the policy says.
begin;
select plan(13);

select ok(
    (select c.relrowsecurity from pg_class c where c.oid = 'public.consciousness_stream'::regclass),
    'row-level security is on for the stream'
);
select is_empty(
    $$ select c.oid::regclass from pg_class c
       where c.relnamespace = 'runtime'::regnamespace and c.relkind = 'r' and not c.relrowsecurity $$,
    'and for every table of runtime'
);
select policies_are('public', 'consciousness_stream', array[]::name[], 'the migrations open the stream to nobody');
-- Where postgres may not make policies there, none is made, and none is needed: service_role passes row-level security.
create temporary view may_make_policies as
    select pg_has_role('postgres', c.relowner, 'usage') as yes from pg_class c where c.oid = 'realtime.messages'::regclass;
select case when yes
    then policy_roles_are('realtime', 'messages', 'runtime workers hear their wake-ups', array['service_role'])
    else skip('postgres does not own realtime.messages') end
from may_make_policies;
select case when yes
    then policy_cmd_is('realtime', 'messages', 'runtime workers hear their wake-ups', 'select', 'and let them hear, not say')
    else skip('postgres does not own realtime.messages') end
from may_make_policies;
select case when yes
    then policy_cmd_is('realtime', 'messages', 'runtime workers broadcast', 'insert', 'but what is not stored')
    else skip('postgres does not own realtime.messages') end
from may_make_policies;
select is(
    (select array_agg(t.schemaname || '.' || t.tablename order by 1) from pg_publication_tables t
     where t.pubname = 'supabase_realtime' and (t.schemaname, t.tablename) in (('public', 'consciousness_stream'), ('runtime', 'beats'))),
    array['public.consciousness_stream', 'runtime.beats'],
    'Realtime publishes the stream and the workers'' beats'
);

insert into public.consciousness_stream (key, value, correlation_id) values
    ('answer.given', '"yours"', '11111111-1111-1111-1111-111111111111'),
    ('answer.given', '"another''s"', '22222222-2222-2222-2222-222222222222');
grant select, insert on public.consciousness_stream to authenticated;

set local role authenticated;
set local request.jwt.claims = '{"role": "authenticated", "sub": "11111111-1111-1111-1111-111111111111"}';
select is_empty('select id from public.consciousness_stream', 'a grant alone shows no row');
select throws_ok(
    $$ insert into public.consciousness_stream (key, value) values ('question.asked', '1') $$,
    '42501', null, 'a grant alone lets no row in'
);
reset role;

create policy "users ask in their own name" on public.consciousness_stream for insert to authenticated
    with check (key = 'question.asked' and correlation_id = (select auth.uid())::text);
create policy "users see their own answers" on public.consciousness_stream for select to authenticated
    using (key = 'answer.given' and correlation_id = (select auth.uid())::text);

set local role authenticated;
select results_eq(
    'select value #>> ''{}'' from public.consciousness_stream', array['yours'],
    'with a policy a user sees their own answers'
);
select lives_ok(
    $$ insert into public.consciousness_stream (key, correlation_id)
       values ('question.asked', '11111111-1111-1111-1111-111111111111') $$,
    'asks in their own name'
);
select throws_ok(
    $$ insert into public.consciousness_stream (key, correlation_id)
       values ('question.asked', '22222222-2222-2222-2222-222222222222') $$,
    '42501', null, 'not in another''s'
);
select throws_ok(
    $$ insert into public.consciousness_stream (key, correlation_id)
       values ('answer.given', '11111111-1111-1111-1111-111111111111') $$,
    '42501', null, 'and gives no answers'
);
reset role;

select * from finish();
rollback;
