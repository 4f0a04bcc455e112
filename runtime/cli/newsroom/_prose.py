"""Prose in figures: the summary of a text, by its most telling sentences, and its reading ease."""

import re
from collections import Counter
from functools import cache

import pyphen  # type: ignore[import-untyped, unused-ignore]

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'“‘(]?[A-Z0-9`])")
# Words of three letters and more that are in every text, and so say nothing about this one.
_COMMON = frozenset(
    _WORD.findall(
        """
        about after again all also and any are because been before being but can could did does each
        either else even every few for from had has have her here him his how into its itself just
        like made make many may might more most much must never nor not now off once one only other
        our out over own same say she should some such than that the their them then there these
        they this those though through too two under until was were what when where which while who
        why will with without would yet you your
        """
    )
)

# Words near the start of a sentence that point back to the one before.
_LEANING = frozenset(["and", "but", "he", "it", "its", "she", "so", "then", "these", "they", "this", "those"])


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """The sentences of a text."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if words(sentence)]


def summary(paragraphs: list[str], *, count: int = 2) -> str:
    """The sentences that say most, in the order they were written, none of them changed.

    A sentence scores by how often the text comes back to its words; the opening ones count a little more, and
    those that lean on the sentence before them much less.
    """
    listed = [sentence for paragraph in paragraphs for sentence in sentences(paragraph)]
    weight = Counter(word for sentence in listed for word in _telling(sentence))
    scores: dict[int, float] = {}
    for number, sentence in enumerate(listed):
        telling = _telling(sentence)
        density = sum(weight[word] for word in set(telling)) / (len(telling) + 4)
        scores[number] = density * _standing(sentence, number)
    best = sorted(sorted(scores, key=lambda number: -scores[number])[:count])
    return " ".join(listed[number] for number in best)


def reading_ease(text: str) -> float:
    """Flesch's reading ease: about 100 for a child's book, 60 for plain English, under 30 for a treatise."""
    listed, parts = words(text), sentences(text)
    if not listed:
        return 0.0
    syllables = sum(len(_hyphens().positions(word)) + 1 for word in listed)
    return 206.835 - 1.015 * len(listed) / max(len(parts), 1) - 84.6 * syllables / len(listed)


@cache
def _hyphens() -> "pyphen.Pyphen":
    """Where English words may be broken, which is close to where their syllables end."""
    return pyphen.Pyphen(lang="en_US")


def _standing(sentence: str, number: int) -> float:
    """How well a sentence stands alone."""
    leans = any(word.lower() in _LEANING for word in words(sentence)[:3])
    return (1.5 if number < 2 else 1.0) * (0.5 if leans else 1.0)


def _telling(sentence: str) -> list[str]:
    """The words of a sentence that say what it is about."""
    return [word for word in map(str.lower, words(sentence)) if word not in _COMMON and len(word) > 2]
