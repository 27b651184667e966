"""Which checkpoints of a stage may lose their weights: those that nothing needs any more.

    ids = retirable(prepared, plan)         # after the stage; [] while it is not done
    freed = apply(prepared.root, ids)       # bytes; records, scores and curves stay

A checkpoint keeps its weights while it is unscored, the stage's last, the one it hands on or any
recipe's rule chose, the best on some capability (where the stage has no rule), or the parent or an
ingredient of any other checkpoint under the same root. What this cannot know: runs in other
folders, and folders that people read by hand.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evalsuite.files import read_json
from evalsuite.records import ALL, Score
from trainloop import checkpoint as checkpoints

if TYPE_CHECKING:
    from trainloop.plans import StagePlan
    from trainloop.prepare import Prepared


def retired_among(
    stage: Sequence[str],
    *,
    scored: Collection[str],
    best: Collection[str],
    parents: Collection[str],
) -> list[str]:
    """The checkpoints of a stage (ids, first to last) that may go.

    `parents` are the parents and ingredients of all checkpoints there are.
    """
    return [
        each for each in stage[:-1] if each in scored and each not in best and each not in parents
    ]


def best_of(scores: Iterable[tuple[str, Sequence[Score]]]) -> set[str]:
    """The best checkpoint of each suite and capability, given each one's scores; of equals all.

    Where a checkpoint has no value on a capability, every other could be worse: it is kept too.
    """
    found: dict[tuple[str, str], list[tuple[float, str]]] = {}
    kept: set[str] = set()
    for checkpoint, rows in scores:
        for score in rows:
            if score.task != ALL or score.subset != "all":
                continue
            if score.value is None:
                kept.add(checkpoint)
                continue
            sign = 1.0 if score.higher_is_better else -1.0
            key = (score.suite, score.capability)
            found.setdefault(key, []).append((sign * score.value, checkpoint))
    for values in found.values():
        top = max(value for value, _ in values)
        kept |= {checkpoint for value, checkpoint in values if value == top}
    return kept


def retirable(prepared: Prepared, plan: StagePlan) -> list[str]:
    """The checkpoints of a finished stage that may be retired and still hold weights."""
    from evalsuite.scorefiles import read_evaluation
    from trainloop.plans import output, reached, suites_of
    from trainloop.scoring import is_done, is_finished, score_folder

    if plan.soup or not is_done(prepared, plan):
        return []
    ids = reached(prepared, plan)
    best = {output(prepared, plan)} | _chosen(prepared.root, plan.id)
    if plan.stage.best is None:
        best |= best_of(
            (each, read_evaluation(score_folder(prepared, each, suite)).scores)
            for each in ids
            for suite in suites_of(prepared, plan).values()
        )
    may_go = retired_among(
        ids,
        scored={each for each in ids if is_finished(prepared, plan, each)},
        best=best,
        parents=parents_under(prepared.root),
    )
    return [each for each in may_go if not checkpoints.is_retired(prepared.root, each)]


def apply(root: Path, ids: Iterable[str]) -> int:
    """Retire the checkpoints; returns the bytes that were freed."""
    return sum(checkpoints.retire(root, each) for each in ids)


def parents_under(root: Path) -> set[str]:
    """The checkpoints that others under `root` descend from, whichever run made them."""
    found: set[str] = set()
    for file in (root / "checkpoints").glob("[!.]*/checkpoint.json"):
        record = read_json(file)
        found |= {*record.get("ingredients", ()), *filter(None, [record["parent"]])}
    return found


def _chosen(root: Path, stage_id: str) -> set[str]:
    """The checkpoints of a stage that any recipe's rule chose."""
    results = (root / "stages" / stage_id).glob("best-*.json")
    return {read_json(file)["checkpoint"] for file in results}
