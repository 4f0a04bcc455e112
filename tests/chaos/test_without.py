"""The texts by which mechanisms are switched off are found in the code, each once."""

import pytest

from tests.chaos.stage import ROOT
from tests.chaos.without import MECHANISMS, Mechanism


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=[each.name for each in MECHANISMS])
def test_what_is_switched_off_is_found_once(mechanism: Mechanism) -> None:
    for file, text, _ in mechanism.edits:
        assert (ROOT / file).read_text().count(text) == 1, f"{file}: {text}"
