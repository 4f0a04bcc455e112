"""What the errors of a group of dead letters have in common."""

import pytest

from runtime.dashboard.filters import common


@pytest.mark.parametrize(
    ("texts", "title"),
    [
        (["KeyError: 'order'"], "KeyError: 'order'"),
        (["KeyError: 'order'", "KeyError: 'order'"], "KeyError: 'order'"),
        (["cannot take message #7", "cannot take message #12"], "cannot take message #…"),
        (["no 'ab' in 3 of 9", "no 'cd' in 4 of 9"], "no '…' in … of 9"),
        (["at 10:05:07.12 it ended", "at 11:06:08.13 it ended"], "at … it ended"),
        (["no order a-1-2 here", "no order b-3-4 here"], "no order … here"),
        (["no order 7", "no order of mine"], "no order …"),
        (["bad: a b", "bad: a b a b"], "bad: a b…"),
        (["one two", "three"], "…"),
        (["", "x"], "…"),
    ],
)
def test_a_title_is_what_errors_share(texts: list[str], title: str) -> None:
    assert common(texts) == title
