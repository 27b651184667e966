"""What a run will do, known before anything is trained: each stage settled, with its ids.

    plans = plan_stages(prepared, variant=None, seed=1)
    plans[0].checkpoint_ids            # what it will save
    plans[1].parent is plans[0]        # what it goes on from

Every id is a hash of what makes the thing. So a finished run is recognised without loading torch,
and runs that share a stage share its checkpoints. A stage that hands on its best checkpoint is
known to its children by that rule, for which one it is shows only in training.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError
from evalsuite.files import content_id, read_json
from evalsuite.records import Suite
from trainloop import checkpoint as checkpoints
from trainloop import model as models
from trainloop import train
from trainloop.objectives import Objective, load_objective, read_options
from trainloop.pairs import FORMAT as PAIRS
from trainloop.prepare import Prepared
from trainloop.records import Checkpoint, Recipe, Stage
from trainloop.schedules import rate


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """A stage with its ids, all known before it is trained."""

    stage: Stage
    """Settled."""
    seed: int
    id: str
    objective: Objective | None
    """None for a soup."""
    start: str
    """Names the recipe's own weights, from which a stage without a parent goes on."""
    parent: StagePlan | None
    """The stage it goes on from; None: from the recipe's model."""
    reward: StagePlan | None
    """The stage of its reward model."""
    soup: tuple[StagePlan, ...]
    judge: str | None
    """With a rule: names the suite that chooses, and the texts of its docs."""
    data: dict[str, str]
    """Source of the mixture -> the id of its documents."""
    policies: dict[str, StagePlan]
    """Source of on-policy pairs -> the stage that writes them."""

    @property
    def checkpoint_ids(self) -> list[str]:
        """Ids of the checkpoints the stage saves, in order."""
        return [train.checkpoint_id(self.id, step) for step in self.stage.checkpoint_steps]

    @property
    def head(self) -> str:
        """What it trains: a "language" model, or one that gives a "score"."""
        return "language" if self.objective is None else self.objective.head

    @property
    def rule(self) -> str | None:
        """The id of the rule by which it hands on its best checkpoint; None: its last one."""
        best = self.stage.best
        if best is None:
            return None
        return content_id([self.judge, best.capability, best.patience, self.checkpoint_ids])

    @property
    def hands_on(self) -> str:
        """Names the checkpoint that its children start from."""
        return self.checkpoint_ids[-1] if self.rule is None else content_id([self.id, self.rule])


def plan_stages(prepared: Prepared, *, variant: str | None, seed: int) -> list[StagePlan]:
    """The stages of one run with their ids. Stages before the sweep's use the recipe's seed.

    Raises UserError for a stage that is not fully said, or has options its objective lacks.
    """
    recipe = prepared.recipe
    data = {name: clean.id for name, clean in prepared.clean.items()}
    tokenizer = recipe.model.tokenizer
    tokenizer_data = [data[name] for name in tokenizer.train_on] if tokenizer else []
    shared_seed = recipe.seed if recipe.sweep else seed
    start = models.start_id(recipe.model, prepared.model_folder, tokenizer_data, shared_seed)
    plans: dict[str, StagePlan] = {}
    varied = recipe.sweep is None
    for stage in recipe.stages:
        if recipe.sweep and stage.name == recipe.sweep.stage:
            varied = True
            if variant is not None:
                stage = replace(stage, mixture=recipe.sweep.variants[variant])
        stage_seed = (seed if varied else shared_seed) + stage.seed
        plans[stage.name] = _plan(prepared, stage, plans, start, stage_seed)
    return list(plans.values())


def _plan(
    prepared: Prepared, stage: Stage, before: dict[str, StagePlan], start: str, seed: int
) -> StagePlan:
    if stage.soup:
        return _plan_soup(stage, before, seed)
    recipe = prepared.recipe
    objective = load_objective(stage.objective)
    options = read_options(objective, stage.options, stage.name)
    parent = _parent(stage, before)
    reward = before[stage.reward_model] if stage.reward_model else None
    if reward is not None and reward.head != "score":
        raise UserError(
            f"stage {stage.name!r}: reward_model is {stage.reward_model!r}, which trains no reward "
            "model; name a stage of objective reward"
        )
    _check_fits(stage, objective, options)
    if stage.learning_rate == "parent":
        stage = replace(stage, learning_rate=_last_rate(stage, parent))
    stage = _on_rollouts(
        stage.settled(objective.defaults, prepared.documents), objective.steps_per_rollout(options)
    )
    _check_rate(stage)
    policies = {}
    data = {}
    for name, weight in stage.mixture.items():
        pairs = recipe.sources[name].pairs
        if pairs is None:
            data[name] = prepared.clean[name].id
        elif weight > 0:
            policies[name] = policy = before[pairs.policy]
            if policy.head != "language":
                raise UserError(
                    f"stage {stage.name!r}: the policy of source {name!r} is {pairs.policy!r}, "
                    "which trains a reward model and writes nothing; name a stage of a language "
                    "model"
                )
            made_from = [policy.hands_on, prepared.clean[pairs.prompts].id, asdict(pairs)]
            data[name] = content_id([PAIRS, made_from, seed])
    descent = [parent.hands_on if parent else start, reward.hands_on if reward else None]
    identity = train.stage_id(stage, content_id(descent), data, objective, seed=seed)
    return StagePlan(
        stage=stage,
        seed=seed,
        id=identity,
        objective=objective,
        start=start,
        parent=parent,
        reward=reward,
        soup=(),
        judge=_judge(prepared, stage),
        data=data,
        policies=policies,
    )


def _plan_soup(stage: Stage, before: dict[str, StagePlan], seed: int) -> StagePlan:
    siblings = tuple(before[name] for name in stage.soup)
    for sibling in siblings:
        if sibling.head != siblings[0].head:
            raise UserError(
                f"stage {stage.name!r}: {sibling.stage.name!r} and {siblings[0].stage.name!r} "
                "train different kinds of model, which have no mean"
            )
    return StagePlan(
        stage=stage,
        seed=seed,
        id=content_id(["soup", [sibling.hands_on for sibling in siblings]]),
        objective=siblings[0].objective if siblings[0].head == "score" else None,
        start=siblings[0].start,
        parent=siblings[0],
        reward=None,
        soup=siblings,
        judge=None,
        data={},
        policies={},
    )


def _judge(prepared: Prepared, stage: Stage) -> str | None:
    if stage.best is None:
        return None
    suite = list(prepared.suites.values())[prepared.recipe.suites.index(stage.best.suite)]
    return content_id([suite.name, suite.fingerprint, prepared.references[suite.name]])


def _check_fits(stage: Stage, objective: Objective, options: Any) -> None:
    """UserError for settings of a stage that its objective could not heed."""
    where, kind = f"stage {stage.name!r}", f"objective {objective.name!r}"
    reads = objective.documents
    if stage.batch_tokens is not None and reads in ("pair", "prompt"):
        raise UserError(
            f"{where}: {kind} reads {reads}s whole, so its batch counts them; give batch and "
            f"epochs (or steps) instead of batch_tokens ({stage.batch_tokens:,}) and tokens"
        )
    if stage.batch_tokens is None and reads == "text":
        raise UserError(
            f"{where}: {kind} cuts texts at sequence_length, so its batch counts tokens; give "
            "tokens and batch_tokens instead of batch and epochs (or steps)"
        )
    if objective.rollout is None and stage.reward_model is not None:
        raise UserError(
            f"{where}: {kind} asks no reward model; drop reward_model ({stage.reward_model!r})"
        )
    reward = getattr(options, "reward", "verifier")
    if reward != "verifier" and stage.reward_model is None:
        raise UserError(
            f"{where}: options.reward is {reward!r}, but the stage names no reward_model"
        )
    if objective.rollout is not None and stage.held_out:
        raise UserError(
            f"{where}: {kind} has no loss on documents that it did not write, so it measures no "
            f"held-out source; drop held_out ({', '.join(stage.held_out)})"
        )
    if objective.head == "score" and stage.best is not None:
        raise UserError(
            f"{where}: best chooses by a suite, and no suite scores a reward model; drop best"
        )


def _check_rate(stage: Stage) -> None:
    """UserError where no step would change a weight."""
    schedule = stage.schedule
    assert schedule is not None
    if not any(
        rate(schedule, peak=stage.peak, step=step, steps=stage.steps) > 0
        for step in range(1, stage.steps + 1)
    ):
        raise UserError(
            f"stage {stage.name!r}: the learning rate of its {stage.steps} step is 0, for its "
            f"schedule ends at 0 there; give it more steps, or a floor or a constant schedule"
        )


def _parent(stage: Stage, before: dict[str, StagePlan]) -> StagePlan | None:
    """The stage it goes on from: as the recipe says, else the last one that trained a language
    model."""
    if stage.start_from is None:
        return next((plan for plan in reversed(before.values()) if plan.head == "language"), None)
    parent = before[stage.start_from]
    if parent.head != "language":
        raise UserError(
            f"stage {stage.name!r}: start_from is {stage.start_from!r}, which trains a reward "
            "model; name a stage of a language model"
        )
    return parent


def _last_rate(stage: Stage, parent: StagePlan | None) -> float:
    """The rate at which the parent ended; a soup's is that of its first ingredient."""
    while parent is not None and parent.soup:
        parent = parent.soup[0]
    if parent is None or parent.stage.schedule is None:
        raise UserError(f"stage {stage.name!r}: learning_rate is 'parent', but no stage is before")
    of, steps = parent.stage, parent.stage.steps
    assert of.schedule is not None
    last = rate(of.schedule, peak=of.peak, step=steps, steps=steps)
    if last <= 0:
        raise UserError(
            f"stage {stage.name!r}: learning_rate is 'parent', but stage {of.name!r} ended at "
            f"{last}; give that one's schedule a floor or a horizon, or this stage a rate"
        )
    return last


def _on_rollouts(stage: Stage, period: int) -> Stage:
    """The stage with steps and checkpoints that end where rollouts do."""
    if period == 1:
        return stage
    assert stage.batch is not None, "a rollout's batch counts prompts"
    every = stage.score_every
    if every is not None:
        every = max(1, round(every / (period * stage.batch))) * period * stage.batch
    return replace(stage, steps=-(-stage.steps // period) * period, score_every=every)


def suites_of(prepared: Prepared, plan: StagePlan) -> dict[str, Suite]:
    """The suites that score the stage's checkpoints: all, but none for a reward model."""
    return prepared.suites if plan.head == "language" else {}


def shared_stages(recipe: Recipe) -> int:
    """How many stages all cells of the recipe's sweep have in common."""
    if recipe.sweep is None:
        return 0
    return [stage.name for stage in recipe.stages].index(recipe.sweep.stage)


def result_file(prepared: Prepared, plan: StagePlan) -> Path:
    """Where a stage with a rule says which checkpoint it hands on."""
    return prepared.root / "stages" / plan.id / f"best-{plan.rule}.json"


def reached(prepared: Prepared, plan: StagePlan) -> list[str]:
    """The checkpoints that the stage has when it is done: all, unless it ended early."""
    path = result_file(prepared, plan)
    if plan.rule is None or not path.is_file():
        return plan.checkpoint_ids
    count: int = read_json(path)["scored"]
    return plan.checkpoint_ids[:count]


def output(prepared: Prepared, plan: StagePlan) -> str:
    """The checkpoint that a finished stage hands on."""
    if plan.rule is None:
        return plan.checkpoint_ids[-1]
    found: str = read_json(result_file(prepared, plan))["checkpoint"]
    return found


def ancestors(prepared: Prepared, checkpoint: str) -> list[Checkpoint]:
    """The checkpoint's record and those of all it descends from, each once."""
    found: dict[str, Checkpoint] = {}
    waiting = [checkpoint]
    while waiting:
        at = waiting.pop()
        if at in found:
            continue
        record = checkpoints.read(prepared.root, at)
        assert record is not None, f"checkpoint {at} descends from one that is not there"
        found[at] = record
        waiting += [*record.ingredients, *filter(None, [record.parent])]
    return list(found.values())
