"""The texts by which mechanisms are switched off are found in the code, each once, and their tests are there."""

from tests.switched_off import MECHANISMS, ROOT


def test_what_is_switched_off_is_found_once() -> None:
    for mechanism in MECHANISMS:
        assert (ROOT / mechanism.file).read_text().count(mechanism.text) == 1, mechanism
        assert all((ROOT / each).is_file() for each in mechanism.tests), mechanism
