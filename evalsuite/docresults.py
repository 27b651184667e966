"""What one doc's answers say: its numbers, its gold and output as text, its content for a hash.

    a gold text of 18 bytes with log likelihood -24.95   ->  Cell(value=2.0, weight=18)
    a raw metric True, 0.5, NaN, None, "x"               ->  1.0, 0.5, and three times no number

Pure: it takes docs and requests as the harness made them and knows neither model nor lm-eval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from evalsuite.aggregate import BITS, Cell
from evalsuite.records import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Doc:
    """One doc of a suite as lm-eval renders it."""

    capability: str
    task: str
    doc_id: int
    doc: dict[str, Any]
    """The data set's row, after the task's own processing."""
    text: str
    """doc_to_text; empty for a task that scores a whole text."""
    choices: list[str]
    target: str | int | list[Any]
    """doc_to_target: a text, the index of a choice, or several right answers."""
    rolling: bool
    """The target is a whole text whose likelihood is the score."""


def number(metric: str, raw: Any) -> Cell | None:
    """A doc's number, or None for what is none (None, NaN, infinite, a list, a text)."""
    if metric == BITS and isinstance(raw, tuple) and len(raw) == 2:
        return bits_per_byte(float(raw[0]), float(raw[1]))
    try:
        value = float(raw)
    except (TypeError, ValueError):
        return None
    return Cell(value=value) if math.isfinite(value) and not isinstance(raw, str) else None


def bits_per_byte(likelihood: float, size: float) -> Cell | None:
    """The bits of a text of `size` bytes with this log likelihood, per byte."""
    if not math.isfinite(likelihood) or size <= 0:
        return None
    return Cell(value=-likelihood / math.log(2) / size, weight=size)


def gold_bits(doc: Doc, ones: list[Any], answers: list[Any]) -> Cell | None:
    """Bits per byte of the one gold text, where the task asks for its likelihood.

    `ones` are lm-eval's requests for this doc in order, `answers` their (likelihood, greedy).
    """
    if ones[0].request_type != "loglikelihood":
        return None
    gold = doc.target if doc.choices else 0
    if isinstance(gold, str) and gold in doc.choices:
        gold = doc.choices.index(gold)
    if not isinstance(gold, int) or not 0 <= gold < len(ones):
        return None
    return bits_per_byte(float(answers[gold][0]), len(ones[gold].args[1].encode()))


def gold_text(doc: Doc) -> str:
    """The right answer as text, several joined; empty for a task that scores a whole text."""
    if doc.rolling:
        return ""
    several = doc.target if isinstance(doc.target, list) else [doc.target]
    texts = [
        doc.choices[one] if isinstance(one, int) and 0 <= one < len(doc.choices) else str(one)
        for one in several
    ]
    return " | ".join(texts)


def output_text(task: Task, doc: Doc, ones: list[Any]) -> str:
    """The extracted answer, or the choice the model finds likeliest."""
    if ones[0].request_type == "generate_until":
        answer = ones[0].filtered_resps.get(task.filter, "")
        return answer if isinstance(answer, str) else str(answer)
    if ones[0].request_type == "loglikelihood" and doc.choices:
        likelihoods = [one.resps[0][0] for one in ones[: len(doc.choices)]]
        if all(math.isfinite(value) for value in likelihoods):
            return doc.choices[likelihoods.index(max(likelihoods))]
    return ""


def plain(value: Any) -> Any:
    """A doc as JSON can hold it, for its hash."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return repr(value)
