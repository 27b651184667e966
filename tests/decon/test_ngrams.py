"""Words, their spans and their n-grams."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain_decon import plain_words

from decon.ngrams import ALL_BITS, gram_hashes, normalise, tokenise

# What makes normalisation hard: ligatures, full-width, marks in both orders, Hangul jamo,
# characters that grow, characters whose fold decomposes, half of a surrogate pair.
HARD = (
    "aB1_ .,-\n\u00e9e\u0301\u0323\ufb01\uff21\uff76\uff9e\u2026\u00bd\u1112\u1161\u11ab"
    "\u0390\u03aa\u0345\u00df\u0130\u212b\u0915\u094d\u0937\u4e2d\ufdfa\ud800\U0001d400\u200d"
)
texts = st.one_of(st.text(st.sampled_from(HARD), max_size=30), st.text(max_size=30))


def words_of(text: str) -> list[tuple[str, int, int]]:
    found = tokenise(text)
    return [(found.word(i), int(found.starts[i]), int(found.ends[i])) for i in range(len(found))]


@settings(derandomize=True, deadline=None, max_examples=600)
@given(texts)
@example("\u03aa\u0301 \u0390")
@example("e\u0301\u0323")
def test_words_are_those_of_the_normalised_text(text: str) -> None:
    assert [word for word, _, _ in words_of(text)] == re.findall(r"\w+", normalise(text))


@settings(derandomize=True, deadline=None, max_examples=600)
@given(texts)
def test_a_span_holds_its_word_and_cuts_no_character_in_two(text: str) -> None:
    before = 0
    for word, start, end in words_of(text):
        assert before <= start < end <= len(text)
        before = start
        assert word in re.findall(r"\w+", normalise(text[start:end]))
        for cut in (start, end):
            assert normalise(text[:cut]) + normalise(text[cut:]) == normalise(text)


def test_every_single_character_folds_as_python_folds_it() -> None:
    # Above this no table is kept: each must fold to itself and join nothing.
    for char in map(chr, range(0x32000, 0x110000)):
        assert normalise(char) == char
        assert not unicodedata.combining(char)
    below = [chr(code) for code in range(0x32000)]
    for at in range(0, len(below), 4096):
        text = "\n".join(below[at : at + 4096])
        # A joining character takes the line feed before it into its span, so compare the ends.
        found = [(word, end) for word, _, end in words_of(text)]
        assert found == [(word, end) for word, _, end in plain_words(text)]


def test_a_ligature_a_full_width_word_and_a_composed_letter_meet_their_plain_forms() -> None:
    assert words_of("\ufb01sh") == [("fish", 0, 3)]
    assert words_of("x \uff21\uff22!") == [("x", 0, 1), ("ab", 2, 4)]
    assert words_of("cafe\u0301 au") == [("caf\u00e9", 0, 5), ("au", 6, 8)]
    assert words_of("\u00bd cup") == [("1", 0, 1), ("2", 0, 1), ("cup", 2, 5)]
    assert words_of("STRASSE")[0][0] == words_of("stra\u00dfe")[0][0]


def test_rolled_hashes_equal_hashes_of_each_run_alone() -> None:
    words = tokenise("one two three four five two three four five").hashes
    rolled = gram_hashes(words, 4, np.uint64(ALL_BITS))
    alone = [gram_hashes(words[i : i + 4], 4, np.uint64(ALL_BITS))[0] for i in range(6)]
    assert rolled.tolist() == alone
    assert rolled[1] == rolled[5] and len(set(alone)) == 5
    assert len(gram_hashes(words[:3], 4, np.uint64(ALL_BITS))) == 0
