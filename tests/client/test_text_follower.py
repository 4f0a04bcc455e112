"""The position of a reader in a text: whatever comes in whatever order, each character passes once."""

from random import Random

from runtime.client.text_follower import TextPiece, TextPosition

TEXTS = {1: "to be begun anew", 2: "Grüße 🌍 all of you, " * 3}


def test_each_character_passes_once_and_a_gap_or_an_old_beginning_passes_nothing() -> None:
    random = Random(7)
    for _ in range(200):
        position, known = TextPosition(), {1: "", 2: ""}
        for beginning in (1, 2):
            while known[beginning] != TEXTS[beginning]:
                # Late, doubled, overlapping, ahead: from a broadcast or from the store.
                which = random.choice((1, beginning))
                offset = random.randrange(len(TEXTS[which]))
                text = TEXTS[which][offset : offset + random.randrange(9)]
                before = dict(known)
                piece = position.take(which, offset, text)
                if piece is None:
                    continue
                assert not position.is_behind
                assert piece.beginning == which == beginning
                assert piece.offset == len(before[which])
                known[which] += piece.text
                assert TEXTS[which].startswith(known[which])
                assert piece.end == len(known[which])


def test_a_reader_goes_on_from_where_it_was_and_is_told_of_a_text_begun_anew() -> None:
    position = TextPosition(since=6, beginning=1)
    assert position.take(1, 4, "gun") is not None
    assert position.take(1, 20, "ahead") is None
    assert position.is_behind
    # Begun anew, and nothing is written yet: what was read is void.
    assert position.take(2, 0, "") == TextPiece("", 0, 2)
    assert position.take(1, 7, "late") is None
    assert position.take(2, 0, "new") == TextPiece("new", 0, 2)
