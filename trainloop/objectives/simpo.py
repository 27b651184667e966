"""SimPO: prefer chosen answers by their mean log-probability and a margin, without a reference.

    reward(answer) = beta * log p(answer) / tokens of the answer
    loss           = -log sigmoid(reward(chosen) - reward(rejected) - gamma)

Meng et al. 2024 (arXiv:2405.14734), eq. 6. The margin is set as gamma / beta (`gamma_ratio`), as
the authors' code does: in nats per token. TRL 1.12 (CPOTrainer, loss_type "simpo") gives the same
numbers, but only with cpo_alpha = 0: by default it adds the chosen answers' cross-entropy, which
is no part of SimPO. Nothing holds the policy near where it began but a low rate and few steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evalsuite.errors import UserError
from trainloop.objectives import Loss, Objective
from trainloop.preference import check_options, encode, means, pair_loss, sums, total
from trainloop.records import Schedule

if TYPE_CHECKING:
    from trainloop.policy import Outputs, Tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Settings of simpo."""

    beta: float = 2.0
    gamma_ratio: float = 0.5
    """gamma / beta: by how many nats per token a chosen answer should be likelier."""
    label_smoothing: float = 0.0
    """The chance that a pair's answers are swapped."""

    def __post_init__(self) -> None:
        check_options("simpo", self.beta, self.label_smoothing)
        if not 0 <= self.gamma_ratio < float("inf"):
            raise UserError(f"simpo: gamma_ratio is {self.gamma_ratio}, but must be 0 or more")


def loss(outputs: Outputs, batch: Tensors, options: Options) -> Loss:
    """Summed over pairs; rewards are beta times mean log-probabilities."""
    rewards = options.beta * means(sums(outputs.logprobs, batch), batch)
    return pair_loss(
        rewards,
        batch,
        margin=options.beta * options.gamma_ratio,
        label_smoothing=options.label_smoothing,
    )


OBJECTIVE = Objective(
    name="simpo",
    version=1,
    documents="pair",
    options=Options,
    encode=encode,
    loss=loss,
    total=total,
    # The paper's setting for Llama-3-Base-8B; AdamW's beta2 is the one of its trainer.
    defaults={
        "learning_rate": 6e-7,
        "schedule": Schedule(kind="cosine", warmup=0.1),
        "batch": 128,
        "epochs": 1,
        "weight_decay": 0.0,
        "beta2": 0.999,
    },
)
