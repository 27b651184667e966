"""Checkpoint first, score second: a published checkpoint's scores, and which one is best.

    score(prepared, plan, checkpoint, model, tokenizer, ranks)   # on every suite it lacks
    standing = scored_so_far(prepared, plan)                     # of the rule `best`

Scores are published per suite, and made again when what they rest on has changed: the suite's
texts, or which of its docs were found in the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalsuite import scorefiles
from evalsuite.errors import UserError, did_you_mean
from evalsuite.files import read_json, remove_partials, retire, write_json
from evalsuite.progress import Progress
from evalsuite.records import ALL, Score, Suite
from trainloop import checkpoint as checkpoints
from trainloop.plans import StagePlan, ancestors, reached, result_file, suites_of
from trainloop.prepare import Prepared

if TYPE_CHECKING:
    from trainloop.ranks import Ranks


def score_folder(prepared: Prepared, checkpoint: str, suite: Suite) -> Path:
    """Where a checkpoint's evaluation on a suite stands."""
    return prepared.root / "scores" / checkpoint / f"{suite.name}-{suite.fingerprint}"


def measures_file(prepared: Prepared, checkpoint: str) -> Path:
    """Where a checkpoint's measures of held-out sources stand."""
    return prepared.root / "heldout" / f"{checkpoint}.json"


def is_scored(prepared: Prepared, checkpoint: str, suite: Suite) -> bool:
    """Whether the published checkpoint has scores on the suite, on today's docs."""
    folder = score_folder(prepared, checkpoint, suite)
    return folder.is_dir() and scorefiles.read_basis(folder) == _basis(prepared, checkpoint, suite)


def is_finished(prepared: Prepared, plan: StagePlan, checkpoint: str) -> bool:
    """Whether the checkpoint is published, scored and measured on all that the stage asks for."""
    if checkpoints.read(prepared.root, checkpoint) is None:
        return False
    suites = suites_of(prepared, plan).values()
    return all(is_scored(prepared, checkpoint, suite) for suite in suites) and not unmeasured(
        prepared, plan, checkpoint
    )


def unmeasured(prepared: Prepared, plan: StagePlan, checkpoint: str) -> list[str]:
    """The held-out sources of the stage that the checkpoint has no measures of."""
    path = measures_file(prepared, checkpoint)
    known = read_json(path) if path.is_file() else {}
    return [
        name
        for name in plan.stage.held_out
        if known.get(name, {}).get("data") != prepared.clean[name].id
    ]


def is_done(prepared: Prepared, plan: StagePlan) -> bool:
    """Whether every checkpoint of the stage is finished, and it is known which one goes on."""
    if plan.rule is not None and not result_file(prepared, plan).is_file():
        return False
    return all(is_finished(prepared, plan, each) for each in reached(prepared, plan))


def _basis(prepared: Prepared, checkpoint: str, suite: Suite) -> dict[str, Any]:
    """What scores rest on beside checkpoint and suite; they are made again when it changes."""
    return {
        "dirty": dirty_docs(prepared, checkpoint, suite),
        "references": prepared.references[suite.name],
    }


def dirty_docs(prepared: Prepared, checkpoint: str, suite: Suite) -> dict[str, list[int]]:
    """The suite's docs (task -> doc ids) found in any source the checkpoint was trained on.

    As they were found before cleaning: with clean data, the dirty twin of a score should be
    no better than the clean one.
    """
    read: set[str] = set()
    for record in ancestors(prepared, checkpoint):
        read |= {name for name, weight in record.mixture.items() if weight > 0}
    # Answers that a stage wrote itself rest on their prompts.
    sources = prepared.recipe.sources
    for name in sorted(read & set(sources)):
        pairs = sources[name].pairs
        if pairs is not None:
            read.add(pairs.prompts)
    found: dict[str, list[int]] = {}
    for item in prepared.items:
        if item["suite"] == suite.name and read & set(item["sources"]):
            found.setdefault(item["task"], []).append(item["doc_id"])
    return {task: sorted(doc_ids) for task, doc_ids in found.items()}


def score(
    prepared: Prepared,
    plan: StagePlan,
    checkpoint: str,
    model: Any,
    tokenizer: Any,
    ranks: Ranks,
    label: str,
    progress: Progress,
) -> None:
    """Score a model on each suite it has no scores on yet, over all ranks, and publish them."""
    import torch

    from evalsuite import harness
    from evalsuite.journal import remove_journal

    # Scores must not depend on who called: the same threads in a worker, a rerun or a launch.
    torch.set_num_threads(prepared.recipe.cpu_threads)
    for suite in suites_of(prepared, plan).values():
        if ranks.share(is_scored(prepared, checkpoint, suite)):
            continue
        folder = score_folder(prepared, checkpoint, suite)
        if ranks.main:
            remove_partials(folder.parent)
        basis = _basis(prepared, checkpoint, suite)
        answers = scorefiles.journal_place(folder)  # a killed scoring goes on where it was
        evaluation = harness.score(
            model,
            suite,
            tokenizer=tokenizer,
            mirror=prepared.mirror,
            dirty=basis["dirty"],
            journal=answers,
            model_id=checkpoint,
            ranks=(ranks.rank, ranks.count),
            gather=ranks.gather,
            progress=lambda what, done, total: progress(f"{label}: {what}", done, total),
        )
        ranks.wait()  # until no rank writes to its journal
        with ranks.together():
            if ranks.main:
                if folder.is_dir():  # scores of another basis
                    retire(folder)
                scorefiles.write_evaluation(folder, evaluation, checkpoint=checkpoint, basis=basis)
                remove_journal(answers)


def write_measures(
    prepared: Prepared, checkpoint: str, source: str, measures: dict[str, float]
) -> None:
    """Add the measures of one held-out source to a checkpoint's."""
    path = measures_file(prepared, checkpoint)
    known = read_json(path) if path.is_file() else {}
    known[source] = {"data": prepared.clean[source].id, **measures}
    write_json(path, known)


# --- the best checkpoint -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """The scored checkpoints of a stage on its deciding capability, first to last."""

    values: list[Score]
    higher_is_better: bool

    @property
    def best(self) -> int:
        """The number of the best one; of equals the first."""
        sign = 1.0 if self.higher_is_better else -1.0
        keys = [sign * (one.value if one.value is not None else 0.0) for one in self.values]
        return keys.index(max(keys))


def deciding_score(prepared: Prepared, plan: StagePlan) -> Callable[[str], Score]:
    """checkpoint -> its score by the stage's rule. UserError for a rule that cannot decide."""
    best = plan.stage.best
    assert best is not None, "only a stage with a rule decides"
    where = f"stage {plan.stage.name!r}: best"
    suite = list(prepared.suites.values())[prepared.recipe.suites.index(best.suite)]
    if suite.role != "dev":
        raise UserError(
            f"{where}: suite {suite.name!r} is {suite.role}, and only a dev suite may choose; "
            "name one with role dev"
        )
    if best.capability not in suite.capabilities:
        raise UserError(
            f"{where}: suite {suite.name!r} has no capability {best.capability!r}"
            + did_you_mean(best.capability, suite.capabilities)
        )

    def of(checkpoint: str) -> Score:
        scores = scorefiles.read_evaluation(score_folder(prepared, checkpoint, suite)).scores
        for each in scores:
            if (each.capability, each.task, each.subset) == (best.capability, ALL, "all"):
                if each.value is None:
                    raise UserError(
                        f"{where}: checkpoint {checkpoint} has no score on {best.capability!r}; "
                        "look at the errors in its item rows"
                    )
                return each
        raise UserError(f"{where}: checkpoint {checkpoint} lacks {best.capability!r}")

    return of


def standing(prepared: Prepared, plan: StagePlan, checkpoints_so_far: list[str]) -> Standing:
    """The scores of the stage's first checkpoints by its rule `best`."""
    best = plan.stage.best
    assert best is not None
    suite = list(prepared.suites.values())[prepared.recipe.suites.index(best.suite)]
    of = deciding_score(prepared, plan)
    return Standing(
        values=[of(each) for each in checkpoints_so_far],
        higher_is_better=suite.capabilities[best.capability][0].unit == "share",
    )


def choose(prepared: Prepared, plan: StagePlan, scored: list[str], *, last: bool) -> bool:
    """Whether the stage ends here; if so, publishes which checkpoint it hands on, and why."""
    best = plan.stage.best
    assert best is not None
    found = standing(prepared, plan, scored)
    # One by one, as they were scored: what is on disk beyond the end of the stage, from a run
    # without patience, must not choose.
    for count in range(1, len(scored) + 1):
        so_far = replace(found, values=found.values[:count])
        waited = count - 1 - so_far.best
        early = best.patience is not None and waited >= best.patience
        if early:
            break
    last = last and count == len(scored)
    if not last and not early:
        return False
    scored, number = scored[:count], so_far.best
    value = found.values[number]
    why = (
        f"best of {len(scored)} checkpoints on {best.suite} {best.capability}: {value.value:.4f} "
        f"[{value.low:.4f}, {value.high:.4f}]"
    )
    if early and not last:
        why += f"; ended early, {waited} checkpoints without a better one"
    write_json(
        result_file(prepared, plan),
        {"checkpoint": scored[number], "scored": len(scored), "why": why},
    )
    return True
