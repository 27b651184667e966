"""Log-probabilities of a stage's pairs under the weights it starts from, computed once.

    found = reference({"prefs": tokens}, logprobs, weights_id="ab12", root=root, ranks=ranks)
    found["prefs"]                      # [documents, 2]: summed over the targets of each answer
    batch = filled(plan.batch(step), plan.documents(step), found)     # of_sequence["reference"]

Everything they depend on is in the folder's name, root/reference/<id>: the weights, their
precision, the tokens (which name tokenizer, data and length) and FORMAT. So the training never
holds a second model, and a second stage, seed or run that starts from the same weights reads the
file. A killed computation goes on after its last part of PART documents; the folder appears when
all are there.

What it cannot do: serve a reference that changes while the stage is trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evalsuite.errors import UserError
from evalsuite.files import content_id, publish, remove_partials, write_json
from evalsuite.progress import Progress, silent
from trainloop.data import Batch, Tokens, batch_of

if TYPE_CHECKING:
    from trainloop.ranks import Ranks

Floats = npt.NDArray[np.float64]

FORMAT = 1
"""Raised when the same weights and tokens would give other numbers."""
PART = 512
"""Documents between two saves: what a kill costs at most."""
TOGETHER = 64
"""Documents of one call of `logprobs`, which may split them further."""


def reference(
    sources: Mapping[str, Tokens],
    logprobs: Callable[[Batch], npt.NDArray[Any]],
    *,
    weights_id: str,
    precision: str = "float32",
    root: Path,
    ranks: Ranks,
    progress: Progress = silent,
) -> dict[str, Floats]:
    """[documents, 2] per source: summed log-probabilities of the chosen and rejected answers.

    All ranks call, and all get everything. `logprobs` gives those of a batch's targets [N] by
    the weights that `weights_id` names: it splits the batch over ranks and gathers. Raises
    UserError when they are not finite.
    """
    found = {}
    for name, tokens in sources.items():
        folder = _folder(tokens, weights_id, precision, root)
        known = ranks.share(_load(folder) if ranks.main else None)
        if known is None:
            known = _compute(name, tokens, folder, logprobs, ranks, progress)
        found[name] = known
    return found


def cached(
    sources: Mapping[str, Tokens], *, weights_id: str, precision: str = "float32", root: Path
) -> dict[str, Floats] | None:
    """What `reference` would return, if all of it is on disk: then no model is needed."""
    found = {}
    for name, tokens in sources.items():
        known = _load(_folder(tokens, weights_id, precision, root))
        if known is None:
            return None
        found[name] = known
    return found


def filled(
    batch: Batch, documents: Sequence[tuple[str, int]], found: Mapping[str, Floats]
) -> Batch:
    """The batch of these documents (source, number) with of_sequence["reference"] [S]."""
    assert len(documents) == batch.documents
    rows = [found[source][number] for source, number in documents]
    values = np.concatenate(rows) if rows else np.zeros(0)
    assert len(values) == batch.sequences
    return replace(batch, of_sequence={**batch.of_sequence, "reference": values})


def _folder(tokens: Tokens, weights_id: str, precision: str, root: Path) -> Path:
    return root / "reference" / content_id([FORMAT, weights_id, precision, tokens.id])


def _load(folder: Path) -> Floats | None:
    file = folder / "logprobs.npy"
    if not file.is_file():
        return None
    try:
        found: Floats = np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}); delete its folder and run again"
        ) from None
    return found


def _compute(
    name: str,
    tokens: Tokens,
    folder: Path,
    logprobs: Callable[[Batch], npt.NDArray[Any]],
    ranks: Ranks,
    progress: Progress,
) -> Floats:
    """Compute what is missing, part by part, and publish the whole."""
    parts = folder.with_name(f"{folder.name}.parts")
    count = tokens.documents
    starts = range(0, count, PART)
    saved: dict[int, Floats] = {}
    if ranks.main:
        remove_partials(parts)
        known = {start: _load(parts / str(start)) for start in starts}
        saved = {start: part for start, part in known.items() if part is not None}
    saved = ranks.share(saved)
    label = f"reference {name}"
    for start in starts:
        progress(label, start, count)
        if start in saved:
            continue
        numbers = range(start, min(start + PART, count))
        chunks = [numbers[at : at + TOGETHER] for at in range(0, len(numbers), TOGETHER)]
        part = np.concatenate([_sums(name, tokens, chunk, logprobs) for chunk in chunks])
        if ranks.main:
            _save(parts / str(start), part)
        saved[start] = part
    progress(label, count, count)
    whole = np.concatenate([saved[start] for start in starts])
    if ranks.main:
        about = {"source": name, "documents": count, "tokens": tokens.id, "format": FORMAT}
        _save(folder, whole, about)
        shutil.rmtree(parts, ignore_errors=True)
    ranks.wait()
    return whole


def _save(folder: Path, values: Floats, about: Mapping[str, Any] | None = None) -> None:
    with publish(folder) as work:
        np.save(work / "logprobs.npy", values)
        if about is not None:
            write_json(work / "reference.json", about)


def _sums(
    name: str,
    tokens: Tokens,
    numbers: Sequence[int],
    logprobs: Callable[[Batch], npt.NDArray[Any]],
) -> Floats:
    batch = batch_of([tokens.tree(number) for number in numbers])
    assert batch.sequences == 2 * len(numbers), "each document is a pair"
    values = np.asarray(logprobs(batch), dtype=np.float64)
    if not np.isfinite(values).all():
        raise UserError(
            f"source {name!r}: the stage's starting weights give NaN or infinite log-probabilities "
            f"among its documents {numbers[0]:,} to {numbers[-1]:,}; start from other weights"
        )
    found = np.bincount(batch.sequence, weights=values, minlength=batch.sequences)
    return found.astype(np.float64).reshape(-1, 2)
