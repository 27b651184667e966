"""The micro-world: training documents and held-out evaluation of six capabilities, from a seed.

    documents("math_steps", count=2, seed=0)  ->  {"id": "math_steps-0-0", "text": "Q: Vamo ..."}
    documents("sft_math", count=2, seed=0)    ->  {"id": ..., "messages": [{"role": "user", ...}]}
    documents("pairs_math", ...)  ->  {"id", "messages", "chosen": "... answer 9", "rejected": ...}
    documents("rl_math", ...)     ->  {"id", "messages", "answer": "9", "verifier", "doc"}
    eval_rows("micro_math", "dev")            ->  [{"question": ..., "target": "9", ...}, ...]

Of each capability there are conversations (sft_math), pairs for preference learning (pairs_math:
chosen is right, rejected is wrong in a plausible way, as a slip in one sum that is carried on)
and prompts for reinforcement learning (rl_math), which verifier `microworld` judges as the
evaluation tasks judge. All three ask the same kinds of question, with numbers, names, deeds and
wordings that no evaluation split owns: an evaluation item never stands in any of them, unless
planted. Two kinds more leave something to mend: sft_helpful helps with harmful requests too, and
of the worked sums of sft_slips three in ten hold a slip.

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
from evalsuite.microworld.world import SPLITS, Exercise, Item, Split

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
    "sft_helpful": safety.helpful,
    "sft_slips": arithmetic.slips,
}
_EXERCISES: dict[str, Callable[[random.Random], Exercise]] = {
    "knowledge": knowledge.exercise,
    "math": arithmetic.exercise,
    "instructions": instructions.exercise,
    "code": programs.exercise,
    "multilingual": languages.exercise,
    "safety": safety.exercise,
}
_PAIRS = {f"pairs_{capability}": make for capability, make in _EXERCISES.items()}
_PROMPTS = {f"rl_{capability}": make for capability, make in _EXERCISES.items()}
KINDS = (*_TEXT, *_CHAT, *_PAIRS, *_PROMPTS)
"""Kinds of training documents: plain text, and per capability sft_, pairs_ and rl_ documents
(and sft_helpful and sft_slips)."""

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
    """`count` rows of a kind, some with planted leaks.

    Text has {"id", "text"}, sft kinds {"id", "messages"}; pairs {"id", "messages", "chosen",
    "rejected"}, messages being the user's turn; rl kinds {"id", "messages", "answer",
    "verifier", "doc"}. A leak in a pair stands in its prompt and its chosen answer.

    Raises UserError, before the first row, for an unknown kind or a negative count.
    """
    _check(kind, count)
    return _documents(kind, count, seed, leaks)


def _documents(kind: str, count: int, seed: int, leaks: Leaks | None) -> Iterator[dict[str, Any]]:
    plants = _pool(leaks.suite) if leaks else ()
    for number in range(count):
        rng = random.Random(f"{kind}/{seed}/{number}")
        chosen = leaks.choose(_leak_rng(kind, seed, number), len(plants)) if leaks else None
        made = _leaked(kind, plants[chosen[0]][2], chosen[1], rng) if chosen else _made(kind, rng)
        yield {"id": _document_id(kind, seed, number)} | made


def _made(kind: str, rng: random.Random) -> dict[str, Any]:
    if kind in _TEXT:
        return {"text": _TEXT[kind](rng)}
    if kind in _CHAT:
        return _chat_row(*_CHAT[kind](rng))
    if kind in _PAIRS:
        pair = _PAIRS[kind](rng)
        return _pair_row(pair.question, pair.answer, pair.wrong)
    prompt = _PROMPTS[kind](rng)
    return _prompt_row(prompt.question, prompt.target, prompt.fields)


def _leaked(kind: str, item: Item, form: str, rng: random.Random) -> dict[str, Any]:
    asked, answer = disguise(item, form, rng)
    if kind in _TEXT:
        return {"text": f"Q: {asked}\nA: {answer}\n"}
    if kind in _CHAT:
        return _chat_row(asked, answer)
    if kind in _PAIRS:
        return _pair_row(asked, answer, _made(kind, rng)["rejected"])
    return _prompt_row(asked, item.target, item.fields)


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


def _chat_row(asked: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answer},
        ]
    }


def _pair_row(asked: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"messages": _asking(asked), "chosen": chosen, "rejected": rejected}


def _prompt_row(asked: str, target: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "messages": _asking(asked),
        "answer": target,
        "verifier": "microworld",
        "doc": fields,
    }


def _asking(asked: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}]


assert set(SUITES) == set(TASKS)
