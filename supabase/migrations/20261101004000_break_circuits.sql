-- Circuit breakers: a target that keeps failing rests. Its subscription is paused and probed again after a growing
-- time; its messages wait meanwhile, and spend no attempts.

create function runtime.begin_rest(target text, until timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    now timestamptz := clock_timestamp();
    was_running boolean;
begin
    update runtime.subscriptions s set paused_at = now where s.name = target and s.paused_at is null;
    was_running := found;
    update runtime.webhooks h
    set rests_until = until, probing = false, failures = 0, failing = '{}',
        -- An operator's own pause outlasts the rest.
        paused_at = case when was_running then now else h.paused_at end
    where h.name = target;
end
$$;
comment on function runtime.begin_rest(text, timestamptz) is
    'Opens the circuit: pauses the subscription of a target until a time.';

create function runtime.end_rest(target text) returns void
language plpgsql set search_path = '' as $$
declare
    rested timestamptz;
    resumed integer;
begin
    select h.paused_at into rested from runtime.webhooks h where h.name = target;
    update runtime.webhooks h set rests_until = null, paused_at = null, probing = true, is_gone = false
    where h.name = target;
    update runtime.subscriptions s set paused_at = null where s.name = target and s.paused_at = rested
    returning s.id into resumed;
    if resumed is not null then
        perform runtime.wake_sleepers(array[resumed], '{}');
    end if;
end
$$;
comment on function runtime.end_rest(text) is
    'Half-opens the circuit: resumes the subscription of a target, to probe it.';

create function runtime.forget_rest(subscription text) returns void
language sql set search_path = '' as $$
    update runtime.webhooks h
    set rests_until = null, paused_at = null, probing = false, is_gone = false, failures = 0, failing = '{}', rests = 0
    where h.name = subscription
$$;
comment on function runtime.forget_rest(text) is
    'Ends a rest without a probe: an operator who pauses or resumes by hand decides alone.';

create function runtime.note_failure(h runtime.webhooks, note jsonb) returns void
language plpgsql set search_path = '' as $$
declare
    kind text := note ->> 'kind';
    message bigint := (note ->> 'message')::bigint;
    rules runtime.policy := (select p from runtime.policy p);
    counts boolean := kind = 'target' or not message = any (h.failing);
    is_resting boolean := h.rests_until > clock_timestamp();
begin
    update runtime.webhooks x
    set failed_at = clock_timestamp(), last_status = (note ->> 'status')::integer, last_error = left(note ->> 'error', 1000)
    where x.name = h.name;
    if kind = 'gone' then
        update runtime.webhooks x set is_gone = true where x.name = h.name;
        perform runtime.begin_rest(h.name, 'infinity');
    elsif h.is_gone then
        return;
    elsif kind = 'asked' then
        perform runtime.begin_rest(h.name, greatest(
            h.rests_until, clock_timestamp() + make_interval(secs => least((note ->> 'seconds')::double precision, 3600))));
    elsif is_resting then
        -- Requests that were under way when the rest began say nothing new.
        return;
    elsif h.probing or h.failures + counts::integer >= rules.webhook_failures then
        update runtime.webhooks x set rests = x.rests + 1 where x.name = h.name;
        perform runtime.begin_rest(h.name, clock_timestamp() + make_interval(secs => least(
            rules.webhook_rest_seconds * 2 ^ least(h.rests, 30), rules.webhook_longest_rest_seconds
        ) * (0.75 + random() / 2)));
    elsif counts then
        update runtime.webhooks x
        set failures = x.failures + 1,
            failing = case when kind = 'target' then x.failing else x.failing || message end
        where x.name = h.name;
    end if;
end
$$;
comment on function runtime.note_failure(runtime.webhooks, jsonb) is
    'Counts a failure in a row, and lets the target rest where that was one too many or the target asked for it.';

create function public.stream_note_webhooks(targets jsonb, notes jsonb default '[]') returns json
language plpgsql security definer set search_path = '' as $$
declare
    h runtime.webhooks;
    note jsonb;
begin
    perform runtime.check_own('post for', array_agg(t.name)) from jsonb_to_recordset(targets) as t (name text);
    insert into runtime.webhooks (name, url, is_added, emits, concurrency)
    select t.name, t.url, false, t.emits, t.concurrency
    from jsonb_to_recordset(targets) as t (name text, url text, emits text, concurrency integer)
    where t.url is not null
    order by t.name
    on conflict on constraint webhooks_pkey do update
        set url = excluded.url, emits = excluded.emits, concurrency = excluded.concurrency
        where not webhooks.is_added and (webhooks.url, webhooks.emits, webhooks.concurrency)
            is distinct from (excluded.url, excluded.emits, excluded.concurrency);
    for h in
        select x.* from runtime.webhooks x
        join jsonb_to_recordset(targets) as t (name text) on t.name = x.name
        where x.rests_until <= clock_timestamp()
           or exists (select from jsonb_array_elements(notes) as n where n ->> 'name' = x.name)
        order by x.name
        for update of x
    loop
        if h.rests_until <= clock_timestamp() then
            perform runtime.end_rest(h.name);
        end if;
        for note in
            select n.value from jsonb_array_elements(notes) with ordinality as n
            where n.value ->> 'name' = h.name order by n.ordinality
        loop
            select * into h from runtime.webhooks x where x.name = h.name;
            if note ->> 'kind' <> 'done' then
                perform runtime.note_failure(h, note);
            elsif h.rests_until is null then
                update runtime.webhooks x
                set succeeded_at = clock_timestamp(), failures = 0, failing = '{}', rests = 0, probing = false
                where x.name = h.name;
            end if;
        end loop;
    end loop;
    return (
        select coalesce(json_object_agg(x.name, json_build_object(
            -- PostgreSQL 15 does not subtract from infinity; a day is as good, since it is looked at again.
            'rests_seconds', case
                when x.rests_until = 'infinity' then 86400
                when x.rests_until is not null
                    then greatest(0, extract(epoch from x.rests_until - clock_timestamp()))
            end,
            'probing', x.probing, 'failing', x.failures > 0)), '{}')
        from runtime.webhooks x
        join jsonb_to_recordset(targets) as t (name text) on t.name = x.name
    );
end
$$;
comment on function public.stream_note_webhooks(jsonb, jsonb) is
    'Records how requests to targets [{name, url, emits, concurrency}] went: [{name, kind, message, status, error, '
    'seconds}], of the kinds done, target, message, asked and gone. Ends rests that are over, and returns the state of '
    'each target.';
