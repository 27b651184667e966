"""The world itself: its names, its people and towns, and what is true of them.

    HEAD[0], FACTS[HEAD[0], "town"]     ->  'Torvel', 'Hamel'
    name(rng)                           ->  'Vamo': an asker's name that training may use
    eval_names("dev")                   ->  ['Bado', ...]: names that training never uses

Two rules keep the evaluation out of the training text by construction:

* Askers' names (math, code, instructions, safety, sums) are split by hash into names for training
  and names for each evaluation split. An evaluation question repeats its name so often that
  every 8 neighbouring words hold it, so no training document shares 8 words in a row with it.
* A fact's evaluation wording is used in training only for other facts; the fact itself is
  told and asked in other wordings.

The world is one and the same everywhere: it has no seed argument. It is small enough for a model of
200,000 parameters, so it says little about large ones.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any, Literal, TypeVar

Split = Literal["dev", "unseen"]
SPLITS: tuple[Split, ...] = ("dev", "unseen")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One evaluation item: what is asked, the right answer, and the same question reworded."""

    question: str
    answer: str
    """A full right answer, as a model trained on this world would give it."""
    target: str
    """The short gold answer (never 8 words long: it must not match training text)."""
    rephrased: str
    """The same question in other words, for planting leaks no n-gram rule finds."""
    choices: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    """What the task's checker needs beside question and target."""

    def row(self) -> dict[str, Any]:
        """The item as the hub row that lm-eval sees."""
        row: dict[str, Any] = {
            "question": self.question,
            "answer": self.answer,
            "target": self.target,
            **self.fields,
        }
        if self.choices:
            row["choices"] = list(self.choices)
            row["gold"] = self.choices.index(self.target)
        return row


@dataclass(frozen=True, kw_only=True, slots=True)
class Exercise:
    """A training question with what preference and reinforcement learning need of it."""

    question: str
    answer: str
    """A full right answer."""
    target: str
    """The short gold answer."""
    wrong: str
    """A plausible answer that the task's checker refuses."""
    fields: dict[str, Any]
    """As an Item's: what verifier `microworld` tells the kind of question by, and judges with."""


def digest(*parts: object) -> int:
    """A 64-bit hash of `parts`, the same on every machine and in every process."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


@cache
def held_out(*parts: object) -> Split | None:
    """Which evaluation split owns this combination: an eighth dev, an eighth unseen, else None."""
    return {0: "dev", 1: "unseen"}.get(digest("held out", *parts) % 8)  # type: ignore[return-value]


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """`rng.choice` at a third of its cost."""
    return options[int(rng.random() * len(options))]


# Askers: two open syllables. Those that are words of a template are left out.
SYLLABLES = tuple(c + v for c in "bdklmrtv" for v in "aio")
NOT_NAMES = frozenset({"loro", "kilo", "toma", "tira", "vida", "lado", "modo", "rato", "todo"})
NAMES = tuple(
    sorted(a + b for a in SYLLABLES for b in SYLLABLES if a != b and a + b not in NOT_NAMES)
)


def _owner(lower: str) -> Split | None:
    return {0: "dev", 1: "unseen"}.get(digest("asker", lower) % 6)  # type: ignore[return-value]


TRAINING_NAMES = tuple(name.capitalize() for name in NAMES if _owner(name) is None)


def name(rng: random.Random) -> str:
    """An asker's name for training text."""
    return pick(rng, TRAINING_NAMES)


@cache
def eval_names(split: Split) -> tuple[str, ...]:
    """Askers' names that only this evaluation split uses."""
    return tuple(name.capitalize() for name in NAMES if _owner(name) == split)


def asker(split: Split, number: int) -> str:
    """The name in item `number`: another one for each, as long as there are names."""
    names = eval_names(split)
    return names[number % len(names)]


# People, from best known to least; the first HEAD_SIZE are the head.
HEAD_SIZE = 40
_STARTS = (
    "Mir", "Torv", "Kels", "Bran", "Dorl", "Fenn", "Galm", "Hest", "Jorm", "Lund",
    "Nevr", "Orl", "Pell", "Quin", "Rosk", "Sels", "Thar", "Ulm", "Welt", "Yst",
)  # fmt: skip
_ENDS = ("an", "el", "is", "or", "ath", "enk", "uni", "ips")
PEOPLE = tuple(
    sorted((a + b for a in _STARTS for b in _ENDS), key=lambda name: digest("rank", name))
)
HEAD = PEOPLE[:HEAD_SIZE]
TAIL = PEOPLE[HEAD_SIZE:]
TOWNS = ("Tolva", "Brisk", "Hamel", "Ostra", "Pindor", "Quarn", "Selby", "Urdal")

VALUES: dict[str, tuple[str, ...]] = {
    "town": TOWNS,
    "job": ("baker", "smith", "doctor", "farmer", "painter", "sailor", "teacher", "weaver"),
    "pet": ("cat", "dog", "horse", "goat", "duck", "rabbit", "parrot", "snake"),
    "colour": ("red", "blue", "green", "yellow", "black", "white", "brown", "grey"),
    "river": ("Aldra", "Bessen", "Corvo", "Delme", "Ebrin", "Fulda", "Gorsk", "Hovel"),
    "dish": ("soup", "bread", "cheese", "fish", "cake", "rice", "beans", "pie"),
}
PERSON_RELATIONS = ("town", "job", "pet", "colour")
PLACE_RELATIONS = ("river", "dish")


def _facts() -> dict[tuple[str, str], str]:
    facts = {}
    for relation in PERSON_RELATIONS:
        for person in PEOPLE:
            values = VALUES[relation]
            facts[person, relation] = values[digest("fact", person, relation) % len(values)]
    for relation in PLACE_RELATIONS:
        ordered = sorted(VALUES[relation], key=lambda value: digest("place", value))
        for town, value in zip(TOWNS, ordered, strict=True):
            facts[town, relation] = value
    return facts


FACTS = _facts()
"""(person or town, relation) -> value: all that is true."""

_ZIPF = tuple(accumulate(1 / (rank + 4) for rank in range(len(PEOPLE))))


def person(rng: random.Random, known: int = len(PEOPLE)) -> str:
    """One of the `known` best known people, by Zipf's law: the first are named most often."""
    return PEOPLE[bisect(_ZIPF, rng.random() * _ZIPF[known - 1], 0, known - 1)]


def choices_for(subject: str, relation: str, salt: str) -> tuple[str, ...]:
    """Four values of `relation` in a fixed shuffled order, the true one among them."""
    true = FACTS[subject, relation]
    others = sorted(
        (value for value in VALUES[relation] if value != true),
        key=lambda value: digest("wrong", salt, subject, relation, value),
    )
    return tuple(
        sorted([true, *others[:3]], key=lambda v: digest("order", salt, subject, relation, v))
    )


def spread(options: Sequence[T], count: int, *salt: object) -> list[T]:
    """`count` of `options`, chosen by hash and kept in that order."""
    ordered = sorted(options, key=lambda option: digest("spread", *salt, option))
    assert len(ordered) >= count, (salt, len(ordered), count)
    return ordered[:count]
