"""All the texts of suites that must not leak, indexed by their n-grams.

    index = build_index(references(suite), policy=load_policy("tulu3"),
                        suites={suite.name: suite.fingerprint})
    index.save(Path("core.index"));  load_index(Path("core.index"))

Each eval item gives its question and its passage as texts of their own. A question of fewer
than n words is joined with its choices (its answer, where it has no choices). An item without
any text of n words is counted as too short: no n-gram rule can find it.

The file is one line with a checksum, then a zip of plain arrays (numpy's npz, no pickle).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decon.ngrams import ALL_BITS, NORMALISATION, Words, fill, gram_hashes, tokenise
from decon.policy import Policy
from decon.records import TaskCount
from evalsuite.config import loads
from evalsuite.errors import UserError
from evalsuite.files import canonical_json, publish_file
from evalsuite.records import Reference

_FORMAT = "assay decon index 1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One eval item: its place, and why it has no text when it has none."""

    task: int
    """Index into `ReferenceIndex.tasks`."""
    doc_id: int
    short_words: int
    """Words of its longest text when that is too short to be found, else 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """One text that is looked for."""

    item: int
    """Index into `ReferenceIndex.items`."""
    field: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReferenceIndex:
    """What `scan` looks for: texts, their words one after the other, and their n-grams."""

    policy: Policy
    suites: dict[str, str]
    tasks: tuple[TaskCount, ...]
    items: tuple[Item, ...]
    texts: tuple[Text, ...]
    bits: int
    """Mask over n-gram hashes: all bits, but for tests of collisions."""
    chars: NDArray[np.uint32]
    word_at: NDArray[np.int64]
    """Word w is chars[word_at[w] : word_at[w + 1]]."""
    text_at: NDArray[np.int64]
    """Text t is the words text_at[t] : text_at[t + 1]."""
    word_text: NDArray[np.int32]
    word_gram: NDArray[np.int32]
    """Number of the n-gram that begins at a word, -1 for none."""
    gram_word: NDArray[np.int32]
    """First word of each distinct n-gram."""
    gram_hash: NDArray[np.uint64]
    post_at: NDArray[np.int64]
    posts: NDArray[np.int32]
    """N-gram g begins at the words posts[post_at[g] : post_at[g + 1]]."""
    slots: NDArray[np.int32]
    """Open hash table of n-gram numbers, -1 for empty."""

    @property
    def fingerprint(self) -> str:
        """Hash of every text and where it is from."""
        digest = hashlib.sha256()
        for item in self.items:
            task = self.tasks[item.task]
            digest.update(canonical_json([task.suite, task.task, item.doc_id]).encode())
        for text in self.texts:
            digest.update(json.dumps([text.item, text.field, text.text]).encode())
        return digest.hexdigest()[:16]

    def words(self, text: int) -> int:
        """Words of the text of that number."""
        return int(self.text_at[text + 1] - self.text_at[text])

    def save(self, path: Path) -> None:
        """Publish the index as one file."""
        meta = {
            "normalisation": NORMALISATION,
            "policy": self.policy.as_json(),
            "suites": self.suites,
            "bits": self.bits,
            "tasks": [[t.suite, t.task, t.items, t.too_short] for t in self.tasks],
            "items": [[i.task, i.doc_id, i.short_words] for i in self.items],
            "texts": [[t.item, t.field, t.text] for t in self.texts],
        }
        buffer = io.BytesIO()
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez(buffer, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)
        body = buffer.getvalue()
        with publish_file(path) as handle:
            handle.write(f"{_FORMAT} {hashlib.sha256(body).hexdigest()}\n")
            handle.flush()
            handle.buffer.write(body)


_ARRAYS = tuple(f.name for f in fields(ReferenceIndex) if str(f.type).startswith("NDArray"))


def build_index(
    references: Iterable[Reference],
    *,
    policy: Policy,
    suites: Mapping[str, str],
    hash_bits: int = ALL_BITS,
) -> ReferenceIndex:
    """Index the texts of `references` under `policy`; `suites` is name -> fingerprint.

    Raises UserError if there is no reference at all, or none long enough to be found.
    """
    docs: dict[tuple[str, str, int], dict[str, list[str]]] = {}
    for reference in references:
        if reference.suite not in suites:
            raise UserError(
                f"a reference of task {reference.task!r} names suite {reference.suite!r}, which "
                "has no fingerprint here; pass suites={name: fingerprint} for each suite"
            )
        place = (reference.suite, reference.task, reference.doc_id)
        docs.setdefault(place, {}).setdefault(reference.field, []).append(reference.text)
    if not docs:
        raise UserError("the suite gave no reference texts, so there is nothing to look for")
    place_of = {place: i for i, place in enumerate(dict.fromkeys(key[:2] for key in docs))}
    sizes, short = [0] * len(place_of), [0] * len(place_of)
    items: list[Item] = []
    texts: list[Text] = []
    parts: list[Words] = []
    for (suite, name, doc_id), found in docs.items():
        task = place_of[suite, name]
        longest, before = 0, len(texts)
        for field, text in _texts(found, policy):
            words = tokenise(text)
            longest = max(longest, len(words))
            if len(words) >= policy.ngram:
                texts.append(Text(item=len(items), field=field, text=text))
                parts.append(words)
        too_short = len(texts) == before
        sizes[task] += 1
        short[task] += too_short
        items.append(Item(task=task, doc_id=doc_id, short_words=longest if too_short else 0))
    if not texts:
        raise UserError(
            f"none of the {len(items):,} items has a text of {policy.ngram} words, so policy "
            f"{policy.name!r} could find none; use a policy with a smaller ngram"
        )
    return ReferenceIndex(
        policy=policy,
        suites=dict(suites),
        tasks=tuple(
            TaskCount(suite=suite, task=name, items=sizes[i], too_short=short[i])
            for (suite, name), i in place_of.items()
        ),
        items=tuple(items),
        texts=tuple(texts),
        bits=hash_bits,
        **_grams(parts, policy.ngram, hash_bits),
    )


def _texts(found: Mapping[str, list[str]], policy: Policy) -> list[tuple[str, str]]:
    """(field, text) of what to look for of one item."""
    texts = []
    if "question" in policy.fields:
        question = "\n".join(found.get("question", []))
        field, text = "question", question
        if policy.join_short and len(tokenise(question)) < policy.ngram:
            other = "choice" if "choice" in found else "answer"
            if other in found:
                field = "question+choices" if other == "choice" else "question+answer"
                text = "\n".join([question, *found[other]])
        texts.append((field, text))
    if "passage" in policy.fields:
        texts.extend(("passage", text) for text in found.get("passage", []))
    return texts


def _grams(parts: list[Words], n: int, bits: int) -> dict[str, Any]:
    """The arrays of an index from the words of its texts."""
    sizes = np.array([len(words) for words in parts], np.int64)
    text_at = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    letters = np.array([len(words.chars) for words in parts], np.int64)
    shift = np.concatenate([[0], np.cumsum(letters)])
    word_at = np.concatenate(
        [words.at[:-1] + shift[i] for i, words in enumerate(parts)] + [shift[-1:]]
    ).astype(np.int64)
    chars = np.concatenate([words.chars for words in parts])
    word_text = np.repeat(np.arange(len(parts), dtype=np.int32), sizes)
    # An n-gram lies within one text: its last word must belong to the text of its first.
    valid = np.zeros(len(word_text), np.bool_)
    valid[: len(valid) - n + 1] = word_text[: len(valid) - n + 1] == word_text[n - 1 :]
    grams = np.zeros(len(word_text), np.uint64)
    rolled = gram_hashes(np.concatenate([w.hashes for w in parts]), n, np.uint64(bits))
    grams[: len(rolled)] = rolled
    slots = np.full(1 << max(4, (2 * int(valid.sum())).bit_length()), -1, np.int32)
    word_gram, gram_word = fill(grams, valid, chars, word_at, n, slots)
    starts = np.flatnonzero(valid).astype(np.int32)
    order = np.argsort(word_gram[starts], kind="stable")
    counts = np.bincount(word_gram[starts], minlength=len(gram_word))
    return {
        "chars": chars,
        "word_at": word_at,
        "text_at": text_at,
        "word_text": word_text,
        "word_gram": word_gram,
        "gram_word": gram_word,
        "gram_hash": grams[gram_word],
        "post_at": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "posts": starts[order],
        "slots": slots,
    }


def load_index(path: Path) -> ReferenceIndex:
    """The index in `path`; UserError if it is missing, damaged or of another version."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); build the index") from None
    made, _, checksum = head.decode("utf-8", "replace").rpartition(" ")
    if made != _FORMAT or checksum != hashlib.sha256(body).hexdigest():
        raise UserError(f"{path}: not a whole index of this version ({_FORMAT}); build it again")
    with np.load(io.BytesIO(body), allow_pickle=False) as saved:
        held = {name: saved[name] for name in saved.files}
    meta = json.loads(held.pop("meta").tobytes())
    if meta["normalisation"] != NORMALISATION:
        raise UserError(
            f"{path}: its words were made by {meta['normalisation']!r}, but this version makes "
            f"them by {NORMALISATION!r}; build it again"
        )
    return ReferenceIndex(
        policy=loads(json.dumps(meta["policy"]), Policy, place=str(path)),
        suites=meta["suites"],
        bits=meta["bits"],
        tasks=tuple(
            TaskCount(suite=suite, task=task, items=items, too_short=short)
            for suite, task, items, short in meta["tasks"]
        ),
        items=tuple(Item(task=t, doc_id=d, short_words=s) for t, d, s in meta["items"]),
        texts=tuple(Text(item=i, field=f, text=t) for i, f, t in meta["texts"]),
        **held,
    )
