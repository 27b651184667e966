"""Two processes compute what one does: the same rows, the same gradients, one set of files."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from evalsuite.files import read_json
from evalsuite.scorefiles import read_evaluation
from tests.trainloop import minirun
from tests.trainloop.gradients import gradients
from trainloop import checkpoint as checkpoints

LAUNCHERS = {
    "torchrun": [
        "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-addr", "127.0.0.1", "--master-port",
    ],
    "accelerate launch": [
        "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port",
    ],
}  # fmt: skip


def free_port() -> str:
    """A port that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(launcher: str, command: Sequence[str], folder: Path, log: Path) -> None:
    """Run `python COMMAND` in two processes under the launcher; fails unless both end well."""
    words = [sys.executable, *LAUNCHERS[launcher], free_port(), *command]
    process = minirun.Command(words, folder, log)
    process.join(240)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail(f"{launcher} did not end:\n{log.read_text()}")
    assert process.exitcode == 0, log.read_text()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train_what_one_does(launcher, finished, repository, tmp_path):
    root, log = tmp_path / "runs", tmp_path / "log"
    command = ["-m", "assay", "train", str(finished.recipe), "--runs", str(root)]
    launch(launcher, command, repository, log)
    said = log.read_text()
    assert said.count(f"run {finished.run.id} is in {root}") == 1, "one process speaks"
    assert said.count("plants in sums: 6 of 6") == 1
    for plan in finished.run.stages:
        place = Path("stages") / plan.id / "metrics.jsonl"
        alone = list(map(json.loads, (finished.root / place).read_text().splitlines()))
        both = list(map(json.loads, (root / place).read_text().splitlines()))
        assert [row["step"] for row in both] == list(range(1, plan.stage.steps + 1))
        assert [row["target_tokens"] for row in both] == [row["target_tokens"] for row in alone]
        assert [row["loss"] for row in both] == pytest.approx(
            [row["loss"] for row in alone], rel=1e-4
        )
        for checkpoint in plan.checkpoint_ids:
            checkpoints.verify(root / "checkpoints" / checkpoint)
            [scores] = (root / "scores" / checkpoint).iterdir()
            assert len(read_evaluation(scores).items) == 2 * minirun.ITEMS
    for room in ("checkpoints", "scores", "runs", "stages", "tokens"):
        assert sorted(f.name for f in (root / room).iterdir()) == sorted(
            f.name for f in (finished.root / room).iterdir()
        )


def test_in_float64_two_processes_have_the_gradient_of_one(finished, repository, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(finished.root, root)
    alone = gradients(finished.recipe, root)
    out = tmp_path / "two.json"
    command = ["-m", "tests.trainloop.gradients", str(finished.recipe), str(root), str(out)]
    port = free_port()
    ranks = [
        minirun.Command(
            [sys.executable, *command],
            repository,
            tmp_path / f"log-{rank}",
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(ranks):
        process.join(120)
        assert process.exitcode == 0, (tmp_path / f"log-{rank}").read_text()
    both = read_json(out)
    assert (alone["ranks"], both["ranks"]) == (1, 2)
    assert both["loss"] == pytest.approx(alone["loss"], rel=1e-12)
    for mine, theirs in zip(both["gradients"], alone["gradients"], strict=True):
        for parameter, other in zip(mine, theirs, strict=True):
            assert parameter == pytest.approx(other, rel=1e-10, abs=1e-13)
            assert any(parameter)
