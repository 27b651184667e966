"""kill -9 at any moment, the same command again: the same bits, each thing once."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from evalsuite.files import sha256_file
from evalsuite.scorefiles import read_evaluation
from tests.trainloop import minirun

RNG = random.Random(20)
"""Draws the steps and checkpoints at which a run is killed, the same in every test run."""

TRIES = 8


def published(root: Path, room: str) -> list[str]:
    """Names in a room of the run folder, without what is being written."""
    folder = root / room
    return [f.name for f in folder.iterdir() if f.name[0] != "."] if folder.is_dir() else []


def after_step(stage: int) -> Callable[[SimpleNamespace, Path], bool]:
    """A moment: some steps of the stage are logged."""
    step = RNG.randint(1, list(minirun.STEPS.values())[stage] - 2)
    return lambda finished, root: (
        minirun.lines_of(root / "stages" / finished.run.stages[stage].id / "metrics.jsonl") >= step
    )


def once(room: str, count: int) -> Callable[[SimpleNamespace, Path], bool]:
    """A moment: so many things stand in a room."""
    return lambda finished, root: len(published(root, room)) >= count


def while_writing(room: str, count: int) -> Callable[[SimpleNamespace, Path], bool]:
    """A moment: something is half-written in a room that holds so many whole things."""
    return lambda finished, root: half_written(root / room) and len(published(root, room)) >= count


def half_written(folder: Path) -> bool:
    """Whether something in the folder, or in a folder there, is being written just now."""
    for place in (folder, *folder.glob("[!.]*/")):
        try:
            names = os.listdir(place)
        except FileNotFoundError:  # not made yet, or renamed between two looks
            continue
        if any(name.endswith(".partial") for name in names):
            return True
    return False


MOMENTS = {
    "with some sources made": once("sources", RNG.randint(1, 2)),
    "while documents are cleaned": once("sources", 3),
    "with tokens half-written": while_writing("tokens", RNG.randint(0, 1)),
    "in pretraining": after_step(0),
    "with a checkpoint half-written": while_writing("checkpoints", RNG.randint(0, 2)),
    "between a checkpoint and its scores": once("checkpoints", RNG.randint(1, 3)),
    "with scores half-written": while_writing("scores", RNG.randint(1, 3)),
    "after some scores": once("scores", RNG.randint(1, 3)),
    "in midtraining": after_step(1),
    "in sft": after_step(2),
}


def logged_up_to_checkpoints(finished: SimpleNamespace, root: Path) -> dict[Path, str]:
    """Metrics file of each stage -> its lines up to the newest published checkpoint."""
    saved = {}
    for plan in finished.run.stages:
        file = root / "stages" / plan.id / "metrics.jsonl"
        there = published(root, "checkpoints")
        steps = zip(plan.checkpoint_ids, plan.stage.checkpoint_steps, strict=True)
        newest = max([step for name, step in steps if name in there], default=0)
        if newest:
            saved[file] = "".join(file.read_text().splitlines(keepends=True)[:newest])
    return saved


def assert_same_run(finished: SimpleNamespace, root: Path) -> None:
    """`root` holds what the undisturbed run holds: no bit less, nothing twice, nothing more."""
    for room in ("checkpoints", "scores", "tokens", "runs"):
        assert sorted(f.name for f in (root / room).iterdir()) == sorted(
            published(finished.root, room)
        ), f"{room} holds what the undisturbed run holds, and nothing half-written"
    for plan in finished.run.stages:
        for checkpoint in plan.checkpoint_ids:
            for name in ("model.safetensors", "optimizer.safetensors", "checkpoint.json"):
                place = Path("checkpoints") / checkpoint / name
                assert sha256_file(root / place) == sha256_file(finished.root / place), place
            [theirs] = (finished.root / "scores" / checkpoint).iterdir()
            [ours] = (root / "scores" / checkpoint).iterdir()
            assert ours.name == theirs.name
            assert read_evaluation(ours).items == read_evaluation(theirs).items
        place = Path("stages") / plan.id / "metrics.jsonl"
        rows = [json.loads(line) for line in (root / place).read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, plan.stage.steps + 1))
        undisturbed = map(json.loads, (finished.root / place).read_text().splitlines())
        assert [row["loss"] for row in rows] == [row["loss"] for row in undisturbed]
        assert not list((root / "stages" / plan.id).glob("*.partial"))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_and_run_again_ends_with_the_bits_of_an_undisturbed_one(
    finished, tmp_path, moment
):
    root, log = tmp_path / "runs", tmp_path / "log"
    command = ["train", str(finished.recipe), "--runs", str(root)]
    # A busy machine may let a moment pass unseen; the next try sees it.
    for _ in range(TRIES):
        shutil.rmtree(root, ignore_errors=True)
        if minirun.kill_when(minirun.start(command, log), lambda: MOMENTS[moment](finished, root)):
            break
    else:
        pytest.fail(f"no moment {moment} was seen in {TRIES} runs")
    saved = logged_up_to_checkpoints(finished, root)
    again = minirun.start(command, log)
    again.join(120)
    assert again.exitcode == 0, log.read_text()
    assert_same_run(finished, root)
    for file, lines in saved.items():
        assert file.read_text().startswith(lines), "what a checkpoint holds is not trained again"


def test_a_run_killed_again_and_again_still_ends(finished, tmp_path):
    root, log = tmp_path / "runs", tmp_path / "log"
    command = ["train", str(finished.recipe), "--runs", str(root)]
    for moment in ("in pretraining", "after some scores", "in midtraining", "in sft"):
        assert minirun.kill_when(
            minirun.start(command, log), lambda moment=moment: MOMENTS[moment](finished, root)
        )
    again = minirun.start(command, log)
    again.join(120)
    assert again.exitcode == 0, log.read_text()
    assert_same_run(finished, root)


def test_the_real_command_killed_in_training_goes_on(finished, tmp_path, repository):
    root, log = tmp_path / "runs", tmp_path / "log"
    command = [sys.executable, "-m", "assay", "train", str(finished.recipe), "--runs", str(root)]
    process = minirun.Command(command, repository, log)
    assert minirun.kill_when(process, lambda: MOMENTS["in pretraining"](finished, root))
    again = minirun.start(command[3:], log)
    again.join(120)
    assert again.exitcode == 0, log.read_text()
    assert_same_run(finished, root)
