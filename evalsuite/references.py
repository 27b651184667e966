"""The texts of a suite's docs that must not stand in training data.

    references(load_suite("real-small"), mirror=Path("../shared"))
        gsm8k_short, doc 0:  question  "Janet's ducks lay 16 eggs per day. ..."
                             answer    "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs ..."

They come from lm-eval's own rendering of each doc (doc_to_text, doc_to_choice, doc_to_target),
for exactly the split and the number of docs that the suite scores. A task's fixed wording around
a question ("Question: ... Answer:", or six worked examples) is left off: it is no secret, and a
long frame would hide a leaked question from any rule about shares of words. Choices that every
doc of a task shares ("A", "Yes") are left off too. Few-shot docs are no references.

A text of more than two `WINDOW`s is given as passages of about that length each: training
documents are cut too, and half of an article must be found though no document holds the most
of it.

What a task writes into a prompt by code of its own, so that no field of the doc is found in it,
stays one whole text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evalsuite.records import Reference, Suite

if TYPE_CHECKING:
    from evalsuite.harness import Doc

Field = Literal["question", "choice", "answer", "passage"]

_PASSAGES = ("passage", "context", "article", "story", "paragraph", "background", "document")
WINDOW = 2_000
"""Characters of one passage of a long text."""
_LEAST_WORDS = 3
"""A shorter field (an "18", a "B") is found anywhere, so it does not mark what is question."""


def references(suite: Suite, *, mirror: Path | None = None) -> list[Reference]:
    """Every text of every doc the suite scores, each text once per doc and field.

    Raises UserError as `harness.score` does for unknown tasks and data that cannot be had.
    """
    from evalsuite import harness

    found: list[Reference] = []
    for task, group in groupby(harness.docs(suite, mirror=mirror), key=lambda doc: doc.task):
        docs = list(group)
        shared = _shared_choices(docs)
        for doc in docs:
            texts = dict.fromkeys(
                (field, text.strip())
                for whole_field, whole in _texts(doc, shared)
                for field, text in _windows(whole_field, whole)
                if text.strip()
            )
            found.extend(
                Reference(suite=suite.name, task=task, doc_id=doc.doc_id, field=field, text=text)
                for field, text in texts
            )
    return found


def _windows(field: Field, text: str) -> Iterator[tuple[Field, str]]:
    """The text, or for a long question or passage its passages, cut at line or word ends."""
    if field not in ("question", "passage") or len(text) <= 2 * WINDOW:
        yield field, text
        return
    if field == "question":
        yield field, text  # found whole, or by any of its passages
    piece = ""
    for part in re.findall(r"\S+\s*", text):
        if piece and len(piece) + len(part) > WINDOW:
            yield "passage", piece
            piece = ""
        piece += part
    yield "passage", piece


def _shared_choices(docs: list[Doc]) -> set[str]:
    """Choices that are the task's, not the doc's: the same for every doc."""
    if len(docs) < 2:
        return set()
    return set.intersection(*(set(doc.choices) for doc in docs))


def _texts(doc: Doc, shared: set[str]) -> Iterator[tuple[Field, str]]:
    if doc.rolling:
        yield "passage", str(doc.target)
        return
    listed = _listed(doc)
    yield from _question(doc, listed)
    choices = [choice for choice in doc.choices if choice not in shared]
    for text in choices or listed:
        yield "choice", text
    for text in _answers(doc, shared, listed):
        yield "answer", text


def _question(doc: Doc, listed: list[str]) -> Iterator[tuple[Field, str]]:
    """The doc's own fields that stand in its prompt, else the prompt as it is."""
    inside: dict[str, str] = {}
    for name, value in doc.doc.items():
        if isinstance(value, str) and len(value.split()) >= _LEAST_WORDS:
            text = value.strip()
            if text in doc.text:
                inside.setdefault(text, name)  # of fields that say the same, the first
    if not inside:
        yield "question", doc.text
        return
    for text, name in inside.items():
        if not any(text in other and text != other for other in inside):
            yield ("passage" if name.lower() in _PASSAGES else "question"), text


def _listed(doc: Doc) -> list[str]:
    """The doc's own list of options, where the prompt shows all of it (MMLU's choices)."""
    for value in doc.doc.values():
        options = value if isinstance(value, list) else None
        if options and all(isinstance(one, str) and one.strip() in doc.text for one in options):
            return list(options)
    return []


def _answers(doc: Doc, shared: set[str], listed: list[str]) -> Iterator[str]:
    targets: list[Any] = doc.target if isinstance(doc.target, list) else [doc.target]
    for target in targets:
        if isinstance(target, str) and target in doc.choices:
            target = doc.choices.index(target)
        if not isinstance(target, int):
            yield str(target)
        elif 0 <= target < len(doc.choices) and doc.choices[target] not in shared:
            yield doc.choices[target]
        elif len(listed) == len(doc.choices) and 0 <= target < len(listed):
            yield listed[target]
        elif 0 <= target < len(doc.choices):
            yield doc.choices[target]
