-- Heartbeats: what a sweep does besides looking for work, and nonces that prove the push paths.

create function runtime.send_nonce(worker uuid, announce text[], nonce text) returns void
language plpgsql set search_path = '' as $$
begin
    delete from runtime.beats b where b.worker = send_nonce.worker or b.sent_at < clock_timestamp() - interval '1 hour';
    insert into runtime.beats (nonce, worker) values (send_nonce.nonce, send_nonce.worker);
    perform runtime.push(worker, announce, 'nonce', jsonb_build_object('nonce', nonce));
end
$$;
comment on function runtime.send_nonce(uuid, text[], text) is 'Sends a nonce back over every push path, to prove each from end to end.';

create function runtime.beat(me runtime.workers, nonce text, gauges jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
    rules runtime.policy := runtime.rules();
begin
    perform runtime.mend_clock();
    update runtime.workers w set seen_at = clock_timestamp(), details = w.details || coalesce(gauges, '{}')
    where w.id = me.id;
    perform runtime.mark_unmarked();
    perform runtime.heal_order(me);
    delete from runtime.workers w where w.seen_at < clock_timestamp() - interval '1 day' and w.id <> me.id;
    delete from runtime.pumps p where not exists (select from runtime.workers w where w.id = p.worker);
    -- An unanswered call is kept while its worker may still count as asleep.
    delete from runtime.calls c
    where c.called_at < clock_timestamp() - make_interval(secs => greatest(60, rules.sleeper_seconds))
        -- A call in the future was made before the clock was set back.
        or c.called_at > clock_timestamp();
    if nonce is not null then
        perform runtime.send_nonce(me.id, me.announce, nonce);
    end if;
    return to_jsonb(runtime.disorders(me.announce) || array(select r.warning from runtime.rivals(me.id) r));
end
$$;
comment on function runtime.beat(runtime.workers, text, jsonb) is
    'The sweep''s part of an exchange: records the heartbeat and the worker''s gauges, mends leftovers, and sends a '
    'nonce that proves the push paths. Returns warnings for the worker to log.';

create function public.stream_beat(worker uuid, nonce text) returns json
language plpgsql security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('send nonces');
    perform runtime.send_nonce(worker, array['realtime', 'notify'], nonce);
    return json_build_object('nonce', nonce);
end
$$;
comment on function public.stream_beat(uuid, text) is
    'Sends a nonce back over every push path, for a listener that takes no deliveries.';
