"""Verifiable rewards: evalsuite's verifiers, asked about what a policy wrote.

    row = {"id": "7", "answer": "72", "verifier": "gsm8k", "doc": {}, ...}
    rewards([row, row], ["48 + 24 = 72\\n#### 72", "#### 71"], workers=2)   -> [1.0, 0.0]

A prompt's row names its verifier, so one stage may mix GSM8K, MATH, IFEval, code and the
micro-world. The reward is the verdict's score, from 0 to 1; of `ifeval` it is the share of the
doc's instructions that are strictly followed. What a verifier could not judge has no reward:
None, never 0.

What it cannot do: tell a right answer from one written to please the verifier; each verifier's
docstring says what it lets through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evalsuite import verifiers
from evalsuite.errors import UserError

IN_PROCESSES = ("mathematics", "programs")
"""Verifiers that judge in processes of their own, `workers` at a time; others are too quick."""


def rewards(
    rows: Sequence[Mapping[str, Any]], texts: Sequence[str], *, workers: int = 1
) -> list[float | None]:
    """The reward of each text as an answer to its row's prompt; None where none could be told.

    Raises UserError as `judge` does.
    """
    return [reward for reward, _ in judge(rows, texts, workers=workers)]


def judge(
    rows: Sequence[Mapping[str, Any]], texts: Sequence[str], *, workers: int = 1
) -> list[tuple[float | None, str | None]]:
    """(reward, None) of each text, or (None, why it could not be judged), in order.

    Raises UserError for a row without `verifier`, and for a verifier that is not there or cannot
    work here (no sandbox, no math-verify).
    """
    assert len(rows) == len(texts)
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(verifier_of(row), []).append(place)
    found: list[tuple[float | None, str | None]] = [(None, None)] * len(rows)
    for name, mine in places.items():
        answers = [
            verifiers.Answer(
                text=texts[place],
                gold=rows[place].get("answer") or "",
                doc=rows[place].get("doc") or {},
            )
            for place in mine
        ]
        crew = workers if name in IN_PROCESSES else 1
        for place, verdict in zip(mine, verifiers.verify(name, answers, workers=crew), strict=True):
            found[place] = _reward(name, verdict), verdict.error
    return found


def check_able(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError where a row's answers could not be judged here; before any is written."""
    for name in sorted({verifier_of(row) for row in rows}):
        verifiers.check_able(name)


def verifier_of(row: Mapping[str, Any]) -> str:
    """The name of the verifier that a prompt's row asks for; UserError where it asks for none."""
    name = row.get("verifier")
    if not name:
        raise UserError(
            f"prompt {row.get('id')!r} names no verifier, so its answers cannot be judged: give "
            "its source a 'verifier', or train on a reward model"
        )
    return str(name)


def _reward(name: str, verdict: verifiers.Verdict) -> float | None:
    if name == "ifeval" and verdict.score is not None:
        return verdict.metrics["inst_strict"]
    return verdict.score
