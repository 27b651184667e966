"""What the objectives on pairs share: encoding, sums per sequence, the loss and its measures.

    {"messages": [user: "2 + 2"], "chosen": "4", "rejected": "5"}
        ->  Tree(prompt = "Q: 2 + 2\\nA:", branches = (" 4</s>", " 5</s>"))
    rewards = beta * (sums(outputs.logprobs, batch) - batch.of_sequence["reference"])
    pair_loss(rewards, batch)                   # Bradley-Terry: -log sigmoid(chosen - rejected)

Sequence 2i of a batch is pair i's chosen answer, sequence 2i + 1 its rejected one. The tokens are
those that `sft` would train on: each conversation is rendered and encoded whole, and the prompt
is what both encodings begin with, so that it is read once. A pair of which either answer has no
target (cut away, or empty) can say nothing about the two: its loss and its gradient are zero, it
is not counted, and `total` leaves it out.

A tie counts as half right: a policy that equals its reference has accuracy 0.5, as guessing has.

What it cannot do: more than two answers per prompt, or a strength of preference per pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evalsuite.errors import UserError
from trainloop.data import Tree
from trainloop.objectives import Loss
from trainloop.objectives.next_token import render, spans_of

if TYPE_CHECKING:
    from torch import Tensor

    from trainloop.data import Batch
    from trainloop.policy import Tensors


# --- rows to trees ------------------------------------------------------------------------------


def encode(rows: Iterable[dict[str, Any]], tokenizer: Any) -> Iterator[Tree]:
    """A Tree per row {"messages", "chosen", "rejected"}: one prompt, the chosen branch first.

    Targets are the tokens that begin in the answer, its end token included. A row whose chosen
    or rejected answer becomes no token has no target at all. Raises UserError for a tokenizer
    without chat template, and for a row that is no pair.
    """
    rows = list(rows)
    texts: list[str] = []
    starts: list[int] = []
    for row in rows:
        start, chosen, rejected = _rendered(row, tokenizer)
        texts += [chosen, rejected]
        starts.append(start)
    if not texts:
        return
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        both = slice(2 * number, 2 * number + 2)
        yield _tree(row, ids[both], [spans_of(each) for each in offsets[both]], start)


def _rendered(row: dict[str, Any], tokenizer: Any) -> tuple[int, str, str]:
    """Where the answer begins in both texts (in characters), and the two conversations."""
    for name, kind in (("messages", list), ("chosen", str), ("rejected", str)):
        if not isinstance(row.get(name), kind) or (name == "messages" and not row[name]):
            raise UserError(
                f"document {row.get('id')!r} is no pair: it has no {name!r}; an objective on pairs "
                "needs sources with prompt, chosen and rejected"
            )
    if not tokenizer.chat_template:
        raise UserError(
            "an objective on pairs needs a chat template, and the tokenizer has none: "
            "give the recipe's model a chat_template"
        )
    prompt = render(tokenizer, row["messages"], add_generation_prompt=True)
    texts = []
    for name in ("chosen", "rejected"):
        answer = {"role": "assistant", "content": row[name]}
        text = render(tokenizer, [*row["messages"], answer])
        if not text.startswith(prompt):
            raise UserError(
                f"document {row.get('id')!r}: the chat template does not render the prompt as a "
                f"prefix of prompt and {name} answer, so the answer's tokens cannot be told; give "
                "the recipe's model a chat_template that does"
            )
        texts.append(text)
    return len(prompt), texts[0], texts[1]


def _tree(
    row: dict[str, Any],
    ids: Sequence[Sequence[int]],
    offsets: Sequence[Sequence[tuple[int, int]]],
    start: int,
) -> Tree:
    shortest = min(map(len, ids))
    if not shortest:
        raise UserError(
            f"document {row.get('id')!r}: the chat template makes no token of it; mend the "
            "recipe's model.chat_template"
        )
    # A token across the prompt's end may differ between the answers: then it is theirs, unasked.
    shared = 0
    while shared < shortest - 1 and (
        ids[0][shared] == ids[1][shared] and max(each[shared][0] for each in offsets) < start
    ):
        shared += 1
    targets = [[begin >= start and end > begin for begin, end in each] for each in offsets]
    comparable = all(map(any, targets))
    return Tree(
        tuple(ids[0][:shared]),
        tuple(tuple(each[shared:]) for each in ids),
        tuple(tuple(flag and comparable for flag in each[shared:]) for each in targets),
    )


# --- numbers per sequence -----------------------------------------------------------------------


def sums(logprobs: Tensor, batch: Tensors) -> Tensor:
    """[S] summed log-probabilities of each sequence's targets, from [N]; 0 without a target.

    Added up in float64, so that neither their order nor their number costs digits.
    """
    import torch

    zeros = torch.zeros(len(batch.last), dtype=torch.float64, device=logprobs.device)
    return zeros.index_add(0, batch.sequence, logprobs.double()).to(logprobs.dtype)


def lengths(batch: Tensors) -> Tensor:
    """[S] targets of each sequence, int64."""
    import torch

    return torch.bincount(batch.sequence, minlength=len(batch.last))


def means(sequence_sums: Tensor, batch: Tensors) -> Tensor:
    """[S] `sums` per target; 0 without a target."""
    return sequence_sums / lengths(batch).clamp(min=1)


def comparable(batch: Tensors) -> Tensor:
    """[D] whether both answers of a pair have a target."""
    return (lengths(batch).view(-1, 2) > 0).all(1)


def total(batch: Batch, options: Any) -> float:
    """The pairs of the batch that count: what their summed loss is divided by; 1 if none does."""
    pairs = np.arange(batch.sequences) // 2
    assert np.array_equal(batch.document, pairs), "each document has two branches"
    counts = np.bincount(batch.sequence, minlength=batch.sequences)
    return float(max(1, int((np.minimum(counts[0::2], counts[1::2]) > 0).sum())))


# --- the loss -----------------------------------------------------------------------------------


def check_options(name: str, beta: float, label_smoothing: float) -> None:
    """UserError unless beta is above 0 and label_smoothing in [0, 0.5)."""
    if not 0 < beta < float("inf"):
        raise UserError(f"{name}: beta is {beta}, but must be above 0")
    if not 0 <= label_smoothing < 0.5:
        raise UserError(
            f"{name}: label_smoothing is {label_smoothing}, but must lie in [0, 0.5): it is the "
            "share of pairs whose answers are taken to be swapped"
        )


def pair_loss(
    rewards: Tensor,
    batch: Tensors,
    *,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
    log_ratio: Tensor | None = None,
) -> Loss:
    """Bradley-Terry's negative log-likelihood of the pairs, summed, from rewards [S].

        h = reward(chosen) - reward(rejected) - margin
        -(1 - e) log sigmoid(h) - e log sigmoid(-h)

    e is `label_smoothing`, the chance that a pair's answers are swapped (cDPO: Mitchell 2023,
    "A note on DPO with noisy preferences"). Metrics, as (sum, count): accuracy (a tie is half),
    margin, reward_chosen and reward_rejected over pairs; and, given `log_ratio` [S], its mean
    over sequences: log(policy / reference) of the answers, in nats, which is the KL divergence
    only where the policy itself wrote them.
    """
    from torch.nn.functional import logsigmoid

    chosen, rejected = rewards.view(-1, 2).unbind(1)
    counted = comparable(batch)
    logits = chosen - rejected - margin
    losses = -(1 - label_smoothing) * logsigmoid(logits)
    if label_smoothing:
        losses = losses - label_smoothing * logsigmoid(-logits)
    pairs = counted.sum()
    found = {
        "accuracy": 0.5 + 0.5 * (chosen - rejected).detach().sign(),
        "margin": (chosen - rejected).detach(),
        "reward_chosen": chosen.detach(),
        "reward_rejected": rejected.detach(),
    }
    metrics = {name: (_sum(values, counted), pairs) for name, values in found.items()}
    if log_ratio is not None:
        of_pair = log_ratio.detach().view(-1, 2).sum(1)
        metrics["log_ratio"] = (_sum(of_pair, counted), 2 * pairs)
    return Loss(_sum(losses, counted), metrics)


def _sum(values: Tensor, counted: Tensor) -> Tensor:
    """The sum of the counted values; no gradient, nor a NaN, comes from the others."""
    return values.masked_fill(~counted, 0.0).sum()
