"""Math: chains of small sums, answered with every step restated, or bare.

    "Q: Vamo has 7 , gains 5 . Vamo loses 3 . How many has Vamo ?"
    steps: "A: 7+5=12 12-3=9 answer 9"
    bare:  "A: answer 9"

Numbers stay between 0 and 20. An evaluation item has a name that training never uses and a
chain whose first two operations training never makes. Dev asks two and three operations, unseen
four in another wording; training has that wording and four operations too, but rarely.
"""

from __future__ import annotations

import random

from evalsuite.microworld.world import Exercise, Item, Split, asker, held_out, name, pick

TOP = 20
GAINS = ("gains", "finds")
LOSSES = ("loses", "drops")
SLIPS = 0.3
"""Share of the answers with a slip in the conversations of `slips`."""

Chain = tuple[int, tuple[int, ...]]
"""Where it starts and the signed steps: (7, (5, -3)) ends at 9."""


def chain(rng: random.Random, operations: int, split: Split | None) -> Chain:
    """A chain that belongs to `split` (None: training), drawn until one does."""
    while True:
        start = total = 1 + int(rng.random() * 9)
        steps = []
        for _ in range(operations):
            step = 1 + int(rng.random() * 9)
            if total + step > TOP or (total >= step and rng.random() < 0.5):
                step = -min(step, total) or 1
            steps.append(step)
            total += step
        if held_out(start, steps[0], steps[1]) == split:
            return start, tuple(steps)


def total(numbers: Chain) -> int:
    """Where a chain ends."""
    return numbers[0] + sum(numbers[1])


def question(who: str, numbers: Chain, verbs: list[str], split: Split = "dev") -> str:
    """The chain in words; the name stands in every second clause and at the end."""
    start, steps = numbers
    parts = [f"{who} has {start}"]
    for index, (step, verb) in enumerate(zip(steps, verbs, strict=True)):
        parts.append(f". {who} {verb} {abs(step)}" if index % 2 else f", {verb} {abs(step)}")
    if split == "dev":
        return " ".join(parts) + f" . How many has {who} ?"
    return f"Count for {who} : " + " ".join(parts) + f" . Tell {who} the number ."


def verbs(rng: random.Random, numbers: Chain) -> list[str]:
    """A verb for each step."""
    return [pick(rng, GAINS if step > 0 else LOSSES) for step in numbers[1]]


def worked(numbers: Chain) -> str:
    """The answer with each step restated."""
    current, steps = numbers
    parts = []
    for step in steps:
        parts.append(f"{current}{'+' if step > 0 else '-'}{abs(step)}={current + step}")
        current += step
    return " ".join(parts) + f" answer {current}"


def bare(numbers: Chain) -> str:
    """The answer alone."""
    return f"answer {total(numbers)}"


def _training(rng: random.Random) -> tuple[str, Chain]:
    roll = rng.random()
    numbers = chain(rng, 2 if roll < 0.5 else 3 if roll < 0.9 else 4, None)
    split: Split = "unseen" if rng.random() < 0.15 else "dev"
    return question(name(rng), numbers, verbs(rng, numbers), split), numbers


def steps_text(rng: random.Random) -> str:
    """A question with its worked answer."""
    asked, numbers = _training(rng)
    return f"Q: {asked}\nA: {worked(numbers)}\n"


def bare_text(rng: random.Random) -> str:
    """A question with the answer alone."""
    asked, numbers = _training(rng)
    return f"Q: {asked}\nA: {bare(numbers)}\n"


def chat(rng: random.Random) -> tuple[str, str]:
    """(question, worked answer)."""
    asked, numbers = _training(rng)
    return asked, worked(numbers)


def slips(rng: random.Random) -> tuple[str, str]:
    """(question, worked answer, with a slip in three of ten): noise that rewards can weed out."""
    asked, numbers = _training(rng)
    return asked, _slipped(rng, numbers) if rng.random() < SLIPS else worked(numbers)


def exercise(rng: random.Random) -> Exercise:
    """A chain; wrong is the worked answer with a slip in one step, carried on to the end."""
    asked, numbers = _training(rng)
    return Exercise(
        question=asked,
        answer=worked(numbers),
        target=str(total(numbers)),
        wrong=_slipped(rng, numbers),
        fields={"operations": len(numbers[1])},
    )


def _slipped(rng: random.Random, numbers: Chain) -> str:
    current, steps = numbers
    at, by = int(rng.random() * len(steps)), pick(rng, (-2, -1, 1, 2))
    reached = [current + sum(steps[: n + 1]) for n in range(at, len(steps))]
    by = abs(by) if min(reached) + by < 0 else by
    parts = []
    for index, step in enumerate(steps):
        after = current + step + (by if index == at else 0)
        parts.append(f"{current}{'+' if step > 0 else '-'}{abs(step)}={after}")
        current = after
    return " ".join(parts) + f" answer {current}"


def items(split: Split) -> list[Item]:
    """80 items: two and three operations in turn (dev), four (unseen)."""
    rng = random.Random(f"arithmetic {split}")
    found: dict[Chain, Item] = {}
    while len(found) < 80:
        numbers = chain(rng, 2 + len(found) % 2 if split == "dev" else 4, split)
        if numbers in found:
            continue
        who = asker(split, len(found))
        reworded = "".join(
            f" and {'adds' if step > 0 else 'takes away'} {abs(step)}" for step in numbers[1]
        )
        found[numbers] = Item(
            question=question(who, numbers, verbs(rng, numbers), split),
            answer=worked(numbers),
            target=str(total(numbers)),
            rephrased=f"If one begins at {numbers[0]}{reworded} , what is left for {who} ?",
            fields={"operations": len(numbers[1])},
        )
    return list(found.values())
