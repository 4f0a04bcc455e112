-- Subscriptions are numbered from a random start, so that a worker that outlives a reset of the database never takes
-- the number of another's new subscription for one of its own. From the lower half of all there are: one is used up by
-- each new subscription.

do $$
begin
    execute format(
        'alter table runtime.subscriptions alter column id restart with %s', 1 + floor(random() * 1000000000)::integer);
end
$$;
