-- Settling: before anything is taken from a new subscription, every writer that could not see it has ended, and its
-- history is delivered.

create function runtime.backfill(target runtime.subscriptions) returns boolean
language plpgsql set search_path = '' as $$
declare
    page_end bigint;
    page_rows integer;
begin
    with page as materialized (
        select m.id, m.key, m.priority, m.deliver_at, coalesce(pg_column_size(m.value) > 2000 or pg_column_compression(m.value) is not null, false)
               or coalesce(pg_column_size(m.headers) > 500 or pg_column_compression(m.headers) is not null, false) as heavy
        from public.consciousness_stream m
        where m.id > target.backfilled_to
        order by m.id
        limit 5000
    ), wanted as (
        select k.key from (select distinct p.key from page p) k
        where runtime.candidates(k.key) && target.patterns::text[]
    ), made as (
        insert into runtime.deliveries
            (message_id, subscription, visible_at, priority, marks, sole, heavy, ordered_key)
        select p.id, target.id, case when p.deliver_at > clock_timestamp() then p.deliver_at end,
               case when target.ordered then 0 else p.priority end,
               target.marks_processed, false, p.heavy, case when target.ordered then p.key end
        from page p join wanted w on w.key = p.key
        order by p.id
        on conflict do nothing
        returning message_id
    ), shared as (
        -- The processed of these messages now waits for one more subscription.
        update runtime.deliveries d set sole = false
        from made where target.marks_processed and d.message_id = made.message_id and d.sole
    )
    select max(p.id), count(*) into page_end, page_rows from page p;
    update runtime.subscriptions s set backfilled_to = coalesce(page_end, s.backfilled_to) where s.id = target.id;
    return page_rows < 5000;
end
$$;
comment on function runtime.backfill(runtime.subscriptions) is
    'Delivers one page (5,000 messages) of history to a new subscription; true when there is no more.';

create function runtime.begin_order(target integer) returns void
language sql set search_path = '' as $$
    -- Deliveries made while the subscription was unordered.
    update runtime.deliveries d set ordered_key = m.key, priority = 0
    from public.consciousness_stream m
    where d.subscription = target and d.ordered_key is null and m.id = d.message_id
$$;
comment on function runtime.begin_order(integer) is 'Puts the waiting deliveries of a newly ordered subscription in order.';

create function runtime.raise_fence() returns void
language plpgsql set search_path = '' as $$
begin
    perform pg_advisory_xact_lock(hashtext('runtime.settle_fence'));
    perform setval('runtime.settle_fence', case
        when f.last_value > pg_current_xact_id()::text::bigint
            and not runtime.is_foreign(f.last_value::text::xid8) then f.last_value
        else pg_current_xact_id()::text::bigint
    end) from runtime.settle_fence f;
end
$$;
comment on function runtime.raise_fence() is
    'Has writers in a stricter isolation refused whose snapshot is older than this transaction.';

create function runtime.settle(wanted integer[]) returns void
language plpgsql set search_path = '' as $$
declare
    s runtime.subscriptions;
begin
    -- A row locked by another worker is being settled by that worker, and counts as not settled.
    for s in
        select * from runtime.subscriptions x
        where x.id = any (wanted) and not x.settled order by x.id for update skip locked
    loop
        if not s.settling_fenced then
            -- First the fence, which refuses stricter writers with an older snapshot …
            perform runtime.raise_fence();
            update runtime.subscriptions x set settling_fenced = true where x.id = s.id;
        elsif s.settling_xid is null then
            -- … then, in a later transaction, the mark: every writer that read the fence before it rose has a lower
            -- xid.
            update runtime.subscriptions x set settling_xid = pg_current_xact_id() where x.id = s.id;
        elsif s.settling_xid > pg_current_xact_id() and runtime.is_foreign(s.settling_xid) then
            -- The subscription was half settled in another cluster and restored here: begin again.
            update runtime.subscriptions x set settling_fenced = false, settling_xid = null where x.id = s.id;
        elsif pg_snapshot_xmin(pg_current_snapshot()) > s.settling_xid then
            -- Every writer that could have missed the subscription has ended; its messages are history now.
            if s.start = 'latest' or runtime.backfill(s) then
                if s.ordered then
                    perform runtime.begin_order(s.id);
                end if;
                -- It may have to settle again (when it becomes ordered), but its history is read once.
                update runtime.subscriptions x set settled = true, backfilled_to = 9223372036854775807
                where x.id = s.id;
            end if;
        end if;
    end loop;
end
$$;
comment on function runtime.settle(integer[]) is
    'Brings new subscriptions one step closer to settled. It takes three transactions, and the end of every older '
    'writer.';
