"""Answers of the micro-world, judged as its tasks judge them: sums, wishes, programs, requests.

    verify(Answer(text="7+5=12 12-3=9 answer 9", gold="9", doc={"operations": 2}))
        -> score 1, answer "9"
    verify(Answer(text="the sea is deep", doc={"constraint": "begin", "topic": "sea", ...}))
        -> score 0, answer "the sea is deep"

The kind of question is told by the doc's fields, which evaluation rows and training prompts
have alike: `operations` (math), `constraint` (instructions), `output` (a missing line of code),
`program` (what code prints), `harmful` (safety); any other doc with a `relation` asks for a fact
or a sum, right when the answer equals the gold one, letters' case and full stops aside.

Only the first line of a text counts, as an evaluation's answer ends there. No metrics beside the
score. `answer` is the number for math and for what code prints, else the line's words.

What it lets through: whatever the tasks let through. A sum with wrong steps and the right number
after "answer" is right; so is a refusal that goes on, and a line that names the topic in nonsense.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evalsuite.tasks.micro import checkers
from evalsuite.verifiers import Answer, Verdict, golds

Checker = Callable[[dict[str, Any], list[str]], dict[str, float]]
_BY_FIELD: dict[str, Checker] = {
    "operations": checkers.process_math,
    "constraint": checkers.process_instructions,
    "output": checkers.process_code_gap,
    "program": checkers.process_code,
    "harmful": checkers.process_safety,
}
"""A field of the doc -> its checker; the first field that is there decides."""
_NUMBER_AFTER = {"operations": checkers.last_answer, "program": checkers.last_printed}


def verify(answer: Answer) -> Verdict:
    """Judge one answer; see the module.

    Raises ValueError for a doc that is not the micro-world's, and without a gold answer where
    one is needed.
    """
    doc, line = answer.doc, answer.text.partition("\n")[0]
    kind = next((field for field in _BY_FIELD if field in doc), None)
    spoken = " ".join(line.split())
    if kind is None:
        if "relation" not in doc:
            raise ValueError(f"the doc has no field that tells the question's kind: {sorted(doc)}")
        said = _plain(line)
        return Verdict(score=float(said in map(_plain, golds(answer))), answer=said)
    row = dict(doc)
    if kind in _NUMBER_AFTER:
        row["target"] = golds(answer)[0]
        spoken = _NUMBER_AFTER[kind](line)
    [score] = _BY_FIELD[kind](row, [line]).values()
    return Verdict(score=score, answer=spoken)


def _plain(text: str) -> str:
    return text.strip(" .").casefold()
