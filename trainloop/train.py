"""The one training loop: every stage of every recipe runs through `train_stage`.

    for step in range(first, stage.steps):  batch(step) -> micro-batches -> loss -> AdamW -> step

The loss of a step is the sum over its target tokens divided by their count *over all ranks and
micro-batches*, so gradients do not depend on how a batch is split, accumulated or packed. Every
rank builds the same batch from the plan and takes its own rows: the count needs no
communication, and the data order does not depend on the number of ranks.

Randomness: each step seeds torch with (seed, step, rank), so a resumed run needs no saved
random state. On CPU the bits of a run depend on the thread count, which checkpoints record.
One process, or several under torchrun / `accelerate launch` (data parallel). What it cannot do
yet: shard parameters, or train below float32.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

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
from trainloop.data import Batch, BatchPlan
from trainloop.objectives import Objective
from trainloop.records import Checkpoint, Stage
from trainloop.schedules import rate

LOOP_VERSION = 1
"""Part of every checkpoint's id: raise it when the loop would train other weights."""
RANKS_WAIT_HOURS = 24
LOG_SECONDS = 0.2
"""Least time between two calls of the progress display."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What a stage begins from: weights in a folder (or fresh ones), and their history."""

    parent: str
    """Checkpoint id, or the id of the starting weights."""
    is_checkpoint: bool
    total_tokens: int
    flops: float


def stage_id(
    stage: Stage, start: Start, data: dict[str, str], objective: Objective, *, seed: int
) -> str:
    """Hash of everything that makes the stage's weights; how often it is scored does not.

    `data` maps each source of the mixture to the hash of its clean documents.
    """
    settings = asdict(stage)
    del settings["score_every"]
    used = {name: data[name] for name, weight in stage.mixture.items() if weight > 0}
    versions = [LOOP_VERSION, objective.name, objective.version]
    return content_id([start.parent, settings, used, seed, versions])


def checkpoint_id(stage: str, step: int) -> str:
    """The id of a stage's checkpoint after `step` optimizer steps."""
    return content_id([stage, step])


def process_count() -> tuple[int, int]:
    """(rank, ranks) as torchrun and `accelerate launch` tell them; (0, 1) without."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def make_accelerator() -> Any:
    """An Accelerator joined to all launched processes, or a UserError.

    Without `cpu=True`, torchrun on a machine without GPUs gives unconnected replicas that
    all believe to be rank 0; so it is asked for, and the world size is checked.
    """
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    rank, ranks = process_count()
    # The other ranks wait while rank 0 makes data or scores, which may take hours.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=RANKS_WAIT_HOURS))
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])
    if accelerator.num_processes != ranks or accelerator.process_index != rank:
        raise UserError(
            f"{ranks} processes were launched, but accelerate joined "
            f"{accelerator.num_processes}; launch with torchrun or `accelerate launch`"
        )
    return accelerator


def micro_batches(batch: Batch, *, rank: int, ranks: int, size: int | None) -> list[Batch]:
    """This rank's rows in pieces of `size`; every rank gets equally many pieces.

    A rank short of rows gets padding rows without targets, since ranks must run equally
    many backward passes.
    """
    rows = len(batch.input_ids)
    share = -(-rows // ranks)
    size = min(size or share, share)
    count = -(-share // size)
    mine = np.arange(rank, rows, ranks)
    pieces = [mine[n * size : (n + 1) * size] for n in range(count)]
    return [_rows(batch, piece) if len(piece) else _padding(batch) for piece in pieces]


def _rows(batch: Batch, rows: Any) -> Batch:
    return Batch(
        batch.input_ids[rows], batch.position_ids[rows], batch.segments[rows], batch.labels[rows]
    )


def _padding(batch: Batch) -> Batch:
    one = _rows(batch, np.arange(1))
    return Batch(one.input_ids, one.position_ids, one.segments, np.full_like(one.labels, -100))


def to_tensors(batch: Batch, device: Any) -> dict[str, Any]:
    """The arrays as tensors on `device`, with the block-diagonal causal mask [rows, 1, L, L]."""
    import torch

    segments = torch.from_numpy(batch.segments).to(device)
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    same = segments[:, :, None] == segments[:, None, :]
    return {
        "input_ids": torch.from_numpy(batch.input_ids).to(device),
        "position_ids": torch.from_numpy(batch.position_ids).to(device),
        "labels": torch.from_numpy(batch.labels).to(device),
        "attention_mask": (same & causal)[:, None],
    }


def make_optimizer(model: Any, stage: Stage) -> Any:
    """AdamW (Loshchilov & Hutter 2019); matrices decay, vectors (norms, biases) do not."""
    import torch

    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": stage.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    betas = (0.9, stage.beta2)
    return torch.optim.AdamW(groups, lr=stage.learning_rate, betas=betas, fused=True)


def backward_step(
    model: Any,
    batch: Batch,
    objective: Objective,
    accelerator: Any,
    *,
    micro_batch: int | None,
) -> Any:
    """Add the gradient of the batch's mean target loss; returns this rank's part of that mean.

    The parts of all ranks sum to the mean over the batch.
    """
    import torch

    ranks = accelerator.num_processes
    pieces = micro_batches(batch, rank=accelerator.process_index, ranks=ranks, size=micro_batch)
    parts = []
    targets = max(batch.target_tokens, 1)
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            loss = objective.loss(model, to_tensors(piece, accelerator.device)) / targets
            # Data parallelism averages gradients over ranks; ours must be summed.
            accelerator.backward(loss * ranks)
        parts.append(loss.detach())
    return torch.stack(parts).sum()


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """A stage about to be trained: what, from where, on which batches, and under which id."""

    stage: Stage
    id: str
    start: Start
    objective: Objective
    plan: BatchPlan
    root: Path
    seed: int
    cpu_threads: int
    certificate: str | None
    label: str
    """Names the work in the progress display."""

    def checkpoint(self, step: int, parameters: int) -> Checkpoint:
        """The record of the checkpoint after `step` steps."""
        tokens = step * self.stage.batch_tokens
        return Checkpoint(
            id=checkpoint_id(self.id, step),
            parent=self.start.parent if self.start.is_checkpoint else None,
            stage=self.stage.name,
            stage_id=self.id,
            objective=self.objective.name,
            step=step,
            tokens=tokens,
            total_tokens=self.start.total_tokens + tokens,
            final=step == self.stage.steps,
            seed=self.seed,
            mixture=dict(self.stage.mixture),
            certificate=self.certificate,
            flops=self.start.flops + 6.0 * parameters * tokens,
            parameters=parameters,
            cpu_threads=self.cpu_threads,
        )


def train_stage(
    leg: Leg,
    model: Any,
    tokenizer: Any,
    accelerator: Any,
    *,
    after_checkpoint: Callable[[Any, Checkpoint], None],
    progress: Progress = silent,
) -> Checkpoint:
    """Train `model` through a stage, saving and then scoring each due checkpoint; the last one.

    `model` holds the weights the stage starts from, or those of the stage's newest
    checkpoint, from which it goes on. `after_checkpoint(model, checkpoint)` runs on rank 0
    after each checkpoint is on disk. Raises UserError when the loss is no longer a number.
    """
    import torch

    stage = leg.stage
    torch.set_num_threads(leg.cpu_threads)
    first = newest_step(stage, leg.id, leg.root)
    model.train()
    optimizer = make_optimizer(model, stage)
    if first:
        folder = checkpoints.folder_of(leg.root, checkpoint_id(leg.id, first))
        checkpoints.restore_optimizer(folder, model, optimizer)
    parameters = sum(p.numel() for p in model.parameters())
    ready, optimizer = accelerator.prepare(model, optimizer)
    main = accelerator.is_main_process
    saved = None
    with _metrics_log(leg.root, leg.id, first, enabled=main) as log:
        clock, shown = time.monotonic(), 0.0
        for step in range(first, stage.steps):
            row = _optimizer_step(leg, ready, optimizer, accelerator, step)
            done, now = step + 1, time.monotonic()
            log(row | {"tokens_per_second": stage.batch_tokens / max(now - clock, 1e-9)})
            clock = now
            if main and (now - shown > LOG_SECONDS or done == stage.steps):
                shown = now
                progress(leg.label, done, stage.steps)
            if done in stage.checkpoint_steps:
                saved = leg.checkpoint(done, parameters)
                if main:
                    bare = accelerator.unwrap_model(ready)
                    checkpoints.save(leg.root, saved, bare, tokenizer, optimizer)
                    after_checkpoint(bare, saved)
                accelerator.wait_for_everyone()
                clock = time.monotonic()
    assert saved is not None, "the last step is always a checkpoint"
    return saved


def _optimizer_step(
    leg: Leg, model: Any, optimizer: Any, accelerator: Any, step: int
) -> dict[str, Any]:
    """One step of the stage on all ranks; its line for metrics.jsonl."""
    import torch

    stage = leg.stage
    batch = leg.plan.batch(step)
    # One seed per (seed, step, rank): nothing random to save or to put back.
    torch.manual_seed(_step_seed(leg.seed, step, accelerator.process_index))
    lr = rate(stage.schedule, peak=stage.learning_rate, step=step, steps=stage.steps)
    for group in optimizer.param_groups:
        group["lr"] = lr
    part = backward_step(model, batch, leg.objective, accelerator, micro_batch=stage.micro_batch)
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), stage.clip))
    mean = float(accelerator.reduce(part, "sum"))
    for what, value in (("loss", mean), ("gradient norm", norm)):
        if not np.isfinite(value):
            raise _diverged(stage, f"the {what} is {value}", step)
    optimizer.step()
    optimizer.zero_grad()
    if step + 1 in stage.checkpoint_steps and not all(
        bool(torch.isfinite(p).all()) for p in model.parameters()
    ):
        raise _diverged(stage, "weights are no longer finite", step)
    return {
        "step": step + 1,
        "tokens": (step + 1) * stage.batch_tokens,
        "loss": mean,
        "lr": lr,
        "grad_norm": norm,
        "target_tokens": batch.target_tokens,
    }


def _diverged(stage: Stage, what: str, step: int) -> UserError:
    return UserError(
        f"stage {stage.name!r}: {what} at step {step + 1} of {stage.steps}; "
        f"lower learning_rate ({stage.learning_rate}) or clip ({stage.clip})"
    )


def newest_step(stage: Stage, this_stage_id: str, root: Path) -> int:
    """The last step up to which every due checkpoint of the stage is published; 0 without one.

    A stage that was finished with fewer scored checkpoints goes on from before the first
    missing one; those it has are left as they are.
    """
    newest = 0
    for step in stage.checkpoint_steps:
        if checkpoints.read(root, checkpoint_id(this_stage_id, step)) is None:
            break
        newest = step
    return newest


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
    kept = []
    remove_partials(path.parent)
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            # A kill may cut the last line short; it is past the last checkpoint anyway.
            if line.endswith("}") and json.loads(line)["step"] <= first:
                kept.append(line + "\n")
    with publish_file(path) as handle:
        handle.writelines(kept)
    with full_disk_is_a_user_error(path), path.open("a", encoding="utf-8", buffering=1) as handle:
        yield write
