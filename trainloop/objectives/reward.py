"""A reward model: a scalar head that puts chosen answers above rejected ones.

    loss = -log sigmoid(score(chosen) - score(rejected))

Bradley and Terry 1952, as in Stiennon et al. 2020 (arXiv:2009.01325); the head is made by
trainloop/reward_model.py. The score is read at the answer's end-of-text token: whatever a chat
template writes after it is cut off, because an answer that is being written ends there too. TRL
1.12's RewardTrainer gives the same numbers where the template writes nothing more; it reads the
score at the last token, and draws the head with the language model's own deviation (mostly 0.02).

Only differences of scores are trained: their level means nothing, and differs between seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from trainloop import preference
from trainloop.data import Tree
from trainloop.objectives import Loss, NoOptions, Objective
from trainloop.records import Schedule

if TYPE_CHECKING:
    from trainloop.policy import Outputs, Tensors


def encode(rows: Iterable[dict[str, Any]], tokenizer: Any) -> Iterator[Tree]:
    """Trees as of the other objectives on pairs; a branch ends with its last end-of-text token."""
    for tree in preference.encode(rows, tokenizer):
        ends = [_end(branch, tokenizer.eos_token_id) for branch in tree.branches]
        yield Tree(
            tree.prompt,
            tuple(branch[:end] for branch, end in zip(tree.branches, ends, strict=True)),
            tuple(flags[:end] for flags, end in zip(tree.targets, ends, strict=True)),
        )


def _end(branch: Any, eos: int) -> int:
    """Tokens up to and with the last `eos`; all of them where it does not occur."""
    places = [place for place, token in enumerate(branch) if token == eos]
    return places[-1] + 1 if places else len(branch)


def loss(outputs: Outputs, batch: Tensors, options: NoOptions) -> Loss:
    """Summed over pairs, from one score per sequence; in float32 or finer."""
    import torch

    scores = outputs.scores
    assert scores is not None, "a reward model gives scores"
    if scores.dtype != torch.float64:
        scores = scores.float()
    return preference.pair_loss(scores, batch)


OBJECTIVE = Objective(
    name="reward",
    version=1,
    documents="pair",
    encode=encode,
    loss=loss,
    total=preference.total,
    head="score",
    # Tulu 3's reward model, as open-instruct trains it; AdamW's beta2 is its trainer's.
    defaults={
        "learning_rate": 3e-6,
        "schedule": Schedule(kind="linear"),
        "batch": 256,
        "epochs": 1,
        "weight_decay": 0.0,
        "beta2": 0.999,
    },
)
