-- Routing: which subscriptions get the messages of a key, worked out once per key and cached.

create function runtime.route(unknown text[]) returns runtime.routes[]
language plpgsql set search_path = '' as $$
declare
    found runtime.routes[];
begin
    perform runtime.check_key(k) from unnest(unknown) as k;
    -- One statement, so that the generation belongs to the patterns read.
    found := array(
        select row(
            hashtext(k.key) & 4095, k.key, g.generation,
            coalesce(array_agg(s.id) filter (where s.id is not null), '{}'),
            coalesce(array_agg(s.ordered) filter (where s.id is not null), '{}'),
            coalesce(array_agg(s.marks_processed) filter (where s.id is not null), '{}'),
            count(*) filter (where s.marks_processed) = 1
        )::runtime.routes
        from unnest(unknown) as k (key)
        -- max() returns a row in any case: messages are delivered even where routing has lost its row.
        cross join (select max(r.generation) as generation from runtime.routing r) g
        left join lateral (
            select distinct p.subscription
            from unnest(runtime.candidates(k.key)) as c (pattern)
            cross join lateral (
                -- offset 0: patterns are looked up one by one. Else the planner would read the whole table for each
                -- key.
                select l.subscription from runtime.patterns l where l.pattern = c.pattern offset 0
            ) p
        ) hit on true
        left join lateral (select * from runtime.subscriptions l where l.id = hit.subscription offset 0) s on true
        group by k.key, g.generation
    );
    -- Only one transaction at a time writes to the cache, so that none waits for another's row. A current route is
    -- seldom replaced, so that a rare key does not drive out a frequent one.
    if not runtime.is_stricter() and pg_try_advisory_xact_lock(hashtext('runtime.routes')) then
        insert into runtime.routes as r
        select distinct on (f.slot) f.* from unnest(found[:100]) as f where f.generation is not null order by f.slot
        on conflict (slot) do update
            set key = excluded.key, generation = excluded.generation, subscriptions = excluded.subscriptions,
                ordered = excluded.ordered, marks = excluded.marks, sole = excluded.sole
            where r.generation <> excluded.generation or random() < 0.05;
    end if;
    return found;
end
$$;
comment on function runtime.route(text[]) is
    'Works out which subscriptions get the messages of these keys, from every matching pattern, and caches the answer.';

create function runtime.note_unheard(keys text[]) returns void
language plpgsql set search_path = '' as $$
declare
    noted text := concat_ws(' ', nullif(current_setting('runtime.unheard', true), ''), array_to_string(keys, ' '));
begin
    -- A transaction that writes under very many keys need not tell of them all.
    perform set_config('runtime.unheard', noted, true) where length(noted) < 100000;
end
$$;
comment on function runtime.note_unheard(text[]) is
    'Notes, for the rest of the transaction, keys of its messages that no subscription listens to.';

create function runtime.unheard() returns text[]
language plpgsql stable set search_path = '' as $$
declare
    noted text[] := string_to_array(nullif(current_setting('runtime.unheard', true), ''), ' ');
begin
    -- A handler with deliver="each" has no subscription; its worker names its patterns.
    if exists (select from runtime.workers w where w.details -> 'each' <> '[]') then
        noted := array(
            select u.key from unnest(noted) as u (key)
            where not exists (
                select from runtime.workers w
                where w.details -> 'each' ?| runtime.candidates(u.key) and w.seen_at > (select runtime.alive_since())));
    end if;
    return nullif(noted, '{}');
end
$$;
comment on function runtime.unheard() is
    'The keys of messages of this transaction that no handler listens to; null if there is none.';

create function runtime.reroute() returns trigger
language plpgsql set search_path = '' as $$
begin
    insert into runtime.routing as r default values
    on conflict (only_row) do update set generation = r.generation + 1, changed_by = pg_current_xact_id()
    where r.changed_by is distinct from pg_current_xact_id();
    return null;
end
$$;
comment on function runtime.reroute() is
    'Invalidates the routing cache: raises the generation of the patterns, once per transaction.';

create trigger reroute after insert or update or delete on runtime.patterns
    for each row execute function runtime.reroute();
create trigger reroute_all after truncate on runtime.patterns
    for each statement execute function runtime.reroute();
create trigger reroute after update of ordered, marks_processed on runtime.subscriptions
    for each row when (old.ordered <> new.ordered or old.marks_processed <> new.marks_processed)
    execute function runtime.reroute();
