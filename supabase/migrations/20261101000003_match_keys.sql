-- Which patterns match a key? Every pattern that could is computed from the key and looked up; nothing is scanned.

create function runtime.check_key(key text) returns void
language plpgsql immutable set search_path = '' as $$
begin
    if key is null or length(key) > 255
        or key !~ '^[A-Za-z0-9_:-]+(\.[A-Za-z0-9_:-]+){0,7}$' then
        raise exception using
            errcode = '22023',
            message = format('%s is not a key', coalesce(quote_literal(left(key, 80)), 'null')),
            hint = 'A key looks like task.output: 1 to 8 segments joined by dots, each of the letters A-Z a-z, '
                   'digits, _ : and -, at most 255 characters in all.';
    end if;
end
$$;
comment on function runtime.check_key(text) is 'Raises 22023 unless the text is a key.';

create function runtime.check_pattern(pattern text) returns void
language plpgsql immutable set search_path = '' as $$
begin
    if pattern is null or length(pattern) > 255
        or pattern !~ '^(([A-Za-z0-9_:-]+|\*)\.){0,7}([A-Za-z0-9_:-]+|\*|>)$' then
        raise exception using
            errcode = '22023',
            message = format('%s is not a pattern', coalesce(quote_literal(left(pattern, 80)), 'null')),
            hint = 'A pattern is a key in which a segment may be * (any one segment) and the last may be > '
                   '(one or more segments): task.output, task.*, task.>, >.';
    end if;
end
$$;
comment on function runtime.check_pattern(text) is 'Raises 22023 unless the text is a pattern.';

create function runtime.candidates(key text) returns text[]
language plpgsql immutable strict set search_path = '' as $$
declare
    segments text[] := string_to_array(key, '.');
    last integer := cardinality(segments);
    found text[] := '{}'::text[];
    stems text[] := '{""}'::text[];
    longer text[];
    stem text;
    ending text := '.';
begin
    -- Loops of plain expressions: a third of what a query per segment takes.
    for i in 1 .. last loop
        if i = last then
            ending := '';
        end if;
        longer := '{}';
        foreach stem in array stems loop
            found := found || (stem || '>');
            longer := longer || (stem || segments[i] || ending) || (stem || '*' || ending);
        end loop;
        stems := longer;
    end loop;
    return found || stems;
end
$$;
comment on function runtime.candidates(text) is
    'Every pattern that matches the key: at most 2^(segments + 1) - 1 of them, none of which need exist.';
