-- Checks of a call: who makes it, and whether its figures make sense. An agent under its own token is held to its own
-- subscriptions; every other caller is an operator.

create function runtime.caller_agent() returns text
language plpgsql stable set search_path = '' as $$
declare
    claims jsonb := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
begin
    -- An agent under its own identity has the name in its token, whatever the arguments claim.
    if claims ->> 'role' = 'agent' then
        if coalesce(claims ->> 'agent', '') = '' then
            raise exception using
                errcode = '42501',
                message = 'this token has the role agent and names no agent',
                hint = 'Put the agent''s name into its claim "agent".';
        end if;
        return claims ->> 'agent';
    end if;
    return null;
end
$$;
comment on function runtime.caller_agent() is 'The agent named by the caller''s token, or null for a caller that is no agent.';

create function runtime.refuse_agent(what text) returns void
language plpgsql stable set search_path = '' as $$
begin
    if runtime.caller_agent() is not null then
        raise exception using errcode = '42501', message = format('an agent''s identity may not %s', what);
    end if;
end
$$;
comment on function runtime.refuse_agent(text) is
    'Raises 42501 for an agent under its own identity: only operators may call the function.';

create function runtime.check_own(verb text, names text[]) returns void
language plpgsql stable set search_path = '' as $$
declare
    caller text := runtime.caller_agent();
    name text;
begin
    foreach name in array coalesce(names, '{}') loop
        if split_part(name, '.', 1) is distinct from caller and caller is not null then
            raise exception using errcode = '42501', message = format('agent %L may not %s %L', caller, verb, name);
        end if;
    end loop;
end
$$;
comment on function runtime.check_own(text, text[]) is
    'Raises 42501 where an agent under its own identity names a handler of another agent.';

create function runtime.check_between(
    name text, value double precision, lowest double precision, highest double precision
) returns void
language plpgsql immutable set search_path = '' as $$
begin
    if value is null or value not between lowest and highest then
        raise exception using errcode = '22023', message = format('%s must be between %s and %s', name, lowest, highest);
    end if;
end
$$;
comment on function runtime.check_between(text, double precision, double precision, double precision) is
    'Raises 22023 unless an argument of this name lies between these.';

create function runtime.check_caller(caller text, done json, failed json, renew json, want jsonb) returns void
language plpgsql stable set search_path = '' as $$
declare
    stranger integer;
begin
    select named.id into stranger
    from (
        select (r ->> 'subscription')::integer as id from json_array_elements(coalesce(done, '[]')) as r
        union select (r ->> 'subscription')::integer from json_array_elements(coalesce(failed, '[]')) as r
        union select (r ->> 'subscription')::integer from json_array_elements(coalesce(renew, '[]')) as r
        union select k::integer from jsonb_object_keys(coalesce(want, '{}')) as k
    ) named
    left join runtime.subscriptions s on s.id = named.id
    where s.agent is distinct from caller limit 1;
    if stranger is not null then
        raise exception using errcode = '42501',
            message = format('agent %L does not own subscription %s', caller, stranger);
    end if;
end
$$;
comment on function runtime.check_caller(text, json, json, json, jsonb) is
    'Raises 42501 where an agent under its own identity reports, renews or takes deliveries of another agent.';

create function runtime.subscription_of(name text) returns runtime.subscriptions
language plpgsql stable set search_path = '' as $$
declare
    s runtime.subscriptions;
begin
    select * into s from runtime.subscriptions x where x.name = subscription_of.name;
    if not found then
        raise exception using errcode = '22023', message = format('there is no subscription %L', name),
            hint = '`runtime subscriptions` (in SQL, stream_stats()) lists them; they are named agent.handler.';
    end if;
    if runtime.caller_agent() is distinct from s.agent and runtime.caller_agent() is not null then
        raise exception using errcode = '42501', message = format('subscription %L belongs to another agent', name);
    end if;
    return s;
end
$$;
comment on function runtime.subscription_of(text) is
    'The subscription of this name; raises 22023 for none, 42501 for another agent''s.';
