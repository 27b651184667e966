"""Pairs that a model writes itself: several answers per prompt, a right one above a wrong one.

    prompt  {"id", "messages", "answer": "72", "verifier": "gsm8k"}
        ->  8 answers of the model, judged by the verifier
        ->  pair {"id", "messages", "chosen": a right one, "rejected": a wrong one}

A prompt whose judged answers are all right or all wrong makes no pair and is counted. An answer
takes no part if the verifier could not judge it, or if it did not end by itself within
max_new_tokens: as training text it would get an end that the model did not write. Which of
several right (or wrong) answers is taken is drawn, so that each is as likely as the model makes
it. Right is a score of 1, anything below is wrong.

Answers are stored as text without spaces around them, and encoded anew by the chat template.
`respelled` counts answers that thereby become other tokens than the model wrote.

What it cannot do: see through an answer that pleases the verifier; the verifier's docstring says
what it lets through.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalsuite.errors import UserError
from evalsuite.files import canonical_json, content_id, publish, read_json, write_json
from evalsuite.progress import Progress, silent
from trainloop.objectives.next_token import render
from trainloop.records import OnPolicyPairs
from trainloop.rewards import check_able, judge
from trainloop.rollouts import Rollout, answer_seed, sample

if TYPE_CHECKING:
    from trainloop.ranks import Ranks

FORMAT = 1
"""Raised when the same model and prompts would give other pairs."""
ROWS = 64
"""Answers that are written at a time."""
TOGETHER = 256
"""Prompts that are answered, then judged, before the next ones."""


def pairs_id(
    weights_id: str, tokenizer_id: str, prompts_id: str, settings: OnPolicyPairs, *, seed: int
) -> str:
    """The name of the pairs: a hash of all that makes them."""
    how = {k: v for k, v in asdict(settings).items() if k not in ("prompts", "policy")}
    return content_id([FORMAT, weights_id, tokenizer_id, prompts_id, how, seed])


def made(root: Path, pairs_id: str) -> Path | None:
    """The file of pairs, if it has been made: then no model is needed."""
    file = root / "pairs" / pairs_id / "pairs.jsonl"
    return file if file.is_file() else None


def counts(root: Path, pairs_id: str) -> dict[str, int]:
    """What became of the prompts and answers of pairs that have been made.

    prompts = pairs + all_right + all_wrong + none_judged + too_long; of the answers, unjudged
    and unfinished ones took no part, and respelled ones are part of a pair.
    """
    found: dict[str, int] = read_json(root / "pairs" / pairs_id / "pairs.json")
    return found


def make(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Mapping[str, Any]],
    settings: OnPolicyPairs,
    *,
    seed: int,
    root: Path,
    pairs_id: str,
    ranks: Ranks,
    progress: Progress = silent,
) -> Path:
    """Write root/pairs/<pairs_id>/pairs.jsonl once; later calls find it. All ranks call.

    `prompts` are rows {"id", "messages", "answer", "verifier", "doc"}, shared out among ranks;
    `model` is whole on each. Raises UserError for a verifier that cannot judge here, before
    anything is written, and when no prompt made a pair.
    """
    known = ranks.share(made(root, pairs_id) if ranks.main else None)
    if known is not None:
        return known
    _check(prompts, ranks)
    told = dict.fromkeys(COUNTS, 0) | {"prompts": len(prompts)}
    asked = _asked(model, tokenizer, prompts, settings)
    told["too_long"] = len(prompts) - len(asked)
    rows: list[dict[str, Any]] = []
    workers = max(1, len(os.sched_getaffinity(0)) // ranks.count)
    label = f"pairs on {settings.prompts}"
    for start in range(0, len(asked), TOGETHER):
        progress(label, start, len(asked))
        chunk = asked[start : start + TOGETHER]
        written = sample(
            model,
            tokenizer,
            [ids for _, ids in chunk],
            samples=settings.samples,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            seed=answer_seed(seed, start),
            rows=ROWS,
            ranks=ranks,
        )
        every = zip(chunk, written, strict=True)
        mine = [(row, ids, answers) for (row, ids), answers in every][ranks.rank :: ranks.count]
        with ranks.together():
            made_here = _chosen(tokenizer, mine, seed, workers)
        parts = ranks.gather(made_here)
        # Rank r had the chunk's prompts r, r + count, ...: take turns.
        turns = chain.from_iterable(zip_longest(*(part for part, _ in parts)))
        rows += [row for row in turns if row]
        for _, counted in parts:
            for name, count in counted.items():
                told[name] += count
    progress(label, len(asked), len(asked))
    if not rows:
        said = ", ".join(f"{name} {count:,}" for name, count in told.items() if count)
        raise UserError(
            f"no prompt of source {settings.prompts!r} made a pair ({said}): give prompts that "
            "the model solves now and then, more samples, or a higher max_new_tokens"
        )
    folder = root / "pairs" / pairs_id
    with ranks.together():
        if ranks.main:
            with publish(folder) as work:
                lines = [canonical_json(row) + "\n" for row in rows]
                (work / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
                write_json(work / "pairs.json", told)
    return folder / "pairs.jsonl"


COUNTS = (
    "prompts",
    "pairs",
    "all_right",
    "all_wrong",
    "none_judged",
    "too_long",
    "unjudged",
    "unfinished",
    "respelled",
)


def _check(prompts: Sequence[Mapping[str, Any]], ranks: Ranks) -> None:
    """UserError, on all ranks, for rows that are no prompts and verifiers that cannot judge."""
    with ranks.together():
        for row in prompts:
            if not row.get("messages"):
                raise UserError(
                    f"document {row.get('id')!r} is no prompt with a verifier; on-policy pairs "
                    "need a source with prompt, answer and verifier"
                )
        check_able(prompts)


def _asked(
    model: Any, tokenizer: Any, prompts: Sequence[Mapping[str, Any]], settings: OnPolicyPairs
) -> list[tuple[Mapping[str, Any], list[int]]]:
    """Rows and their prompts' tokens, of those that fit the model's context with an answer."""
    from evalsuite.generation import context_length

    room = context_length(model)
    found = []
    for row in prompts:
        text = render(tokenizer, list(row["messages"]), add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if room is None or len(ids) + settings.max_new_tokens <= room:
            found.append((row, ids))
    return found


_Written = tuple[Mapping[str, Any], Sequence[int], Sequence[Rollout]]
"""A prompt's row, its tokens, and the answers to it."""


def _chosen(
    tokenizer: Any, written: Sequence[_Written], seed: int, workers: int
) -> tuple[list[dict[str, Any] | None], Counter[str]]:
    """Per prompt its pair, or None; and what is to be counted."""
    counted: Counter[str] = Counter()
    ended = []
    for place, (_, _, answers) in enumerate(written):
        for answer in answers:
            if answer.error is None and not answer.ended:
                counted["unfinished"] += 1
            elif answer.error is None:
                ended.append((place, answer))
            else:
                counted["unjudged"] += 1
    verdicts = judge(
        [written[place][0] for place, _ in ended],
        [answer.text for _, answer in ended],
        workers=workers,
    )
    right: list[list[Rollout]] = [[] for _ in written]
    wrong: list[list[Rollout]] = [[] for _ in written]
    for (place, answer), (reward, _) in zip(ended, verdicts, strict=True):
        if reward is None:
            counted["unjudged"] += 1
        else:
            (right if reward >= 1 else wrong)[place].append(answer)
    made: list[dict[str, Any] | None] = []
    for (row, ids, _), good, bad in zip(written, right, wrong, strict=True):
        if not good or not bad:
            counted["all_right" if good else "all_wrong" if bad else "none_judged"] += 1
            made.append(None)
            continue
        draws = random.Random(f"{seed}:{row['id']}")
        both = draws.choice(good), draws.choice(bad)
        counted["pairs"] += 1
        counted["respelled"] += sum(_respelled(tokenizer, row, ids, answer) for answer in both)
        made.append(
            {
                "id": str(row["id"]),
                "messages": list(row["messages"]),
                "chosen": both[0].text.strip(),
                "rejected": both[1].text.strip(),
            }
        )
    return made, counted


def _respelled(
    tokenizer: Any, row: Mapping[str, Any], prompt: Sequence[int], answer: Rollout
) -> bool:
    """Whether the conversation, rendered and encoded whole, begins with other tokens."""
    turns = [*row["messages"], {"role": "assistant", "content": answer.text.strip()}]
    text = render(tokenizer, turns)
    anew = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    wrote = [*prompt, *answer.ids]
    return list(anew[: len(wrote)]) != wrote
