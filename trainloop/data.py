"""From clean shards to batches, each a pure function of (data, mixture, seed, step).

    tokens = tokenise("facts", files, tokenizer, objective, ...)     # cached, memory-mapped
    plan   = plan_batches({"facts": tokens, ...}, stage, seed=1)      # the whole stage, decided
    batch  = plan.batch(step)                                         # nothing to save, or resume

Mixing: the document that brings source j from c to c + n tokens is due at (c + n/2) / w_j, and
documents are read in the order of their due times. So the share of each source in any prefix is
within one document of its weight. A source that runs out starts again in a new order; `epochs`
says how often each one is read.

Packing: next-token documents are cut where a row ends; conversations stay whole, a row taking
each next one that still fits. Every document in a row keeps its own positions (from 0) and
attends to itself alone (a block-diagonal mask), so a row computes what its documents would
compute one by one. What it cannot do: best-fit packing, or sources too large for one
machine's disk.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one optimizer step, all arrays [rows, length]."""

    input_ids: Ints
    position_ids: Ints
    segments: npt.NDArray[np.int32]
    """Which document of the row a token belongs to; -1 for padding."""
    labels: Ints
    """The next token where the loss asks for it, else -100."""

    @property
    def target_tokens(self) -> int:
        """Tokens the loss is summed over."""
        return int((self.labels >= 0).sum())


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
