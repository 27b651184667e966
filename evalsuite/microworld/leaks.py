"""Planted leaks: evaluation items put into training documents in known forms, with ground truth.

    Leaks(rate=0.01, forms=("verbatim", "partial"), suite="micro-dev")

    verbatim          the question with its answer, as the task shows it
    case_punctuation  other case, other punctuation, same words in the same order
    partial_75/50/30  that share of the question's words, from its beginning ("partial": all)
    embedded          between two stories
    wrapped           quoted line by line, a few words to a line, under a heading
    rephrased         the question in other words (no n-gram rule finds it)

Whether a document carries a leak, which item and in which form follow from kind, seed and
document number alone, so `planted` knows them without making the documents.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from evalsuite.errors import UserError, did_you_mean
from evalsuite.microworld import stories
from evalsuite.microworld.world import Item, pick

PARTIAL = ("partial_75", "partial_50", "partial_30")
FORMS = ("verbatim", "case_punctuation", *PARTIAL, "embedded", "wrapped", "rephrased")
SUITES = ("micro-dev", "micro-unseen")


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaks:
    """What share of documents carries an evaluation item of which suite, in which forms."""

    rate: float
    forms: tuple[str, ...] = FORMS
    suite: str = "micro-dev"

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise UserError(f"leaks: rate is {self.rate}, but must lie in [0, 1]")
        if not self.forms:
            raise UserError(f"leaks: forms is empty; name some of {', '.join(FORMS)}")
        for form in self.forms:
            if form not in (*FORMS, "partial"):
                raise UserError(
                    f"leaks: no form {form!r}" + did_you_mean(form, (*FORMS, "partial"))
                )
        if self.suite not in SUITES:
            raise UserError(f"leaks: no suite {self.suite!r}" + did_you_mean(self.suite, SUITES))

    def choose(self, rng: random.Random, items: int) -> tuple[int, str] | None:
        """(number of the item out of `items`, form) for one document, or None: no leak here."""
        if rng.random() >= self.rate:
            return None
        form = pick(rng, self.forms)
        return int(rng.random() * items), pick(rng, PARTIAL) if form == "partial" else form


def disguise(item: Item, form: str, rng: random.Random) -> tuple[str, str]:
    """(question, answer) of a leak; embedded and wrapped keep the answer inside the question."""
    if form == "case_punctuation":
        shouted = item.question.upper() if rng.random() < 0.5 else item.question.title()
        marked = shouted.replace(" .", "!").replace(" ,", " -").replace(" ?", " ...")
        return f'"{marked}"', item.answer.upper()
    if form in PARTIAL:
        words = item.question.split(" ")
        kept = max(1, round(len(words) * int(form.removeprefix("partial_")) / 100))
        return " ".join(words[:kept]), "..."
    if form == "embedded":
        before, after = stories.text(rng).strip(), stories.text(rng).strip()
        return f"{before} {item.question} {item.answer} . {after}", "yes"
    if form == "wrapped":
        words = item.question.split(" ")
        lines = [" ".join(words[start : start + 4]) for start in range(0, len(words), 4)]
        return "Exercise\n" + "\n".join(f"> {line}" for line in lines), f"[{item.answer}]"
    if form == "rephrased":
        return item.rephrased, item.answer
    return item.question, item.answer
