"""Does a rule of the kernel matter? In a test's own database it can be switched off, to see what it keeps away."""

import re
from typing import Any


async def switch_off(connection: Any, function: str, rule: str, instead: str = "") -> None:
    """Have this database's `function` read `instead` where it says `rule`; the test's other databases keep it.

    Args:
        connection: to the database, as the role that owns the schema.
        function: its name with its schema, as in `runtime.finish`.
        rule: a piece of its text that occurs exactly once; any white space stands for any other.
        instead: what stands there without the rule.
    """
    definition = await connection.fetchval("select pg_get_functiondef($1::text::regproc)", function)
    words = re.compile(r"\s+".join(re.escape(word) for word in rule.split()))
    without, found = words.subn(lambda _: instead, definition)
    assert found == 1, f"{function} says {found} times, not once: {rule}"
    await connection.execute(without)
