"""Text to words and hashed n-grams, with every word's place in the original text.

    "The CAT\u2019s ﬁsh"  ->  the | cat | s | fish         words(...)
                              (0,3) (4,7) (8,9) (10,13)  character spans in the text as given

One normalisation serves index and scan: NFKC, case folding, NFKC again (so that composed and
decomposed capitals meet), then runs of letters, digits and underscores (Python's `\\w+`). An
index records NORMALISATION and refuses to work under another one.

A text of fewer than n words has no n-gram. Operators and punctuation vanish (`2x+5` and
`2x-5` are the same words), and a script written without spaces is one long word per run.

Hashes only propose: `probe` compares the words themselves, so a collision never makes a match.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

NORMALISATION = "nfkc-casefold-words/1"
"""Name and version of what `tokenise` does; a change of it makes old indexes unreadable."""

ALL_BITS = 0xFFFF_FFFF_FFFF_FFFF

_CODES = 0x110000
_EXPANDS = 0xFFFF_FFFF
"""In the fold table: look the character up among the expansions."""
_FOLDABLE = 0x32000
"""From here on every assigned character folds to itself (a test proves it)."""


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """The words of one text: hashes, spans in the text, and their normalised spelling."""

    hashes: NDArray[np.uint64]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    chars: NDArray[np.uint32]
    """The code points of all words, one after the other."""
    at: NDArray[np.int64]
    """Word i is chars[at[i] : at[i + 1]]."""

    def __len__(self) -> int:
        return len(self.hashes)

    def word(self, i: int) -> str:
        """Word `i` as text."""
        letters = self.chars[self.at[i] : self.at[i + 1]]
        return letters.tobytes().decode("utf-32-le", "surrogatepass")


def normalise(text: str) -> str:
    """The text whose `\\w+` runs are the words."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded)


def tokenise(text: str) -> Words:
    """The words of `text`; compiled code, but for texts with combining marks."""
    tables = _tables()
    codes = _codes(text)
    size, attaches = _measure(codes, tables.fold, tables.expansion_at, tables.attaches)
    if not attaches:
        return Words(
            *_split(codes, tables.fold, tables.expansion_at, tables.expansions, tables.wordly, size)
        )
    # A mark joins the character before it, so fold such clusters whole and remember their ends.
    clusters = tables.cluster.findall(text)
    folded = [_fold_cluster(cluster) for cluster in clusters]
    lengths = np.fromiter(map(len, folded), np.int64, len(folded))
    ends = np.cumsum(np.fromiter(map(len, clusters), np.int64, len(clusters)))
    starts = np.concatenate([[0], ends[:-1]])
    codes = _codes("".join(folded))
    found = Words(
        *_split(
            codes, tables.same, tables.expansion_at, tables.expansions, tables.wordly, len(codes)
        )
    )
    first, last = np.repeat(starts, lengths), np.repeat(ends, lengths)
    return Words(
        found.hashes,
        first[found.starts].astype(np.int32),
        last[found.ends - 1].astype(np.int32),
        found.chars,
        found.at,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    fold: NDArray[np.uint32]
    same: NDArray[np.uint32]
    expansion_at: NDArray[np.int32]
    expansions: NDArray[np.uint32]
    wordly: NDArray[np.bool_]
    attaches: NDArray[np.bool_]
    cluster: re.Pattern[str]


@functools.cache
def _tables() -> _Tables:
    """How each single character folds; made once per process from Python's own Unicode data."""
    everything = np.arange(_CODES, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    wordly = np.zeros(_CODES, np.bool_)
    for run in re.finditer(r"\w+", everything):
        wordly[run.start() : run.end()] = True
    # A line feed joins nothing, so one call folds every character by itself.
    folded = normalise("\n".join(everything[:_FOLDABLE])).split("\n")
    # The line feed itself splits into two empty strings.
    line_feed = ord("\n")
    folded[line_feed : line_feed + 2] = ["\n"]
    fold = np.arange(_CODES, dtype=np.uint32)
    expansion_at = np.zeros(_CODES + 1, np.int32)
    expansions: list[int] = []
    for code, text in enumerate(folded):
        if len(text) == 1:
            fold[code] = ord(text)
        else:
            fold[code] = _EXPANDS
            expansions.extend(map(ord, text))
            expansion_at[code + 1] = len(text)
    np.cumsum(expansion_at, out=expansion_at)
    joining = _joining()
    attaches = np.zeros(_CODES, np.bool_)
    attaches[joining] = True
    marks = "".join(map(re.escape, map(chr, joining)))
    return _Tables(
        fold=fold,
        same=np.arange(_CODES, dtype=np.uint32),
        expansion_at=expansion_at,
        expansions=np.array(expansions, np.uint32),
        wordly=wordly,
        attaches=attaches,
        cluster=re.compile(f"(?s).[{marks}]*"),
    )


def _joining() -> list[int]:
    """Characters that may change, or move before, what stands before them."""
    second = set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))  # Hangul vowels and tails
    first: dict[int, int] = {}
    for code in [*range(0x80, _FOLDABLE), *range(0xE0000, 0xE0200)]:
        full = unicodedata.normalize("NFKD", chr(code))
        first[code] = ord(full[0])
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            second.add(int(parts[1], 16))
    return [c for c, d in first.items() if d in second or unicodedata.combining(chr(d))]


@functools.lru_cache(maxsize=1 << 16)
def _fold_cluster(cluster: str) -> str:
    return normalise(cluster)


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@njit(cache=True, nogil=True)
def _measure(codes, fold, expansion_at, attaches):  # type: ignore[no-untyped-def]
    """How many code points the folded text has, and whether any joins its predecessor."""
    size = len(codes)
    for code in codes:
        if code >= 128:
            if attaches[code]:
                return size, True
            if fold[code] == _EXPANDS:
                size += expansion_at[code + 1] - expansion_at[code] - 1
    return size, False


@njit(cache=True, nogil=True)
def _split(codes, fold, expansion_at, expansions, wordly, size):  # type: ignore[no-untyped-def]
    """Words of already measured code points, each code point folded by the table."""
    room = size // 2 + 1
    hashes = np.empty(room, np.uint64)
    starts = np.empty(room, np.int32)
    ends = np.empty(room, np.int32)
    at = np.empty(room + 1, np.int64)
    chars = np.empty(size, np.uint32)
    count = 0
    used = 0
    inside = False
    value = np.uint64(0)
    for i in range(len(codes)):
        code = codes[i]
        folded = fold[code]
        if folded == _EXPANDS:
            lo, hi = expansion_at[code], expansion_at[code + 1]
        else:
            lo, hi = 0, 1
        for k in range(lo, hi):
            letter = expansions[k] if folded == _EXPANDS else folded
            if wordly[letter]:
                if not inside:
                    inside = True
                    starts[count] = i
                    at[count] = used
                    value = np.uint64(0x9E3779B97F4A7C15)
                value = (value ^ np.uint64(letter)) * np.uint64(0x100000001B3)
                chars[used] = letter
                used += 1
                ends[count] = i + 1
            elif inside:
                inside = False
                hashes[count] = value ^ (value >> np.uint64(29))
                count += 1
    if inside:
        hashes[count] = value ^ (value >> np.uint64(29))
        count += 1
    at[count] = used
    return hashes[:count], starts[:count], ends[:count], chars[:used], at[: count + 1]


@njit(cache=True, nogil=True)
def gram_hashes(hashes, n, mask):  # type: ignore[no-untyped-def]
    """The hash of each run of n words, rolled along; `mask` keeps some of its bits."""
    count = max(len(hashes) - n + 1, 0)
    result = np.empty(count, np.uint64)
    base = np.uint64(0xD6E8FEB86659FD93)
    out = np.uint64(1)
    for _ in range(n):
        out *= base
    value = np.uint64(0)
    for i in range(len(hashes)):
        value = value * base + hashes[i]
        if i >= n:
            value -= out * hashes[i - n]
        if i >= n - 1:
            mixed = (value ^ (value >> np.uint64(32))) * np.uint64(0x9FB21C651E98DF25)
            result[i - n + 1] = (mixed ^ (mixed >> np.uint64(29))) & mask
    return result


@njit(cache=True, nogil=True)
def _same(chars_a, at_a, a, chars_b, at_b, b, n):  # type: ignore[no-untyped-def]
    """Whether the n words from word a on are spelt like those from word b on."""
    for k in range(n):
        lo_a, lo_b = at_a[a + k], at_b[b + k]
        length = at_a[a + k + 1] - lo_a
        if length != at_b[b + k + 1] - lo_b:
            return False
        for j in range(length):
            if chars_a[lo_a + j] != chars_b[lo_b + j]:
                return False
    return True


@njit(cache=True, nogil=True)
def fill(grams, valid, chars, at, n, slots):  # type: ignore[no-untyped-def]
    """Number the distinct n-grams of the references by spelling, and hash them into `slots`.

    `grams[w]` is the hash of the n-gram at word w, wanted where `valid[w]`. Returns the number
    of the n-gram at each word (-1: none) and the first word of each number. Equal hashes of
    different words take two slots, so that a collision loses nothing either.
    """
    number = np.full(len(grams), -1, np.int32)
    first = np.empty(len(grams), np.int32)
    top = np.uint64(len(slots) - 1)
    count = 0
    for w in range(len(grams)):
        if not valid[w]:
            continue
        slot = grams[w] & top
        while True:
            held = slots[slot]
            if held < 0:
                slots[slot] = count
                first[count] = w
                number[w] = count
                count += 1
                break
            if grams[first[held]] == grams[w] and _same(chars, at, first[held], chars, at, w, n):
                number[w] = held
                break
            slot = (slot + np.uint64(1)) & top
    return number, first[:count].copy()


@njit(cache=True, nogil=True)
def probe(grams, chars, at, n, slots, keys, first, ref_chars, ref_at):  # type: ignore[no-untyped-def]
    """(word, n-gram number) of each n-gram of a document that stands in the references.

    `keys[g]` is the hash of n-gram g; the words are compared before anything counts.
    """
    found = 0
    places = np.empty(0, np.int32)
    numbers = np.empty(0, np.int32)
    top = np.uint64(len(slots) - 1)
    for i in range(len(grams)):
        slot = grams[i] & top
        while True:
            held = slots[slot]
            if held < 0:
                break
            if keys[held] == grams[i] and _same(chars, at, i, ref_chars, ref_at, first[held], n):
                if found == len(places):
                    room = max(16, 2 * found)
                    more_places, more_numbers = np.empty(room, np.int32), np.empty(room, np.int32)
                    more_places[:found], more_numbers[:found] = places, numbers
                    places, numbers = more_places, more_numbers
                places[found], numbers[found] = i, held
                found += 1
                break
            slot = (slot + np.uint64(1)) & top
    return places[:found], numbers[:found]


@njit(cache=True, nogil=True)
def covered_words(numbers, post_at, posts, word_text, n):  # type: ignore[no-untyped-def]
    """(text, words covered) of each reference text that shares an n-gram with a document.

    `numbers` are the document's distinct n-grams; a word is covered when one of the shared
    n-grams runs over it, wherever and in whatever order they stand in the document.
    """
    total = 0
    for g in numbers:
        total += post_at[g + 1] - post_at[g]
    places = np.empty(total, np.int32)
    used = 0
    for g in numbers:
        for k in range(post_at[g], post_at[g + 1]):
            places[used] = posts[k]
            used += 1
    places.sort()
    texts = np.empty(total, np.int32)
    counts = np.empty(total, np.int32)
    found = 0
    for i in range(total):
        text = word_text[places[i]]
        if found == 0 or texts[found - 1] != text:
            texts[found] = text
            counts[found] = n
            found += 1
        else:
            counts[found - 1] += min(n, places[i] - places[i - 1])
    return texts[:found], counts[:found]
