"""What a recipe will cost, before anything is downloaded or trained: `assay train plan`.

    print("\n".join(lines(plan(recipe, base=Path("recipes"), gpus=8))))

Per stage: tokens, optimizer steps, floating-point operations, hours, checkpoints and their disk,
and memory per GPU by setting, with the simplest setting that fits. Parameters are counted exactly,
on torch's meta device: no weights are read. The rest are formulas, each stated where it stands:

- Training takes 6 operations per parameter and token (Kaplan et al. 2020, arXiv:2001.08361), a
  forward pass 2. N counts all parameters, as checkpoint records do: an input embedding that is not
  tied costs nothing, so the figure is high by its share. Attention comes on top: 6 x layers x heads
  x head_dim per token and token before it (half of PaLM's term, arXiv:2204.02311, as it is causal).
- Scoring takes 2 per parameter and token of the suites, read or written, at each checkpoint.
- Rollouts take 2 per token of prompts and answers, and 2 for each model that reads them again.
- Memory: see memory.py.

A stage that counts documents is planned at its longest: every document of sequence_length tokens,
every answer of max_new_tokens. What the plan does not know: how many documents decontamination
will remove, and how fast data and disks are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError
from evalsuite.files import damage_errors, open_bytes
from trainloop.memory import (
    GIB,
    RESERVE,
    SETTINGS,
    THRIFTIEST,
    Memory,
    Setting,
    Shape,
    memory,
    model_shape,
)
from trainloop.objectives import Objective, load_objective, read_options
from trainloop.records import Recipe, Source, Stage

UTILISATION = 0.4
BYTES_PER_TOKEN = 4.0
"""Of a suite's prompts, whose tokenizer may not exist yet."""
ANSWER_TOKENS = 256
"""Of an answer whose task gives no limit, as in lm-eval."""
ANSWERS_AT_ONCE = 64
"""Rows that generation writes at once on a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A GPU's data sheet."""

    name: str
    memory: float
    """GiB."""
    peak: Mapping[str, float]
    """Precision -> operations per second, dense."""


DEVICES = {
    "a100": Device(name="A100 SXM 80 GB", memory=80, peak={"bfloat16": 312e12, "float32": 19.5e12}),
    "h100": Device(name="H100 SXM 80 GB", memory=80, peak={"bfloat16": 989e12, "float32": 67e12}),
    "h200": Device(name="H200 SXM 141 GB", memory=140, peak={"bfloat16": 989e12, "float32": 67e12}),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCosts:
    """One stage's bill."""

    name: str
    objective: str
    steps: int
    tokens: int
    at_most: bool
    """Whether `tokens` takes every document to be as long as it may be."""
    training_flops: float
    attention_flops: float
    reference_flops: float
    """Log-probabilities under the weights the stage starts from, or under the rollout's."""
    rollout_flops: float
    evaluation_flops: float
    checkpoints: int
    checkpoint_bytes: float
    kept: int
    """Checkpoints that hold weights after retention, at most."""
    memory: tuple[Memory, ...] = ()
    """The recipe's own setting first; none for a soup."""
    fits: Memory | None = None
    """The first setting that fits, with the largest micro-batch that does."""
    least_gpus: int | None = None
    """Powers of two are tried: GPUs on which the thriftiest setting fits; None: on no number."""
    hours: float | None = None
    """On all GPUs, at UTILISATION of the device's peak; None where nothing fits."""

    @property
    def flops(self) -> float:
        """All operations, without those that gradient checkpointing repeats."""
        learning = self.training_flops + self.attention_flops
        return learning + self.reference_flops + self.rollout_flops + self.evaluation_flops


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A recipe's bill on `gpus` GPUs."""

    recipe: str
    shape: Shape
    gpus: int
    memory: float
    """GiB per GPU."""
    device: Device
    stages: tuple[StageCosts, ...]
    evaluation_tokens: int
    notes: tuple[str, ...]


# --- a stage's bill ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Load:
    """What a settled stage puts on the machine."""

    stage: Stage
    row: int
    """Most tokens of one document, with its answer where one is written."""
    step_tokens: int
    """Most tokens of an optimizer step, over all GPUs."""
    rollouts: int = 0
    answers: int = 0
    """Written per rollout."""
    reference: bool = False
    critic: bool = False
    reward: bool = False
    reads: float = 0.0
    """Forward passes over the stage's data (or answers) beside training."""

    @property
    def tokens(self) -> int:
        """Most tokens that the stage learns from."""
        return self.stage.steps * self.step_tokens

    @property
    def written(self) -> int:
        """Most tokens of all answers with their prompts."""
        return self.rollouts * self.answers * self.row

    def micro_tokens(self, gpus: int) -> int:
        """Tokens of a GPU's largest micro-batch; documents are never split."""
        share = math.ceil(self.step_tokens / gpus)
        return max(self.row, min(share, self.stage.micro_tokens or share))


def _load(stage: Stage, objective: Objective) -> _Load:
    if stage.batch_tokens is not None:
        return _Load(stage=stage, row=stage.sequence_length, step_tokens=stage.batch_tokens)
    assert stage.batch is not None, "the stage is not settled"
    if objective.rollout is None:
        row = stage.sequence_length * (2 if objective.documents == "pair" else 1)
        reads = 1 / max(stage.epochs or 1.0, 1.0) if objective.reference else 0.0
        return _Load(stage=stage, row=row, step_tokens=stage.batch * row, reads=reads)
    options = read_options(objective, stage.options, stage.name)
    row = stage.sequence_length + int(options.max_new_tokens)
    period = objective.steps_per_rollout(options)
    answers = stage.batch * period * int(options.samples)
    rollouts = math.ceil(stage.steps / period)
    stage = replace(stage, steps=rollouts * period)  # a stage ends where a rollout does
    reference, reward = objective.needs_reference(options), stage.reward_model is not None
    return _Load(
        stage=stage,
        row=row,
        step_tokens=math.ceil(answers / int(options.updates)) * row,
        rollouts=rollouts,
        answers=answers,
        reference=reference,
        critic=objective.critic,
        reward=reward,
        # The policy as it was, the reference policy, the critic and the reward model.
        reads=float((period > 1) + reference + objective.critic + reward),
    )


def plan(
    recipe: Recipe,
    *,
    base: Path,
    gpus: int,
    device: Device = DEVICES["h100"],
    memory_gib: float | None = None,
    mirror: Path | None = None,
) -> Plan:
    """The bill of `recipe`, whose paths start at `base`, on `gpus` GPUs of `device`.

    `memory_gib` is each GPU's memory instead of the device's. Raises UserError for a model that
    cannot be counted, and for a source whose documents decide the steps but are not here.
    """
    if gpus < 1:
        raise UserError(f"gpus is {gpus}, but must be 1 or more")
    shape = model_shape(recipe.model, base=base, mirror=mirror)
    available = device.memory if memory_gib is None else memory_gib
    read, notes = _suites(recipe, base, mirror)
    bill = []
    for stage in recipe.stages:
        if stage.soup:
            bill.append(_bill(_Load(stage=stage, row=0, step_tokens=0), shape, read, 1))
            continue
        objective = load_objective(stage.objective)
        documents = _documents(stage, objective, recipe, base, mirror)
        settled = stage.settled(objective.defaults, documents)
        load = _load(settled, objective)
        scored = read if objective.head == "language" else 0  # a reward model is not scored
        costs = _bill(load, shape, scored, len(recipe.suites))
        own = Setting(
            distributed=recipe.distributed,
            precision=stage.precision,
            gradient_checkpointing=stage.gradient_checkpointing,
        )
        bill.append(_fitted(costs, load, own, shape, gpus=gpus, available=available, device=device))
    return Plan(
        recipe=recipe.name,
        shape=shape,
        gpus=gpus,
        memory=available,
        device=device,
        stages=tuple(bill),
        evaluation_tokens=read,
        notes=tuple(notes),
    )


def _bill(load: _Load, shape: Shape, read: int, suites: int) -> StageCosts:
    """A stage's work and disk, whatever the GPUs."""
    stage, n = load.stage, float(shape.parameters)
    saved = 1 if stage.soup else len(stage.checkpoint_steps)
    kept = saved if stage.keep == "all" else 2 if stage.best else 1 + suites
    models = 2 if load.critic else 1
    per_pair = float(shape.layers * shape.heads * shape.head_dim)
    return StageCosts(
        name=stage.name,
        objective=stage.objective,
        steps=stage.steps,
        tokens=load.tokens,
        at_most=stage.batch_tokens is None,
        training_flops=6 * n * load.tokens * models,
        attention_flops=6 * per_pair * load.row * load.tokens * models,
        reference_flops=2 * n * load.reads * (load.written or load.tokens),
        rollout_flops=2 * n * load.written,
        evaluation_flops=2 * n * read * saved,
        checkpoints=saved,
        # Weights, and AdamW's two moments; a soup has no trainer's state.
        checkpoint_bytes=(4 if stage.soup else 12) * n * models,
        kept=min(saved, kept),
    )


def _fitted(
    costs: StageCosts,
    load: _Load,
    own: Setting,
    shape: Shape,
    *,
    gpus: int,
    available: float,
    device: Device,
) -> StageCosts:
    """The bill with its memory by setting, the first that fits, and the hours it takes.

    The recipe's `own` setting is tried first, then the others, each with as large a micro-batch
    as fits.
    """

    def under(setting: Setting, count: int, tokens: int) -> Memory:
        answers = min(ANSWERS_AT_ONCE, math.ceil(load.answers / count))
        return memory(
            shape,
            setting,
            tokens=tokens,
            gpus=count,
            reference=load.reference,
            critic=load.critic,
            reward=load.reward,
            answers=answers,
            answer_length=load.row if answers else 0,
        )

    limit = available * GIB
    asked = load.micro_tokens(gpus)
    others = [each for each in SETTINGS if each != own and (gpus > 1 or each.distributed == "ddp")]
    as_asked = tuple(under(setting, gpus, asked) for setting in (own, *others))

    def largest(setting: Setting) -> Memory:
        """With the largest micro-batch that fits; with one row where none does."""
        low, high = 1, asked // load.row
        while low < high:
            middle = (low + high + 1) // 2
            fit = under(setting, gpus, middle * load.row).total <= limit
            low, high = (middle, high) if fit else (low, middle - 1)
        return under(setting, gpus, low * load.row)

    # Gradients are the same for any micro-batch, so that costs nothing.
    tried = (one if one.total <= limit else largest(one.setting) for one in as_asked)
    fits = next((one for one in tried if one.total <= limit), None)
    counts = [2**power for power in range(15)]
    least = next((n for n in counts if under(THRIFTIEST, n, load.row).total <= limit), None)
    hours = None
    if fits is not None:
        again = costs.training_flops / 3 if fits.setting.gradient_checkpointing else 0.0
        speed = gpus * device.peak[fits.setting.precision] * UTILISATION
        hours = (costs.flops + again) / speed / 3600
    return replace(costs, memory=as_asked, fits=fits, least_gpus=least, hours=hours)


# --- what is read ------------------------------------------------------------------------------


def _documents(
    stage: Stage, objective: Objective, recipe: Recipe, base: Path, mirror: Path | None
) -> dict[str, int]:
    """Documents of the stage's sources, where they decide how many steps it has."""
    epochs = stage.epochs or objective.defaults.get("epochs")
    if stage.steps or stage.tokens is not None or epochs is None:
        return {}
    found = {}
    for name, weight in stage.mixture.items():
        source = recipe.sources[name]
        if weight > 0 and source.pairs is not None:
            source = recipe.sources[source.pairs.prompts]
        found[name] = _count(name, source, base, mirror) if weight > 0 else 0
    return found


def _count(name: str, source: Source, base: Path, mirror: Path | None) -> int:
    """Documents of a source before decontamination; it is read through when nothing says it."""
    if source.documents is not None:
        return source.documents
    try:
        if source.hub is not None:
            from evalsuite import hubdata

            return len(hubdata.rows(source.hub, source.config, source.split, mirror=mirror))
        return sum(_rows_in(base / file) for file in source.files)
    except UserError as error:
        raise UserError(
            f"source {name!r}: its documents decide how long a stage is, but they cannot be "
            f"counted; give the source 'documents' ({error})"
        ) from None


def _rows_in(path: Path) -> int:
    """Rows of a file of documents, by its ending."""
    if ".parquet" in path.suffixes:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            return int(ParquetFile(path).metadata.num_rows)
        except (ArrowException, OSError) as error:
            raise UserError(f"{path}: not a whole Parquet file ({error})") from None
    if ".txt" in path.suffixes:
        return 1
    try:
        with open_bytes(path) as handle:
            return sum(1 for line in handle if line.strip())
    except damage_errors(path) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _suites(recipe: Recipe, base: Path, mirror: Path | None) -> tuple[int, list[str]]:
    """Tokens that scoring one checkpoint reads and writes at most, and what is not counted."""
    from evalsuite import harness
    from evalsuite.suites import load_suite

    total, notes = 0.0, []
    for given in recipe.suites:
        suite = load_suite(base / given if given.endswith((".yaml", ".yml")) else given)
        missing = []
        for _, task in suite.tasks:
            try:
                ready = harness.prepare(task, mirror)
            except UserError as error:
                missing.append((task.task, str(error)))
                continue
            total += task.samples * sum(_of_doc(requests) for requests in ready.requests)
        if missing:
            first, why = missing[0]
            notes.append(
                f"suite {suite.name}: {len(missing)} of {len(suite.tasks)} tasks are not counted: "
                f"{first}: {why}"
            )
    return round(total), notes


def _of_doc(requests: Sequence[Any]) -> float:
    """Most tokens of a doc's requests; a prompt that several share is read once."""
    prompts: set[str] = set()
    tokens = 0.0
    for request in requests:
        prompt, *rest = request.args
        prompts.add(prompt)
        for each in rest:
            if isinstance(each, dict):
                tokens += each.get("max_gen_toks", ANSWER_TOKENS)
            else:
                tokens += len(str(each).encode()) / BYTES_PER_TOKEN
    return tokens + sum(len(each.encode()) for each in prompts) / BYTES_PER_TOKEN


# --- in words ----------------------------------------------------------------------------------


def lines(found: Plan) -> list[str]:
    """The plan as lines of text, for a terminal."""
    shape, device = found.shape, found.device
    said = [
        f"{found.recipe}: {shape.parameters:,} parameters ({shape.layers} layers of "
        f"{shape.layer_parameters:,}), on {found.gpus} x {device.name} with {found.memory:g} GiB",
        "",
    ]
    rows: list[Sequence[str]] = [COLUMNS]
    rows += [_work_cells(stage) for stage in found.stages]
    said += [*_table(rows), ""]
    flops = sum(stage.flops for stage in found.stages)
    hours = [stage.hours for stage in found.stages if stage.memory]
    disk = sum(stage.checkpoints * stage.checkpoint_bytes for stage in found.stages)
    kept = sum(stage.kept * stage.checkpoint_bytes for stage in found.stages)
    summed = "unknown" if None in hours else f"{sum(h for h in hours if h):,.2g}"
    said.append(
        f"together {flops:.3g} operations, {summed} hours, {_bytes(disk)} of checkpoints, "
        f"{_bytes(kept)} after retention"
    )
    shown: dict[tuple[Memory, ...], str] = {}
    for stage in found.stages:
        if stage.memory in shown:
            said += ["", f"{stage.name}: the same as {shown[stage.memory]}"]
        elif stage.memory:
            shown[stage.memory] = stage.name
            said += ["", *_memory_lines(stage, found)]
    said += ["", *_assumptions(found), *found.notes]
    return said


COLUMNS = (
    *("stage", "objective", "steps", "tokens", "6ND", "attention", "reference", "rollouts"),
    *("scoring", "hours", "saved", "disk", "kept"),
)


def _work_cells(stage: StageCosts) -> tuple[str, ...]:
    parts = (
        stage.training_flops,
        stage.attention_flops,
        stage.reference_flops,
        stage.rollout_flops,
        stage.evaluation_flops,
    )
    return (
        stage.name,
        stage.objective,
        f"{stage.steps:,}",
        ("<= " if stage.at_most and stage.tokens else "") + f"{stage.tokens:,}",
        *(f"{part:.2g}" if part else "-" for part in parts),
        "-" if stage.hours is None else f"{stage.hours:.2g}",
        str(stage.checkpoints),
        _bytes(stage.checkpoints * stage.checkpoint_bytes),
        _bytes(stage.kept * stage.checkpoint_bytes),
    )


def _memory_lines(stage: StageCosts, found: Plan) -> list[str]:
    """The stage's memory by setting, in GiB, and which one to take."""
    names = ["parameters", "gradients", "moments", "gathered", "activations", "logits"]
    names += [
        name
        for name in ("critic_activations", "reference", "critic", "whole", "cache")
        if any(getattr(one, name) for one in stage.memory)
    ]
    rows: list[Sequence[str]] = [
        ("GiB per GPU", *(name.replace("_", " ") for name in names), "training", "total", "")
    ]
    for number, one in enumerate(stage.memory):
        parts = (*(getattr(one, name) for name in names), one.training, one.total)
        fits = "fits" if one.total <= found.memory * GIB else "too large"
        name = str(one.setting) + (" (the recipe's)" if number == 0 else "")
        rows.append((name, *map(_gib, parts), fits))
    said = [
        f"{stage.name}: micro-batches of at most {stage.memory[0].tokens:,} tokens",
        *_table(rows),
    ]
    if stage.fits is None:
        whole = max(one.whole for one in stage.memory)
        if stage.least_gpus:
            more = f"from {stage.least_gpus:,} GPUs on, {THRIFTIEST} does"
        elif whole > found.memory * GIB:
            more = f"the whole copy for scoring takes {_gib(whole)} GiB on any number of GPUs"
        else:
            more = "more of these GPUs would not help"
        return [*said, f"-> nothing fits {found.memory:g} GiB; {more}"]
    smaller = ""
    if stage.fits.tokens < stage.memory[0].tokens:
        smaller = f" with micro_tokens: {stage.fits.tokens}"
    return [*said, f"-> {stage.fits.setting}{smaller}: {_gib(stage.fits.total)} GiB"]


def _assumptions(found: Plan) -> list[str]:
    device = found.device
    peaks = ", ".join(f"{p} {flops / 1e12:g}" for p, flops in device.peak.items())
    return [
        f"hours: {UTILISATION:.0%} of the peak of {device.name} ({peaks} TFLOP/s); writing answers "
        "is bound by memory, so that rollouts and scoring take longer than that",
        f"scoring a checkpoint: at most {found.evaluation_tokens:,} tokens, {BYTES_PER_TOKEN:g} "
        "bytes of prompt each",
        f"training: with {RESERVE / GIB:g} GiB for CUDA, communication and fragmentation",
        "total: also while a checkpoint is scored or answers are written: fsdp makes a whole copy",
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _gib(count: float) -> str:
    """Three digits, or all of them before the point."""
    return f"{count / GIB:,.0f}" if count >= 100 * GIB else f"{count / GIB:.3g}"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
