"""Is each rule that the mutations break still there to be broken? A kernel that says it otherwise needs them anew."""

from pathlib import Path
from typing import Any

import pytest

from tests.kernel.mutations import MUTATIONS

pytestmark = pytest.mark.anyio


async def test_every_mutation_finds_its_rule_once_and_leaves_a_function_that_can_be_made(db: Any) -> None:
    at_odds = []
    for mutation in MUTATIONS:
        transaction = db.transaction()
        await transaction.start()
        try:
            await mutation.carry_out(db)
        except AssertionError as error:
            at_odds.append(f"{mutation.name}: {error}")
        finally:
            await transaction.rollback()
    assert not at_odds, "\n".join(at_odds)


def test_no_two_mutations_have_one_name() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names)


def test_what_a_schedule_has_to_notice_is_carried_out_there() -> None:
    for mutation in MUTATIONS:
        if mutation.held_by:
            assert mutation.name in (Path(__file__).parent / mutation.held_by).read_text()
