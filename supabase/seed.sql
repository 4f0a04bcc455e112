-- A demo stream: a note that went all the way through the newsroom of `runtime/cli/newsroom/`, and two that wait for it.
--
-- `supabase db reset` runs this after the migrations. To run it again adds nothing: every message has a dedup_key.
-- Agents hear what is written once they are there; `runtime replay writer.draft` gives them these notes too.

do $$
declare
    body text := E'A wake-up is a hint. It says one thing: look again. It can be lost, doubled, late or forged, and no harm '
        'is done, because the work itself is in a table.\n\nWhoever is woken takes the work from the table, in a '
        'transaction, so that nobody else takes it too. A lost hint costs a moment, never a message. That is why agents '
        'may sleep.';
    draft jsonb := jsonb_build_object(
        'path', 'seed.md', 'title', 'Hints and truth', 'body', body, 'revision', 0,
        'summary', 'Whoever is woken takes the work from the table, in a transaction, so that nobody else takes it too. '
                   'A lost hint costs a moment, never a message.'
    );
    latest bigint;
    step record;
begin
    for step in
        select * from (values
            ('note.found', 'seed', jsonb_build_object('path', 'seed.md', 'text', E'# Hints and truth\n\n' || body)),
            ('draft.written', 'writer', draft),
            ('draft.approved', 'reviewer', jsonb_build_object('draft', draft, 'words', 67, 'reading_ease', 93.2)),
            ('site.published', 'publisher', '{"path": "seed.md", "url": "seed.html", "title": "Hints and truth"}')
        ) as steps (key, agent, value)
    loop
        latest := public.stream_send(jsonb_build_object(
            'key', step.key, 'agent', step.agent, 'value', step.value, 'parent_id', latest,
            'correlation_id', 'seed', 'dedup_key', 'seed: ' || step.key
        )) -> 0 ->> 'id';
    end loop;
    update public.consciousness_stream set processed = true where correlation_id = 'seed';
end
$$;

select public.stream_send('[
    {"key": "note.found", "value": {"path": "leases.md"}, "agent": "seed", "dedup_key": "seed: leases.md"},
    {"key": "note.found", "value": {"path": "fencing.md"}, "agent": "seed", "dedup_key": "seed: fencing.md"}
]');
