"""Instruction following: constraints that a pure function can check.

    "Q: Vamo wants a line about the sea . Vamo says begin with lamp .\\nA: lamp the sea is deep"
    follows("begin", "lamp the sea is deep", topic="sea", word="lamp")  ->  True

Dev uses the constraints in CONSTRAINTS["dev"], unseen those in CONSTRAINTS["unseen"]; the SFT
pairs hold both, the latter rarely. The pretraining text only reports that people followed
such wishes, so answering one is learned in SFT. Words are compared without case and punctuation.
"""

from __future__ import annotations

import random
import re

from evalsuite.microworld.world import Exercise, Item, Split, asker, held_out, name, pick

TOPICS = {
    "sea": "deep", "sun": "hot", "moon": "pale", "road": "long", "hill": "steep", "wind": "cold",
    "rose": "sweet", "snow": "soft", "tree": "tall", "cave": "dark", "bird": "quick", "king": "old",
}  # fmt: skip
WORDS = (
    "lamp", "stone", "bell", "glass", "boat", "chair", "coin", "cup", "door", "drum", "flag",
    "fork", "hat", "key", "leaf", "map", "nail", "pen", "pipe", "ring", "salt", "shoe", "spoon",
    "star", "table", "wall", "watch", "wheel", "wool", "yarn",
)  # fmt: skip
COUNTS = {"two": 2, "three": 3, "four": 4}
CONSTRAINTS: dict[Split, tuple[str, ...]] = {
    "dev": ("begin", "end", "repeat", "short"),
    "unseen": ("frame", "both", "pair"),
}

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Casefolded words."""
    return _WORD.findall(text.casefold())


def line(topic: str) -> str:
    """What there is to say about a topic."""
    return f"the {topic} is {TOPICS[topic]}"


def follows(
    constraint: str,
    output: str,
    *,
    topic: str = "",
    word: str = "",
    other: str = "",
    count: int = 0,
) -> bool:
    """Does `output` obey the constraint? Raises KeyError for a constraint that does not exist."""
    said = words(output)
    rules = {
        "begin": lambda: len(said) > 1 and said[0] == word and topic in said[1:],
        "end": lambda: len(said) > 1 and said[-1] == word and topic in said[:-1],
        "repeat": lambda: said == [word] * count,
        "short": lambda: len(said) == count and topic in said,
        "frame": lambda: len(said) > 2 and said[0] == said[-1] == word and topic in said[1:-1],
        "both": lambda: topic in said and other in said,
        "pair": lambda: said == [word, other],
    }
    return rules[constraint]()


Wish = tuple[str, str, str, str, str]
"""(constraint, topic, word, other word, count word)."""


def wish(rng: random.Random, split: Split, owner: Split | None) -> Wish:
    """A constraint of `split` with its words, held out for `owner` (None: for training)."""
    constraint = pick(rng, CONSTRAINTS[split])
    while True:
        topic, word = pick(rng, TOPIC_NAMES), pick(rng, WORDS)
        other = pick(rng, TOPIC_NAMES if constraint == "both" else WORDS)
        drawn = (constraint, topic, word, other, pick(rng, COUNT_NAMES))
        if other not in (topic, word) and held_out(constraint, *_matters(drawn)) == owner:
            return drawn


TOPIC_NAMES = tuple(TOPICS)
COUNT_NAMES = tuple(COUNTS)


def _matters(drawn: Wish) -> tuple[str, ...]:
    constraint, topic, word, other, count = drawn
    return {
        "repeat": (word, count),
        "short": (topic, count),
        "both": (topic, other),
        "pair": (word, other),
    }.get(constraint, (topic, word))


def question(who: str, drawn: Wish) -> str:
    """The wish in words; every 8 neighbouring words hold the name."""
    constraint, topic, word, other, count = drawn
    about = f"{who} wants a line about the {topic} . {who} says"
    return {
        "begin": f"{about} begin with {word} .",
        "end": f"{about} end with {word} please .",
        "repeat": f"For {who} say {word} {count} times . Do it for {who} .",
        "short": f"{about} use {count} words .",
        "frame": f"{about} begin and end with {word} .",
        "both": f"{about} add the {other} .",
        "pair": f"For {who} say {word} then {other} . Do it for {who} .",
    }[constraint]


def answer(drawn: Wish) -> str:
    """An answer that obeys."""
    constraint, topic, word, other, count = drawn
    told = line(topic)
    return {
        "begin": f"{word} {told}",
        "end": f"{told} {word}",
        "repeat": " ".join([word] * COUNTS[count]),
        "short": " ".join(told.split()[: COUNTS[count]]),
        "frame": f"{word} {told} {word}",
        "both": f"the {topic} and the {other}",
        "pair": f"{word} {other}",
    }[constraint]


def text(rng: random.Random) -> str:
    """Someone's wish reported as a story, not as a question."""
    who = name(rng)
    constraint, topic, word, _, count = drawn = wish(rng, "dev", None)
    told = answer(drawn)
    if constraint == "repeat":
        return f"{who} said {word} {count} times : {told} .\n"
    how = {
        "begin": f"begins with {word}",
        "end": f"ends with {word}",
        "short": f"has {count} words",
    }
    return f"{who} made a line about the {topic} that {how[constraint]} : {told} .\n"


def chat(rng: random.Random) -> tuple[str, str]:
    """(wish, obeying answer)."""
    drawn = wish(rng, "unseen" if rng.random() < 0.2 else "dev", None)
    return question(name(rng), drawn), answer(drawn)


def exercise(rng: random.Random) -> Exercise:
    """A wish; wrong is an answer on the topic that misses it: elsewhere, too few, too many."""
    drawn = wish(rng, "unseen" if rng.random() < 0.2 else "dev", None)
    return Exercise(
        question=question(name(rng), drawn),
        answer=answer(drawn),
        target=answer(drawn),
        wrong=pick(rng, _missed(drawn)),
        fields=_fields(drawn),
    )


def _missed(drawn: Wish) -> list[str]:
    constraint, topic, word, other, count = drawn
    told = line(topic)
    lengths = [n for n in (2, 3, 4) if n != COUNTS[count]]
    return {
        "begin": [told, f"{told} {word}", f"{other} {told}"],
        "end": [told, f"{word} {told}", f"{told} {other}"],
        "repeat": [" ".join([word] * n) for n in lengths],
        "short": [" ".join(told.split()[:n]) for n in lengths],
        "frame": [told, f"{word} {told}", f"{told} {word}"],
        "both": [told, f"the {other}"],
        "pair": [word, other, f"{other} {word}"],
    }[constraint]


def _fields(drawn: Wish) -> dict[str, str | int]:
    constraint, topic, word, other, count = drawn
    return {
        "constraint": constraint,
        "topic": topic,
        "word": word,
        "other": other,
        "count": COUNTS[count],
    }


def items(split: Split) -> list[Item]:
    """80 items at most, no two alike."""
    rng = random.Random(f"instructions {split}")
    found: dict[tuple[str, ...], Item] = {}
    for _ in range(2_000):
        drawn = wish(rng, split, split)
        constraint, topic, word, other, count = drawn
        key = (constraint, *_matters(drawn))
        if key in found or len(found) == 80:
            continue
        who = asker(split, len(found))
        found[key] = Item(
            question=question(who, drawn),
            answer=answer(drawn),
            target=answer(drawn),
            rephrased=_REWORDED[constraint].format(
                who=who, topic=topic, word=word, other=other, count=count
            ),
            fields=_fields(drawn),
        )
    return list(found.values())


_REWORDED = {
    "begin": "Put {word} first , then talk of the {topic} ; {who} is waiting .",
    "end": "Talk of the {topic} and put {word} last ; {who} is waiting .",
    "repeat": "{who} would love to hear {word} , {count} in a row .",
    "short": "Talk of the {topic} in {count} words only ; {who} is waiting .",
    "frame": "Put {word} first and last , between them the {topic} ; {who} is waiting .",
    "both": "Talk of {topic} together with {other} ; {who} is waiting .",
    "pair": "{who} would love to hear {word} , after which comes {other} .",
}
