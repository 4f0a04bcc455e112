"""Keys and patterns: one grammar, and two ways of matching that must agree."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import InvalidKey
from runtime.keys import candidates, check_key, check_pattern, is_exact, matches, overlap

# Few letters and few segments, so that patterns and keys often meet.
segments = st.sampled_from(["a", "b", "C9", "_:-"])
keys = st.lists(segments, min_size=1, max_size=8).map(".".join)
wild = st.lists(st.one_of(segments, st.just("*")), min_size=0, max_size=7)
last = st.one_of(segments, st.sampled_from("*>"))
patterns = st.builds(lambda head, end: ".".join([*head, end]), wild, last)


@pytest.mark.parametrize("key", ["a", "task.output", "A-1:b_2.c", ".".join("abcdefgh"), "x" * 255])
def test_a_key_is_returned_unchanged(key: str) -> None:
    assert check_key(key) == key
    assert check_pattern(key) == key
    assert is_exact(key)
    assert matches(key, key)


@pytest.mark.parametrize(
    "text",
    [".", "a.", ".a", "a..b", "a b", "ä", "a\n", "\na", "a.*", ">", "*", "٣", "²", "a/b", "a\0", "a.b*"],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidKey):
        check_key(text)


@pytest.mark.parametrize(
    "text",
    ["", ".".join("abcdefghi"), "x" * 256],
)
def test_what_is_no_key_is_refused_with_words_that_say_what_one_looks_like(text: str) -> None:
    with pytest.raises(InvalidKey, match=r"A key is 1 to 8 segments"):
        check_key(text)


@pytest.mark.parametrize("pattern", ["*", ">", "a.*", "*.*", "a.>", "*.>", "a.*.b", ".".join("*" * 8)])
def test_a_pattern_is_returned_unchanged(pattern: str) -> None:
    assert check_pattern(pattern) == pattern
    assert not is_exact(pattern)


@pytest.mark.parametrize("text", ["", ">.a", "a.>.b", "a*", "**", ">>", "a.", ".>", "*\n", ".".join("*" * 9)])
def test_what_is_no_pattern_is_refused_with_words_that_say_what_one_looks_like(text: str) -> None:
    with pytest.raises(InvalidKey, match=r"A pattern is a key of at most 8 segments"):
        check_pattern(text)


@pytest.mark.parametrize("thing", [None, 1, b"a", ["a"]])
def test_what_is_no_text_is_refused(thing: str) -> None:
    with pytest.raises(InvalidKey):
        check_key(thing)
    with pytest.raises(InvalidKey):
        check_pattern(thing)


def test_a_refusal_stays_short_and_printable() -> None:
    with pytest.raises(InvalidKey) as caught:
        check_key("\x1b[2J\ud800" * 100_000)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("task.*", "task.output", True),
        ("task.*", "task", False),
        ("task.*", "task.output.more", False),
        ("task.>", "task.output", True),
        ("task.>", "task.output.more", True),
        ("task.>", "task", False),
        ("*.>", "task", False),
        (">", "task", True),
        (">", "a.b.c", True),
        ("*.output", "task.output", True),
        ("*", "task.output", False),
        ("Task", "task", False),
        ("task_output", "task-output", False),
    ],
)
def test_matching(pattern: str, key: str, expected: bool) -> None:
    assert matches(pattern, key) is expected


@given(patterns, keys)
def test_a_pattern_matches_exactly_the_keys_it_is_a_candidate_of(pattern: str, key: str) -> None:
    assert matches(pattern, key) == (pattern in candidates(key))


@given(keys)
def test_a_key_has_all_its_candidates_once_and_each_is_a_pattern_that_matches(key: str) -> None:
    found = candidates(key)
    assert len(found) == len(set(found)) == 2 ** (len(key.split(".")) + 1) - 1
    assert found[0] == key
    assert all(matches(check_pattern(pattern), key) for pattern in found)


@given(st.text(alphabet=st.sampled_from("aB1_:-.*> \n\0ä"), max_size=20))
def test_every_key_is_a_pattern_and_a_pattern_without_wildcards_is_a_key(text: str) -> None:
    assert _is(check_key, text) == (_is(check_pattern, text) and is_exact(text))


_FEW = [".".join(segments) for length in (1, 2, 3) for segments in product("ab", repeat=length)]
_SHORT = [
    check_pattern(".".join([*middle, last]))
    for length in (0, 1, 2)
    for middle in product("ab*", repeat=length)
    for last in "ab*>"
]


@pytest.mark.parametrize("one", _SHORT)
def test_patterns_overlap_where_some_key_matches_both(one: str) -> None:
    for other in _SHORT:
        assert overlap(one, other) == any(matches(one, key) and matches(other, key) for key in _FEW), other


def _is(check: object, text: str) -> bool:
    assert callable(check)
    try:
        check(text)
    except InvalidKey:
        return False
    return True
