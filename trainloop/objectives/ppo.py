"""PPO: a critic says token by token what to expect, and what turns out better becomes likelier.

    answer       4      .     </s>
    reward     -.01   .00   10.02      -beta (log p - log p of the reference); last, the score
    value       6.1    7.2    9.0
    advantage   ...                     GAE, then whitened over the rollout

The score of an answer comes from the prompt's verifier, from the reward model, or from both as a
weighted sum. One without an end-of-text token gets -10 in place of its score. An answer that
could not be judged is dropped and counted. Loss per token, summed over a step and divided by its
tokens (Schulman et al. 2017): -min(ratio A, clip(ratio) A) + .1 x half of the squared error of
the value, the larger of it and of the value clipped to +-.2 around what it was.

The critic starts as the reward model; it is read where each token is predicted, so it values the
text before that token. Old log-probabilities and values are recomputed by the models that are
trained, not taken from what wrote the answers.

Defaults as in Tulu 3's RLVR (Lambert et al. 2024, from memory): learning rate 3e-7 falling
linearly, K = 4 epochs over each rollout in one part, one answer to each of 512 prompts (the
stage's `batch` counts prompts per optimizer step: 128 of them), temperature 1, gamma 1, lambda
.95, clips .2, value weight .1, beta .05, 10 for a right answer.

Where TRL 1.12 differs, this follows the papers: there the score stands one token behind the
last one (whose value is trained too) unless the answer fills its row, answers of a batch share
padding, and an answer without its end has the penalty subtracted from its score.

What it cannot do: start a critic from nothing well; without a reward model it has much to learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evalsuite.errors import UserError
from trainloop.advantages import gae, whitened
from trainloop.data import batch_of
from trainloop.objectives import Floats, Live, Loss, Objective, targets
from trainloop.objectives.grpo import check_writing, encode, needs_reference, steps_per_rollout
from trainloop.records import Schedule
from trainloop.rollouts import (
    answer_seed,
    collect,
    cut,
    filled,
    record,
    step_batches,
    tree_of,
    with_rewards,
)

if TYPE_CHECKING:
    from trainloop.data import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Settings of ppo."""

    samples: int = 1
    """Answers per prompt."""
    temperature: float = 1.0
    max_new_tokens: int = 1024
    reward: Literal["verifier", "model", "both"] = "verifier"
    verifier_weight: float = 10.0
    """What a right answer gets."""
    model_weight: float = 1.0
    """Times the reward model's score."""
    without_end: float | None = -10.0
    """Score of an answer without an end-of-text token; null: what it got."""
    beta: float = 0.05
    """Weight of the KL to the policy the stage started from, in each token's reward."""
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    """Of the policy's ratio."""
    clip_values: float = 0.2
    """How far a value may move from what it was and still be pulled on."""
    value_weight: float = 0.1
    """Weight of the critic's loss."""
    updates: int = 1
    """Optimizer steps that share a rollout's prompts; each takes its own part."""
    epochs: int = 4
    """Times that a rollout is gone through."""
    rows: int = 256
    """Answers that are written at a time: more are faster, and take more memory."""
    engine: Literal["own", "vllm"] = "own"
    """What writes the answers."""

    def __post_init__(self) -> None:
        check_writing(self)
        for name in ("beta", "clip", "clip_values", "value_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"options: {name} is {getattr(self, name)}, but must be 0 or more")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"options: {name} is {getattr(self, name)}, not in [0, 1]")


def rollout(live: Live) -> list[Batch]:
    """Write and judge answers, and say what each token was worth; the next steps' batches."""
    options: Options = live.options
    groups = collect(live)
    trees = [tree for tree in map(tree_of, groups) if tree is not None]
    lists = [cut(tree, live.stage.micro_tokens) for tree in trees]
    flat = [tree for part in lists for tree in part]
    if flat:
        batch = batch_of(flat)
        scores = batch.of_sequence["reward"].copy()
        if options.without_end is not None:
            scores[batch.of_sequence["ended"] == 0] = options.without_end
        groups = with_rewards(groups, scores)
        numbers, kl = _worth(live, batch, scores)
        live.log({"reward": float(scores.mean()), "answer_kl": kl})
        flat = filled(flat, numbers)
    record(live, groups)
    whole = iter(flat)
    return step_batches(
        [[next(whole) for _ in part] for part in lists],
        updates=options.updates,
        epochs=options.epochs,
        seed=answer_seed(live.seed, live.step),
    )


def _worth(live: Live, batch: Batch, scores: Floats) -> tuple[dict[str, Floats], float]:
    """Old log-probabilities, values, returns and advantages, each [N]; and nats of KL per answer.

    The KL is the mean of log p - log p of the reference, summed over an answer; 0 without beta.
    """
    options: Options = live.options
    assert live.values is not None
    old, values = live.logprobs(batch).astype(float), live.values(batch).astype(float)
    rewards, kl = np.zeros(len(old)), 0.0
    if options.beta:
        assert live.reference is not None
        behind = old - live.reference(batch)
        rewards -= options.beta * behind
        kl = float(behind.sum() / batch.sequences)
    lengths = np.bincount(batch.sequence, minlength=batch.sequences)
    rewards[np.cumsum(lengths) - 1] += scores
    found = gae(rewards, values, lengths=lengths, gamma=options.gamma, lam=options.lam)
    return {
        "old": old,
        "value": values,
        "return": found + values,
        "advantage": whitened(found),
    }, kl


def loss(outputs: Any, batch: Any, options: Any) -> Loss:
    """The clipped objectives of policy and critic, summed over tokens; see the module.

    Metrics: policy_loss, value_loss (per token), clipped and clipped_values (shares of tokens),
    entropy (per token, estimated by -log p of what was drawn), old_kl (k3 to the policy that
    wrote the answers, nats per token).
    """
    import torch

    new, value = outputs.logprobs, outputs.values
    numbers = batch.of_target
    tokens = len(new)
    ratio = torch.exp(new - numbers["old"])
    bounded = ratio.clamp(1 - options.clip, 1 + options.clip)
    plain, capped = -numbers["advantage"] * ratio, -numbers["advantage"] * bounded
    policy = torch.maximum(plain, capped)
    near = value.clamp(
        numbers["value"] - options.clip_values, numbers["value"] + options.clip_values
    )
    miss, near_miss = (value - numbers["return"]) ** 2, (near - numbers["return"]) ** 2
    critic = 0.5 * torch.maximum(miss, near_miss)
    behind = numbers["old"] - new.detach()
    metrics = {
        "policy_loss": (policy.detach().sum(), tokens),
        "value_loss": (critic.detach().sum(), tokens),
        "clipped": ((capped > plain).sum(), tokens),
        "clipped_values": ((near_miss > miss).sum(), tokens),
        "entropy": (-new.detach().sum(), tokens),
        "old_kl": ((torch.expm1(behind) - behind).sum(), tokens),
    }
    return Loss(policy.sum() + options.value_weight * critic.sum(), metrics)


def forward(options: Any) -> dict[str, Any]:
    """Log-probabilities at the temperature of the answers, and the critic's values."""
    return {"temperature": options.temperature, "values": True}


OBJECTIVE = Objective(
    name="ppo",
    version=1,
    documents="prompt",
    encode=encode,
    loss=loss,
    total=targets,
    options=Options,
    forward=forward,
    rollout=rollout,
    steps_per_rollout=steps_per_rollout,
    needs_reference=needs_reference,
    critic=True,
    defaults={
        "learning_rate": 3e-7,
        "schedule": Schedule(kind="linear"),
        "batch": 128,
        "weight_decay": 0.0,
    },
)
