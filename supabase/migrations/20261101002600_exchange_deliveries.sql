-- The exchange: a worker's one round trip, which reports attempts and takes deliveries in one transaction.

create function public.stream_exchange(
    worker uuid,
    pump uuid,
    n bigint,
    done json default null,
    failed json default null,
    renew json default null,
    want jsonb default null,
    options jsonb default '{}'
) returns json
language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
    met record;
    me runtime.workers;
    mine runtime.pumps;
    -- Parsed only where there are claims, since every exchange pays for it.
    caller text := case when current_setting('request.jwt.claims', true) <> '' then runtime.caller_agent() end;
    until timestamptz := clock_timestamp()
        + make_interval(secs => coalesce((options ->> 'lease_seconds')::double precision, 30));
    due boolean := coalesce((options ->> 'due')::boolean, false);
    alone boolean := coalesce((options ->> 'alone')::boolean, false);
    -- A worker gives max_bytes or bare after an answer could not be built or did not arrive: then messages that seem
    -- small are weighed too.
    exactly boolean := options ?| '{max_bytes,bare}';
    new_lease uuid := case when want <> '{}' then gen_random_uuid() end;
    looked_at timestamptz;
    now timestamptz;
    refused jsonb := '[]'::jsonb;
    lost jsonb;
    nap record;
    taking runtime.taking;
    allowed jsonb := want;
    bound jsonb;
    answer jsonb := '{}'::jsonb;
    warnings jsonb;
    told_usage boolean := false;
    limited_seconds double precision;
    told record;
    described json := '[]'::json;
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using errcode = '25001', message = 'stream_exchange needs isolation level read committed';
    end if;
    -- A lease that a crash of the database loses costs one lease time; a lost finish would repeat work. The call is
    -- made in a condition, which is an expression; with perform it would be a query.
    if done is null and failed is null and set_config('synchronous_commit', 'off', true) is null then
        null;
    end if;
    if caller is not null then
        perform runtime.check_caller(caller, done, failed, renew, want);
    end if;

    for tries in 1..2 loop
        update runtime.pumps p
        set last_but_one = p.previous, previous = p.n, n = stream_exchange.n, lease = new_lease, refused = '[]'
        from (select stream_exchange.worker as id) asked
        left join runtime.workers w on w.id = asked.id
        where p.id = stream_exchange.pump and p.n < stream_exchange.n
        returning p as pump, w as worker, exists (select from runtime.limits) as is_limited,
                  exists (select from runtime.holds) as may_be_held,
                  exists (select from runtime.spent_prefixes) as may_be_spent,
                  exists (select from runtime.subscriptions s where s.ordered) as has_order,
                  exists (select from runtime.unsettled_waits) as is_unsettled
        into met;
        exit when found;
        insert into runtime.pumps (id, worker) values (pump, stream_exchange.worker) on conflict do nothing;
    end loop;
    mine := met.pump;
    me := met.worker;
    if mine.id is null then
        select * into mine from runtime.pumps p where p.id = pump for update;
        if n < mine.n then
            return json_build_object('n', mine.n, 'stale', true);
        end if;
        return json_build_object(
            'n', n, 'repeated', true, 'refused', mine.refused,
            'leased', case when options ? 'bare' then runtime.keep_leases(mine.lease, want, until) end,
            'taken', case when options ? 'bare' then '[]' else coalesce((
                select (runtime.describe(
                    array_agg(row(d.message_id, d.subscription, d.attempts, d.crashes, d.priority, d.heavy)::runtime.taken),
                    mine.lease, '-infinity'
                )).rows
                from runtime.deliveries d
                join jsonb_each_text(coalesce(want, '{}')) as w on w.key::integer = d.subscription
                where d.lease = mine.lease and d.visible_at > clock_timestamp() and d.visible_at < 'infinity'
            ), '[]') end);
    end if;

    if done is not null then
        refused := runtime.finish(done, stream_exchange.worker);
    end if;
    if failed is not null then
        refused := refused || runtime.fail(failed, stream_exchange.worker);
    end if;
    if (done is not null or failed is not null) and current_setting('runtime.told_usage', true) <> '' then
        -- It may have spent a budget, or told of a provider that refuses.
        told_usage := true;
        perform runtime.count_usage(done, failed, stream_exchange.worker);
    end if;
    if renew is not null then
        lost := runtime.renew(renew, until);
        answer := jsonb_build_object('lost', lost);
    end if;

    if me.id is null then
        -- The worker's row was pruned, or the database was reset: the worker must subscribe again.
        answer := answer || '{"unknown": true}';
    else
        if options ? 'beat' then
            warnings := runtime.beat(me, options ->> 'nonce', options -> 'gauges');
            if warnings <> '[]' then
                answer := answer || jsonb_build_object('warnings', warnings);
            end if;
        end if;
        if options ? 'settle' then
            perform runtime.settle(me.subscriptions);
            answer := answer || jsonb_build_object('unsettled', array(
                select s.id from runtime.subscriptions s where s.id = any (me.subscriptions) and not s.settled));
        end if;
        if options ? 'stay' then
            -- The worker was called: most likely there is a message, so the next exchange decides whether it may sleep
            -- on.
            null;
        elsif options ? 'sleep' then
            select * into nap from runtime.fall_asleep(
                me, mine, array(select w.key::integer from jsonb_each_text(coalesce(want, '{}')) as w
                          where w.value::integer > 0 order by 1),
                (options ->> 'fence')::xid8);
            answer := answer || jsonb_build_object('fence', nap.new_fence::text, 'quiet', nap.quiet);
        elsif me.asleep then
            update runtime.workers w set asleep = false where w.id = me.id;
        end if;
        if me.cancelled_at is not null then
            answer := answer || jsonb_build_object('cancelled', runtime.cancelled_of(me));
        end if;
    end if;

    if new_lease is not null then
        looked_at := clock_timestamp();
        if due then
            perform runtime.count_crashes(want);
        end if;
        now := clock_timestamp();
        -- Also what this very exchange has suspended.
        if due and (met.is_unsettled or failed is not null) then
            perform runtime.settle_waits(want, now);
        end if;
        if met.is_limited or met.may_be_held or told_usage then
            select * into allowed, bound from runtime.allow(want);
        end if;
        if alone then
            taking := runtime.take_alone(allowed, now, until, new_lease, mine.number, me.pins);
        elsif due then
            taking := runtime.take_due_too(
                allowed, options -> 'cursors', now, until, new_lease, mine.number, me.pins);
        else
            taking := runtime.take_fresh(allowed, options -> 'cursors', until, new_lease, mine.number);
        end if;
        if taking.ordered is not null then
            taking := runtime.take_in_order(taking, allowed, due, now, until, new_lease, mine.number, me.pins);
        end if;
        if (met.may_be_spent or told_usage) and cardinality(taking.taken) > 0 then
            taking := runtime.put_off_spent(taking);
        end if;
        if (taking.heavy or exactly) and not options ? 'bare' and cardinality(taking.taken) > 0 then
            taking := runtime.fit(
                taking, coalesce((options ->> 'max_bytes')::bigint, 8000000), exactly, stream_exchange.worker);
        end if;
        if taking.heavy and cardinality(taking.taken) > 0 then
            perform runtime.end_overdue_waits(taking.taken, now);
        end if;
        if (due or alone) and cardinality(taking.taken) > 0 then
            perform runtime.forget_unsettled(array_agg(t.message_id), array_agg(t.subscription))
            from unnest(taking.taken) as t;
        end if;
        if cardinality(taking.taken) >= taking.least then
            taking.filled := runtime.filled(taking, allowed);
        end if;
        if options ? 'bare' then
            perform runtime.drop_undeliverable(taking.taken, looked_at);
            answer := answer || jsonb_build_object('leased', runtime.keep_leases(new_lease, want, until));
        elsif cardinality(taking.taken) > 0 then
            -- Assigned and not selected into: an expression takes some microseconds less than a query.
            told := runtime.describe(taking.taken, new_lease, looked_at);
            described := told.rows;
            if not told.is_whole then
                perform runtime.drop_undeliverable(taking.taken, looked_at);
                -- Deliveries of the same keys behind them may go now.
                taking.look_again := true;
            end if;
        end if;
        if bound is not null then
            select * into taking.filled, limited_seconds
            from runtime.spend(
                want, bound, array(select t.subscription from unnest(taking.taken) as t), taking.filled);
            if limited_seconds is not null then
                answer := answer || jsonb_build_object('limited', limited_seconds);
            end if;
        end if;
        if cardinality(taking.filled) > 0 then
            perform runtime.wake_sleepers(taking.filled, '{}', but => me.id);
        end if;
        answer := answer || jsonb_build_object(
            'full', taking.filled, 'cursors', taking.cursors, 'look_again', taking.look_again);
        if due then
            answer := answer || jsonb_build_object(
                'next_due', case when taking.more_due then 0 else runtime.next_due_seconds(want, looked_at, me.pins) end,
                'poison', runtime.has_poison_messages(want, me.pins));
        end if;
    end if;

    if done is not null and current_setting('runtime.unheard', true) <> '' then
        answer := answer || jsonb_build_object('unheard', coalesce(runtime.unheard(), '{}'));
    end if;
    if done is not null or failed is not null then
        if failed is not null or met.has_order then
            perform runtime.hand_on(me, want, failed);
        end if;
        if met.is_limited then
            perform runtime.hand_on_slots(me, done, failed);
        end if;
    end if;

    if refused <> '[]' then
        update runtime.pumps p set refused = stream_exchange_refused.value
        from (select refused as value) as stream_exchange_refused
        where p.id = pump;
    end if;
    return json_build_object('n', n, 'refused', refused, 'taken', described, 'more', answer);
end
$$;
comment on function public.stream_exchange(uuid, uuid, bigint, json, json, json, jsonb, jsonb) is
    'Reports done, failed and renewed deliveries and takes up to want[subscription] due ones with their messages. '
    'Each pump numbers its exchanges; a repeated number is answered again and applied once.';
