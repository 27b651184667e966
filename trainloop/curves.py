"""How a stage's scores moved with its steps, and with its distance from where it started.

    points = curve(prepared, plan)          # one per checkpoint, suite and capability
    write(points, root / "stages" / plan.id / "curve.jsonl")
    print("\n".join(lines(points)))

A stage that follows a reward or preferences too far gets better at these and worse at what they
stand for; the picture is score against KL from the starting policy (Gao et al. 2022,
arXiv:2210.10760). The curve starts with what the parent scored, at step 0 and KL 0. Where a stage
logs a KL (grpo, ppo), a checkpoint's is the mean of the last WINDOW steps before it; for others
`kl_to_reference` samples one. It says what was measured: one run's curve cannot tell chance from
over-optimisation where intervals overlap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalsuite.errors import UserError
from evalsuite.files import publish_file, read_jsonl
from evalsuite.progress import Progress, silent
from evalsuite.records import ALL

if TYPE_CHECKING:
    from trainloop.plans import StagePlan
    from trainloop.prepare import Prepared
    from trainloop.ranks import Ranks

WINDOW = 10
LOGGED = ("answer_kl", "kl")
"""Names under which objectives log a KL: per answer, else per token; in nats."""
ANSWER_TOKENS = 256
"""At most so many are written per answer where a KL is sampled."""
WIDTH = 30
"""Characters of a bar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """What one checkpoint scored on one capability."""

    stage: str
    checkpoint: str
    step: int
    """Optimizer steps of the stage; 0 is where it started."""
    tokens: int
    """Training tokens of the stage so far."""
    kl: float | None
    """From the starting policy, in nats; None where it was not measured."""
    kl_kind: str | None
    """answer_kl: per answer; kl: per token; sampled: per answer, by kl_to_reference."""
    suite: str
    capability: str
    score: float | None
    low: float | None
    high: float | None
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledKl:
    """A KL estimated from answers."""

    kl: float
    """Mean over answers of log p(answer) - log q(answer), in nats (Schulman's k1: unbiased)."""
    stderr: float
    """Over prompts, whose answers are not independent; NaN for one prompt."""
    answers: int
    tokens: float
    """Mean tokens of an answer."""


def curve(
    prepared: Prepared, plan: StagePlan, *, sampled: Mapping[str, SampledKl] | None = None
) -> list[Point]:
    """The points of a stage's scored checkpoints, by suite and capability, oldest first.

    `sampled` maps checkpoints to a KL that was estimated from answers, which then counts.
    Raises UserError when no checkpoint of the stage is scored.
    """
    from evalsuite.scorefiles import read_evaluation
    from trainloop import checkpoint as checkpoints
    from trainloop.plans import output, reached, suites_of
    from trainloop.scoring import is_scored, score_folder

    logged = _logged(prepared.root / "stages" / plan.id / "metrics.jsonl")
    places: list[tuple[str, int, int]] = []
    if plan.parent is not None and not plan.soup:
        places.append((output(prepared, plan.parent), 0, 0))
    for each in reached(prepared, plan):
        record = checkpoints.read(prepared.root, each)
        if record is not None:
            places.append((each, record.step, record.tokens))
    points = []
    for suite in suites_of(prepared, plan).values():
        for capability, tasks in suite.capabilities.items():
            for checkpoint, step, tokens in places:
                if not is_scored(prepared, checkpoint, suite):
                    continue
                kl, kind = _kl(checkpoint, step, logged, sampled or {})
                scores = read_evaluation(score_folder(prepared, checkpoint, suite)).scores
                for score in scores:
                    if (score.capability, score.task, score.subset) == (capability, ALL, "all"):
                        points.append(
                            Point(
                                stage=plan.stage.name,
                                checkpoint=checkpoint,
                                step=step,
                                tokens=tokens,
                                kl=kl,
                                kl_kind=kind,
                                suite=suite.name,
                                capability=capability,
                                score=score.value,
                                low=score.low,
                                high=score.high,
                                higher_is_better=tasks[0].unit == "share",
                            )
                        )
    if not any(point.step for point in points):
        raise UserError(
            f"stage {plan.stage.name!r}: none of its checkpoints is scored on a suite yet; train "
            "it first: assay train RECIPE"
        )
    return points


def _logged(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Name of a KL -> (step, value) of the rows of metrics.jsonl that have one."""
    found: dict[str, list[tuple[int, float]]] = {}
    if path.is_file():
        for _, row in read_jsonl(path):
            for name in LOGGED:
                if row.get(name) is not None:
                    found.setdefault(name, []).append((row["step"], float(row[name])))
    return found


def _kl(
    checkpoint: str,
    step: int,
    logged: Mapping[str, Sequence[tuple[int, float]]],
    sampled: Mapping[str, SampledKl],
) -> tuple[float | None, str | None]:
    if checkpoint in sampled:
        return sampled[checkpoint].kl, "sampled"
    for name in LOGGED:
        if name in logged:
            if step == 0:
                return 0.0, name
            last = [value for at, value in logged[name] if step - WINDOW < at <= step]
            return (float(np.mean(last)), name) if last else (None, None)
    return None, None


def write(points: Sequence[Point], path: Path) -> None:
    """Publish the points as JSON lines, replacing those of before."""
    with publish_file(path) as handle:
        for point in points:
            handle.write(json.dumps(asdict(point), allow_nan=False) + "\n")


def read(path: Path) -> list[Point]:
    """The points of a file that `write` published."""
    return [Point(**row) for _, row in read_jsonl(path)]


# --- in words ----------------------------------------------------------------------------------


def lines(points: Sequence[Point]) -> list[str]:
    """The curve as text: a row and a bar per checkpoint, and where its best one lies."""
    said: list[str] = []
    keys = dict.fromkeys((point.suite, point.capability) for point in points)
    for suite, capability in keys:
        mine = [p for p in points if (p.suite, p.capability) == (suite, capability)]
        unit = "" if mine[0].higher_is_better else ", fewer are better"
        said += ["", f"{mine[0].stage}: {suite} {capability}{unit}"]
        said.append(f"{'step':>8}  {'tokens':>14}  {_kl_name(mine):>16}  {'score':>7}  interval")
        values = [bound for p in mine for bound in (p.low, p.high, p.score) if bound is not None]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        said += [_row(point, low, high) for point in mine]
        said.append(_verdict(mine))
    return said[1:]


def _kl_name(points: Sequence[Point]) -> str:
    if any(point.kl_kind == "kl" for point in points):
        return "KL per token"
    return "KL per answer" if any(point.kl_kind for point in points) else "KL"


def _row(point: Point, low: float, high: float) -> str:
    kl = "-" if point.kl is None else f"{point.kl:.4g}"
    start = f"{point.step:>8,}  {point.tokens:>14,}  {kl:>16}  "
    if point.score is None:
        return start + f"{'-':>7}  not scored"

    def place(value: float) -> int:
        return round((value - low) / (high - low) * (WIDTH - 1)) if high > low else 0

    bar = [" "] * WIDTH
    interval = ""
    if point.low is not None and point.high is not None:
        bar[place(point.low) : place(point.high) + 1] = "-" * (
            place(point.high) - place(point.low) + 1
        )
        interval = f"[{point.low:.3f}, {point.high:.3f}]"
    bar[place(point.score)] = "o"
    return start + f"{point.score:>7.3f}  {interval:<18}  |{''.join(bar)}|"


def _verdict(points: Sequence[Point]) -> str:
    """Where the best checkpoint lies, and whether the last one is below its interval."""
    scored = [point for point in points if point.score is not None]
    if not scored:
        return "   no checkpoint has a score"
    best = max(scored, key=lambda p: _signed(p, p.score))
    last = scored[-1]
    where = "the start" if best.step == 0 else f"step {best.step:,}"
    if best is last:
        return f"   best at {where}, the last one"
    worst = best.low if best.higher_is_better else best.high
    clear = worst is not None and _signed(last, last.score) < _signed(last, worst)
    tail = (
        "the last one is worse than that one's interval: stop earlier"
        if clear
        else "the last one lies within that one's interval"
    )
    return f"   best at {where}; {tail}"


def _signed(point: Point, value: float | None) -> float:
    assert value is not None
    return value if point.higher_is_better else -value


# --- a KL from samples -------------------------------------------------------------------------


def kl_to_reference(
    model: Any,
    reference: Any,
    prompts: Sequence[Sequence[int]],
    *,
    tokenizer: Any,
    ranks: Ranks,
    samples: int = 4,
    max_new_tokens: int = ANSWER_TOKENS,
    seed: int = 0,
    rows: int = 64,
) -> SampledKl:
    """KL(model || reference) over whole answers, from `samples` answers of `model` per prompt.

    Answers are drawn at temperature 1 and cut at `max_new_tokens`: the KL of what is written up
    to there. `prompts` are token ids; both models are transformers causal language models and
    know the same tokens. All ranks call it, and all get the same. Raises UserError without
    prompts.
    """
    from trainloop.policy import Policy
    from trainloop.rollouts import sample

    if not prompts:
        raise UserError("a KL is sampled on prompts, but none were given")
    written = sample(
        model,
        tokenizer,
        prompts,
        samples=samples,
        temperature=1.0,
        max_new_tokens=max_new_tokens,
        seed=seed,
        rows=rows,
        ranks=ranks,
    )
    answers = [[each.ids for each in group if each.ids] for group in written]
    policies = [Policy(each) for each in (model, reference)]
    apart = [
        _log_ratios(policies, prompt, group)
        for prompt, group in zip(prompts, answers, strict=True)
        if group
    ]
    if not apart:
        raise UserError("a KL is sampled on answers, but the model wrote none")
    means = np.array([np.mean(each) for each in apart])
    counts = np.array([len(each) for each in apart])
    kl = float(np.average(means, weights=counts))
    # Of a ratio of sums over prompts, each prompt a cluster.
    off = counts * (means - kl)
    n = len(means)
    stderr = math.sqrt(n / (n - 1) * float(np.sum(off**2))) / counts.sum() if n > 1 else math.nan
    tokens = float(np.mean([len(ids) for group in answers for ids in group]))
    return SampledKl(kl=kl, stderr=float(stderr), answers=int(counts.sum()), tokens=tokens)


def _log_ratios(
    policies: Sequence[Any], prompt: Sequence[int], answers: Sequence[Sequence[int]]
) -> Any:
    """log p - log q of each answer to one prompt."""
    import torch

    from evalsuite.livemodel import modes_put_back
    from trainloop.data import Tree, batch_of
    from trainloop.policy import tensors

    batch = batch_of([Tree(prompt, tuple(answers), tuple([True] * len(ids) for ids in answers))])
    found = []
    for policy in policies:
        with torch.no_grad(), modes_put_back(policy):
            policy.eval()
            weight = next(policy.parameters())
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            outputs = policy(tensors(batch, weight.device, dtype=wide))
        logprobs = outputs.logprobs.double().cpu().numpy()
        found.append(np.bincount(batch.sequence, weights=logprobs, minlength=len(answers)))
    return found[0] - found[1]


def sample(
    prepared: Prepared, plan: StagePlan, *, prompts: int, progress: Progress = silent
) -> dict[str, SampledKl]:
    """KL of each of the stage's checkpoints from where the stage started, on its own prompts.

    Takes the first `prompts` documents of the mixture's sources in turn, and answers as long as the
    context allows, up to ANSWER_TOKENS. Retired checkpoints are
    left out. Raises UserError for a stage that starts from fresh weights, or has no conversations.
    """
    from evalsuite.generation import context_length
    from trainloop import checkpoint as checkpoints
    from trainloop import model as models
    from trainloop.legs import start_folder
    from trainloop.plans import reached
    from trainloop.ranks import join
    from trainloop.run import tokenizer_folder

    where = f"stage {plan.stage.name!r}"
    start = start_folder(prepared, plan)
    if start is None or plan.soup or plan.head != "language":
        raise UserError(f"{where}: no policy that it started from, so no KL to sample")
    tokenizer = models.load_tokenizer(
        tokenizer_folder(prepared), prepared.recipe.model.chat_template
    )
    asked = _prompts(prepared, plan, tokenizer, prompts)
    root, ranks = prepared.root, join()
    held = [
        each
        for each in reached(prepared, plan)
        if checkpoints.read(root, each) is not None and not checkpoints.is_retired(root, each)
    ]
    reference = models.load_model(start).to(ranks.device)
    room = (context_length(reference) or math.inf) - max(map(len, asked))
    length = max(1, int(min(ANSWER_TOKENS, room)))
    found = {}
    for number, each in enumerate(held):
        progress(f"{plan.stage.name}: KL", number, len(held))
        folder = checkpoints.folder_of(root, each)
        checkpoints.verify(folder)
        model = models.load_model(folder).to(ranks.device)
        found[each] = kl_to_reference(
            model, reference, asked, tokenizer=tokenizer, ranks=ranks, max_new_tokens=length
        )
    progress(f"{plan.stage.name}: KL", len(held), len(held))
    return found


def _prompts(prepared: Prepared, plan: StagePlan, tokenizer: Any, count: int) -> list[list[int]]:
    """Token ids of the first prompts of the stage's sources, a source at a time in turn."""
    from trainloop.objectives.next_token import render

    texts: list[list[str]] = []
    for name, weight in plan.stage.mixture.items():
        if weight <= 0:
            continue
        pairs = prepared.recipe.sources[name].pairs
        texts.append([])
        files = prepared.clean[name if pairs is None else pairs.prompts].files
        for _, row in (each for file in files for each in read_jsonl(file)):
            turns = row.get("messages")
            if not turns:
                break
            while turns and turns[-1]["role"] == "assistant":
                turns = turns[:-1]
            texts[-1].append(render(tokenizer, turns, add_generation_prompt=True))
            if len(texts[-1]) == count:
                break
    mixed = [text for group in zip_longest(*texts) for text in group if text is not None]
    if not mixed:
        raise UserError(
            f"stage {plan.stage.name!r}: its sources hold no conversations, whose prompts a KL is "
            "sampled on"
        )
    encoded = tokenizer(mixed[:count], add_special_tokens=False, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]
