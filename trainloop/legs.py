"""One stage of a run made ready: its models, its data, its reference, and then trained.

    train_leg(prepared, plan, tokenizer, ranks, label, progress, say)
    make_soup(prepared, plan, tokenizer)

All of it follows from the StagePlan, so a stage killed at any moment is made ready anew and goes
on from its newest good checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalsuite.errors import UserError
from evalsuite.files import content_id, read_json, read_jsonl, write_json
from evalsuite.progress import Progress
from trainloop import checkpoint as checkpoints
from trainloop import model as models
from trainloop import scoring, train
from trainloop.objectives import Floats, read_options
from trainloop.plans import StagePlan, ancestors, output
from trainloop.prepare import Prepared
from trainloop.records import Checkpoint

if TYPE_CHECKING:
    from trainloop.data import BatchPlan, Tokens
    from trainloop.ranks import Ranks

Say = Callable[[str], None]


def train_leg(
    prepared: Prepared,
    plan: StagePlan,
    tokenizer: Any,
    ranks: Ranks,
    label: str,
    progress: Progress,
    first: int,
) -> None:
    """Train what is left of the stage from its checkpoint at step `first` on, scoring as it goes.

    All ranks call. The checkpoints it starts from are good.
    """
    stage, root = plan.stage, prepared.root
    assert plan.objective is not None
    options = read_options(plan.objective, stage.options, stage.name)
    files = {
        name: _files(prepared, plan, name, tokenizer, ranks, label, progress)
        for name, weight in stage.mixture.items()
        if weight > 0
    }
    tokens = _tokens(prepared, plan, files, tokenizer, ranks, progress)
    held_files = {name: prepared.clean[name].files for name in stage.held_out}
    held_out = _tokens(prepared, plan, held_files, tokenizer, ranks, progress)
    batches = _batch_plan(prepared, plan, tokens, ranks, first)
    references = {}
    if plan.objective.reference:
        both = tokens | held_out
        references = _references(prepared, plan, both, tokenizer, ranks, progress)
    own = train.checkpoint_id(plan.id, first) if first else None
    record = checkpoints.read(root, own) if own else None
    before = _before(prepared, plan)
    held = _models(prepared, plan, tokenizer, own, options)
    _check_room(plan, held.policy)
    leg = train.Leg(
        stage=stage,
        id=plan.id,
        parent=output(prepared, plan.parent) if plan.parent else None,
        rests_on=[output(prepared, plan.reward)] if plan.reward else [],
        total_tokens=sum(each.tokens for each in before),
        flops=sum(6.0 * each.parameters * each.tokens for each in before),
        objective=plan.objective,
        options=options,
        plan=batches,
        references=references or None,
        first=first,
        first_tokens=record.tokens if record else 0,
        root=root,
        seed=plan.seed,
        cpu_threads=prepared.recipe.cpu_threads,
        certificate=prepared.certificate.id,
        label=label,
    )
    whole: list[Any] = [None]

    def after_checkpoint(module: Any, checkpoint: Checkpoint) -> bool:
        _measure(prepared, plan, checkpoint.id, module, held_out, references, tokenizer, ranks)
        if plan.head == "language":
            whole[0] = ranks.full_model(module, whole[0])
            scoring.score(
                prepared, plan, checkpoint.id, whole[0], tokenizer, ranks, label, progress
            )
        return ends_here(prepared, plan, checkpoint.step, ranks)

    train.train_stage(
        leg, held, tokenizer, ranks, after_checkpoint=after_checkpoint, progress=progress
    )


def ends_here(prepared: Prepared, plan: StagePlan, step: int, ranks: Ranks) -> bool:
    """Whether the stage's rule ends it after its checkpoint at `step`; all ranks agree."""
    if plan.rule is None:
        return False
    with ranks.together():
        ended = False
        if ranks.main:
            number = plan.stage.checkpoint_steps.index(step) + 1
            scored = plan.checkpoint_ids[:number]
            ended = scoring.choose(prepared, plan, scored, last=step == plan.stage.steps)
    return ranks.share(ended)


# --- data --------------------------------------------------------------------------------------


def _files(
    prepared: Prepared,
    plan: StagePlan,
    name: str,
    tokenizer: Any,
    ranks: Ranks,
    label: str,
    progress: Progress,
) -> tuple[Path, ...]:
    """The documents of a source: its clean shards, or pairs that a stage's model writes now."""
    settings = prepared.recipe.sources[name].pairs
    if settings is None:
        return prepared.clean[name].files
    from trainloop import pairs

    policy = output(prepared, plan.policies[name])
    clean = prepared.clean[settings.prompts]
    known = pairs.pairs_id(policy, tokenizer_id(tokenizer), clean.id, settings, seed=plan.seed)
    made = ranks.share(pairs.made(prepared.root, known))
    if made is not None:
        return (made,)
    folder = checkpoints.folder_of(prepared.root, policy)
    checkpoints.verify(folder)
    model = models.load_model(folder).to(ranks.device)
    rows = [row for file in clean.files for _, row in read_jsonl(file)]
    return (
        pairs.make(
            model,
            tokenizer,
            rows,
            settings,
            seed=plan.seed,
            root=prepared.root,
            pairs_id=known,
            ranks=ranks,
            progress=lambda what, done, total: progress(f"{label}: {what}", done, total),
        ),
    )


def _tokens(
    prepared: Prepared,
    plan: StagePlan,
    files: dict[str, tuple[Path, ...]],
    tokenizer: Any,
    ranks: Ranks,
    progress: Progress,
) -> dict[str, Tokens]:
    """Each source as tokens; rank 0 makes them, the others find them made."""
    from trainloop import data

    assert plan.objective is not None

    def tokenise(name: str) -> Tokens:
        own = plan.data[name] if name in plan.data else prepared.clean[name].id
        return data.tokenise(
            name,
            files[name],
            tokenizer,
            tokenizer_id(tokenizer),
            plan.objective,  # type: ignore[arg-type]
            plan.stage.sequence_length,
            root=prepared.root,
            data_id=own,
            progress=progress,
        )

    with ranks.together():
        if ranks.main:
            for name in files:
                tokenise(name)
    return {name: tokenise(name) for name in files}


def _batch_plan(
    prepared: Prepared, plan: StagePlan, tokens: dict[str, Tokens], ranks: Ranks, first: int
) -> BatchPlan:
    """The stage's batches; what they read is written down, and compared when a run goes on."""
    from trainloop import data

    assert plan.objective is not None
    batches = data.plan_batches(tokens, plan.stage, plan.objective, seed=plan.seed)
    path = prepared.root / "stages" / plan.id / "data.json"
    with ranks.together():
        if ranks.main:
            if first and path.is_file():
                known = read_json(path).get("fingerprint")
                if known != batches.fingerprint:
                    raise UserError(
                        f"stage {plan.stage.name!r}: its batches are no longer those it was "
                        f"trained on up to step {first} ({path} says {known}, now "
                        f"{batches.fingerprint}): its data were changed or damaged; put them back, "
                        f"or delete {path.parent} and its checkpoints to train it anew"
                    )
            cut = {name: source.too_long for name, source in tokens.items()}
            dropped = {name: source.dropped for name, source in tokens.items()}
            write_json(
                path,
                {
                    "epochs": batches.epochs,
                    "cut_documents": cut,
                    "dropped": dropped,
                    "fingerprint": batches.fingerprint,
                },
            )
    return batches


def tokenizer_id(tokenizer: Any) -> str:
    """Names what a tokenizer makes of texts and conversations."""
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template]
    return content_id([tokenizer.backend_tokenizer.to_str(), special])


# --- models ------------------------------------------------------------------------------------


def start_folder(prepared: Prepared, plan: StagePlan) -> Path | None:
    """The folder of the weights that the stage starts from; None: fresh ones."""
    if plan.parent is not None:
        return checkpoints.folder_of(prepared.root, output(prepared, plan.parent))
    return prepared.model_folder


def _language_model(prepared: Prepared, plan: StagePlan, tokenizer: Any) -> Any:
    """The weights that the stage starts from."""
    folder = start_folder(prepared, plan)
    if folder is None:
        return models.fresh_model(prepared.recipe.model, tokenizer, seed=plan.seed)
    return models.load_model(folder)


def _models(
    prepared: Prepared, plan: StagePlan, tokenizer: Any, own: str | None, options: Any
) -> train.Models:
    """The stage's models: of its own checkpoint `own`, or as it starts."""
    from trainloop.reward_model import reward_model

    objective = plan.objective
    assert objective is not None
    folder = checkpoints.folder_of(prepared.root, own) if own else None
    scorer = None
    if plan.reward is not None:
        scorer = checkpoints.folder_of(prepared.root, output(prepared, plan.reward))
    if objective.head == "score":
        if folder is not None:
            return train.Models(policy=models.load_scorer(folder))
        start = _language_model(prepared, plan, tokenizer)
        return train.Models(policy=reward_model(start, tokenizer, seed=plan.seed))
    policy = models.load_model(folder) if folder else _language_model(prepared, plan, tokenizer)
    critic = None
    if objective.critic:
        if folder is not None:
            critic = models.load_scorer(folder / "critic")
        elif scorer is not None:
            critic = models.load_scorer(scorer)
        else:
            critic = reward_model(policy, tokenizer, seed=plan.seed)
    wanted = objective.rollout is not None and objective.needs_reference(options)
    return train.Models(
        policy=policy,
        critic=critic,
        reference=_language_model(prepared, plan, tokenizer) if wanted else None,
        reward=models.load_scorer(scorer) if scorer is not None else None,
    )


def _check_room(plan: StagePlan, model: Any) -> None:
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and plan.stage.sequence_length > room:
        raise UserError(
            f"stage {plan.stage.name!r}: sequence_length is {plan.stage.sequence_length:,}, but "
            f"the model has positions for {room:,} (max_position_embeddings)"
        )


def _before(prepared: Prepared, plan: StagePlan) -> list[Checkpoint]:
    """The checkpoints that the stage descends from, each once."""
    if plan.parent is None:
        return []
    return ancestors(prepared, output(prepared, plan.parent))


# --- reference and held-out measures -----------------------------------------------------------


def _references(
    prepared: Prepared,
    plan: StagePlan,
    tokens: dict[str, Tokens],
    tokenizer: Any,
    ranks: Ranks,
    progress: Progress,
) -> dict[str, Floats]:
    """Log-probabilities of each source's answers under the weights the stage starts from."""
    from trainloop import reference
    from trainloop.live import Everywhere, frozen_policy

    stage, root = plan.stage, prepared.root
    start = output(prepared, plan.parent) if plan.parent else plan.start
    if start_folder(prepared, plan) is None:  # weights drawn from the stage's own seed
        start = content_id([start, plan.seed])
    cached = partial(reference.cached, weights_id=start, precision=stage.precision, root=root)
    known = None
    with ranks.together():
        if ranks.main:
            known = cached(tokens)
    known = ranks.share(known)
    if known is not None:
        return dict(known)
    model = _language_model(prepared, plan, tokenizer)
    module = frozen_policy(model, ranks, stage.precision)
    logprobs = Everywhere(module, ranks, stage, "logprobs", {})
    return dict(
        reference.reference(
            tokens,
            logprobs,
            weights_id=start,
            precision=stage.precision,
            root=root,
            ranks=ranks,
            progress=progress,
        )
    )


def _measure(
    prepared: Prepared,
    plan: StagePlan,
    checkpoint: str,
    module: Any,
    held_out: dict[str, Tokens],
    references: dict[str, Floats],
    tokenizer: Any,
    ranks: Ranks,
) -> None:
    """Measure the checkpoint on the stage's held-out sources it has no measures of."""
    from trainloop import heldout

    assert plan.objective is not None
    options = read_options(plan.objective, plan.stage.options, plan.stage.name)
    for name in ranks.share(scoring.unmeasured(prepared, plan, checkpoint)):
        found = heldout.measure(
            module,
            held_out[name],
            plan.objective,
            options,
            stage=plan.stage,
            ranks=ranks,
            tokenizer=tokenizer,
            references=references.get(name),
        )
        with ranks.together():
            if ranks.main:
                scoring.write_measures(prepared, checkpoint, name, found)


def finish_leftovers(
    prepared: Prepared,
    plan: StagePlan,
    tokenizer: Any,
    ranks: Ranks,
    label: str,
    progress: Progress,
) -> None:
    """Score and measure the published checkpoints of the stage that a killed run left so."""
    from trainloop.policy import Policy

    for checkpoint in plan.checkpoint_ids:
        record = checkpoints.read(prepared.root, checkpoint)
        if ranks.share(record is None or scoring.is_finished(prepared, plan, checkpoint)):
            continue
        folder = checkpoints.folder_of(prepared.root, checkpoint)
        checkpoints.verify(folder)
        load = models.load_scorer if plan.head == "score" else models.load_model
        model = load(folder).to(ranks.device)
        if plan.objective is not None and plan.stage.held_out:
            files = {name: prepared.clean[name].files for name in plan.stage.held_out}
            held_out = _tokens(prepared, plan, files, tokenizer, ranks, progress)
            references = {}
            if plan.objective.reference:
                references = _references(prepared, plan, held_out, tokenizer, ranks, progress)
            module = Policy(model)
            _measure(prepared, plan, checkpoint, module, held_out, references, tokenizer, ranks)
        scoring.score(prepared, plan, checkpoint, model, tokenizer, ranks, label, progress)


# --- soups -------------------------------------------------------------------------------------


def make_soup(prepared: Prepared, plan: StagePlan, ranks: Ranks) -> None:
    """Publish the mean of the stages' results as the stage's one checkpoint."""
    from trainloop.soup import soup

    [identity] = plan.checkpoint_ids
    if ranks.share(checkpoints.read(prepared.root, identity) is not None):
        return
    ingredients = [output(prepared, sibling) for sibling in plan.soup]
    with ranks.together():
        if ranks.main:
            folders = [checkpoints.folder_of(prepared.root, each) for each in ingredients]
            for folder in folders:
                checkpoints.verify(folder)
            records = [record for each in ingredients for record in ancestors(prepared, each)]
            distinct = {record.id: record for record in records}.values()
            mixture: dict[str, float] = {}
            record = Checkpoint(
                id=identity,
                parent=ingredients[0],
                stage=plan.stage.name,
                stage_id=plan.id,
                objective="soup",
                step=0,
                tokens=0,
                total_tokens=sum(each.tokens for each in distinct),
                final=True,
                seed=plan.seed,
                mixture=mixture,
                certificate=prepared.certificate.id,
                flops=sum(6.0 * each.parameters * each.tokens for each in distinct),
                parameters=records[0].parameters,
                cpu_threads=prepared.recipe.cpu_threads,
                ingredients=ingredients,
            )
            checkpoints.publish_made(prepared.root, record, lambda work: soup(folders, work))
