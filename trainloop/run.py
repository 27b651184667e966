"""From prepared data to scored checkpoints: each stage of a recipe in turn.

    prepared = prepare(recipe, base=Path("recipes"), root=Path("runs"), mirror=None)
    run      = run_stages(prepared, seed=1)        # trains and scores what is not there yet

Every id is known before anything is trained (plans.py). So a finished run is recognised without
loading torch, a killed one goes on at its newest good checkpoint, and runs that share a stage
share its checkpoints. The order is fixed: checkpoint first, score second; a checkpoint whose
scores are missing is scored from its folder. A damaged checkpoint that is needed is moved aside
and named, and the stage goes on from its last good one.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalsuite.errors import UserError
from evalsuite.files import content_id, full_disk_is_a_user_error, read_json, write_json
from evalsuite.progress import Progress, silent
from trainloop import checkpoint as checkpoints
from trainloop import model as models
from trainloop.plans import (
    StagePlan,
    output,
    plan_stages,
    reached,
    result_file,
    shared_stages,
)
from trainloop.prepare import Prepared
from trainloop.scoring import is_done, score_folder

if TYPE_CHECKING:
    from trainloop.ranks import Ranks

__all__ = [
    "Run",
    "StagePlan",
    "is_done",
    "plan_stages",
    "run_stages",
    "score_folder",
    "shared_stages",
    "sweep_id",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A finished run: its id and its stages' checkpoints."""

    id: str
    variant: str | None
    seed: int
    stages: list[StagePlan]
    final: str
    """The checkpoint that the last stage hands on."""


def run_stages(
    prepared: Prepared,
    *,
    variant: str | None = None,
    seed: int,
    stages: int | None = None,
    ranks: Ranks | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
) -> Run:
    """Train and score the first `stages` stages (default: all), skipping what is done.

    Writes runs/<id>/run.json when all stages are asked for. `ranks` are the processes that train
    together; one process makes its own when it has to train. `say` gets what a user should know:
    damaged checkpoints, stages that ended early.
    """
    recipe = prepared.recipe
    plans = plan_stages(prepared, variant=variant, seed=seed)[:stages]
    _check_rules(prepared, plans)
    name = " ".join(filter(None, [recipe.name, variant, f"seed {seed}"]))
    for plan in plans:
        done = _looks_done(prepared, plan)
        if not (ranks.share(done) if ranks else done):
            if ranks is None:
                from trainloop.ranks import join

                ranks = join(recipe.distributed)
            _Work(prepared, ranks, name, variant, seed, progress, say).finish(plan)
        elif ranks is None or ranks.main:
            _retire(prepared, plan)  # `keep` may be new
    run = Run(
        id=content_id([recipe.name, variant, seed, [plan.hands_on for plan in plans]]),
        variant=variant,
        seed=seed,
        stages=plans,
        final=output(prepared, plans[-1]),
    )
    if stages is None and (ranks is None or ranks.main):
        _write_run(prepared, run)
    return run


def _looks_done(prepared: Prepared, plan: StagePlan) -> bool:
    """Whether the stage is done; not if a checkpoint of it is cut short, which work will mend."""
    try:
        return is_done(prepared, plan)
    except UserError:
        return False


def _check_rules(prepared: Prepared, plans: list[StagePlan]) -> None:
    """UserError, before anything is trained, for a rule that could not choose a checkpoint."""
    from trainloop.scoring import deciding_score

    for plan in plans:
        if plan.rule is not None:
            deciding_score(prepared, plan)


@dataclass(frozen=True, slots=True)
class _Work:
    """One call of run_stages that has something to train."""

    prepared: Prepared
    ranks: Ranks
    name: str
    variant: str | None
    seed: int
    progress: Progress
    say: Callable[[str], None]

    def finish(self, plan: StagePlan) -> None:
        """Train what is left of the stage, and score what is unscored."""
        from trainloop import legs

        prepared, ranks = self.prepared, self.ranks
        label = f"{self.name}: {plan.stage.name}"
        for needed in _needed(plan):
            self._mend(needed)
        with _stage_lock(prepared.root, plan.id, enabled=ranks.main):
            ranks.wait()
            with ranks.together():
                if ranks.main:
                    _check_begun(prepared, plan, self.variant, self.seed)
                    tokenizer_folder(prepared, self.progress)
            tokenizer = models.load_tokenizer(
                tokenizer_folder(prepared, self.progress), prepared.recipe.model.chat_template
            )
            if plan.soup:
                legs.make_soup(prepared, plan, ranks)
            first = self._newest(plan)
            legs.finish_leftovers(prepared, plan, tokenizer, ranks, label, self.progress)
            ended = bool(first) and legs.ends_here(prepared, plan, first, ranks)
            if first < plan.stage.steps and not ended:
                legs.train_leg(prepared, plan, tokenizer, ranks, label, self.progress, first)
            if plan.rule is not None and ranks.main:
                why = read_json(result_file(prepared, plan))["why"]
                self.say(f"stage {plan.stage.name} hands on {output(prepared, plan)}: {why}")
            if ranks.main:
                _retire(prepared, plan)
            ranks.wait()

    def _mend(self, plan: StagePlan) -> None:
        """Train anew what is damaged of a finished stage that another one starts from."""
        ranks, damaged = self.ranks, False
        with ranks.together():
            if ranks.main:
                damaged = self._is_damaged(plan)
        if ranks.share(damaged):
            self.finish(plan)

    def _is_damaged(self, plan: StagePlan) -> bool:
        """Whether what the stage hands on cannot be loaded; then it is moved aside.

        Raises UserError where it was retired.
        """
        root, handed = self.prepared.root, output(self.prepared, plan)
        folder = checkpoints.folder_of(root, handed)
        try:
            checkpoints.verify(folder)
        except UserError:
            before = plan.checkpoint_ids[: plan.checkpoint_ids.index(handed) + 1]
            _, damaged = checkpoints.newest_good(root, before)
            for text in damaged:
                self.say(text)
            if folder.is_dir():
                checkpoints.verify(folder)
            return True
        return False

    def _newest(self, plan: StagePlan) -> int:
        """The step of the newest good checkpoint up to which all due ones are there; or 0."""
        ranks, root = self.ranks, self.prepared.root
        if plan.soup:
            return 0
        good: str | None = None
        with ranks.together():
            if ranks.main:
                good, damaged = checkpoints.newest_good(root, plan.checkpoint_ids)
                for text in damaged:
                    self.say(text)
        good = ranks.share(good)
        if good is None:
            return 0
        return plan.stage.checkpoint_steps[plan.checkpoint_ids.index(good)]


def _retire(prepared: Prepared, plan: StagePlan) -> None:
    """Drop the weights of checkpoints that nothing needs any more, where the stage says so."""
    if plan.stage.keep == "needed":
        from trainloop.retention import apply, retirable

        apply(prepared.root, retirable(prepared, plan))


def _needed(plan: StagePlan) -> list[StagePlan]:
    """The stages whose results it starts from."""
    found = [*plan.soup, *filter(None, [plan.parent, plan.reward]), *plan.policies.values()]
    return list({each.id: each for each in found}.values())


def _check_begun(prepared: Prepared, plan: StagePlan, variant: str | None, seed: int) -> None:
    """UserError when the stage was begun on other data than there are now, and not finished.

    Other data make another stage, with ids of its own: without this look a killed run would
    start anew without a word.
    """
    recipe = prepared.recipe
    key = content_id([recipe.name, variant, seed, plan.stage.name])
    path = prepared.root / "begun" / f"{key}.json"
    settings = content_id([asdict(plan.stage), plan.seed])
    now: dict[str, Any] = {"stage_id": plan.id, "settings": settings, "data": plan.data}
    known: dict[str, Any] = read_json(path) if path.is_file() else now
    if known["settings"] == settings and known["stage_id"] != plan.id:
        for source, data in known["data"].items():
            if plan.data.get(source, data) != data and not _ended(prepared, known["stage_id"]):
                raise UserError(
                    f"stage {plan.stage.name!r}: it was begun on source {source!r} as {data}, "
                    f"which is {plan.data[source]} now; put the source back, or delete {path} to "
                    "begin the stage anew"
                )
    write_json(path, now | {"name": recipe.name, "variant": variant, "seed": seed})


def _ended(prepared: Prepared, stage_id: str) -> bool:
    """Whether any run has finished the stage."""
    runs = prepared.root / "runs"
    return runs.is_dir() and any(
        stage["stage_id"] == stage_id
        for file in sorted(runs.glob("*/run.json"))
        for stage in read_json(file)["stages"]
    )


def tokenizer_folder(prepared: Prepared, progress: Progress = silent) -> Path:
    """The model's own tokenizer, or the one trained on the recipe's sources."""
    if prepared.model_folder is not None:
        return prepared.model_folder
    tokenizer = prepared.recipe.model.tokenizer
    assert tokenizer is not None, "a model from scratch has a tokenizer"
    used = [prepared.clean[name] for name in tokenizer.train_on]
    return models.new_tokenizer(
        prepared.recipe.model,
        [clean.files for clean in used],
        [clean.id for clean in used],
        root=prepared.root,
        progress=progress,
    )


@contextmanager
def _stage_lock(root: Path, stage_id: str, *, enabled: bool) -> Iterator[None]:
    """One process at a time works on a stage; the kernel drops the lock of a killed one."""
    if not enabled:
        yield
        return
    path = root / "stages" / stage_id / "lock"
    with full_disk_is_a_user_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write_run(prepared: Prepared, run: Run) -> None:
    """Publish runs/<id>/run.json; the same run writes the same bytes."""
    recipe = prepared.recipe
    shared = shared_stages(recipe)
    write_json(
        prepared.root / "runs" / run.id / "run.json",
        {
            "id": run.id,
            "name": recipe.name,
            "recipe": asdict(recipe),
            "recipe_file": prepared.recipe_file,
            "seed": run.seed,
            "variant": run.variant,
            "sweep": sweep_id(prepared) if recipe.sweep else None,
            "stages": [
                {
                    "name": plan.stage.name,
                    "objective": plan.stage.objective,
                    "stage_id": plan.id,
                    "mixture": plan.stage.mixture,
                    "tokens": _tokens(prepared, plan),
                    "checkpoints": reached(prepared, plan),
                    "final": output(prepared, plan),
                    "shared": number < shared,
                }
                for number, plan in enumerate(run.stages)
            ],
            "suites": list(prepared.suites),
            "certificate": prepared.certificate.id,
            "code": {"assay": importlib.metadata.version("assay-lm")},
        },
    )


def _tokens(prepared: Prepared, plan: StagePlan) -> int:
    record = checkpoints.read(prepared.root, reached(prepared, plan)[-1])
    assert record is not None, "a finished stage has its last checkpoint"
    return record.tokens


def sweep_id(prepared: Prepared) -> str:
    """The sweep's name: its question (recipe, stage, variants, seeds) and its data."""
    data = {name: clean.id for name, clean in prepared.clean.items()}
    question = asdict(prepared.recipe)
    del question["description"]
    return content_id([question, data])
