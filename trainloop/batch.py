"""Documents without padding: trees of prompts and branches, and the flat batches made of them.

    pair  = Tree(prompt, (chosen, rejected), (all_true, all_true))
    batch = batch_of([pair, Tree((), (ids,), (targets,))])         # end to end
    mine  = micro_batches(batch, rank=0, ranks=2, tokens=4096)     # documents stay whole

    input_ids      5 6 7 | 1 2 | 3 || 8 9 10      prompt, two branches, then a plain document
    position_ids   0 1 2 | 3 4 | 3 || 0 1 2
    segments       [0 3), [3 5) after [0 3), [5 6) after [0 3), [6 9)

A batch computes what its documents would compute one by one: a token attends to its own segment
up to itself, and to the prompt before it. What it cannot do: branches of branches.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tree:
    """A prompt and what may follow it, the prompt encoded once.

    A plain document is `Tree((), (ids,), (targets,))`. A branch's first token is predicted by
    the prompt's last one; without a prompt nothing predicts it, and it is never a target.
    """

    prompt: Sequence[int]
    """Token ids; may be empty."""
    branches: tuple[Sequence[int], ...]
    """One or more sequences of token ids, none empty."""
    targets: tuple[Sequence[bool], ...]
    """Per branch, per token: does the loss ask for it?"""
    of_sequence: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Name -> a number per branch."""
    of_target: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    """Name -> per branch, a number per *target*."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents end to end, no padding: T tokens, S sequences (branches), N targets, D documents.

    A document's tokens are its prompt's, then each branch's. Documents, sequences, targets and
    segments stand in the order of their tokens.
    """

    input_ids: Ints
    """[T]"""
    position_ids: Ints
    """[T] from 0 in each document; a branch's go on from its prompt's end."""
    segments: Ints
    """[G, 4] start, end, prefix_start, prefix_end: tokens [start, end) attend causally to
    themselves and wholly to tokens [prefix_start, prefix_end). Without prefix both are `start`.
    A prompt is a segment, each branch is one."""
    predict_from: Ints
    """[N] index into T of the position whose output predicts the target."""
    labels: Ints
    """[N] token ids."""
    sequence: Ints
    """[N] number of the target's sequence, ascending."""
    document: Ints
    """[S] number of the sequence's document, ascending."""
    last: Ints
    """[S] index into T of the sequence's last token."""
    of_sequence: dict[str, Floats] = field(default_factory=dict)
    """Name -> [S]"""
    of_target: dict[str, Floats] = field(default_factory=dict)
    """Name -> [N]"""
    padding: bool = False
    """A micro-batch that only keeps a rank in step: its loss is multiplied by zero."""

    @property
    def tokens(self) -> int:
        """T"""
        return len(self.input_ids)

    @property
    def sequences(self) -> int:
        """S"""
        return len(self.last)

    @property
    def documents(self) -> int:
        """D"""
        return int(self.document[-1]) + 1 if len(self.document) else 0

    @property
    def target_tokens(self) -> int:
        """N"""
        return len(self.labels)


def batch_of(trees: Sequence[Tree]) -> Batch:
    """The trees as one batch, in their order. All of them carry the same `of_...` names."""
    parts: list[Sequence[int]] = []
    asked: list[Sequence[bool]] = []
    for tree in trees:
        assert tree.branches and len(tree.branches) == len(tree.targets)
        assert all(len(branch) for branch in tree.branches), "a branch has a token or more"
        parts += [tree.prompt, *tree.branches]
        asked += [[False] * len(tree.prompt), *tree.targets]
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    assert lengths.tolist() == [len(part) for part in asked], "a target flag per token"
    counts = np.array([len(tree.branches) for tree in trees], dtype=np.int64)
    batch = flat_batch(_joined(parts, np.int64), _joined(asked, np.bool_), lengths, counts)
    names = trees[0] if trees else Tree((), (), ())
    assert all(
        tree.of_sequence.keys() == names.of_sequence.keys()
        and tree.of_target.keys() == names.of_target.keys()
        for tree in trees
    ), "trees of a batch carry the same names"
    of_sequence = {
        name: _joined([tree.of_sequence[name] for tree in trees], np.float64)
        for name in names.of_sequence
    }
    of_target = {
        name: _joined([each for tree in trees for each in tree.of_target[name]], np.float64)
        for name in names.of_target
    }
    assert all(len(values) == batch.sequences for values in of_sequence.values())
    assert all(len(values) == batch.target_tokens for values in of_target.values())
    return replace(batch, of_sequence=of_sequence, of_target=of_target)


def _joined(parts: Sequence[Sequence[float]], kind: type) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, kind), *(np.asarray(part, kind) for part in parts)])


def flat_batch(ids: Ints, asked: npt.NDArray[np.bool_], lengths: Ints, counts: Ints) -> Batch:
    """The batch of documents that lie end to end in `ids` [T], with `asked` [T] their targets.

    `lengths` [D + S] has for each document its prompt's length, then its branches';
    `counts` [D] is the number of branches.
    """
    ends = np.cumsum(lengths)
    starts = ends - lengths
    is_prompt = np.zeros(len(lengths), dtype=np.bool_)
    is_prompt[np.cumsum(counts + 1) - counts - 1] = True
    # Of each part (prompt or branch): its document, and that document's prompt.
    of = np.repeat(np.arange(len(counts)), counts + 1)
    prompt_start, prompt_end = starts[is_prompt][of], ends[is_prompt][of]
    branch = ~is_prompt

    offset = np.where(is_prompt, 0, prompt_end - prompt_start)
    position_ids = np.arange(len(ids)) + np.repeat(offset - starts, lengths)

    alone = is_prompt | (prompt_start == prompt_end)
    segments = np.stack(
        [
            starts,
            ends,
            np.where(alone, starts, prompt_start),
            np.where(alone, starts, prompt_end),
        ],
        axis=1,
    )
    # The first token of a branch is predicted by the prompt's last token; by none without one.
    predictor = np.arange(-1, len(ids) - 1)
    predictor[starts[branch]] = np.where(alone, -1, prompt_end - 1)[branch]
    targets = np.flatnonzero(asked & (predictor >= 0))
    sequence = np.cumsum(branch) - 1
    return Batch(
        input_ids=ids,
        position_ids=position_ids,
        segments=segments[lengths > 0],
        predict_from=predictor[targets],
        labels=ids[targets],
        sequence=np.repeat(sequence, lengths)[targets],
        document=of[branch],
        last=ends[branch] - 1,
    )


def spans(starts: Ints, lengths: Ints) -> Ints:
    """All indices of the ranges [start, start + length), one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def micro_batches(batch: Batch, *, rank: int, ranks: int, tokens: int | None) -> list[Batch]:
    """This rank's part of the batch in pieces of at most `tokens` tokens; a pure function.

    Documents are never split (one longer than `tokens` is a piece of its own), and go to the
    pieces of all ranks longest first, each to the emptiest (Graham's LPT rule, 1969): token
    counts are balanced. Every rank gets equally many pieces, since ranks must run equally many
    backward passes; one short of documents gets the batch's shortest document marked `padding`.
    """
    assert batch.documents, "a batch holds a document or more"
    cuts = _document_cuts(batch)
    sizes = np.diff(cuts.tokens)
    pieces = 1
    if tokens is not None:
        # Two documents longer than half a piece never share one.
        full = float(np.minimum(sizes, tokens).sum() / tokens)
        least = max(full, int((sizes > tokens / 2).sum()))
        pieces = max(1, int(np.ceil(least / ranks)))
    while True:
        bins = _spread(sizes, pieces * ranks)
        fits = tokens is None or all(
            len(documents) == 1 or sizes[documents].sum() <= tokens for documents in bins
        )
        if fits:
            break
        pieces += max(1, pieces // 8)
    if ranks * pieces == 1:
        return [batch]
    shortest = np.array([np.argmin(sizes)])
    return [
        _some(batch, cuts, documents)
        if len(documents)
        else replace(_some(batch, cuts, shortest), padding=True)
        for documents in bins[rank::ranks]
    ]


def _spread(sizes: Ints, bins: int) -> list[Ints]:
    """Document numbers of each bin, ascending: longest document first, to the emptiest bin."""
    filled = [(0, number) for number in range(bins)]
    members: list[list[int]] = [[] for _ in range(bins)]
    for document in np.argsort(-sizes, kind="stable").tolist():
        size, number = filled[0]
        members[number].append(document)
        heapq.heapreplace(filled, (size + int(sizes[document]), number))
    return [np.array(sorted(each), dtype=np.int64) for each in members]


@dataclass(frozen=True, slots=True)
class _Cuts:
    """Where each document of a batch begins, and the last one ends: all [D + 1]."""

    tokens: Ints
    segments: Ints
    sequences: Ints
    targets: Ints


def _document_cuts(batch: Batch) -> _Cuts:
    sequences = np.searchsorted(batch.document, np.arange(batch.documents + 1))
    tokens = np.concatenate([[0], batch.last[sequences[1:] - 1] + 1])
    return _Cuts(
        tokens=tokens,
        segments=np.searchsorted(batch.segments[:, 0], tokens),
        sequences=sequences,
        targets=np.searchsorted(batch.sequence, sequences),
    )


def _some(batch: Batch, cuts: _Cuts, documents: Ints) -> Batch:
    """The batch of these documents (ascending numbers) alone."""

    def taken(edges: Ints) -> tuple[Ints, Ints]:
        """Indices of the documents' things, and by how much each thing's own index moves."""
        starts, sizes = edges[documents], edges[documents + 1] - edges[documents]
        return spans(starts, sizes), np.cumsum(sizes) - sizes - starts

    (tokens, token_moves), (sequences, sequence_moves) = taken(cuts.tokens), taken(cuts.sequences)
    (segments, _), (targets, _) = taken(cuts.segments), taken(cuts.targets)

    def each(edges: Ints, moves: Ints) -> Ints:
        return np.repeat(moves, edges[documents + 1] - edges[documents])

    return Batch(
        input_ids=batch.input_ids[tokens],
        position_ids=batch.position_ids[tokens],
        segments=batch.segments[segments] + each(cuts.segments, token_moves)[:, None],
        predict_from=batch.predict_from[targets] + each(cuts.targets, token_moves),
        labels=batch.labels[targets],
        sequence=batch.sequence[targets] + each(cuts.targets, sequence_moves),
        document=np.repeat(
            np.arange(len(documents)), cuts.sequences[documents + 1] - cuts.sequences[documents]
        ),
        last=batch.last[sequences] + each(cuts.sequences, token_moves),
        of_sequence={name: values[sequences] for name, values in batch.of_sequence.items()},
        of_target={name: values[targets] for name, values in batch.of_target.items()},
        padding=batch.padding,
    )
