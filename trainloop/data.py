"""From clean shards to batches, each a pure function of (data, mixture, seed, step).

    tokens = tokenise("facts", files, tokenizer, ...)                # cached, memory-mapped
    plan   = plan_batches({"facts": tokens, ...}, stage, objective, seed=1)
    batch  = plan.batch(step)                                         # nothing to save, or resume
    pieces = micro_batches(batch, rank=0, ranks=2, tokens=4096)       # one rank's part

Two kinds of stage: one whose batch counts tokens packs rows of at most sequence_length tokens,
and a text longer than that is cut into pieces; one whose batch counts documents takes them
whole. batch.py has the batches, packing.py decides the order and the rows. What it cannot do:
sources too large for one machine's disk, or documents that are made while training (see
`Objective.rollout`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evalsuite.errors import UserError
from evalsuite.files import content_id, publish, read_json, read_jsonl, write_json
from evalsuite.progress import Progress, silent
from trainloop import packing
from trainloop.batch import Batch, Ints, Tree, batch_of, flat_batch, micro_batches, spans
from trainloop.records import Stage
from trainloop.sources import SHARD_DOCUMENTS

if TYPE_CHECKING:
    from trainloop.objectives import Objective

__all__ = [
    "Batch",
    "BatchPlan",
    "Tokens",
    "Tree",
    "batch_of",
    "micro_batches",
    "plan_batches",
    "prefetched",
    "tokenise",
]

FORMAT = 3
"""Raised when the same documents would give other token files."""
PLAN_VERSION = 1
"""Raised when the same data, mixture and seed would give other batches."""
CHUNK = 1000
"""Documents encoded at once."""
DROPPED = ("no token", "no target", "chosen equals rejected", "longer than sequence_length")
"""Why a row may be no document."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A source's documents, tokenised, on disk: part p is tokens [offsets[p], offsets[p + 1])."""

    source: str
    id: str
    """Hash of the documents, the tokenizer and the encoding."""
    tokens: npt.NDArray[np.uint32]
    targets: npt.NDArray[np.bool_]
    """Whether the loss asks for this token."""
    offsets: Ints
    parts: int
    """Parts per document: 1, or 3 in pairs (prompt, chosen, rejected)."""
    too_long: int
    """Documents cut at sequence_length, or dropped for being longer."""
    dropped: dict[str, int]
    """Why -> how many documents are not here."""
    rows: npt.NDArray[np.uint8] | None = None
    """Of prompts: the source's rows as JSON, end to end."""
    row_offsets: Ints | None = None

    @property
    def documents(self) -> int:
        """How many there are."""
        return (len(self.offsets) - 1) // self.parts

    @property
    def lengths(self) -> Ints:
        """Tokens per document."""
        return np.diff(self.offsets[:: self.parts])

    def tree(self, document: int, start: int | None = None, length: int | None = None) -> Tree:
        """A document, or `length` of its tokens from `start` on (of one without a prompt)."""
        first = document * self.parts
        cuts = self.offsets[first : first + self.parts + 1].tolist()
        if start is not None or length is not None:
            assert self.parts == 1, "only plain documents are cut"
            begin = cuts[0] + (start or 0)
            cuts = [begin, cuts[1] if length is None else begin + length]
        spans = [slice(*span) for span in pairwise(cuts)]
        prompt = self.tokens[spans.pop(0)].tolist() if self.parts > 1 else ()
        return Tree(
            prompt,
            tuple(self.tokens[span].tolist() for span in spans),
            tuple(self.targets[span].tolist() for span in spans),
        )

    def row(self, document: int) -> dict[str, Any]:
        """The source's row that a prompt was made from."""
        assert self.rows is not None and self.row_offsets is not None, "only prompts keep rows"
        start, end = self.row_offsets[document : document + 2]
        row: dict[str, Any] = json.loads(self.rows[start:end].tobytes())
        return row


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

    `data_id` names the files' content. A conversation longer than `sequence_length` loses its
    end; a pair loses its responses' ends, but not below half of the length, and then its
    prompt's beginning. What has to be whole is dropped instead: a prompt to be answered, and a
    pair whose ends are scored. Raises UserError when nothing is left, as happens with a chat
    template that marks no assistant turn.
    """
    longest = None if objective.documents == "text" else sequence_length
    kind = objective.documents
    identity = [FORMAT, data_id, tokenizer_id, objective.name, objective.version, kind, longest]
    folder = root / "tokens" / content_id(identity)
    if not folder.is_dir():
        with publish(folder) as work:
            _encode_all(name, files, tokenizer, objective, longest, work, progress)
    about = read_json(folder / "tokens.json")
    prompts = kind == "prompt"
    return Tokens(
        source=name,
        id=folder.name,
        tokens=_mapped(folder / "tokens.u32", np.uint32, about["tokens"]),
        targets=_mapped(folder / "targets.bool", np.bool_, about["tokens"]),
        offsets=np.load(folder / "offsets.npy"),
        parts=_parts(objective),
        too_long=about["too_long"],
        dropped=about["dropped"],
        rows=_mapped(folder / "rows.jsonl", np.uint8, about["row_bytes"]) if prompts else None,
        row_offsets=np.load(folder / "row_offsets.npy") if prompts else None,
    )


def _parts(objective: Objective) -> int:
    return 3 if objective.documents == "pair" else 1


def _mapped(path: Path, kind: Any, count: int) -> npt.NDArray[Any]:
    """The file as an array of `count` numbers; UserError when it is not so long."""
    size = path.stat().st_size if path.is_file() else 0
    if size != count * np.dtype(kind).itemsize:
        raise UserError(f"{path.parent}: {path.name} is damaged; delete the folder and run again")
    # A plain view: indexing np.memmap itself is slow.
    return np.asarray(np.memmap(path, dtype=kind, mode="r"))


def _encode_all(
    name: str,
    files: Sequence[Path],
    tokenizer: Any,
    objective: Objective,
    longest: int | None,
    work: Path,
    progress: Progress,
) -> None:
    """Write the token files of a source into the folder `work`."""
    counts: Counter[str] = Counter()
    lengths: list[int] = []
    row_sizes: list[int] = []
    prompts = objective.documents == "prompt"
    with (
        (work / "tokens.u32").open("wb") as tokens,
        (work / "targets.bool").open("wb") as targets,
        (work / "rows.jsonl").open("wb") as kept,
    ):
        for rows in _chunks(name, files, progress):
            counts["rows"] += len(rows)
            for row, tree in zip(rows, objective.encode(rows, tokenizer), strict=True):
                assert not tree.of_sequence and not tree.of_target, "sources hold tokens alone"
                fitted = _fitted(tree, objective, longest, counts)
                if fitted is None:
                    continue
                parts = [fitted.prompt] if _parts(objective) > 1 else []
                asked = [[False] * len(fitted.prompt)] if parts else []
                for part, wanted in zip(
                    [*parts, *fitted.branches], [*asked, *fitted.targets], strict=True
                ):
                    assert len(part) == len(wanted), "a target flag per token"
                    tokens.write(np.asarray(part, dtype=np.uint32).tobytes())
                    targets.write(np.asarray(wanted, dtype=np.bool_).tobytes())
                    lengths.append(len(part))
                if prompts:
                    row_sizes.append(kept.write(json.dumps(row).encode() + b"\n"))
    if not lengths:
        raise _nothing_left(name, objective, longest, counts)
    np.save(work / "offsets.npy", _offsets(lengths))
    if prompts:
        np.save(work / "row_offsets.npy", _offsets(row_sizes))
    about = {
        "source": name,
        "documents": len(lengths) // _parts(objective),
        "tokens": sum(lengths),
        "row_bytes": sum(row_sizes),
        "too_long": counts["too_long"],
        "dropped": {why: counts[why] for why in DROPPED if counts[why]},
    }
    write_json(work / "tokens.json", about)


def _offsets(sizes: Sequence[int]) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def _chunks(name: str, files: Sequence[Path], progress: Progress) -> Iterator[list[dict[str, Any]]]:
    """The rows of all files, CHUNK at a time."""
    label = f"tokens {name}"
    for number, file in enumerate(files):
        rows = (row for _, row in read_jsonl(file))
        read = 0
        while chunk := list(islice(rows, CHUNK)):
            yield chunk
            read += len(chunk)
            progress(label, number + min(read / SHARD_DOCUMENTS, 0.999), len(files))
    progress(label, len(files), len(files))


def _fitted(
    tree: Tree, objective: Objective, longest: int | None, counts: Counter[str]
) -> Tree | None:
    """The document, cut to `longest` where it must be; None, and counted, when it is none."""
    kind = objective.documents
    if not all(len(branch) for branch in tree.branches):
        counts["no token"] += 1
        return None
    tokens = len(tree.prompt) + max(len(branch) for branch in tree.branches)
    if longest is not None and tokens > longest:
        counts["too_long"] += 1
        # A question without its beginning is another one, and a score is for a whole answer.
        if kind == "prompt" or objective.head == "score":
            counts["longer than sequence_length"] += 1
            return None
        tree = _cut(tree, longest)
    if kind == "prompt":
        return tree
    # Nothing predicts the first token of a document without a prompt.
    first = 0 if len(tree.prompt) else 1
    if not all(any(wanted[first:]) for wanted in tree.targets):
        counts["no target"] += 1
        return None
    if kind == "pair" and list(tree.branches[0]) == list(tree.branches[1]):
        counts["chosen equals rejected"] += 1
        return None
    return tree


def _cut(tree: Tree, longest: int) -> Tree:
    """Branches cut from the right, the prompt from the left; no branch below half of `longest`."""
    keep = max(longest - len(tree.prompt), longest // 2 if len(tree.prompt) else longest)
    branches = tuple(branch[:keep] for branch in tree.branches)
    room = longest - max(len(branch) for branch in branches)
    prompt = tree.prompt[max(0, len(tree.prompt) - room) :]
    return Tree(prompt, branches, tuple(wanted[:keep] for wanted in tree.targets))


def _nothing_left(
    name: str, objective: Objective, longest: int | None, counts: Counter[str]
) -> UserError:
    count = counts["rows"]
    if not count:
        return UserError(f"source {name!r} holds no document after decontamination")
    if counts["no token"] == count:
        return UserError(
            f"source {name!r}: all its {count:,} documents become no token at all; look at what "
            "the model's chat_template makes of them"
        )
    if counts["longer than sequence_length"] == count:
        return UserError(
            f"source {name!r}: all its {count:,} documents are longer than sequence_length "
            f"({longest:,}); raise it"
        )
    dropped = ", ".join(f"{counts[why]:,} {why}" for why in DROPPED if counts[why])
    return UserError(
        f"source {name!r}: none of its {count:,} documents can be trained on by objective "
        f"{objective.name!r} ({dropped}): no token is a target, because there is no assistant "
        "turn, the chat template marks none, or sequence_length cuts it off; mend one of these"
    )


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """All batches of a stage: batch b holds pieces [batch_starts[b], batch_starts[b + 1])."""

    sources: tuple[Tokens, ...]
    source: Ints
    """[P] index of the piece's source."""
    document: Ints
    """[P] its document there."""
    start: Ints
    """[P] its first token in the document: 0 but for texts longer than a row."""
    length: Ints
    """[P] its tokens."""
    batch_starts: Ints
    epochs: dict[str, float]
    """Source name -> how often the stage reads it: its tokens, or documents where those count."""
    fingerprint: str
    """Hash of the data, the mixture and the seed: the same one means the same batches."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.batch_starts) - 1

    @property
    def data(self) -> dict[str, str]:
        """Source name -> the id of its tokens: what must not change under a resumed run."""
        return {tokens.source: tokens.id for tokens in self.sources}

    def tokens(self, steps: int) -> int:
        """Tokens in the first so many batches."""
        return int(self.length[: self.batch_starts[steps]].sum())

    def documents(self, step: int) -> list[tuple[str, int]]:
        """Source name and document number of each piece of a batch, in its order."""
        pieces = self._pieces(step)
        names = [tokens.source for tokens in self.sources]
        return [
            (names[source], document)
            for source, document in zip(
                self.source[pieces].tolist(), self.document[pieces].tolist(), strict=True
            )
        ]

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step`, counted from 0."""
        pieces = self._pieces(step)
        parts = self.sources[0].parts
        source, length = self.source[pieces], self.length[pieces]
        lengths = np.zeros((len(source), max(parts, 2)), dtype=np.int64)
        ids = np.empty(int(length.sum()), dtype=np.int64)
        asked = np.empty(len(ids), dtype=np.bool_)
        places = np.cumsum(length) - length
        for number, tokens in enumerate(self.sources):
            mine = np.flatnonzero(source == number)
            first = self.document[pieces][mine] * parts
            if parts == 1:
                lengths[mine, 1] = length[mine]
            else:
                edges = tokens.offsets[first[:, None] + np.arange(parts + 1)]
                lengths[mine] = np.diff(edges, axis=1)
            begin = tokens.offsets[first] + self.start[pieces][mine]
            there, here = spans(begin, length[mine]), spans(places[mine], length[mine])
            ids[here] = tokens.tokens[there]
            asked[here] = tokens.targets[there]
        branches = lengths.shape[1] - 1
        return flat_batch(ids, asked, lengths.ravel(), np.full(len(source), branches))

    def _pieces(self, step: int) -> slice:
        assert 0 <= step < self.steps, f"step {step} of {self.steps}"
        return slice(*self.batch_starts[step : step + 2].tolist())


def prefetched(plan: BatchPlan, first: int, last: int) -> Iterator[Batch]:
    """The batches of steps [first, last), each made by a thread while the one before is used."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as maker:
        coming: Future[Batch] | None = None
        for step in range(first, last):
            batch = coming.result() if coming else plan.batch(step)
            coming = maker.submit(plan.batch, step + 1) if step + 1 < last else None
            yield batch


def plan_batches(
    sources: Mapping[str, Tokens], stage: Stage, objective: Objective, *, seed: int
) -> BatchPlan:
    """Decide every batch of `stage`: a pure function of its arguments.

    With `batch_tokens` a batch is batch_tokens / sequence_length packed rows, and the mixture's
    weights are shares of tokens. With `batch` it is so many documents; weights are shares of
    documents, or with `epochs` how often each source is read in one of them, and what is read
    past the last epoch, to fill the last batch, is what would come next. Raises UserError when
    a source would be read more often than stage.repetition_cap, that last filling not counted.
    """
    # In the order of their names: how a recipe orders its mixture changes nothing.
    used = [sources[name] for name in sorted(sources) if stage.mixture.get(name, 0) > 0]
    assert used and len({tokens.parts for tokens in used}) == 1, "one kind of documents"
    weights = {tokens.source: float(stage.mixture[tokens.source]) for tokens in used}
    decide = _whole_documents if stage.batch_tokens is None else _packed_rows
    source, document, start, length, batch_starts = decide(used, weights, stage, objective, seed)
    amounts = length if stage.batch_tokens else np.ones(len(source))
    read = np.bincount(source, weights=amounts, minlength=len(used))
    sizes = [len(t.tokens) if stage.batch_tokens else t.documents for t in used]
    epochs = {t.source: float(read[n] / sizes[n]) for n, t in enumerate(used)}
    _check_repetition(stage, epochs, {t.source: t.documents for t in used})
    budget = [stage.sequence_length, stage.batch_tokens, stage.batch, stage.epochs]
    ids = {tokens.source: tokens.id for tokens in used}
    return BatchPlan(
        sources=tuple(used),
        source=source,
        document=document,
        start=start,
        length=length,
        batch_starts=batch_starts,
        epochs=epochs,
        fingerprint=content_id([PLAN_VERSION, ids, weights, budget, len(batch_starts), seed]),
    )


def _check_repetition(
    stage: Stage, epochs: Mapping[str, float], documents: Mapping[str, int]
) -> None:
    cap = stage.repetition_cap
    if cap is None:
        return
    for name, read in epochs.items():
        asked = read
        if stage.epochs is not None:
            asked = stage.epochs * stage.mixture[name]
            # Steps were counted before documents were left out: the others are read more often.
            assert stage.batch is not None, "epochs go with batch"
            if (read - asked) * documents[name] > stage.batch:
                asked = read
        if asked > cap + 1e-9:
            spent = "tokens" if stage.batch_tokens else "epochs" if stage.epochs else "steps"
            raise UserError(
                f"stage {stage.name!r} reads source {name!r} {asked:.5g} times, but its "
                f"repetition_cap is {cap:g}; lower the stage's {spent} or the source's weight, "
                "give the source more documents, or raise repetition_cap"
            )


_Decided = tuple[Ints, Ints, Ints, Ints, Ints]
"""source, document, start, length of each piece, and batch_starts."""


def _packed_rows(
    used: Sequence[Tokens],
    weights: Mapping[str, float],
    stage: Stage,
    objective: Objective,
    seed: int,
) -> _Decided:
    """Batches of rows; texts are cut into pieces of a row's length, and those are mixed."""
    batch_rows = stage.batch_rows
    longest = [int(tokens.lengths.max()) for tokens in used]
    row_length = stage.sequence_length if objective.documents == "text" else max(longest)
    pieces = [packing.cut_long(tokens.lengths, row_length) for tokens in used]
    names = [tokens.source for tokens in used]
    lengths = {name: length for name, (_, _, length) in zip(names, pieces, strict=True)}
    rows = stage.steps * batch_rows
    amount = (rows + batch_rows) * stage.sequence_length
    _, source, unit = packing.mixture_order(lengths, weights, amount=amount, seed=seed)
    document, start, length = (np.empty(len(source), dtype=np.int64) for _ in range(3))
    for number, (of_document, of_start, of_length) in enumerate(pieces):
        mine = source == number
        document[mine], start[mine] = of_document[unit[mine]], of_start[unit[mine]]
        length[mine] = of_length[unit[mine]]
    order, row_starts = packing.best_fit(
        length, stage.sequence_length, open_rows=batch_rows, rows=rows
    )
    batch_starts = row_starts[::batch_rows]
    return source[order], document[order], start[order], length[order], batch_starts


def _whole_documents(
    used: Sequence[Tokens],
    weights: Mapping[str, float],
    stage: Stage,
    objective: Objective,
    seed: int,
) -> _Decided:
    """Batches of documents; with epochs, shares are how many documents of a source are read."""
    assert stage.batch is not None, "the stage is settled"
    steps, shares = stage.steps, dict(weights)
    if stage.epochs is not None:
        shares = {t.source: weights[t.source] * t.documents for t in used}
        steps = steps or max(1, math.ceil(sum(shares.values()) * stage.epochs / stage.batch - 1e-9))
    sizes = {tokens.source: np.ones(tokens.documents, dtype=np.int64) for tokens in used}
    amount = steps * stage.batch
    _, source, document = packing.mixture_order(sizes, shares, amount=amount, seed=seed)
    length = np.empty(len(source), dtype=np.int64)
    for number, tokens in enumerate(used):
        mine = source == number
        length[mine] = tokens.lengths[document[mine]]
    starts = np.arange(steps + 1) * stage.batch
    return source, document, np.zeros(len(source), dtype=np.int64), length, starts
