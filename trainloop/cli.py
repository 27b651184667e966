"""`assay train` and `assay sweep`: read a recipe, run it, say what came out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evalsuite.errors import UserError

if TYPE_CHECKING:
    from trainloop.plans import StagePlan
    from trainloop.prepare import Prepared
    from trainloop.run import Run

RECIPES = Path(__file__).parent.parent / "recipes"

_recipe = click.argument("recipe", type=str)
_runs = click.option(
    "--runs",
    default="runs",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for data, checkpoints, scores and results.",
)
_mirror = click.option(
    "--mirror",
    envvar="ASSAY_MIRROR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with local copies of public data sets and models (or set ASSAY_MIRROR).",
)


class _Train(click.Group):
    """`assay train RECIPE` means `assay train run RECIPE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Train)
def train() -> None:
    """Train a recipe through its stages; or say what that costs, and what came of it.

    \b
    Examples:
        assay train tulu3-micro               (the same as: assay train run tulu3-micro)
        assay train plan olmo2-1b --gpus 8
        assay train curve tulu3-micro grpo
    """


@train.command()
@_recipe
@_runs
@_mirror
@click.option("--seed", type=click.IntRange(min=0), help="Instead of the recipe's seed.")
def run(recipe: str, runs: Path, mirror: Path | None, seed: int | None) -> None:
    """Train RECIPE through its stages, scoring every checkpoint.

    RECIPE is a YAML file, or the name of one that ships with Assay. Under torchrun or
    `accelerate launch`, all processes train together. Run again, it finds what is done.

    \b
    Example:
        assay train recipes/real-gsm8k.yaml --mirror ../shared
    """
    from trainloop.launch import launched

    rank, ranks = launched()
    path = find_recipe(recipe)
    if ranks > 1:
        run_id = _train_together(path, runs, mirror, seed)
    else:
        run_id = _train_alone(path, runs, mirror, seed)
    if rank == 0:
        click.echo(f"run {run_id} is in {runs}; see it with: assay board show {runs}")


@train.command()
@_recipe
@_mirror
@click.option("--gpus", default=8, show_default=True, help="GPUs that train together.")
@click.option("--memory", type=float, help="GiB of each GPU, instead of the device's.")
@click.option("--device", default="h100", show_default=True, help="A GPU's data sheet.")
def plan(recipe: str, mirror: Path | None, gpus: int, memory: float | None, device: str) -> None:
    """Say what RECIPE costs on so many GPUs: tokens, steps, operations, hours, disk, memory.

    Nothing is trained; sources are counted where an epoch of them decides.

    \b
    Example:
        assay train plan olmo2-1b --gpus 8
    """
    from evalsuite.config import load
    from evalsuite.errors import did_you_mean
    from trainloop import costs
    from trainloop.records import Recipe

    if device not in costs.DEVICES:
        known = ", ".join(costs.DEVICES)
        raise UserError(
            f"--device {device!r} has no data sheet here{did_you_mean(device, costs.DEVICES)}; "
            f"there are {known}"
        )
    path = find_recipe(recipe)
    found = costs.plan(
        load(path, Recipe),
        base=path.parent,
        gpus=gpus,
        device=costs.DEVICES[device],
        memory_gib=memory,
        mirror=mirror,
    )
    for line in costs.lines(found):
        click.echo(line)


@train.command()
@_recipe
@click.argument("stage")
@_runs
@_mirror
@click.option("--seed", type=click.IntRange(min=0), help="Instead of the recipe's seed.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="PROMPTS",
    help="Measure the KL on answers to so many of the stage's prompts: stages that log none.",
)
def curve(
    recipe: str,
    stage: str,
    runs: Path,
    mirror: Path | None,
    seed: int | None,
    sample: int | None,
) -> None:
    """Show STAGE's scores of a trained RECIPE against its steps and its KL to where it started.

    The rows are written to the stage's curve.jsonl. A score that falls while the KL grows is
    over-optimisation: the stage should end earlier, or hand on its best checkpoint.

    \b
    Example:
        assay train curve tulu3-micro grpo
    """
    from evalsuite.errors import did_you_mean
    from evalsuite.progress import show_progress
    from trainloop import curves
    from trainloop.run import is_done, plan_stages

    path = find_recipe(recipe)
    with show_progress() as progress:
        prepared = _prepare(path, runs, mirror, progress)
        plans = {
            each.stage.name: each
            for each in plan_stages(prepared, variant=None, seed=_seed(prepared, seed))
        }
        if stage not in plans:
            raise UserError(
                f"{path}: no stage is named {stage!r}{did_you_mean(stage, plans)}; "
                f"there are {', '.join(plans)}"
            )
        found = plans[stage]
        if not is_done(prepared, found):
            raise UserError(
                f"stage {stage!r} is not done in {runs}; train it with: assay train {recipe}"
            )
        sampled = (
            curves.sample(prepared, found, prompts=sample, progress=progress) if sample else None
        )
        points = curves.curve(prepared, found, sampled=sampled)
    file = runs / "stages" / found.id / "curve.jsonl"
    curves.write(points, file)
    for line in curves.lines(points):
        click.echo(line)
    click.echo(f"{len(points):,} rows are in {file}")


@click.command()
@_recipe
@_runs
@_mirror
def sweep(recipe: str, runs: Path, mirror: Path | None) -> None:
    """Train every cell of RECIPE's sweep (mixtures x seeds) and say which mixture won.

    Stages before the varied one are trained once. Killed or failed, the same command
    goes on where it stopped.

    \b
    Example:
        assay sweep quickstart
    """
    result = sweep_recipe(find_recipe(recipe), runs, mirror)
    say_verdict(result)
    click.echo(f"sweep {result['id']} is in {runs}; see it with: assay board show {runs}")


def say_verdict(result: dict[str, Any]) -> None:
    """What a sweep decided: per capability, then overall."""
    from trainloop.sweep import capability_lines

    for line in capability_lines(result):
        click.echo(line)
    click.echo(f"verdict: {result['sentence']}")


def find_recipe(name: str) -> Path:
    """A recipe file by its path, or one that ships with Assay by its name."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    shipped = RECIPES / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    from evalsuite.errors import did_you_mean

    known = [file.stem for file in RECIPES.glob("*.yaml")]
    raise UserError(
        f"no recipe is called {name!r}{did_you_mean(name, known)}; or give a .yaml file"
    )


def sweep_recipe(path: Path, runs: Path, mirror: Path | None) -> dict[str, Any]:
    """Prepare and run a recipe's sweep with a progress display; returns sweep.json's content."""
    from evalsuite.progress import show_progress
    from trainloop.sweep import finished_cells, run_sweep

    with show_progress() as progress:
        prepared = _prepare(path, runs, mirror, progress)
        if prepared.recipe.sweep is not None:
            done, cells = finished_cells(prepared)
            if done:
                rest = "nothing is left to train" if done == cells else "the others follow"
                click.echo(f"{done} of {cells} cells are done already in {runs}; {rest}")
        result = run_sweep(prepared, progress=progress)
    _say_data(prepared)
    return result


def _prepare(path: Path, runs: Path, mirror: Path | None, progress: Any) -> Prepared:
    from evalsuite.config import load
    from trainloop.prepare import prepare
    from trainloop.records import Recipe

    return prepare(
        load(path, Recipe),
        recipe_file=str(path),
        base=path.parent,
        root=runs,
        mirror=mirror,
        progress=progress,
    )


def _train_alone(path: Path, runs: Path, mirror: Path | None, seed: int | None) -> str:
    from evalsuite.progress import show_progress
    from trainloop.run import run_stages

    with show_progress() as progress:
        prepared = _prepare(path, runs, mirror, progress)
        _say_done(prepared, _seed(prepared, seed))
        run = run_stages(prepared, seed=_seed(prepared, seed), progress=progress, say=click.echo)
    _say_data(prepared)
    _say_scores(prepared, run)
    return run.id


def _train_together(path: Path, runs: Path, mirror: Path | None, seed: int | None) -> str:
    """One of several launched processes: rank 0 prepares and speaks, all train."""
    from evalsuite.config import load
    from evalsuite.progress import show_progress, silent
    from trainloop.ranks import join, leave
    from trainloop.records import Recipe
    from trainloop.run import run_stages

    ranks = join(load(path, Recipe).distributed)
    with show_progress() as shown:
        progress = shown if ranks.main else silent
        # Rank 0 makes the data while the others wait, and then find it made.
        with ranks.together():
            if ranks.main:
                _prepare(path, runs, mirror, progress)
        prepared = _prepare(path, runs, mirror, silent)
        run = run_stages(
            prepared,
            seed=_seed(prepared, seed),
            ranks=ranks,
            progress=progress,
            say=click.echo,
        )
    if ranks.main:
        _say_data(prepared)
        _say_scores(prepared, run)
    leave()
    return run.id


def _say_done(prepared: Prepared, seed: int) -> None:
    """Which stages an earlier call has finished."""
    from trainloop.run import is_done, plan_stages

    plans = plan_stages(prepared, variant=None, seed=seed)
    done = [plan.stage.name for plan in plans if is_done(prepared, plan)]
    if done:
        rest = "nothing is left to train" if len(done) == len(plans) else "the others follow"
        click.echo(f"done already in {prepared.root}: {', '.join(done)}; {rest}")


def _seed(prepared: Prepared, seed: int | None) -> int:
    return prepared.recipe.seed if seed is None else seed


def _say_data(prepared: Prepared) -> None:
    """What decontamination did, and whether it found what was planted."""
    from trainloop.prepare import plants_found

    for name, source in prepared.certificate.sources.items():
        flag = ", CONTAMINATED above the policy's gate" if source.contaminated else ""
        click.echo(
            f"data {name}: {source.read:,} documents, {source.removed:,} removed as leaks{flag}"
        )
    for name, shard in prepared.shards.items():
        for reason, count in shard.left_out.items():
            click.echo(f"data {name}: {count:,} rows left out: {reason}")
    for name, planted, found in plants_found(prepared):
        click.echo(f"plants in {name}: {found} of {planted} planted leaks found")


def _say_scores(prepared: Prepared, run: Run) -> None:
    """What each stage had to cut, and the aggregate scores after it."""
    from evalsuite.files import read_json
    from evalsuite.records import ALL
    from evalsuite.scorefiles import read_evaluation
    from trainloop.plans import output
    from trainloop.run import score_folder

    for plan in run.stages:
        if plan.soup:
            continue
        about = read_json(prepared.root / "stages" / plan.id / "data.json")
        for source, why in about.get("dropped", {}).items():
            for reason, count in why.items():
                click.echo(f"stage {plan.stage.name}: {count:,} of {source} left out: {reason}")
            read, epochs = about["epochs"].get(source, 0.0), plan.stage.epochs
            if why and epochs is not None:
                asked = epochs * plan.stage.mixture[source]
                if read > 1.01 * asked:
                    click.echo(
                        f"stage {plan.stage.name}: the rest of {source} was read {read:.3g} times, "
                        f"not {asked:.3g}: its steps were counted before"
                    )
        for source, cut in about["cut_documents"].items():
            if cut:
                click.echo(
                    f"stage {plan.stage.name}: {cut:,} documents of {source} were longer than "
                    f"{plan.stage.sequence_length:,} tokens and cut there"
                )
    for plan in run.stages:
        for line in _held_out(prepared, plan):
            click.echo(line)
    for suite in prepared.suites.values():
        for plan in run.stages:
            if plan.head != "language":
                continue
            evaluation = read_evaluation(score_folder(prepared, output(prepared, plan), suite))
            shown = [
                f"{score.capability} {_number(score)}"
                for score in evaluation.scores
                if score.task == ALL and score.capability != ALL and score.subset == "all"
            ]
            click.echo(f"{suite.name} after {plan.stage.name}: " + ", ".join(shown))
    for line in _moves(prepared, run):
        click.echo(line)


def _moves(prepared: Prepared, run: Run) -> Iterator[str]:
    """A line per suite and stage: the capabilities it moved beyond doubt, doc by doc."""
    from evalsuite.compare import compare
    from evalsuite.scorefiles import read_evaluation
    from trainloop.plans import output
    from trainloop.run import score_folder

    for suite in prepared.suites.values():
        for plan in run.stages:
            if plan.head != "language" or plan.parent is None:
                continue
            before, after = (
                read_evaluation(score_folder(prepared, output(prepared, each), suite))
                for each in (plan.parent, plan)
            )
            shown = [
                f"{each.capability} {each.difference:+.3f} [{each.low:+.3f}, {each.high:+.3f}]"
                for each in compare(before, after).capabilities
                if each.low is not None and each.high is not None and each.low * each.high > 0
            ]
            said = ", ".join(shown) if shown else "nothing beyond doubt"
            yield f"{suite.name}, {plan.stage.name} moved from {plan.parent.stage.name}: {said}"


def _held_out(prepared: Prepared, plan: StagePlan) -> Iterator[str]:
    """A line per held-out source of the stage: its measures at the checkpoint handed on."""
    from evalsuite.files import read_json
    from trainloop.plans import output
    from trainloop.scoring import measures_file

    if not plan.stage.held_out:
        return
    measures = read_json(measures_file(prepared, output(prepared, plan)))
    for source in plan.stage.held_out:
        numbers = {k: v for k, v in measures[source].items() if k != "data"}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        yield f"held out {source} after {plan.stage.name}: {shown}"


def _number(score: Any) -> str:
    if score.value is None:
        return "not scored"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
