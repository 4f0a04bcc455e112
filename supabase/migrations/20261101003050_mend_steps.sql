-- Mending steps: the kept results of a handler are forgotten from one on, or given other values, before it runs again.

create function runtime.labels_of(message bigint, subscription integer) returns text
language sql stable set search_path = '' as $$
    select coalesce(string_agg(runtime.label_of(s), ', ' order by s.created_at, s.name), 'nothing') from runtime.steps s
    where s.message_id = message and s.subscription = labels_of.subscription
$$;
comment on function runtime.labels_of(bigint, integer) is 'The steps of a delivery, for an error.';

create function runtime.has_steps(message bigint, subscription integer, labels text[]) returns boolean
language sql stable set search_path = '' as $$
    select not exists (
        select from unnest(labels) as l (label)
        where not exists (
            select from runtime.steps s
            where s.message_id = message and s.subscription = has_steps.subscription
              and l.label in (s.name, runtime.label_of(s))))
$$;
comment on function runtime.has_steps(bigint, integer, text[]) is
    'Whether a delivery has kept all these steps, each given by its name or its label.';

create function runtime.labels_in(from_step text, edits jsonb) returns text[]
language plpgsql immutable set search_path = '' as $$
begin
    if edits is not null and jsonb_typeof(edits) <> 'object' then
        raise exception using errcode = '22023', message = 'edits is an object: {"step": its new result}';
    end if;
    return array(select from_step where from_step is not null union all select jsonb_object_keys(edits));
end
$$;
comment on function runtime.labels_in(text, jsonb) is 'The steps that a mending names.';

create function runtime.finished_at(message bigint, subscription integer, step text) returns timestamptz
language sql stable set search_path = '' as $$
    select min(s.created_at) from runtime.steps s
    where s.message_id = message and s.subscription = finished_at.subscription and step in (s.name, runtime.label_of(s))
$$;
comment on function runtime.finished_at(bigint, integer, text) is
    'When a step finished for the first time: its place in the handler is not known here, so a time stands for it.';

create function runtime.refuse_undone(message bigint, subscription integer, edits jsonb) returns void
language plpgsql stable set search_path = '' as $$
declare
    undone text := (
        select min(runtime.label_of(s)) from runtime.steps s
        join runtime.steps u on u.message_id = s.message_id and u.subscription = s.subscription
            and u.name = 'undo.' || s.name and u.key = s.key and u.occurrence = s.occurrence
        where s.message_id = message and s.subscription = refuse_undone.subscription and s.undo is not null
          and u.value ->> 'error' is null
          and exists (select from jsonb_object_keys(edits) as e (label) where e.label in (s.name, runtime.label_of(s))));
begin
    if undone is not null then
        raise exception using
            errcode = '22023',
            message = format('step %L of message %s was undone, so it has no result that could be edited', undone, message),
            hint = 'Leave it out of the edits: it is done again, with another idempotency key. What it is done with can be '
                   'corrected by an edit of an earlier step, or of the message.';
    end if;
end
$$;
comment on function runtime.refuse_undone(bigint, integer, jsonb) is
    'Refuses edits of steps that were undone: their results stand for nothing any more.';

create function runtime.mend_steps(message bigint, subscription integer, from_time timestamptz, edits jsonb) returns void
language plpgsql set search_path = '' as $$
declare
    edit record;
    edited runtime.steps[];
begin
    delete from runtime.steps s
    where s.message_id = message and s.subscription = mend_steps.subscription
      -- What was undone once stays noted: its next time is another one for the outside world.
      and s.name <> 'undone'
      and s.created_at >= from_time;
    for edit in select e.key as label, e.value from jsonb_each(edits) as e loop
        edited := array(
            select s from runtime.steps s
            where s.message_id = message and s.subscription = mend_steps.subscription
              and edit.label in (s.name, runtime.label_of(s)));
        if cardinality(edited) = 0 then
            raise exception using
                errcode = '22023',
                message = format('message %s keeps no step %L to edit', message, edit.label),
                hint = format('What is forgotten from from_step on is done again. Beside that it keeps %s.',
                              runtime.labels_of(message, mend_steps.subscription));
        elsif cardinality(edited) > 1 then
            raise exception using
                errcode = '22023',
                message = format('%s steps of message %s are meant by %L', cardinality(edited), message, edit.label),
                hint = format('Name one of those that are kept: %s.', runtime.labels_of(message, mend_steps.subscription));
        elsif starts_with(edited[1].name, 'wait.') then
            raise exception using
                errcode = '22023',
                message = format('%L is a wait, and its outcome is a message', edit.label),
                hint = 'Have the handler wait anew, by from_step, and write the message that it waits for.';
        end if;
        update runtime.steps s set value = edit.value
        where s.message_id = message and s.subscription = mend_steps.subscription
          and s.name = edited[1].name and s.key = edited[1].key and s.occurrence = edited[1].occurrence;
    end loop;
end
$$;
comment on function runtime.mend_steps(bigint, integer, timestamptz, jsonb) is
    'Forgets the steps of a delivery that finished at that time or later, and gives others new results: {step: result}.';
