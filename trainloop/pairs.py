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

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalsuite import verifiers
from evalsuite.errors import UserError
from evalsuite.files import canonical_json, content_id, publish, read_json, write_json
from evalsuite.progress import Progress, silent
from trainloop.objectives.next_token import render
from trainloop.records import OnPolicyPairs

if TYPE_CHECKING:
    from evalsuite.generation import Generated
    from trainloop.ranks import Ranks

FORMAT = 1
"""Raised when the same model and prompts would give other pairs."""
ROWS = 64
"""Answers that are written at a time."""


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
    mine = range(ranks.rank, len(prompts), ranks.count)
    with ranks.together():
        rows, told = _pairs(
            model, tokenizer, {n: prompts[n] for n in mine}, settings, seed, progress
        )
    parts = ranks.gather((rows, told))
    every = {number: row for rows, _ in parts for number, row in rows.items()}
    total = {name: sum(told[name] for _, told in parts) for name in COUNTS}
    if not every:
        said = ", ".join(f"{name} {count:,}" for name, count in total.items() if count)
        raise UserError(
            f"no prompt of source {settings.prompts!r} made a pair ({said}): give prompts that "
            "the model solves now and then, more samples, or a higher max_new_tokens"
        )
    folder = root / "pairs" / pairs_id
    with ranks.together():
        if ranks.main:
            with publish(folder) as work:
                lines = [canonical_json(every[number]) + "\n" for number in sorted(every)]
                (work / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
                write_json(work / "pairs.json", total)
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


@dataclass(frozen=True, slots=True)
class _Judged:
    """An answer that may be part of a pair."""

    text: str
    right: bool
    respelled: bool


def _pairs(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[int, Mapping[str, Any]],
    settings: OnPolicyPairs,
    seed: int,
    progress: Progress,
) -> tuple[dict[int, dict[str, Any]], Counter[str]]:
    """The pairs of these prompts by number, and the counts."""
    for row in prompts.values():
        if not row.get("verifier") or not row.get("messages"):
            raise UserError(
                f"document {row.get('id')!r} is no prompt with a verifier; on-policy pairs need a "
                "source with prompt, answer and verifier"
            )
    for name in sorted({row["verifier"] for row in prompts.values()}):
        verifiers.check_able(name)
    told: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    told["prompts"] = len(prompts)
    rows: dict[int, dict[str, Any]] = {}
    written = _written(model, tokenizer, prompts, settings, seed, told, progress)
    for number, answers in _judged(tokenizer, prompts, written, told).items():
        row = prompts[number]
        right = [answer for answer in answers if answer.right]
        wrong = [answer for answer in answers if not answer.right]
        if not right or not wrong:
            told["all_right" if right else "all_wrong" if wrong else "none_judged"] += 1
            continue
        draws = random.Random(f"{seed}:{row['id']}")
        chosen, rejected = draws.choice(right), draws.choice(wrong)
        told["pairs"] += 1
        told["respelled"] += chosen.respelled + rejected.respelled
        rows[number] = {
            "id": str(row["id"]),
            "messages": list(row["messages"]),
            "chosen": chosen.text,
            "rejected": rejected.text,
        }
    return rows, told


def _written(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[int, Mapping[str, Any]],
    settings: OnPolicyPairs,
    seed: int,
    told: Counter[str],
    progress: Progress,
) -> dict[int, list[Generated]]:
    """Answers of each prompt that fits the model's context, in the order of their samples."""
    from evalsuite.generation import Prompt, context_length, generate

    room = context_length(model)
    asked: dict[int, Prompt] = {}
    for number, row in prompts.items():
        text = render(tokenizer, list(row["messages"]), add_generation_prompt=True)
        ids = tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if room is not None and len(ids) + settings.max_new_tokens > room:
            told["too_long"] += 1
            continue
        asked[number] = Prompt(
            ids=ids,
            max_new_tokens=settings.max_new_tokens,
            samples=settings.samples,
            temperature=settings.temperature,
            seed=seed,
        )
    numbers = list(asked)
    found: dict[int, dict[int, Generated]] = {number: {} for number in numbers}
    total = len(numbers) * settings.samples
    answers = generate(model, tokenizer, list(asked.values()), rows=ROWS)
    for done, (place, sample, answer) in enumerate(answers, 1):
        found[numbers[place]][sample] = answer
        progress(f"answers for pairs of {settings.prompts}", done, total)
    return {number: [each[key] for key in sorted(each)] for number, each in found.items()}


def _judged(
    tokenizer: Any,
    prompts: Mapping[int, Mapping[str, Any]],
    written: Mapping[int, Sequence[Generated]],
    told: Counter[str],
) -> dict[int, list[_Judged]]:
    """The answers that ended and could be judged; `told` counts the others."""
    found: dict[int, list[_Judged]] = {number: [] for number in written}
    for name in sorted({prompts[number]["verifier"] for number in written}):
        asked = list(_ended(name, prompts, written, told))
        answers = [
            verifiers.Answer(
                text=answer.text,
                gold=prompts[number].get("answer") or "",
                doc=prompts[number].get("doc") or {},
            )
            for number, answer in asked
        ]
        for (number, answer), verdict in zip(asked, verifiers.verify(name, answers), strict=True):
            if verdict.score is None:
                told["unjudged"] += 1
                continue
            text = answer.text.strip()
            other = _respelled(tokenizer, prompts[number]["messages"], text, answer.ids)
            found[number].append(_Judged(text, verdict.score >= 1.0, other))
    return found


def _ended(
    verifier: str,
    prompts: Mapping[int, Mapping[str, Any]],
    written: Mapping[int, Sequence[Generated]],
    told: Counter[str],
) -> Iterator[tuple[int, Generated]]:
    for number, answers in written.items():
        if prompts[number]["verifier"] != verifier:
            continue
        for answer in answers:
            if answer.ended == "error":
                told["unjudged"] += 1
            elif answer.ended == "length":
                told["unfinished"] += 1
            else:
                yield number, answer


def _respelled(
    tokenizer: Any, messages: Sequence[dict[str, Any]], text: str, ids: Sequence[int]
) -> bool:
    """Whether the answer, rendered and encoded anew, does not begin with the tokens written."""
    prompt = render(tokenizer, list(messages), add_generation_prompt=True)
    whole = render(tokenizer, [*messages, {"role": "assistant", "content": text}])
    if not whole.startswith(prompt):
        return True
    anew = tokenizer(whole[len(prompt) :], add_special_tokens=False, verbose=False)["input_ids"]
    return list(anew[: len(ids)]) != list(ids)
