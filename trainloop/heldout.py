"""What a model makes of documents it is not trained on, at each checkpoint of a stage.

    measure(module, tokens, objective, options, ...)
    {"loss": 2.9, "bits_per_byte": 1.31, "documents": 500}      texts and conversations
    {"loss": 0.5, "accuracy": 0.82, "margin": 1.4, ...}         pairs: the objective's own metrics

Bits per byte: the loss of all targets over their bytes in UTF-8, in base 2; so it can be compared
between tokenizers. A text longer than the stage's sequence_length is measured in pieces of it, as
it is trained. It cannot say how sure a number is: a suite of bits per byte does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evalsuite.errors import UserError
from evalsuite.livemodel import modes_put_back
from trainloop.data import Tokens, Tree, batch_of
from trainloop.objectives import Floats, Objective
from trainloop.packing import cut_long
from trainloop.policy import tensors
from trainloop.train import share_of

if TYPE_CHECKING:
    from trainloop.ranks import Ranks
    from trainloop.records import Stage

CHUNK_TOKENS = 16_384
"""Documents are measured together up to so many tokens, over all ranks."""


@torch.no_grad()
def measure(
    module: Any,
    tokens: Tokens,
    objective: Objective,
    options: Any,
    *,
    stage: Stage,
    ranks: Ranks,
    tokenizer: Any,
    references: Floats | None = None,
) -> dict[str, float]:
    """The mean loss of all documents of a source, and the means of the objective's metrics.

    `references` [documents, branches] are the reference's summed log-probabilities, where the
    objective needs them. All ranks call it, and all get the same.
    """
    sums = {"loss": [0.0, 0.0]}
    size = 0
    forward = objective.forward(options)
    with modes_put_back(module):
        longest = stage.sequence_length if objective.documents == "text" else None
        for first, chunk in _chunks(tokens, longest):
            batch = batch_of(chunk)
            if references is not None:
                known = references[first : first + len(chunk)].astype(np.float64).ravel()
                batch = replace(batch, of_sequence={**batch.of_sequence, "reference": known})
            size += sum(_bytes(tree, tokenizer) for tree in chunk if len(tree.branches) == 1)
            mine: list[tuple[str, float, float]] = []
            for piece in share_of(batch, ranks, stage.micro_tokens):
                there = tensors(piece, ranks.device)
                with ranks.autocast(stage.precision):
                    outputs = module(there, **forward)
                if not piece.padding:
                    said = objective.loss(outputs, there, options)
                    mine.append(("loss", float(said.total), objective.total(piece, options)))
                    mine += [(name, float(s), float(c)) for name, (s, c) in said.metrics.items()]
            for name, total, count in (row for rows in ranks.gather(mine) for row in rows):
                known_sum = sums.setdefault(name, [0.0, 0.0])
                known_sum[0] += total
                known_sum[1] += count
    if not sums["loss"][1] or not math.isfinite(sums["loss"][0]):
        raise UserError(
            f"stage {stage.name!r}: held-out source {tokens.source!r} cannot be measured: its loss "
            f"is {sums['loss'][0]} over {sums['loss'][1]:,.0f}; look at its documents"
        )
    found = {name: total / count for name, (total, count) in sums.items() if count}
    if size:
        found["bits_per_byte"] = sums["loss"][0] / math.log(2) / size
    return found | {"documents": float(tokens.documents)}


def _bytes(tree: Tree, tokenizer: Any) -> int:
    """Bytes of the text that the document's targets are; nothing predicts a first token."""
    first = 0 if len(tree.prompt) else 1
    both = zip(tree.branches[0][first:], tree.targets[0][first:], strict=True)
    wanted = [token for token, asked in both if asked]
    return len(tokenizer.decode(wanted, skip_special_tokens=True).encode("utf-8"))


def _chunks(tokens: Tokens, longest: int | None) -> Iterator[tuple[int, list[Tree]]]:
    """All documents in chunks of about CHUNK_TOKENS, each with its first one's number.

    Texts longer than `longest` come in pieces, as they do in training, and pieces are counted.
    """
    lengths = tokens.lengths
    pieces = cut_long(lengths, longest or int(lengths.max()))
    chunk: list[Tree] = []
    held = number = 0
    for document, start, length in zip(*(each.tolist() for each in pieces), strict=True):
        whole = length == lengths[document]
        chunk.append(tokens.tree(document) if whole else tokens.tree(document, start, length))
        held, number = held + length, number + 1
        if held >= CHUNK_TOKENS:
            yield number - len(chunk), chunk
            chunk, held = [], 0
    if chunk:
        yield number - len(chunk), chunk
