"""Length-normalised DPO: log-ratios per token, so that a long answer weighs like a short one.

    reward(answer) = beta * (log p(answer) - log p_reference(answer)) / tokens of the answer
    loss           = -log sigmoid(reward(chosen) - reward(rejected))

Tulu 3 (Lambert et al. 2024, arXiv:2411.15124, eq. 6), with beta 5; TRL 1.12 calls it
"sigmoid_norm". For answers of one token it is `dpo` with the same beta. Its rewards in the
metrics are per token, as the loss sees them; TRL logs beta times the sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainloop.objectives import Loss, Objective
from trainloop.preference import check_options, encode, means, pair_loss, sums, total
from trainloop.records import Schedule

if TYPE_CHECKING:
    from trainloop.policy import Outputs, Tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Settings of dpo_norm."""

    beta: float = 5.0
    """How dear it is to leave the reference: higher stays nearer."""
    label_smoothing: float = 0.0
    """The chance that a pair's answers are swapped."""

    def __post_init__(self) -> None:
        check_options("dpo_norm", self.beta, self.label_smoothing)


def loss(outputs: Outputs, batch: Tensors, options: Options) -> Loss:
    """Summed over pairs; rewards are beta times mean log-ratios, log_ratio is of the sums."""
    ratio = sums(outputs.logprobs, batch) - batch.of_sequence["reference"]
    return pair_loss(
        options.beta * means(ratio, batch),
        batch,
        label_smoothing=options.label_smoothing,
        log_ratio=ratio,
    )


OBJECTIVE = Objective(
    name="dpo_norm",
    version=1,
    documents="pair",
    options=Options,
    encode=encode,
    loss=loss,
    total=total,
    reference=True,
    # Tulu 3's 8B model; AdamW's beta2 is the one of its trainer.
    defaults={
        "learning_rate": 5e-7,
        "schedule": Schedule(kind="linear", warmup=0.1),
        "batch": 128,
        "epochs": 1,
        "weight_decay": 0.0,
        "beta2": 0.999,
    },
)
