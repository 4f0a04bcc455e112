-- Outgoing webhooks: subscriptions whose handler is a URL, their secrets, and the state of their targets.

create table runtime.webhooks (
    name text primary key,
    url text not null,
    -- Added by a command and posted by workers that serve webhooks; else declared and posted by the agent's own code.
    is_added boolean not null,
    emits text,
    -- Requests at once: of an added webhook by all workers together, else by each worker.
    concurrency integer check (concurrency >= 1),
    secret text,
    -- After a rotation, signs beside the new secret until old_until.
    old_secret text,
    old_until timestamptz,
    changed_at timestamptz not null default clock_timestamp(),
    -- Failures in a row: every failure of the target itself, and each failing message once.
    failures integer not null default 0,
    failing bigint[] not null default '{}',
    -- How many rests in a row; each is longer than the one before.
    rests integer not null default 0,
    rests_until timestamptz,
    -- Half-open: back from a rest, until one request has succeeded.
    probing boolean not null default false,
    -- The subscription's paused_at, where the rest paused it.
    paused_at timestamptz,
    is_gone boolean not null default false,
    last_status integer,
    last_error text,
    failed_at timestamptz,
    succeeded_at timestamptz
) with (fillfactor = 50);
comment on table runtime.webhooks is
    'The targets of webhooks by subscription, and their state. It holds secrets: only functions read it.';

alter table runtime.webhooks enable row level security;

create function runtime.new_secret() returns text
language sql volatile set search_path = '' as $$
    -- 244 random bits, from the source of PostgreSQL's own keys.
    select 'whsec_' || encode(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()), 'base64')
$$;
comment on function runtime.new_secret() is 'A secret to sign with, in the form of Standard Webhooks.';

create function runtime.shown_url(url text) returns text
language sql immutable set search_path = '' as $$
    select regexp_replace(regexp_replace(url, '^(\w+://)[^/?#]*@', '\1'), '[?#].*$', '')
$$;
comment on function runtime.shown_url(text) is 'A URL without the parts that may be secret: credentials and query.';

create function runtime.webhook_of(name text) returns runtime.webhooks
language plpgsql set search_path = '' as $$
declare
    h runtime.webhooks;
begin
    perform runtime.refuse_agent('touch webhooks');
    select * into h from runtime.webhooks x where x.name = webhook_of.name and x.is_added for update;
    if not found then
        raise exception using errcode = '22023', message = format('there is no webhook %L', name),
            hint = '`runtime webhooks list` (in SQL, stream_webhooks()) shows them. One that an agent''s code declares is '
                   'changed there.';
    end if;
    return h;
end
$$;
comment on function runtime.webhook_of(text) is
    'The webhook of this name that was added by a command, with its row locked.';

create function public.stream_add_webhook(
    name text, url text, patterns text[], emits text default null, ordered boolean default false,
    concurrency integer default null, max_attempts integer default 15, start text default 'latest',
    secret text default null, replace boolean default false
) returns json
language plpgsql security definer set search_path = '' as $$
declare
    me uuid := gen_random_uuid();
    made runtime.webhooks;
begin
    perform runtime.refuse_agent('add webhooks');
    if url !~ '^https?://[^/?#\s]+([/?#]\S*)?$' then
        raise exception using errcode = '22023', message = 'a webhook''s URL begins with https:// and has no blanks';
    end if;
    if emits is not null then
        perform runtime.check_key(emits);
    end if;
    if exists (select from runtime.webhooks x where x.name = stream_add_webhook.name and x.is_added) then
        if not replace then
            raise exception using errcode = '22023', message = format('there is a webhook %L already', name),
                hint = 'Replace it, which keeps its secret and what waits for it, or give this one another name.';
        end if;
    elsif exists (select from runtime.subscriptions s where s.name = stream_add_webhook.name) then
        raise exception using errcode = '22023', message = format('%L is a handler of an agent''s code', name),
            hint = 'Give the webhook another name.';
    end if;
    insert into runtime.webhooks as h (name, url, is_added, emits, concurrency, secret)
    values (
        stream_add_webhook.name, stream_add_webhook.url, true, stream_add_webhook.emits,
        stream_add_webhook.concurrency, coalesce(nullif(btrim(stream_add_webhook.secret), ''), runtime.new_secret())
    )
    on conflict on constraint webhooks_pkey do update
        set url = excluded.url, is_added = true, emits = excluded.emits, concurrency = excluded.concurrency,
            secret = coalesce(nullif(btrim(stream_add_webhook.secret), ''), h.secret, excluded.secret), changed_at = clock_timestamp()
    returning * into made;
    -- From now on its messages are kept for it, also while no worker serves webhooks.
    perform public.stream_subscribe(
        jsonb_build_object('id', me, 'name', 'add webhook'),
        jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
            'name', name, 'agent', split_part(name, '.', 1), 'patterns', patterns, 'ordered', ordered,
            'max_attempts', max_attempts, 'start', start, 'concurrency_total', concurrency))));
    delete from runtime.workers w where w.id = me;
    return json_build_object('name', name, 'url', runtime.shown_url(made.url), 'secret', made.secret);
end
$$;
comment on function public.stream_add_webhook(text, text, text[], text, boolean, integer, integer, text, text, boolean) is
    'Adds a subscription whose handler is a URL, and returns the secret that its requests are signed with. With '
    'replace, changes one and keeps its secret.';

create function public.stream_remove_webhook(name text, dry_run boolean default false) returns json
language plpgsql security definer set search_path = '' as $$
declare
    h runtime.webhooks := runtime.webhook_of(name);
    s runtime.subscriptions := runtime.subscription_of(name);
    waiting bigint := (select count(*) from runtime.deliveries d where d.subscription = s.id);
begin
    if not dry_run then
        delete from runtime.webhooks x where x.name = h.name;
        -- Workers that serve it learn of this at their next look; until then they get no deliveries of it.
        update runtime.workers w set subscriptions = array_remove(w.subscriptions, s.id), free = array_remove(w.free, s.id)
        where s.id = any (w.subscriptions);
        perform public.stream_remove(name);
    end if;
    return json_build_object('name', h.name, 'waiting', waiting, 'removed', not dry_run);
end
$$;
comment on function public.stream_remove_webhook(text, boolean) is
    'Removes a webhook that a command added, with what waits for it; dead letters and the log of its runs stay.';

create function public.stream_rotate_webhook(name text, keep_seconds double precision default 86400) returns json
language plpgsql security definer set search_path = '' as $$
declare
    h runtime.webhooks := runtime.webhook_of(name);
begin
    if keep_seconds is null or keep_seconds < 0 then
        raise exception using errcode = '22023', message = 'keep_seconds must be 0 or more';
    end if;
    update runtime.webhooks x
    set old_secret = x.secret, old_until = clock_timestamp() + make_interval(secs => keep_seconds),
        secret = runtime.new_secret(), changed_at = clock_timestamp()
    where x.name = h.name
    returning * into h;
    return json_build_object('name', h.name, 'secret', h.secret, 'old_until', h.old_until);
end
$$;
comment on function public.stream_rotate_webhook(text, double precision) is
    'Draws a new secret and returns it; the old one signs beside it for so many seconds.';

create function public.stream_serve_webhooks() returns json
language plpgsql volatile security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('serve webhooks');
    update runtime.webhooks h set old_secret = null, old_until = null where h.old_until <= clock_timestamp();
    return (select coalesce(json_agg(json_build_object(
        'name', h.name, 'url', h.url, 'patterns', s.patterns, 'emits', h.emits, 'ordered', s.ordered,
        'concurrency', h.concurrency, 'max_attempts', s.max_attempts,
        'secrets', array_remove(array[h.secret, h.old_secret], null)
    ) order by h.name), '[]')
    from runtime.webhooks h join runtime.subscriptions s on s.name = h.name
    where h.is_added);
end
$$;
comment on function public.stream_serve_webhooks() is
    'The webhooks that commands have added, with their secrets, for workers that post to them.';

create function public.stream_webhooks() returns json
language plpgsql stable security definer set search_path = '' as $$
begin
    perform runtime.refuse_agent('look at all webhooks');
    return (select coalesce(json_agg(json_build_object(
        'name', h.name, 'url', runtime.shown_url(h.url), 'is_added', h.is_added, 'patterns', s.patterns,
        'emits', h.emits, 'ordered', s.ordered, 'concurrency', h.concurrency,
        'secrets', case when h.is_added then 1 + (h.old_until > clock_timestamp() and h.old_secret is not null)::integer end,
        'state', case
            when h.is_gone then 'gone'
            when h.rests_until is not null then 'resting'
            when s.paused_at is not null then 'paused'
            when h.probing then 'probing'
            when h.failures > 0 then 'failing'
            else 'well'
        end,
        'rests_seconds', case when h.rests_until < 'infinity'
            then greatest(0, extract(epoch from h.rests_until - clock_timestamp())) end,
        'failures', h.failures, 'last_status', h.last_status, 'last_error', h.last_error,
        'failed_at', h.failed_at, 'succeeded_at', h.succeeded_at,
        'waiting', coalesce(b.fresh + b.parked, 0), 'running', coalesce(b.running, 0),
        'scheduled', coalesce(b.scheduled, 0),
        'workers', runtime.workers_of(s.id)
    ) order by h.name), '[]')
    from runtime.webhooks h
    join runtime.subscriptions s on s.name = h.name
    left join runtime.backlog() b on b.subscription = s.id);
end
$$;
comment on function public.stream_webhooks() is
    'The webhooks and the state of their targets: well, failing, resting, probing, gone or paused. Without secrets, '
    'credentials and queries.';
