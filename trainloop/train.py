"""The one training loop: every stage of every recipe runs through `train_stage`.

    for step in range(first, stage.steps):  batch(step) -> micro-batches -> loss -> AdamW -> step

A step's loss is a sum divided by a count *over all ranks and micro-batches* (Objective.total), so
gradients do not depend on how a batch is split, accumulated or packed. Every rank has the whole
batch, which is a pure function of the step, and takes its own documents: the count needs no
communication, and the data order does not depend on the number of ranks. Stages that learn from
what they write themselves (grpo, ppo) get their batches from a rollout (live.py) instead.

Randomness: each step seeds torch with (seed, step, rank), so a resumed run needs no saved
random state. On CPU the bits of a run depend on the thread count, which checkpoints record.
One process, or several under torchrun / `accelerate launch` (ranks.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalsuite.errors import UserError
from evalsuite.files import (
    content_id,
    full_disk_is_a_user_error,
    publish_file,
    remove_partials,
)
from evalsuite.progress import Progress, silent
from trainloop import checkpoint as checkpoints
from trainloop.data import Batch, BatchPlan, micro_batches, prefetched
from trainloop.objectives import Objective
from trainloop.records import Checkpoint, Stage
from trainloop.schedules import rate

if TYPE_CHECKING:
    from trainloop.ranks import Ranks

LOOP_VERSION = 2
"""Part of every checkpoint's id: raise it when the loop would train other weights."""
CPU_TOKENS = 1024
"""Tokens of a forward pass on a CPU: larger ones spend a tenth of their time on fresh memory."""
LOG_SECONDS = 0.2
"""Least time between two calls of the progress display."""

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


def stage_id(
    stage: Stage, parent: str, data: dict[str, str], objective: Objective, *, seed: int
) -> str:
    """Hash of everything that makes the stage's weights; how it is scored and kept does not.

    `parent` names what it starts from (and its reward model); `data` maps each source of the
    mixture to the hash of its clean documents.
    """
    settings = asdict(stage)
    for key in ("score_every", "held_out", "best", "keep", "start_from", "reward_model"):
        del settings[key]
    used = {name: data[name] for name, weight in stage.mixture.items() if weight > 0}
    versions = [LOOP_VERSION, objective.name, objective.version]
    return content_id([parent, settings, used, seed, versions])


def checkpoint_id(stage: str, step: int) -> str:
    """The id of a stage's checkpoint after `step` optimizer steps."""
    return content_id([stage, step])


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """What a stage holds in memory, all with the weights of step `Leg.first`."""

    policy: Any
    """The model that is trained: a language model, or a reward model in the making."""
    critic: Any = None
    """Trained beside it (ppo): a model with a scalar head."""
    reference: Any = None
    """Frozen: the weights that the stage started from."""
    reward: Any = None
    """Frozen: a reward model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """A stage about to be trained: what, from where, on which batches, and under which id."""

    stage: Stage
    """Settled: with its steps, peak rate and schedule."""
    id: str
    parent: str | None
    """The checkpoint it starts from; None for weights that are none of ours."""
    rests_on: list[str]
    """Other checkpoints that shape it: the reward model's."""
    total_tokens: int
    """Of all ancestors."""
    flops: float
    """Of all ancestors."""
    objective: Objective
    options: Any
    plan: BatchPlan
    references: dict[str, Floats] | None
    """Source -> [documents, branches] of the reference's summed log-probabilities."""
    first: int
    """The step to go on from: 0, or that of a checkpoint."""
    first_tokens: int
    """Tokens of the stage up to there."""
    root: Path
    seed: int
    cpu_threads: int
    certificate: str | None
    label: str
    """Names the work in the progress display."""

    def checkpoint(self, step: int, tokens: int, parameters: int, ranks: int) -> Checkpoint:
        """The record of the checkpoint after `step` steps over `tokens` tokens."""
        return Checkpoint(
            id=checkpoint_id(self.id, step),
            parent=self.parent,
            stage=self.stage.name,
            stage_id=self.id,
            objective=self.objective.name,
            step=step,
            tokens=tokens,
            total_tokens=self.total_tokens + tokens,
            final=step == self.stage.steps,
            seed=self.seed,
            mixture=dict(self.stage.mixture),
            certificate=self.certificate,
            flops=self.flops + 6.0 * parameters * tokens,
            parameters=parameters,
            cpu_threads=self.cpu_threads,
            precision=self.stage.precision,
            ranks=ranks,
            ingredients=self.rests_on,
        )


def train_stage(
    leg: Leg,
    models: Models,
    tokenizer: Any,
    ranks: Ranks,
    *,
    after_checkpoint: Callable[[Any, Checkpoint], bool],
    progress: Progress = silent,
) -> Checkpoint:
    """Train through a stage, saving and then scoring each due checkpoint; the last one is returned.

    `after_checkpoint(module, checkpoint)` runs on all ranks once a checkpoint is on disk; where
    it returns True, the stage ends there. Raises UserError when the loss is no longer a number.
    """
    import torch

    from trainloop.policy import Policy

    stage = leg.stage
    torch.set_num_threads(leg.cpu_threads)
    trained = [model for model in (models.policy, models.critic) if model is not None]
    if stage.gradient_checkpointing:
        for model in trained:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    if leg.objective.reference or leg.objective.rollout is not None:
        for model in trained:
            without_dropout(model)
    policy = Policy(models.policy, models.critic)
    policy.train()
    parameters = sum(p.numel() for p in models.policy.parameters())
    module = ranks.wrap(policy, precision=stage.precision)
    optimizer = make_optimizer(module, stage)
    if leg.first:
        folder = checkpoints.folder_of(leg.root, checkpoint_id(leg.id, leg.first))
        checkpoints.restore(folder, module, optimizer, ranks)
    saved: Checkpoint | None = None
    read = leg.first_tokens
    with _metrics_log(leg.root, leg.id, leg.first, enabled=ranks.main) as log:
        clock, shown = time.monotonic(), 0.0
        feed = _batches(leg, module, models, tokenizer, ranks)
        for step in range(leg.first, stage.steps):
            batch, told = next(feed)
            waited = time.monotonic() - clock
            tokens = stage.batch_tokens or batch.tokens
            read += tokens
            row = _optimizer_step(leg, module, optimizer, batch, ranks, step)
            done, now = step + 1, time.monotonic()
            speed = {"tokens_per_second": tokens / max(now - clock, 1e-9), "wait_seconds": waited}
            log({"step": done, "tokens": read} | row | told | speed)
            clock = now
            if ranks.main and (now - shown > LOG_SECONDS or done == stage.steps):
                shown = now
                progress(leg.label, done, stage.steps)
            if done in stage.checkpoint_steps:
                _check_weights(leg, module, ranks, step)
                saved = leg.checkpoint(done, read, parameters, ranks.count)
                checkpoints.save(leg.root, saved, module, tokenizer, optimizer, ranks)
                if after_checkpoint(module, saved):
                    break
                clock = time.monotonic()
    assert saved is not None, "a stage's last step has a checkpoint"
    return saved


def without_dropout(model: Any) -> None:
    """Drop nothing, as what the probabilities are compared with drops nothing: old ones, a
    reference's. Otherwise ratios would be noise, and preferences not begin at ln 2."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout", "dropout", "dropout_p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _batches(
    leg: Leg, module: Any, models: Models, tokenizer: Any, ranks: Ranks
) -> Iterator[tuple[Batch, dict[str, float]]]:
    """Each step's batch from the leg's first one on, and what a rollout has to say about it."""
    if leg.objective.rollout is not None:
        from trainloop.live import rollouts

        yield from rollouts(leg, module, models, tokenizer, ranks)
        return
    for step, batch in enumerate(prefetched(leg.plan, leg.first, leg.stage.steps), leg.first):
        yield (batch if leg.references is None else _with_reference(leg, batch, step)), {}


def _with_reference(leg: Leg, batch: Batch, step: int) -> Batch:
    """The batch with the reference policy's log-probability of each sequence."""
    assert leg.references is not None
    known = [leg.references[source][d] for source, d in leg.plan.documents(step)]
    values = np.concatenate(known).astype(np.float64)
    assert len(values) == batch.sequences, "a number per branch"
    return replace(batch, of_sequence=batch.of_sequence | {"reference": values})


def make_optimizer(module: Any, stage: Stage) -> Any:
    """AdamW (Loshchilov & Hutter 2019); matrices decay, vectors (norms, biases) do not."""
    import torch

    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": stage.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (0.9, stage.beta2)
    return torch.optim.AdamW(groups, lr=stage.peak, betas=betas, fused=True)


def backward_step(
    module: Any,
    batch: Batch,
    objective: Objective,
    options: Any,
    ranks: Ranks,
    *,
    micro_tokens: int | None = None,
    precision: str = "float32",
) -> tuple[Any, dict[str, Any]]:
    """Add the batch's gradient; returns this rank's part of the loss, and of each metric.

    The parts of all ranks sum to the whole batch's. A metric's part is a tensor [sum, count].
    """
    import torch

    from trainloop.policy import tensors

    total = objective.total(batch, options) or 1.0
    forward = objective.forward(options)
    pieces = share_of(batch, ranks, micro_tokens)
    losses, metrics = [], dict[str, Any]()
    for number, piece in enumerate(pieces):
        with ranks.no_sync(module, last=number == len(pieces) - 1):
            there = tensors(piece, ranks.device)
            with ranks.autocast(precision):
                outputs = module(there, **forward)
            if piece.padding:
                loss = _nothing(outputs)
            else:
                said = objective.loss(outputs, there, options)
                loss = said.total / total
                for name, pair in said.metrics.items():
                    part = torch.stack([torch.as_tensor(x, device=ranks.device) for x in pair])
                    metrics[name] = metrics.get(name, 0.0) + part.detach().double()
            loss.backward()
            losses.append(loss.detach())
    return torch.stack(losses).sum(), metrics


def share_of(batch: Batch, ranks: Ranks, micro_tokens: int | None) -> list[Batch]:
    """This rank's micro-batches: of at most `micro_tokens` tokens, or of what its device likes."""
    if micro_tokens is None and ranks.device.type == "cpu":
        micro_tokens = CPU_TOKENS
    return micro_batches(batch, rank=ranks.rank, ranks=ranks.count, tokens=micro_tokens)


def _nothing(outputs: Any) -> Any:
    """Zero, with a gradient of zero for every parameter that took part."""
    parts = (outputs.logprobs, outputs.entropy, outputs.values, outputs.scores)
    return sum(part.sum() * 0.0 for part in parts if part is not None)


def _optimizer_step(
    leg: Leg, module: Any, optimizer: Any, batch: Batch, ranks: Ranks, step: int
) -> dict[str, Any]:
    """One update; returns the row that goes to metrics.jsonl."""
    import torch

    stage = leg.stage
    torch.manual_seed(_step_seed(leg.seed, step, ranks.rank))
    assert stage.schedule is not None
    lr = rate(stage.schedule, peak=stage.peak, step=step + 1, steps=stage.steps)
    row: dict[str, Any] = {"lr": lr, "target_tokens": batch.target_tokens}
    if not batch.tokens:  # a rollout of which nothing can be learned
        return {"loss": None, "empty": 1} | row
    part, metrics = backward_step(
        module,
        batch,
        leg.objective,
        leg.options,
        ranks,
        micro_tokens=stage.micro_tokens,
        precision=stage.precision,
    )
    norm = ranks.clip(module, stage.clip or 1.0)
    loss, means = _over_ranks(part, metrics, ranks)
    for what, value in (("loss", loss), ("gradient norm", norm)):
        if not np.isfinite(value):
            raise _diverged(stage, f"the {what} is {value}", step)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": loss, "grad_norm": norm} | row | means


def _over_ranks(part: Any, metrics: dict[str, Any], ranks: Ranks) -> tuple[float, dict[str, float]]:
    """The loss and the metrics of the whole batch."""
    mine = (float(part), {name: pair.tolist() for name, pair in metrics.items()})
    sums: dict[str, list[float]] = {}
    loss = 0.0
    for value, said in ranks.gather(mine):
        loss += value
        for name, (total, count) in said.items():
            known = sums.setdefault(name, [0.0, 0.0])
            known[0] += total
            known[1] += count
    return loss, {name: total / count for name, (total, count) in sums.items() if count}


def _check_weights(leg: Leg, module: Any, ranks: Ranks, step: int) -> None:
    import torch

    finite = all(bool(torch.isfinite(p.detach()).all()) for p in module.parameters())
    if not all(ranks.gather(finite)):
        raise _diverged(leg.stage, "weights are no longer finite", step)


def _diverged(stage: Stage, what: str, step: int) -> UserError:
    return UserError(
        f"stage {stage.name!r}: {what} at step {step + 1} of {stage.steps}; "
        f"lower learning_rate ({stage.learning_rate}) or clip ({stage.clip})"
    )


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _metrics_log(
    root: Path, this_stage_id: str, first: int, *, enabled: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Append to stages/<id>/metrics.jsonl, less the lines a killed run left past `first`."""
    if not enabled:
        yield lambda row: None
        return

    def write(row: dict[str, Any]) -> None:
        handle.write(json.dumps(row) + "\n")

    path = root / "stages" / this_stage_id / "metrics.jsonl"
    remove_partials(path.parent)
    cut_log(path, first)
    with full_disk_is_a_user_error(path), path.open("a", encoding="utf-8", buffering=1) as handle:
        yield write


def cut_log(path: Path, first: int) -> None:
    """Keep the rows of a JSON lines file whose "step" is `first` or earlier."""
    kept = []
    if path.is_file():
        # A kill may cut the last line short; it is past the last checkpoint anyway.
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
            try:
                before = json.loads(line)["step"] <= first
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path}:{number}: no JSON object with a step; the file was changed or "
                    "damaged: remove the line, and run again"
                ) from None
            if before:
                kept.append(line.decode("utf-8") + "\n")
    with publish_file(path) as handle:
        handle.writelines(kept)
