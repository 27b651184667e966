"""Rollouts: what a stage that learns from its own answers may use, and when it writes them.

    for batch, told in rollouts(leg, module, models, tokenizer, ranks): ...

Every `steps_per_rollout` optimizer steps the objective gets the next prompts and the models as
they are then (objectives.Live), and gives back the batches of those steps. A killed run goes on
from a checkpoint, which lies between two rollouts: what was written after it is written again,
and alike, since every answer is drawn from (seed, prompt, sample) alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evalsuite.livemodel import modes_put_back
from trainloop.data import Batch
from trainloop.objectives import Floats, Live
from trainloop.policy import Policy, tensors
from trainloop.train import Leg, Models, cut_log, share_of

if TYPE_CHECKING:
    from trainloop.ranks import Ranks
    from trainloop.records import Stage


def rollouts(
    leg: Leg, module: Any, models: Models, tokenizer: Any, ranks: Ranks
) -> Iterator[tuple[Batch, dict[str, float]]]:
    """Each optimizer step's batch, and what its rollout logged (with the first of its steps)."""
    objective, stage = leg.objective, leg.stage
    assert objective.rollout is not None
    period = objective.steps_per_rollout(leg.options)
    frozen = {
        name: frozen_policy(getattr(models, name), ranks, stage.precision)
        for name in ("reference", "reward")
    }
    samples = leg.root / "stages" / leg.id / "samples.jsonl"
    if ranks.main:
        cut_log(samples, leg.first)
    # A policy is asked as it is trained and as it wrote: at the same temperature.
    heat = {k: v for k, v in objective.forward(leg.options).items() if k == "temperature"}
    whole = None
    for start in range(leg.first, stage.steps, period):
        told: dict[str, float] = {}
        whole = ranks.full_model(module, whole)
        live = Live(
            stage=stage,
            options=leg.options,
            seed=leg.seed,
            step=start,
            tokenizer=tokenizer,
            prompts=_prompts(leg, start, period),
            model=whole,
            logprobs=Everywhere(module, ranks, stage, "logprobs", heat),
            values=Everywhere(module, ranks, stage, "values", {"values": True})
            if objective.critic
            else None,
            reference=_asked(frozen["reference"], ranks, stage, "logprobs", heat),
            reward=_asked(frozen["reward"], ranks, stage, "scores", {}),
            ranks=ranks,
            log=told.update,
            samples=samples if ranks.main else None,
        )
        batches = objective.rollout(live)
        assert len(batches) == period, f"{len(batches)} batches for {period} steps"
        for number, batch in enumerate(batches):
            yield batch, told if number == 0 else {}


def _prompts(leg: Leg, start: int, period: int) -> list[tuple[Any, dict[str, Any]]]:
    sources = {source.source: source for source in leg.plan.sources}
    return [
        (sources[name].tree(number), dict(sources[name].row(number)))
        for step in range(start, start + period)
        for name, number in leg.plan.documents(step)
    ]


def frozen_policy(model: Any, ranks: Ranks, precision: str) -> Any:
    """A model that is not trained, sharded where the trained one is."""
    if model is None:
        return None
    model.requires_grad_(False)
    policy = Policy(model).eval()
    if ranks.kind == "fsdp":
        return ranks.wrap(policy, precision=precision)
    return policy.to(ranks.device)


def _asked(module: Any, ranks: Ranks, stage: Stage, what: str, forward: dict[str, Any]) -> Any:
    return None if module is None else Everywhere(module, ranks, stage, what, forward)


class Everywhere:
    """A forward pass without gradient over all ranks: a batch in, all its numbers out on each.

    `what` is "logprobs" or "values" [N], or "scores" [S]; `forward` goes to Policy.forward.
    """

    def __init__(
        self, module: Any, ranks: Ranks, stage: Stage, what: str, forward: dict[str, Any]
    ) -> None:
        self._module, self._ranks, self._stage = module, ranks, stage
        self._what, self._forward = what, forward

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Floats:
        ranks = self._ranks
        kind = "of_sequence" if self._what == "scores" else "of_target"
        size = batch.sequences if self._what == "scores" else batch.target_tokens
        found = np.zeros(size, dtype=np.float64)
        if not batch.tokens:
            return found
        places = {"place": np.arange(size, dtype=np.float64)}
        if self._what == "scores":
            marked = replace(batch, of_sequence=places)
        else:
            marked = replace(batch, of_target=places)
        pieces = share_of(marked, ranks, self._stage.micro_tokens)
        # Under ddp the inner module will do: nothing is reduced. Shards need the outer one.
        module = self._module if ranks.kind == "fsdp" else ranks.bare(self._module)
        mine = []
        with modes_put_back(module):
            for piece in pieces:
                with ranks.autocast(self._stage.precision):
                    outputs = module(tensors(piece, ranks.device), **self._forward)
                values = getattr(outputs, self._what).double().cpu().numpy()
                if not piece.padding:
                    mine.append((getattr(piece, kind)["place"].astype(np.int64), values))
        for part in ranks.gather(mine):
            for where, values in part:
                found[where] = values
        return found
