-- Subscriptions are numbered from a random start, so that a worker that outlives a reset of the database never takes
-- the number of another's new subscription for one of its own.

do $$
begin
    execute format(
        'alter table runtime.subscriptions alter column id restart with %s', 1 + floor(random() * 2000000000)::integer);
end
$$;
