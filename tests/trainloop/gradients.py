"""A policy of some thousand weights, and what one or several ranks do with it; for ranked.together.

gradients("alone", [None])                        in this process
together(gradients, "fsdp", [None, 20], ranks=2)  in two
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers import LlamaForSequenceClassification as Scorer

from evalsuite.livemodel import random_state_put_back
from trainloop import checkpoint as checkpoints
from trainloop import ranks as joining
from trainloop import train
from trainloop.data import Batch, Tree, batch_of
from trainloop.objectives import Loss, NoOptions, Objective, load_objective
from trainloop.policy import Policy
from trainloop.ranks import Ranks
from trainloop.records import Checkpoint

VOCABULARY = 61


@contextmanager
def joined(kind: str) -> Iterator[Ranks]:
    """The ranks of this launch, or this process alone."""
    try:
        yield joining.join("ddp" if kind == "alone" else kind)
    finally:
        joining.leave()


def config(*, tied: bool = True) -> LlamaConfig:
    """Of a model of two layers; 61 tokens, so that no matrix can be halved evenly."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=18,
        intermediate_size=30,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        num_labels=1,
        pad_token_id=0,
    )


def fresh_policy(*, tied: bool = True, critic: bool = False, double: bool = True) -> Policy:
    """The same weights each time."""
    with random_state_put_back():
        torch.manual_seed(7)
        model = LlamaForCausalLM._from_config(config(tied=tied), attn_implementation="sdpa")
        value = Scorer._from_config(config(), attn_implementation="sdpa") if critic else None
        policy = Policy(model, value)
    return policy.double() if double else policy


def batch(step: int) -> Batch:
    """Seven documents of many lengths, one with a prompt and two branches."""
    rng = np.random.default_rng(step)

    def ids(length: int) -> list[int]:
        return rng.integers(1, VOCABULARY, length).tolist()

    plain = [ids(length) for length in (3, 11, 2, 17, 5, 8)]
    trees = [Tree((), (one,), ([False] + [True] * (len(one) - 1),)) for one in plain]
    forked = Tree(ids(6), (ids(4), ids(7)), ([True] * 4, [False, *[True] * 6]))
    return batch_of([*trees, forked])


def gradients(
    kind: str, splits: Sequence[int | None], tied: bool, precision: str = "float32"
) -> list[dict[str, Any]]:
    """Loss, gradient norm and whole gradients of a batch, for each split into micro-batches."""
    objective = load_objective("next_token")
    found = []
    with joined(kind) as ranks:
        double = precision == "float32"
        module = ranks.wrap(fresh_policy(tied=tied, double=double), precision=precision)
        for split in splits:
            part, _ = train.backward_step(
                module, batch(0), objective, NoOptions(), ranks,
                micro_tokens=split, precision=precision,
            )  # fmt: skip
            whole = {
                name: joining.full(parameter.grad).double().numpy().copy()
                for name, parameter in ranks.bare(module).named_parameters()
            }
            norm = ranks.clip(module, 0.5)
            module.zero_grad()
            found.append(
                {
                    "ranks": (ranks.rank, ranks.count, ranks.kind),
                    "loss": float(ranks.sum(part.double())),
                    "norm": norm,
                    "gradients": whole,
                }
            )
    return found


def with_critic() -> Objective:
    """next_token, with a critic's values in the loss."""

    def loss(outputs: Any, batch: Any, options: Any) -> Loss:
        return Loss(outputs.values.square().sum() - outputs.logprobs.sum())

    plain = load_objective("next_token")
    return dataclasses.replace(plain, loss=loss, forward=lambda options: {"values": True})


def critic_gradients(kind: str) -> dict[str, Any]:
    """Whole gradients of a policy with a critic."""
    with joined(kind) as ranks:
        module = ranks.wrap(fresh_policy(critic=True))
        train.backward_step(module, batch(1), with_critic(), NoOptions(), ranks, micro_tokens=9)
        return {
            name: joining.full(parameter.grad).numpy()
            for name, parameter in ranks.bare(module).named_parameters()
        }


# --- steps, checkpoints ------------------------------------------------------------------------


def record(name: str, step: int) -> Checkpoint:
    """A checkpoint's record, as far as it matters here."""
    return Checkpoint(
        id=name,
        parent=None,
        stage="s",
        stage_id="stage",
        objective="next_token",
        step=step,
        tokens=0,
        total_tokens=0,
        final=False,
        seed=0,
        mixture={"a": 1.0},
        certificate=None,
        flops=0.0,
        parameters=1,
        cpu_threads=1,
        precision="float32",
        ranks=1,
    )


class Words:
    """Stands for a tokenizer: what a checkpoint saves of it."""

    def save_pretrained(self, folder: Path) -> None:
        """A file of its own."""
        (Path(folder) / "tokenizer_config.json").write_text('{"model_max_length": 64}\n')


def steps(kind: str, first: int, last: int, **options: Any) -> dict[str, Any]:
    """`steps_of` by the ranks of this launch."""
    with joined(kind) as ranks:
        return steps_of(ranks, first, last, **options)


def resumed(kind: str, root: Path, starts: Sequence[str]) -> list[dict[str, Any]]:
    """The whole weights after two steps more from each of the checkpoints (of step 2)."""
    with joined(kind) as ranks:
        return [
            steps_of(ranks, 2, 4, root=root, start=start, critic=True)["weights"]
            for start in starts
        ]


def steps_of(
    ranks: Ranks,
    first: int,
    last: int,
    *,
    root: Path,
    start: str | None = None,
    save: str | None = None,
    critic: bool = False,
) -> dict[str, Any]:
    """Optimizer steps `first` to `last`, from and to a checkpoint; weights and norms at the end.

    Weights are those of rank 0, whole; other ranks give none.
    """
    objective = with_critic() if critic else load_objective("next_token")
    policy = fresh_policy(critic=critic)
    folder = checkpoints.folder_of(root, start or "none")
    if start is not None:
        checkpoints.verify(folder)
        policy = loaded(folder, critic=critic)
    module = ranks.wrap(policy)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, fused=True)
    if start is not None:
        checkpoints.restore(folder, module, optimizer, ranks)
    norms = []
    for step in range(first, last):
        train.backward_step(module, batch(step), objective, NoOptions(), ranks, micro_tokens=25)
        norms.append(ranks.clip(module, 0.5))
        optimizer.step()
        optimizer.zero_grad()
    if save is not None:
        checkpoints.save(root, record(save, last), module, Words(), optimizer, ranks)
    weights = {name: value.numpy() for name, value in ranks.whole(module).items()}
    return {"norms": norms, "weights": weights}


def loaded(folder: Path, *, critic: bool = False) -> Policy:
    """The policy of a checkpoint's folder, as any Hugging Face tool reads it."""
    options = {"dtype": torch.float64, "attn_implementation": "sdpa", "use_safetensors": True}
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    value = Scorer.from_pretrained(folder / checkpoints.CRITIC, **options) if critic else None
    return Policy(model, value)
