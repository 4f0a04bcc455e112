-- Undos: a delivery that dies with finished steps that have undos changes phase instead of ending. In the second phase
-- its attempts run the undos, each of which is a step; attempts and crashes are counted anew. Then it is buried.
-- The phase is a step too, named undo, with the reason, error and traceback of the death. So it comes with every later
-- attempt, and goes with the steps.

create function runtime.is_undoing(message bigint, subscription integer) returns boolean
language sql stable set search_path = '' as $$
    select exists (
        select from runtime.steps s
        where s.message_id = message and s.subscription = is_undoing.subscription
          and s.name = 'undo' and s.key = '' and s.occurrence = 1)
$$;
comment on function runtime.is_undoing(bigint, integer) is
    'Whether the attempts of a delivery run the undos of its steps, and its handler no more.';

create function runtime.has_undos(message bigint, subscription integer) returns boolean
language sql stable set search_path = '' as $$
    select exists (
        select from runtime.steps s
        where s.message_id = message and s.subscription = has_undos.subscription and s.undo is not null
    ) and not exists (
        select from runtime.steps s
        where s.message_id = message and s.subscription = has_undos.subscription
          and s.name = 'no_return' and s.key = '' and s.occurrence = 1)
$$;
comment on function runtime.has_undos(bigint, integer) is
    'Whether a delivery has finished steps that are to be undone if it dies: not past its point of no return.';

create function runtime.account(message bigint, subscription integer, died_of text, now_of text) returns text
language sql stable set search_path = '' as $$
    select concat_ws(E'\n', died_of,
        'Undone: ' || string_agg(x.step, ', ' order by x.at desc) filter (where x.fault is null),
        'Could not be undone: ' || string_agg(format('%s (%s)', x.step, x.fault), ', ' order by x.at desc)
            filter (where x.fault is not null))
    from (
        select runtime.label_of(s) as step,
               s.created_at as at,
               case when u.name is null then coalesce(left(now_of, 500), 'not tried')
                    else left(u.value ->> 'error', 500) end as fault
        from runtime.steps s
        left join runtime.steps u
            on u.message_id = s.message_id and u.subscription = s.subscription
            and u.name = 'undo.' || s.name and u.key = s.key and u.occurrence = s.occurrence
        where s.message_id = message and s.subscription = account.subscription and s.undo is not null
    ) x
$$;
comment on function runtime.account(bigint, integer, text, text) is
    'The error of a dead letter whose steps were undone: what the delivery died of, then what is undone and what could '
    'not be; now_of is the error that ends the undoing where some undos have not ended.';

create function runtime.undo_first(
    inout ids bigint[], inout subscriptions integer[], inout reasons text[], inout errors text[], inout tracebacks text[]
) language plpgsql set search_path = '' as $$
declare
    one record;
    died jsonb;
    begun integer[] := '{}'::integer[];
    unleased jsonb := '[]'::jsonb;
begin
    if cardinality(tracebacks) < cardinality(ids) then
        tracebacks := array_fill(null::text, array[cardinality(ids)]);
    end if;
    for one in
        -- The caller has locked the rows.
        select v.turn::integer as turn, v.id, v.subscription, d.ordered_key
        from unnest(ids, subscriptions) with ordinality as v (id, subscription, turn)
        cross join lateral (
            select l.ordered_key, l.heavy from runtime.deliveries l
            where l.message_id = v.id and l.subscription = v.subscription offset 0
        ) d
        where d.heavy
    loop
        died := (
            select s.value from runtime.steps s
            where s.message_id = one.id and s.subscription = one.subscription
              and s.name = 'undo' and s.key = '' and s.occurrence = 1);
        if died is not null then
            errors[one.turn] := runtime.account(one.id, one.subscription, died ->> 'error', errors[one.turn]);
            reasons[one.turn] := died ->> 'reason';
            tracebacks[one.turn] := died ->> 'traceback';
        elsif runtime.has_undos(one.id, one.subscription) then
            insert into runtime.steps (message_id, subscription, name, key, occurrence, value)
            values (one.id, one.subscription, 'undo', '', 1, jsonb_build_object(
                'reason', reasons[one.turn], 'error', errors[one.turn], 'traceback', tracebacks[one.turn]));
            update runtime.deliveries d
            set lease = null, attempts = 0, crashes = 0, visible_at = clock_timestamp()
            where d.message_id = one.id and d.subscription = one.subscription;
            -- What it waited for is of no use now, and must not put it off.
            perform runtime.forget_waits(array[one.id], array[one.subscription]);
            perform runtime.forget_unsettled(array[one.id], array[one.subscription]);
            begun := begun || one.turn;
            if one.ordered_key is not null then
                unleased := unleased || jsonb_build_array(
                    jsonb_build_array(one.subscription, one.ordered_key, one.id));
            end if;
        end if;
    end loop;
    if cardinality(begun) > 0 then
        select array_agg(v.id order by v.turn), array_agg(v.subscription order by v.turn),
               array_agg(v.reason order by v.turn), array_agg(v.error order by v.turn),
               array_agg(v.traceback order by v.turn)
        into ids, subscriptions, reasons, errors, tracebacks
        from unnest(ids, subscriptions, reasons, errors, tracebacks) with ordinality
            as v (id, subscription, reason, error, traceback, turn)
        where v.turn <> all (begun);
        if unleased <> '[]' then
            perform runtime.unpark_below(unleased);
        end if;
    end if;
end
$$;
comment on function runtime.undo_first(bigint[], integer[], text[], text[], text[]) is
    'Of deliveries that die, has those undone first that have finished steps with undos; returns the others, and those '
    'that have been undone, with what they died of.';

create function runtime.forget_undone(letters bigint[]) returns void
language plpgsql set search_path = '' as $$
begin
    with letter as materialized (
        select distinct l.message_id, l.subscription from runtime.dead_letters l
        where l.id = any (letters) and runtime.is_undoing(l.message_id, l.subscription)
    ), undone as (
        delete from runtime.steps s
        using letter l
        where s.message_id = l.message_id and s.subscription = l.subscription and s.undo is not null
          and exists (
              select from runtime.steps u
              where u.message_id = s.message_id and u.subscription = s.subscription
                and u.name = 'undo.' || s.name and u.key = s.key and u.occurrence = s.occurrence
                and u.value ->> 'error' is null)
        returning s.message_id, s.subscription, s.name, s.key, s.occurrence
    ), rounds as (
        -- The other side must not take the second charge for the first one, which was refunded.
        insert into runtime.steps (message_id, subscription, name, key, occurrence, value)
        select u.message_id, u.subscription, 'undone', '',
               1 + (select count(*) from runtime.steps e
                    where e.message_id = u.message_id and e.subscription = u.subscription and e.name = 'undone'),
               jsonb_agg(jsonb_build_array(u.name, u.key, u.occurrence))
        from undone u group by u.message_id, u.subscription
    )
    delete from runtime.steps s
    using letter l
    where s.message_id = l.message_id and s.subscription = l.subscription
      and (s.name = 'undo' or starts_with(s.name, 'undo.'));
end
$$;
comment on function runtime.forget_undone(bigint[]) is
    'Forgets the steps of these dead letters that were undone, so that a redrive does them again, with other keys for the '
    'outside world. A step that could not be undone stays finished.';
