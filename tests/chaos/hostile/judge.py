"""Each of the writer's rows ends as it should, once for each handler; its dedup_key tells what kind it is."""

from collections import Counter
from typing import Any

from tests.chaos.judge import Problem, some
from tests.chaos.ledger import Ledger

_HANDLERS = 3


async def judge(connection: Any, ledger: Ledger) -> list[Problem]:
    """Hold the rows, their runs and their dead letters against what was written."""
    rows = await connection.fetch(
        "select m.id, split_part(m.dedup_key, ' ', 1) as kind, "
        "(select count(*) from runtime.runs r where r.message_id = m.id and r.outcome = 'done') as done, "
        "(select count(distinct r.subscription) from runtime.runs r "
        " where r.message_id = m.id and r.outcome = 'done') as by, "
        "(select count(*) from runtime.dead_letters l where l.message_id = m.id) as dead, "
        "(select count(*) from public.consciousness_stream t where t.parent_id = m.id) as taken "
        "from public.consciousness_stream m where m.key = 'hostile.row'"
    )
    driven = ledger.driven["hostile"]
    stored = {row["id"] for row in rows}
    bad = [row for row in rows if row["kind"] == "unreadable"]
    good = [row for row in rows if row["kind"] in ("readable", "columns")]
    kinds = Counter(kind for kind, _, _ in driven)
    problems = [
        None if driven else Problem("lost", "nothing was written"),
        some("lost", "rows written are not there", [id_ for kind, id_, _ in driven if id_ and id_ not in stored]),
        *(Problem("dead", f"the table let in {what}") for kind, _, what in driven if kind == "refused"),
        some("lost", "rows have not been handled by each", [row["id"] for row in good if row["by"] < _HANDLERS]),
        some("doubled", "rows have been handled twice", [row["id"] for row in good if row["done"] > row["by"]]),
        some("dead", "rows that can be read are dead letters", [row["id"] for row in good if row["dead"]]),
        some("results", "rows have not one result", [row["id"] for row in good if row["taken"] != 1]),
        some("dead", "rows that cannot be read are not one dead letter for each",
             [row["id"] for row in bad if row["dead"] != _HANDLERS]),
        some("results", "rows that cannot be read were handled", [row["id"] for row in bad if row["done"]]),
        None if len(driven) < 60 or len(kinds) >= 4 else Problem("lost", f"not everything was tried: {kinds}"),
    ]  # fmt: skip
    return [problem for problem in problems if problem is not None]
