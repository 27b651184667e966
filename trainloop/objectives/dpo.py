"""Direct preference optimization: prefer chosen answers, measured against the starting weights.

    reward(answer) = beta * (log p(answer) - log p_reference(answer))
    loss           = -log sigmoid(reward(chosen) - reward(rejected))

Rafailov et al. 2023 (arXiv:2305.18290), eq. 7; the reference is what the stage starts from, so
the first loss is ln 2. With `label_smoothing` e it is cDPO (Mitchell 2023): the chance e that a
pair is swapped. TRL 1.12's DPOTrainer gives the same numbers for e = 0; of smoothed losses it has
only the unbiased "robust" one (Chowdhury et al. 2024), which is another one than cDPO. And where
truncation left a pair without targets, TRL counts a constant ln 2; here it counts for nothing.

Long answers have larger log-ratios and so count more; `dpo_norm` takes means per token instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainloop.objectives import Loss, Objective
from trainloop.preference import check_options, encode, pair_loss, sums, total
from trainloop.records import Schedule

if TYPE_CHECKING:
    from trainloop.policy import Outputs, Tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Settings of dpo."""

    beta: float = 0.1
    """How dear it is to leave the reference: higher stays nearer."""
    label_smoothing: float = 0.0
    """The chance that a pair's answers are swapped."""

    def __post_init__(self) -> None:
        check_options("dpo", self.beta, self.label_smoothing)


def loss(outputs: Outputs, batch: Tensors, options: Options) -> Loss:
    """Summed over pairs; rewards are beta times summed log-ratios."""
    ratio = sums(outputs.logprobs, batch) - batch.of_sequence["reference"]
    return pair_loss(
        options.beta * ratio, batch, label_smoothing=options.label_smoothing, log_ratio=ratio
    )


OBJECTIVE = Objective(
    name="dpo",
    version=1,
    documents="pair",
    options=Options,
    encode=encode,
    loss=loss,
    total=total,
    reference=True,
    # Tulu 2 (Ivison et al. 2023, arXiv:2311.10702), as Zephyr before it; AdamW's beta2 is the
    # one of the trainers both used.
    defaults={
        "learning_rate": 5e-7,
        "schedule": Schedule(kind="linear", warmup=0.1),
        "batch": 32,
        "epochs": 3,
        "weight_decay": 0.0,
        "beta2": 0.999,
    },
)
