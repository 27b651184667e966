"""Knowledge: facts about people and towns, told in some wordings and asked in others.

    text: "Torvel lives in Hamel . Torvel has a goat ."
          "Q: Where does Torvel live ?\\nA: Hamel"
    dev:  "Q: Do you know in which town Torvel lives at this time ?\\nA:"  four choices, chance 1/4

Each (subject, relation) belongs to one group. The evaluation wording of a split stands in training
only for subjects outside that split's group, so the form is practised, never the item.
Dev asks about the head and the towns, unseen about the tail in a wording that training uses rarely.
"""

from __future__ import annotations

import random

from evalsuite.microworld.world import (
    FACTS,
    HEAD,
    PERSON_RELATIONS,
    PLACE_RELATIONS,
    TAIL,
    TOWNS,
    VALUES,
    Exercise,
    Item,
    Split,
    choices_for,
    digest,
    person,
    pick,
    spread,
)

STATEMENTS: dict[str, tuple[str, ...]] = {
    "town": ("{s} lives in {v} .", "The home of {s} is {v} .", "{s} has a house in {v} ."),
    "job": ("{s} works as a {v} .", "The job of {s} is {v} .", "{s} earns money as a {v} ."),
    "pet": ("{s} has a {v} .", "The pet of {s} is a {v} .", "{s} keeps a {v} ."),
    "colour": ("{s} likes {v} .", "The colour of {s} is {v} .", "{s} often wears {v} ."),
    "river": ("{s} lies on the {v} .", "The river of {s} is the {v} ."),
    "dish": ("{s} is known for {v} .", "The dish of {s} is {v} ."),
}
QUESTIONS: dict[str, tuple[str, ...]] = {
    "town": ("Where does {s} live ?", "What town is the home of {s} ?"),
    "job": ("What work does {s} do ?", "What is the job of {s} ?"),
    "pet": ("What animal has {s} ?", "What is the pet of {s} ?"),
    "colour": ("What colour likes {s} ?", "What is the colour of {s} ?"),
    "river": ("What river is in {s} ?", "What is the river of {s} ?"),
    "dish": ("What food is from {s} ?", "What is the dish of {s} ?"),
}
EVAL_QUESTIONS: dict[Split, dict[str, str]] = {
    "dev": {
        "town": "Do you know in which town {s} lives at this time ?",
        "job": "Do you know by what job {s} earns the daily money ?",
        "pet": "Do you know now what pet {s} keeps in the house ?",
        "colour": "Do you know of what colour {s} likes the clothes best ?",
        "river": "Do you know on what river {s} lies since old times ?",
        "dish": "Do you know for what dish {s} is known to all ?",
    },
    "unseen": {
        "town": "In a letter one writes to {s} what town is put there ?",
        "job": "Each day before noon you see {s} busy with what job then ?",
        "pet": "At night by the fire lies {s} and there lies what pet ?",
        "colour": "When the feast is near , {s} will dress in what colour ?",
        "river": "In old maps drawn well near {s} one finds what river there ?",
        "dish": "When guests come to eat in {s} they are served what dish ?",
    },
}
REPHRASED: dict[str, str] = {
    "town": "Name the place {s} calls home .",
    "job": "How does {s} make a living ?",
    "pet": "Which creature belongs to {s} ?",
    "colour": "Which shade pleases {s} most ?",
    "river": "Which water flows through {s} ?",
    "dish": "Which meal made {s} famous ?",
}


def asked_in(subject: str, relation: str) -> Split | None:
    """The split whose items may ask this fact: in training it is never asked in its wording."""
    if digest("asked", subject, relation) % 5 < 3:
        return "unseen" if subject in _TAIL else "dev"
    return None


_TAIL = frozenset(TAIL)
_OWNER = {fact: asked_in(*fact) for fact in FACTS}


def fact(rng: random.Random) -> tuple[str, str]:
    """A subject and a relation: mostly people by Zipf's law, a tenth towns."""
    if rng.random() < 0.1:
        return pick(rng, TOWNS), pick(rng, PLACE_RELATIONS)
    return person(rng), pick(rng, PERSON_RELATIONS)


def question(rng: random.Random, subject: str, relation: str) -> str:
    """A training question for a fact, never in the wording of a split that owns the fact."""
    owner = _OWNER[subject, relation]
    roll = rng.random()
    if roll < 0.4 and owner != "dev":
        wording = EVAL_QUESTIONS["dev"][relation]
    elif roll > 0.9 and owner != "unseen":
        wording = EVAL_QUESTIONS["unseen"][relation]
    else:
        wording = pick(rng, QUESTIONS[relation])
    return wording.format(s=subject)


def text(rng: random.Random) -> str:
    """One or two statements about one subject, or one question with its answer."""
    subject, relation = fact(rng)
    if rng.random() < 0.5:
        return f"Q: {question(rng, subject, relation)}\nA: {FACTS[subject, relation]}\n"
    told = pick(rng, STATEMENTS[relation]).format(s=subject, v=FACTS[subject, relation])
    if rng.random() < 0.5:
        relations = PLACE_RELATIONS if subject in TOWNS else PERSON_RELATIONS
        other = relations[(relations.index(relation) + 1) % len(relations)]
        told += " " + pick(rng, STATEMENTS[other]).format(s=subject, v=FACTS[subject, other])
    return told + "\n"


def chat(rng: random.Random) -> tuple[str, str]:
    """(question, answer)."""
    subject, relation = fact(rng)
    return question(rng, subject, relation), FACTS[subject, relation]


def exercise(rng: random.Random) -> Exercise:
    """A fact asked for; wrong is another value of the same relation."""
    subject, relation = fact(rng)
    told = FACTS[subject, relation]
    return Exercise(
        question=question(rng, subject, relation),
        answer=told,
        target=told,
        wrong=pick(rng, [value for value in VALUES[relation] if value != told]),
        fields={"subject": subject, "relation": relation},
    )


def items(split: Split) -> list[Item]:
    """100 items at most: head people and towns (dev), tail people (unseen)."""
    if split == "dev":
        people = [(s, r) for s in HEAD for r in PERSON_RELATIONS]
        places = [(s, r) for s in TOWNS for r in PLACE_RELATIONS]
        facts = [f for f in people + places if _OWNER[f] == "dev"]
    else:
        facts = [(s, r) for s in TAIL for r in PERSON_RELATIONS if _OWNER[s, r] == "unseen"]
    return [
        Item(
            question=EVAL_QUESTIONS[split][relation].format(s=subject),
            answer=FACTS[subject, relation],
            target=FACTS[subject, relation],
            rephrased=REPHRASED[relation].format(s=subject),
            choices=choices_for(subject, relation, split),
            fields={"subject": subject, "relation": relation},
        )
        for subject, relation in spread(facts, min(100, len(facts)), split)
    ]
