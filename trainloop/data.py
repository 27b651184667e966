"""From clean shards to batches, each a pure function of (data, mixture, seed, step).

tokens = tokenise("facts", files, tokenizer, objective, ...)     # cached, memory-mapped
plan   = plan_batches({"facts": tokens, ...}, stage, objective, seed=1)
batch  = plan.batch(step)                                         # nothing to save, or resume
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evalsuite.errors import UserError
from evalsuite.files import content_id, publish, read_json, read_jsonl, write_json
from evalsuite.progress import Progress, silent
from trainloop.records import Stage

if TYPE_CHECKING:
    from trainloop.objectives import Objective

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
        asked += [np.zeros(len(tree.prompt), dtype=np.bool_), *tree.targets]
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    assert lengths.tolist() == [len(part) for part in asked], "a target flag per token"
    counts = np.array([len(tree.branches) for tree in trees], dtype=np.int64)
    batch = _flat_batch(_joined(parts, np.int64), _joined(asked, np.bool_), lengths, counts)
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


def _flat_batch(ids: Ints, asked: npt.NDArray[np.bool_], lengths: Ints, counts: Ints) -> Batch:
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
        moves = np.cumsum(sizes) - sizes - starts
        index = np.arange(sizes.sum()) - np.repeat(moves, sizes)
        return index, moves

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


FORMAT = 2
"""Raised when the same documents would give other token files."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A source's documents as one token array; document d is [offsets[d], offsets[d + 1])."""

    source: str
    tokens: npt.NDArray[np.uint32]
    targets: npt.NDArray[np.bool_]
    """Whether the loss asks for this token."""
    offsets: Ints
    too_long: int
    """Documents cut at the sequence length (whole-document objectives only)."""

    @property
    def lengths(self) -> Ints:
        """Tokens per document."""
        return np.diff(self.offsets)


def tokenise(
    name: str,
    files: Sequence[Path],
    tokenizer: Any,
    tokenizer_id: str,
    objective: Objective,
    sequence_length: int,
    *,
    root: Path,
    data_id: str,
    progress: Progress = silent,
) -> Tokens:
    """Encode every document of `files` once; later calls map the cached arrays from disk.

    `data_id` names the files' content. Raises UserError when no token is a target, as
    happens with a chat template that marks no assistant turn.
    """
    longest = None if objective.splits_documents else sequence_length
    identity = [FORMAT, data_id, tokenizer_id, objective.name, objective.version, longest]
    folder = root / "tokens" / content_id(identity)
    if not folder.is_dir():
        with publish(folder) as work:
            _encode_all(name, files, tokenizer, objective, longest, work, progress)
    about = read_json(folder / "tokens.json")
    return Tokens(
        source=name,
        tokens=np.load(folder / "tokens.npy", mmap_mode="r"),
        targets=np.load(folder / "targets.npy", mmap_mode="r"),
        offsets=np.load(folder / "offsets.npy"),
        too_long=about["too_long"],
    )


def _encode_all(
    name: str,
    files: Sequence[Path],
    tokenizer: Any,
    objective: Objective,
    longest: int | None,
    work: Path,
    progress: Progress,
) -> None:
    label = f"tokens {name}"
    ids: list[npt.NDArray[np.uint32]] = []
    targets: list[npt.NDArray[np.bool_]] = []
    too_long = empty = 0
    for number, file in enumerate(files):
        rows = [row for _, row in read_jsonl(file)]
        for start in range(0, len(rows), 1000):
            chunk = rows[start : start + 1000]
            for document, wanted in objective.encode(chunk, tokenizer):
                if not len(document):  # nothing to train on, and a row cannot hold nothing
                    empty += 1
                    continue
                if longest is not None and len(document) > longest:
                    too_long += 1
                    document, wanted = document[:longest], wanted[:longest]
                ids.append(np.asarray(document, dtype=np.uint32))
                targets.append(np.asarray(wanted, dtype=np.bool_))
            done = number + (start + len(chunk)) / max(len(rows), 1)
            progress(label, min(done, len(files) - 1e-3), len(files))
    progress(label, len(files), len(files))
    if empty and not ids:
        raise UserError(
            f"source {name!r}: all its {empty:,} documents become no token at all; look at what "
            "the model's chat_template makes of them"
        )
    if not ids:
        raise UserError(f"source {name!r} holds no document after decontamination")
    flat_targets = np.concatenate(targets)
    if not flat_targets.any():
        raise UserError(
            f"source {name!r}: no token is a target of objective {objective.name!r}: "
            "its documents have no assistant turn, or all are longer than sequence_length"
        )
    offsets = np.zeros(len(ids) + 1, dtype=np.int64)
    np.cumsum([len(document) for document in ids], out=offsets[1:])
    np.save(work / "tokens.npy", np.concatenate(ids))
    np.save(work / "targets.npy", flat_targets)
    np.save(work / "offsets.npy", offsets)
    about = {"source": name, "documents": len(ids), "tokens": int(offsets[-1])}
    write_json(work / "tokens.json", {**about, "too_long": too_long, "empty": empty})


def mixture_order(
    lengths: Mapping[str, Ints], weights: Mapping[str, float], *, tokens: int, seed: int
) -> tuple[list[str], Ints, Ints]:
    """Names, and per read document the index of its source and of the document in it.

    The order holds at least `tokens` tokens. Source names, not positions, seed the
    permutations: adding a source leaves the others' orders as they were.
    """
    # In the order of their names: how a recipe orders its mixture changes nothing.
    names = sorted(name for name in lengths if weights[name] > 0)
    total = sum(weights[name] for name in names)
    due_parts, source_parts, document_parts = [], [], []
    for number, name in enumerate(names):
        share = weights[name] / total
        wanted = tokens * share + int(lengths[name].max())
        size = int(lengths[name].sum())
        epochs = int(np.ceil(wanted / size))
        documents = np.concatenate(
            [
                np.random.default_rng([seed, zlib.crc32(name.encode()), epoch]).permutation(
                    len(lengths[name])
                )
                for epoch in range(epochs)
            ]
        )
        read = lengths[name][documents]
        due = (np.cumsum(read) - read / 2) / share
        # Everything due before `horizon` adds up to `tokens` or more, whatever the lengths.
        horizon = tokens + float(lengths[name].max()) / share
        keep = due <= horizon
        due_parts.append(due[keep])
        document_parts.append(documents[keep])
        source_parts.append(np.full(int(keep.sum()), number))
    due_all = np.concatenate(due_parts)
    order = np.argsort(due_all, kind="stable")
    return names, np.concatenate(source_parts)[order], np.concatenate(document_parts)[order]


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """All rows of a stage: row r holds pieces [row_starts[r], row_starts[r + 1])."""

    sources: tuple[Tokens, ...]
    piece_source: Ints
    piece_start: Ints
    """First token of the piece, in its source's token array."""
    piece_length: Ints
    row_starts: Ints
    sequence_length: int
    batch_rows: int
    steps: int
    epochs: dict[str, float]
    """Source name -> how often the stage reads its tokens."""

    def batch(self, step: int) -> Batch:
        """The rows of optimizer step `step`, counted from 0."""
        assert 0 <= step < self.steps
        shape = (self.batch_rows, self.sequence_length)
        ids = np.zeros(shape, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        segments = np.full(shape, -1, dtype=np.int32)
        labels = np.full(shape, -100, dtype=np.int64)
        for row in range(self.batch_rows):
            first = step * self.batch_rows + row
            at = 0
            for number, piece in enumerate(range(*self.row_starts[first : first + 2])):
                source = self.sources[self.piece_source[piece]]
                start, length = int(self.piece_start[piece]), int(self.piece_length[piece])
                here = slice(at, at + length)
                document = source.tokens[start : start + length].astype(np.int64)
                wanted = source.targets[start : start + length]
                ids[row, here] = document
                positions[row, here] = np.arange(length)
                segments[row, here] = number
                following = np.where(wanted[1:], document[1:], -100)
                labels[row, at : at + length - 1] = following
                at += length
        return Batch(ids, positions, segments, labels)


def plan_batches(
    sources: Mapping[str, Tokens], stage: Stage, objective: Objective, *, seed: int
) -> BatchPlan:
    """Decide every row of `stage`: a pure function of its arguments."""
    rows = stage.steps * stage.batch_rows
    lengths = {name: tokens.lengths for name, tokens in sources.items()}
    budget = rows * stage.sequence_length
    names, source, document = mixture_order(lengths, stage.mixture, tokens=budget, seed=seed)
    used = tuple(sources[name] for name in names)
    starts = np.empty(len(source), dtype=np.int64)
    sizes = np.empty(len(source), dtype=np.int64)
    for number, tokens in enumerate(used):
        of_source = source == number
        starts[of_source] = tokens.offsets[document[of_source]]
        sizes[of_source] = tokens.lengths[document[of_source]]
    pack = _cut_rows if objective.splits_documents else _whole_rows
    piece, start, length, row_starts = pack(starts, sizes, stage.sequence_length, rows)
    read = np.bincount(source[piece], weights=length, minlength=len(used))
    return BatchPlan(
        sources=used,
        piece_source=source[piece],
        piece_start=start,
        piece_length=length,
        row_starts=row_starts,
        sequence_length=stage.sequence_length,
        batch_rows=stage.batch_rows,
        steps=stage.steps,
        epochs={t.source: float(read[n] / t.offsets[-1]) for n, t in enumerate(used)},
    )


def _cut_rows(
    starts: Ints, sizes: Ints, row_length: int, rows: int
) -> tuple[Ints, Ints, Ints, Ints]:
    """Documents end to end, cut each `row_length` tokens: document, start, length; row starts."""
    ends = np.cumsum(sizes)
    begins = ends - sizes
    assert ends[-1] >= rows * row_length
    # A piece begins where a document or a row begins.
    cuts = np.union1d(begins, np.arange(rows + 1) * row_length)
    cuts = cuts[cuts <= rows * row_length]
    at, length = cuts[:-1], np.diff(cuts)
    document = np.searchsorted(ends, at, side="right")
    row_starts = np.searchsorted(at, np.arange(rows + 1) * row_length)
    return document, starts[document] + (at - begins[document]), length, row_starts


def _whole_rows(
    starts: Ints, sizes: Ints, row_length: int, rows: int
) -> tuple[Ints, Ints, Ints, Ints]:
    """Whole documents, a new row when the next one does not fit."""
    row_starts = [0]
    filled = 0
    for taken, size in enumerate(sizes.tolist()):
        if filled + size > row_length:
            row_starts.append(taken)
            filled = 0
            if len(row_starts) > rows:
                break
        filled += size
    assert len(row_starts) > rows, "the order holds tokens for every row"
    piece = np.arange(row_starts[rows])
    return piece, starts[piece], sizes[piece], np.asarray(row_starts[: rows + 1])
