"""The micro-world: text, SFT pairs and held-out evaluation of six capabilities, all from a seed.

    documents("math_steps", count=2, seed=0)  ->  {"id": "math_steps-0-0", "text": "Q: Vamo ..."}
    documents("sft_math", count=2, seed=0)    ->  {"id": ..., "messages": [{"role": "user", ...}]}
    eval_rows("micro_math", "dev")            ->  [{"question": ..., "target": "9", ...}, ...]

A model of some 150,000 parameters learns each capability in minutes on a CPU. A chat pair is
shown to a model as "Q: {user}\\nA: {assistant}", the form of the questions in the plain text and
of the evaluation prompts. Document number i is a pure function of (kind, seed, i). Scores here say
nothing about real capabilities: the world tests the measuring.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from evalsuite.errors import UserError, did_you_mean
from evalsuite.microworld import (
    arithmetic,
    instructions,
    knowledge,
    languages,
    programs,
    safety,
    stories,
)
from evalsuite.microworld.leaks import FORMS, SUITES, Leaks, disguise
from evalsuite.microworld.world import SPLITS, Item, Split

__all__ = [
    "CAPABILITIES",
    "FORMS",
    "KINDS",
    "TASKS",
    "Leaks",
    "documents",
    "eval_items",
    "eval_rows",
    "planted",
]

CAPABILITIES = ("knowledge", "math", "instructions", "code", "multilingual", "safety")

_TEXT: dict[str, Callable[[random.Random], str]] = {
    "stories": stories.text,
    "facts": knowledge.text,
    "math_steps": arithmetic.steps_text,
    "math_bare": arithmetic.bare_text,
    "instructions": instructions.text,
    "code": programs.text,
    "multilingual": languages.text,
    "safety": safety.text,
}
_CHAT: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "sft_knowledge": knowledge.chat,
    "sft_math": arithmetic.chat,
    "sft_instructions": instructions.chat,
    "sft_code": programs.chat,
    "sft_multilingual": languages.chat,
    "sft_safety": safety.chat,
}
KINDS = (*_TEXT, *_CHAT)
"""Kinds of training documents: plain text, and SFT pairs (sft_<capability>)."""

_ITEMS: dict[str, Callable[[Split], list[Item]]] = {
    "micro_knowledge": knowledge.items,
    "micro_math": arithmetic.items,
    "micro_instructions": instructions.items,
    "micro_code": programs.items,
    "micro_code_gap": programs.gap_items,
    "micro_multilingual": languages.items,
    "micro_safety": safety.items,
}
TASKS: dict[str, tuple[tuple[str, str, Split], ...]] = {
    "micro-dev": tuple((config, config, "dev") for config in _ITEMS),
    "micro-unseen": tuple(
        (f"{config}_unseen", config, "unseen") for config in _ITEMS if config != "micro_code_gap"
    ),
}
"""Suite -> its tasks as (task name, config, split)."""


def documents(
    kind: str, *, count: int, seed: int, leaks: Leaks | None = None
) -> Iterator[dict[str, Any]]:
    """`count` rows {"id", "text"}, or for sft kinds {"id", "messages"}, some with planted leaks.

    Raises UserError, before the first row, for an unknown kind or a negative count.
    """
    _check(kind, count)
    return _documents(kind, count, seed, leaks)


def _documents(kind: str, count: int, seed: int, leaks: Leaks | None) -> Iterator[dict[str, Any]]:
    plants = _pool(leaks.suite) if leaks else ()
    make_text, make_chat = _TEXT.get(kind), _CHAT.get(kind)
    for number in range(count):
        rng = random.Random(f"{kind}/{seed}/{number}")
        row: dict[str, Any] = {"id": _document_id(kind, seed, number)}
        chosen = leaks.choose(_leak_rng(kind, seed, number), len(plants)) if leaks else None
        if chosen:
            asked, answer = disguise(plants[chosen[0]][2], chosen[1], rng)
            row |= _text_row(asked, answer) if make_text else _chat_row(asked, answer)
        elif make_text:
            row["text"] = make_text(rng)
        else:
            assert make_chat is not None
            row |= _chat_row(*make_chat(rng))
        yield row


def planted(kind: str, *, count: int, seed: int, leaks: Leaks) -> list[dict[str, Any]]:
    """The ground truth of `documents` with the same arguments: a row per document with a leak.

    Rows hold document_id, suite, task, doc_id (the item's place in its task) and form.
    """
    _check(kind, count)
    plants = _pool(leaks.suite)
    rows = []
    for number in range(count):
        chosen = leaks.choose(_leak_rng(kind, seed, number), len(plants))
        if chosen:
            task, doc_id, _ = plants[chosen[0]]
            rows.append(
                {
                    "document_id": _document_id(kind, seed, number),
                    "suite": leaks.suite,
                    "task": task,
                    "doc_id": doc_id,
                    "form": chosen[1],
                }
            )
    return rows


def eval_items(config: str, split: str) -> tuple[Item, ...]:
    """The items of a task, e.g. ("micro_math", "dev"); raises UserError for an unknown one."""
    for place, value, known in (("config", config, _ITEMS), ("split", split, SPLITS)):
        if value not in known:
            raise UserError(f"assay/microworld: no {place} {value!r}" + did_you_mean(value, known))
    return _items(config, split)


@cache
def _items(config: str, split: Split) -> tuple[Item, ...]:
    return tuple(_ITEMS[config](split))


def eval_rows(config: str, split: str) -> list[dict[str, Any]]:
    """The rows of hub data set "assay/microworld": fresh dicts, in the order of doc ids."""
    return [item.row() for item in eval_items(config, split)]


@cache
def _pool(suite: str) -> tuple[tuple[str, int, Item], ...]:
    return tuple(
        (task, doc_id, item)
        for task, config, split in TASKS[suite]
        for doc_id, item in enumerate(_items(config, split))
    )


def _check(kind: str, count: int) -> None:
    if kind not in KINDS:
        raise UserError(f"micro-world: no kind {kind!r}" + did_you_mean(kind, KINDS))
    if count < 0:
        raise UserError(f"micro-world: count is {count}, but must be 0 or more")


def _document_id(kind: str, seed: int, number: int) -> str:
    return f"{kind}-{seed}-{number}"


def _leak_rng(kind: str, seed: int, number: int) -> random.Random:
    return random.Random(f"leak/{kind}/{seed}/{number}")


def _text_row(asked: str, answer: str) -> dict[str, Any]:
    return {"text": f"Q: {asked}\nA: {answer}\n"}


def _chat_row(asked: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answer},
        ]
    }


assert set(SUITES) == set(TASKS)
