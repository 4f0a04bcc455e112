"""The checks of the database: the facts of `stream_examine` in, findings out; no I/O."""

from collections.abc import Callable, Sequence
from typing import Any

from runtime.cli.checks.finding import Finding, fault, ok, skipped, warning

Facts = dict[str, Any]

TABLES = frozenset({"public.consciousness_stream", "runtime.beats"})
_INSTALL = "select public.stream_install_realtime();"
_SKEW_SECONDS = 30


def check_clock(facts: Facts, *, asked_at: float, answered_at: float) -> Finding:
    """Check that this machine and the database agree on the time; only tokens depend on this machine's clock."""
    ahead = (asked_at + answered_at) / 2 - facts["now"]
    uncertain = (answered_at - asked_at) / 2
    if abs(ahead) - uncertain > _SKEW_SECONDS:
        where = "ahead of" if ahead > 0 else "behind"
        return warning(
            "clock",
            f"The clock of this machine is {abs(ahead):.0f} s {where} the database's.",
            "Set it by NTP; leases do not mind, but the expiry of tokens is judged wrongly here.",
            ahead_seconds=ahead,
        )
    return ok("clock", f"The clocks agree to {abs(ahead) + uncertain:.1f} s.", ahead_seconds=ahead)


def check_migrations(facts: Facts, ours: Sequence[str]) -> Finding:
    """Check that every migration of this release is applied."""
    applied = set(facts["migrations"])
    if not applied:
        return warning(
            "migrations",
            "The schema is there, but no history of migrations.",
            "Migrate by the Supabase CLI, so that later ones find their place: `supabase migration repair`.",
        )
    missing = [version for version in ours if version not in applied]
    if missing:
        return fault(
            "migrations",
            f"{len(missing)} of {len(ours)} migrations of this release are not applied, first {missing[0]}.",
            "Run `runtime init` in your project, then `supabase db push` (hosted), `supabase migration up` "
            "(`supabase start`) or `runtime local start`.",
            missing=missing,
        )
    return ok("migrations", f"All {len(ours)} migrations of this release are applied.")


def check_isolation(facts: Facts) -> Finding:
    """Check that transactions run at the level read committed, in which deliveries can be taken."""
    if facts["isolation"] != "read committed":
        return fault(
            "isolation",
            f"Requests run at isolation level {facts['isolation']}, in which no work can be taken: a default of the "
            "role or the database asks for it.",
            "alter role authenticator set default_transaction_isolation = 'read committed'; alter role service_role "
            "set default_transaction_isolation = 'read committed'; notify pgrst, 'reload config';",
            isolation=facts["isolation"],
        )
    return ok("isolation", "Requests run at isolation level read committed.")


def check_publication(facts: Facts) -> Finding:
    """Check that the stream's tables are in the publication of Realtime, with their inserts."""
    if facts["publication"] is None:
        return fault(
            "publication",
            "There is no publication supabase_realtime, so postgres_changes tells of nothing.",
            f"create publication supabase_realtime; {_INSTALL}",
        )
    if not facts["publication"]:
        return fault(
            "publication",
            "The publication supabase_realtime leaves out inserts.",
            "alter publication supabase_realtime set (publish = 'insert, update, delete, truncate');",
        )
    missing = sorted(TABLES - set(facts["published"]))
    if missing:
        return fault(
            "publication", f"{' and '.join(missing)} are not in supabase_realtime.", _INSTALL, missing=missing
        )
    return ok("publication", "The stream is in the publication supabase_realtime.")


def check_grants(facts: Facts) -> Finding:
    """Check that service_role, and no other role of the API, may call the functions of workers."""
    lacking = [*facts["forbidden"], *facts["unreadable"]]
    if lacking:
        functions = "".join(
            f"grant execute on function {name} to service_role; " for name in facts["forbidden"]
        )
        tables = (
            "grant usage on schema public, runtime to service_role; grant select, insert, update, delete on "
            "public.consciousness_stream to service_role; grant select on runtime.beats to service_role;"
        )
        cure = functions + (tables if facts["unreadable"] else "")
        return fault(
            "grants", f"service_role may not use {', '.join(lacking)}.", cure.strip(), lacking=lacking
        )
    if facts["open"]:
        cure = "".join(
            f"revoke execute on function {name} from public, anon, authenticated; " for name in facts["open"]
        )
        return fault(
            "grants", f"Everybody may call {', '.join(facts['open'])}.", cure.strip(), open=facts["open"]
        )
    return ok("grants", "service_role may do what workers do, and nobody else may.")


def check_row_security(facts: Facts) -> Finding:
    """Check that row-level security is on for the tables that the API can reach."""
    if facts["unguarded"]:
        cure = " ".join(f"alter table {name} enable row level security;" for name in facts["unguarded"])
        return fault("row security", f"Row-level security is off on {', '.join(facts['unguarded'])}.", cure)
    return ok("row security", "Row-level security is on for every table.")


def check_trigger(facts: Facts) -> Finding:
    """Check that the trigger that fans messages out is there and enabled."""
    if not facts["fans_out"]:
        return fault(
            "trigger",
            "The trigger fan_out is off or gone, so no agent gets what is written; when it is back, `runtime replay` "
            "delivers what was written meanwhile.",
            "create or replace trigger fan_out after insert on public.consciousness_stream referencing new table as "
            "new_messages for each statement execute function runtime.fan_out(); "
            "alter table public.consciousness_stream enable trigger fan_out;",
        )
    return ok("trigger", "What is written fans out to the subscriptions.")


def check_policies(facts: Facts) -> Finding:
    """Check that the policies let workers join their private topics."""
    if not facts["can_broadcast"]:
        return warning(
            "policies",
            "This database has no realtime.send, so nothing can be broadcast from it.",
            "Wake-ups come by postgres_changes alone. Upgrade Realtime, then: " + _INSTALL,
        )
    if not facts["messages_granted"]:
        return fault(
            "policies",
            "service_role may not read realtime.messages, so Realtime refuses the workers' private topics.",
            "grant usage on schema realtime to service_role; " + _INSTALL,
        )
    if facts["messages_policy"]:
        return ok("policies", "Workers may hear their private topics.")
    if facts["bypasses"]:
        # Not every project lets postgres write a policy there, and none is needed then.
        return ok(
            "policies", "Workers may hear their private topics: service_role bypasses row-level security."
        )
    return fault(
        "policies",
        "No policy on realtime.messages lets service_role hear the workers' private topics, so Realtime refuses them.",
        f"{_INSTALL} -- where that tells of a refusal: alter role service_role bypassrls;",
    )


def check_partition(facts: Facts) -> Finding:
    """Check that today's partition of `realtime.messages` is there."""
    if not facts["can_broadcast"]:
        return skipped("partition", "Nothing can be broadcast from this database.")
    if not facts["messages_partition"]:
        return fault(
            "partition",
            "realtime.messages has no partition for today, so broadcasts from the database are dropped.",
            "Realtime makes it when a client joins a channel: look at its log. On the local stack: "
            "select realtime.make_message_partitions();",
        )
    return ok("partition", "realtime.messages has a partition for today.")


def check_versions(facts: Facts) -> Finding:
    """Check that the versions of handlers run that alone go on with what they have begun."""
    if held_back := facts["held_back"]:
        which = ", ".join(
            f"{each['subscription']} of version {each['version']} ({each['count']:,} due)"
            for each in held_back
        )
        return warning(
            "versions",
            f"Work waits for a version that no worker runs: {which}.",
            "Run a worker of that version, or cancel the message and redrive its dead letter, which any version takes.",
        )
    return ok("versions", "Nothing waits for a version of a handler that no worker runs.")


def plugin_cure(facts: Facts) -> str | None:
    """Return the cure if the server refuses Realtime the output plugin that reads rows from the log.

    A server that lists its output plugins without wal2json has Realtime say that it subscribed, and no row ever comes.
    """
    # Null where the server has no such setting: then every output plugin may be used.
    listed = facts.get("output_plugins")
    if listed is None or "wal2json" in (name.strip(' "') for name in listed.split(",")):
        return None
    return (
        f"The server's output_plugin_libraries is '{listed}', and Realtime reads rows through wal2json: "
        f"alter system set output_plugin_libraries = '{', '.join(filter(None, (listed, 'wal2json')))}'; then "
        "select pg_reload_conf(); and restart Realtime. On a hosted project ask Supabase's support."
    )


CHECKS: Sequence[Callable[[Facts], Finding]] = (
    check_isolation, check_publication, check_grants, check_row_security, check_trigger, check_policies,
    check_partition, check_versions,
)  # fmt: skip
