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
from typing import Any

import pytest

from evalsuite.files import sha256_file
from evalsuite.scorefiles import read_evaluation
from tests.trainloop import minirun, mortal

KILLS = 40
TRIES = 8
SECONDS = 120

WEIGHTS = ("model.safetensors", "optimizer.safetensors", "checkpoint.json")


def published(root: Path, room: str) -> list[str]:
    """Names in a room of the run folder, without what is being written."""
    folder = root / room
    return [f.name for f in folder.iterdir() if f.name[0] != "."] if folder.is_dir() else []


def ended(processes: list[Any]) -> list[int]:
    """How the processes ended; when one did badly, the others are ended too."""
    for process in processes:
        process.join(SECONDS)
        assert process.exitcode is not None, f"a process did not end within {SECONDS} s"
        if process.exitcode:
            for other in processes:
                other.kill()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


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
            for name in WEIGHTS:
                place = Path("checkpoints") / checkpoint / name
                assert sha256_file(root / place) == sha256_file(finished.root / place), place
            [theirs] = (finished.root / "scores" / checkpoint).iterdir()
            [ours] = (root / "scores" / checkpoint).iterdir()
            assert ours.name == theirs.name
            minirun.assert_same_items(read_evaluation(ours).items, read_evaluation(theirs).items)
        place = Path("stages") / plan.id / "metrics.jsonl"
        rows = [json.loads(line) for line in (root / place).read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, plan.stage.steps + 1))
        undisturbed = map(json.loads, (finished.root / place).read_text().splitlines())
        assert [row["loss"] for row in rows] == [row["loss"] for row in undisturbed]
        assert not list((root / "stages" / plan.id).glob("*.partial"))


# --- at moments drawn over all that a run does -------------------------------------------------


def kill_often(
    finished: SimpleNamespace, root: Path, kills: int, rng: random.Random, **launch: Any
) -> None:
    """Runs begun anew and killed until so many kills were seen; each ends like the undisturbed.

    A run is killed some ten times on its way. What a checkpoint holds is not trained again.
    """
    log = root.parent / "log"
    command = ["train", str(finished.recipe), "--runs", str(root)]
    ranks = launch.get("ranks", 1)
    killed = 0
    while killed < kills or root.exists():
        at = rng.randint(1, 60) if killed < kills else None
        dies = rng.randrange(ranks)
        saved = logged_up_to_checkpoints(finished, root)
        codes = ended(mortal.start(command, log, root=root, at=at, dies=dies, **launch))
        if codes[dies] == -9:
            killed += 1
        else:
            assert set(codes) == {0}, log.read_text()[-2000:]
            assert_same_run(finished, root)
            shutil.rmtree(root)
            continue
        for file, lines in saved.items():
            assert file.read_text().startswith(lines), "a checkpoint's steps are not made again"


def test_killed_at_forty_moments_a_run_ends_with_the_bits_of_an_undisturbed_one(finished, tmp_path):
    kill_often(finished, tmp_path / "runs", KILLS, random.Random(20))
    moments = (tmp_path / "moments").read_text().splitlines()
    assert len(moments) == KILLS
    for what in ("a step", "/checkpoints/", "/scores/", "an answer", "/stages/"):
        assert any(what in moment for moment in moments), f"none was killed at {what}"


@pytest.fixture(scope="module")
def finished_by_two(finished, tmp_path_factory):
    """The mini recipe, run to its end by two ranks."""
    root = tmp_path_factory.mktemp("two") / "runs"
    command = ["train", str(finished.recipe), "--runs", str(root)]
    log = root.parent / "log"
    assert ended(mortal.start(command, log, root=root, ranks=2)) == [0, 0], log.read_text()
    return SimpleNamespace(recipe=finished.recipe, root=root, run=finished.run)


def test_of_two_ranks_one_is_killed_and_both_are_started_again(finished_by_two, tmp_path):
    kill_often(finished_by_two, tmp_path / "runs", 6, random.Random(2), ranks=2)


def test_what_two_ranks_began_one_process_ends_on_the_same_data(finished, tmp_path):
    root, log = tmp_path / "runs", tmp_path / "log"
    command = ["train", str(finished.recipe), "--runs", str(root)]
    processes = mortal.start(command, log, root=root, ranks=2)
    moment = after_step(finished, root, 1, 3)
    assert minirun.kill_when(processes[1], moment, seconds=SECONDS)
    processes[0].kill()
    processes[0].join()
    assert ended(mortal.start(command, log, root=root)) == [0], log.read_text()
    for plan in finished.run.stages:
        place = Path("stages") / plan.id / "metrics.jsonl"
        alone = [json.loads(line) for line in (finished.root / place).read_text().splitlines()]
        rows = [json.loads(line) for line in (root / place).read_text().splitlines()]
        for key in ("step", "tokens", "target_tokens"):
            assert [row[key] for row in rows] == [row[key] for row in alone]
        assert [row["loss"] for row in rows] == pytest.approx(
            [row["loss"] for row in alone], rel=1e-4
        )


# --- from outside, in the middle of whatever it does -------------------------------------------


def after_step(finished: SimpleNamespace, root: Path, stage: int, step: int) -> Callable[[], bool]:
    """A moment: so many steps of the stage are logged."""
    place = root / "stages" / finished.run.stages[stage].id / "metrics.jsonl"
    return lambda: minirun.lines_of(place) >= step


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


@pytest.mark.parametrize("room", ["tokens", "checkpoints", "scores"])
def test_a_run_killed_while_something_is_half_written_goes_on(finished, tmp_path, room):
    root, log = tmp_path / "runs", tmp_path / "log"
    command = ["train", str(finished.recipe), "--runs", str(root)]
    # A busy machine may let the moment pass unseen; the next try sees it.
    for _ in range(TRIES):
        shutil.rmtree(root, ignore_errors=True)
        if minirun.kill_when(minirun.start(command, log), lambda: half_written(root / room)):
            break
    else:
        pytest.fail(f"nothing half-written was seen in {room} in {TRIES} runs")
    assert ended(mortal.start(command, log, root=root)) == [0], log.read_text()
    assert_same_run(finished, root)


def test_the_real_command_killed_in_training_goes_on(finished, tmp_path, repository):
    root, log = tmp_path / "runs", tmp_path / "log"
    command = [sys.executable, "-m", "assay", "train", str(finished.recipe), "--runs", str(root)]
    process = minirun.Command(command, repository, log)
    assert minirun.kill_when(process, after_step(finished, root, 0, 9))
    assert ended(mortal.start(command[3:], log, root=root)) == [0], log.read_text()
    assert_same_run(finished, root)
