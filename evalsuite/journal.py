"""A model's answers as they come, in a file: a killed evaluation goes on at the next one.

    with open_journal(Path("scores/.micro-dev.answers.jsonl")) as journal:
        key = answer_key(model="ab12", task=..., doc=..., kind="generate_until", arguments=...)
        journal.get(key)            an Answer of an earlier try, or None
        journal.put(key, answer)    one line, handed to the system at once

A key is a hash of all that an answer depends on: the model, the task's definition, the doc, the
prompt, the generation settings and the number of the sample. So a journal can serve neither
another model's answer nor that of an older prompt, whatever file it is opened from. A line that a
crash cut short is left off. Processes that score together (shares.py) write a file each and read
all. What a journal cannot know: whether a server still runs the model it names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from evalsuite.files import content_id, full_disk_is_a_user_error

VERSION = 1
"""Raised when an answer comes to mean something else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a model said to one request, and what that took."""

    value: Any
    """(log-likelihood, greedy), a log-likelihood, or a text."""
    tokens: int
    """Tokens read and written."""
    written: int = 0
    """Of these the ones that were scored or written."""
    truncated: bool = False
    error: str | None = None
    """Why `value` says nothing."""
    thought: str = ""
    """What the model thought before it answered."""
    thinking_tokens: int = 0
    """Of those written the ones that were thought."""


class Journal:
    """Answers by key; `put` also appends them to the file, when there is one."""

    def __init__(self, known: dict[str, Answer], handle: TextIO | None, place: Path | None) -> None:
        self._known, self._handle, self._place = known, handle, place

    def get(self, key: str) -> Answer | None:
        """The answer that was put under this key, now or by an earlier process."""
        return self._known.get(key)

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; it outlives this process once this returns."""
        self._known[key] = answer
        if self._handle is None or self._place is None:
            return
        with full_disk_is_a_user_error(self._place):
            line = json.dumps([key, *_fields(answer)], allow_nan=False)
            self._handle.write(line + "\n")
            self._handle.flush()

    @property
    def known(self) -> dict[str, Answer]:
        """Every answer by its key."""
        return self._known

    def __len__(self) -> int:
        return len(self._known)


@contextmanager
def open_journal(path: Path | None, *, rank: int = 0) -> Iterator[Journal]:
    """The journal at `path`, with what is in it already; None keeps answers in memory only.

    Of several processes that score together each writes a file of its own, `path` with ".rank"
    at its end, and reads those of all, however many there were when they were written.
    """
    if path is None:
        yield Journal({}, None, None)
        return
    mine = path if rank == 0 else path.with_name(f"{path.name}.{rank}")
    with full_disk_is_a_user_error(mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        known: dict[str, Answer] = {}
        for other in _files(path):
            known |= _read(other)[0]
        own, whole = _read(mine)
        handle = mine.open("a", encoding="utf-8")
    with handle:
        handle.truncate(whole)
        yield Journal(known | own, handle, mine)


def remove_journal(path: Path) -> None:
    """Delete the journal of an evaluation, all its files."""
    for file in _files(path):
        file.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    """The journal's files that are there: that of rank 0, then the others'."""
    start = path.name + "."
    names = [f.name for f in path.parent.iterdir()] if path.parent.is_dir() else []
    ranks = [name for name in names if name.startswith(start) and name[len(start) :].isdigit()]
    return [path.with_name(name) for name in [*filter(path.name.__eq__, names), *sorted(ranks)]]


def answer_key(
    *, model: str, task: str, doc: str, kind: str, arguments: Any, sample: int = 0
) -> str:
    """The key of one answer; `arguments` are the prompt and the settings as JSON can hold them."""
    return content_id([VERSION, model, task, doc, kind, arguments, sample], length=32)


def _fields(answer: Answer) -> list[Any]:
    value = None if answer.error is not None else answer.value
    told = [value, answer.tokens, answer.written, answer.truncated, answer.error]
    return [*told, answer.thought, answer.thinking_tokens]


_KINDS: tuple[Any, ...] = (
    str, (list, float, int, str, type(None)), int, int, bool, (str, type(None)), str, int,
)  # fmt: skip


def _parsed(line: bytes) -> list[Any] | None:
    """The fields of a line, if it is one of ours."""
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    if not isinstance(fields, list) or len(fields) != len(_KINDS):
        return None
    sound = all(isinstance(one, kind) for one, kind in zip(fields, _KINDS, strict=True))
    return fields if sound else None


def _read(path: Path) -> tuple[dict[str, Answer], int]:
    """The answers of a file and how many bytes of it are whole lines."""
    known: dict[str, Answer] = {}
    whole = 0
    if not path.exists():
        return known, whole
    with path.open("rb") as handle:
        for line in handle:
            if not line.endswith(b"\n"):
                break  # what a killed process was writing
            whole += len(line)
            fields = _parsed(line)
            if fields is None:
                continue  # damaged, or of another version: asked again
            key, value, tokens, written, truncated, error, thought, spent = fields
            if error is not None:
                value = math.nan
            elif isinstance(value, list):
                value = tuple(value)
            known[key] = Answer(
                value=value,
                tokens=tokens,
                written=written,
                truncated=truncated,
                error=error,
                thought=thought,
                thinking_tokens=spent,
            )
    return known, whole
