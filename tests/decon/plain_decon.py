"""Decontamination in plain Python: slow, short, and written apart from the room it checks.

Sets of word tuples, one document at a time. Every character is folded by itself, so it holds
for texts without combining marks.
"""

from __future__ import annotations

import unicodedata
from fractions import Fraction

from evalsuite.records import Reference


def plain_words(text: str) -> list[tuple[str, int, int]]:
    """(word, start, end) of each run of letters, digits and underscores."""
    found: list[tuple[str, int, int]] = []
    inside = False
    for i, char in enumerate(text):
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", char).casefold())
        for letter in folded:
            if letter.isalnum() or letter == "_":
                if inside:
                    word, start, _ = found[-1]
                    found[-1] = (word + letter, start, i + 1)
                else:
                    found.append((letter, i, i + 1))
                inside = True
            else:
                inside = False
    return found


def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def runs(covered: list[bool]) -> list[tuple[int, int]]:
    """First and last place of each run of True."""
    found: list[tuple[int, int]] = []
    for i, inside in enumerate(covered):
        if inside and found and found[-1][1] == i - 1:
            found[-1] = (found[-1][0], i)
        elif inside:
            found.append((i, i))
    return found


def cover(words: list[str], n: int, shared: set[tuple[str, ...]]) -> list[bool]:
    """Which words lie in an n-gram of `shared`."""
    covered = [False] * len(words)
    for i, gram in enumerate(ngrams(words, n)):
        if gram in shared:
            covered[i : i + n] = [True] * n
    return covered


class PlainScan:
    """Questions only: reference texts of at least n words."""

    def __init__(self, references: list[Reference], n: int, overlap: float) -> None:
        self.n, self.overlap = n, Fraction(str(overlap))
        self.texts = []
        self.known: dict[tuple[str, ...], set[int]] = {}
        for reference in references:
            words = [word for word, _, _ in plain_words(reference.text)]
            if len(words) >= n:
                for gram in ngrams(words, n):
                    self.known.setdefault(gram, set()).add(len(self.texts))
                self.texts.append((reference.doc_id, words))

    def find(self, text: str) -> list[tuple[int, int, list[tuple[int, int]]]]:
        """(doc_id, words covered, character spans) of each item hit in the document."""
        placed = plain_words(text)
        words = [word for word, _, _ in placed]
        own = set(ngrams(words, self.n))
        touched = {t for gram in own for t in self.known.get(gram, ())}
        hits = []
        for t in sorted(touched):
            doc_id, wanted = self.texts[t]
            shared = own & set(ngrams(wanted, self.n))
            count = sum(cover(wanted, self.n, shared))
            if count > self.overlap * len(wanted):
                spans = [
                    (placed[first][1], placed[last][2])
                    for first, last in runs(cover(words, self.n, shared))
                ]
                hits.append((doc_id, count, spans))
        return hits
