"""A recipe of three stages that runs end to end in a second or two, and processes to run it in.

recipe = write_recipe(tmp_path)                      # mini.yaml, tiny.yaml, sums.jsonl
prepared, run = finish(recipe, tmp_path / "runs")    # in this process
process = start(["train", str(recipe)], log)         # in one that may be killed
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalsuite import config, microworld
from evalsuite.files import canonical_json
from evalsuite.records import ItemRow, as_json
from tests.trainloop.conftest import CHAT, LLAMA
from trainloop.prepare import Prepared, prepare
from trainloop.records import Recipe
from trainloop.run import Run, run_stages

ROWS = 4
LENGTH = 64
STEPS = {"pretrain": 24, "midtrain": 12, "sft": 12}
ITEMS = 6
"""Docs of each task, and plants of sums."""
PLANTED = "Q: {question}\nA: {answer}\n"

SUITE = {
    "name": "tiny",
    "description": "Six sums and six facts.",
    "role": "dev",
    "capabilities": {
        "math": [{"task": "micro_math", "metric": "exact_match", "docs": ITEMS}],
        "knowledge": [{"task": "micro_knowledge", "metric": "acc", "chance": 0.25, "docs": ITEMS}],
    },
}

processes = multiprocessing.get_context("forkserver")
# Each child starts with everything imported and compiled: a kill costs no start.
processes.set_forkserver_preload(["tests.trainloop.preload"])


def recipe_text() -> dict[str, Any]:
    """The recipe as plain data, for tests that change it."""

    def stage(name: str, objective: str, mixture: dict[str, float], **more: Any) -> dict[str, Any]:
        settings = {"name": name, "objective": objective, "mixture": mixture}
        settings |= {"tokens": STEPS[name] * ROWS * LENGTH, "sequence_length": LENGTH}
        settings |= {"batch_tokens": ROWS * LENGTH, "learning_rate": 1e-2}
        return settings | more

    return {
        "name": "mini",
        "description": "Sums and facts, in seconds.",
        "suites": ["tiny.yaml"],
        "seed": 0,
        "model": {
            "config": LLAMA | {"num_hidden_layers": 1, "max_position_embeddings": 256},
            "tokenizer": {"vocab_size": 300, "train_on": ["facts", "sums", "chat"]},
            "chat_template": CHAT,
        },
        "sources": {
            "facts": {
                "microworld": "facts",
                "documents": 400,
                "leaks": {"suite": "micro-dev", "rate": 0.3, "forms": ["verbatim"]},
            },
            "sums": {
                "files": ["sums.jsonl"],
                "plant": {
                    "hub": "assay/microworld",
                    "config": "micro_math",
                    "split": "dev",
                    "first": ITEMS,
                    "template": PLANTED,
                },
            },
            "chat": {"microworld": "sft_math", "documents": 200},
        },
        "stages": [
            stage(
                "pretrain",
                "next_token",
                {"facts": 1, "sums": 1},
                score_every=8 * ROWS * LENGTH,
            ),
            stage("midtrain", "next_token", {"sums": 3, "facts": 1}),
            stage("sft", "sft", {"chat": 1}),
        ],
    }


def sweep_text() -> dict[str, Any]:
    """The recipe with a sweep over its second stage: 2 variants x 2 seeds."""
    return recipe_text() | {
        "sweep": {
            "stage": "midtrain",
            "suite": "tiny.yaml",
            "seeds": [1, 2],
            "variants": {"sums_heavy": {"sums": 1}, "facts_heavy": {"facts": 1}},
        }
    }


def write_recipe(folder: Path, text: dict[str, Any] | None = None) -> Path:
    """Write the recipe, its suite and its file of sums into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = microworld.documents("math_steps", count=300, seed=0)
    (folder / "sums.jsonl").write_text("".join(canonical_json(row) + "\n" for row in rows))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SUITE, sort_keys=False))
    recipe = folder / "mini.yaml"
    recipe.write_text(yaml.safe_dump(text or recipe_text(), sort_keys=False))
    return recipe


def ready(recipe: Path, root: Path) -> Prepared:
    """The recipe's data, made or found under `root`."""
    return prepare(
        config.load(recipe, Recipe),
        recipe_file=str(recipe),
        base=recipe.parent,
        root=root,
        mirror=None,
    )


def finish(recipe: Path, root: Path, **options: Any) -> tuple[Prepared, Run]:
    """The recipe's run, in this process."""
    prepared = ready(recipe, root)
    return prepared, run_stages(prepared, **({"seed": prepared.recipe.seed} | options))


def start(arguments: Sequence[str], log: Path) -> Any:
    """`assay ARGUMENTS` in a process of its own, which writes what it says to `log`."""
    process = processes.Process(target=run_assay, args=(list(arguments), str(log)))
    process.start()
    return process


def run_assay(arguments: list[str], log: str) -> None:
    """What such a process does."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    import assay

    assay.main(arguments)


def kill_when(process: Any, due: Callable[[], bool], *, seconds: float = 60) -> bool:
    """SIGKILL the process as soon as `due()`; False if it ended, and well, before that was seen."""
    deadline = time.monotonic() + seconds
    while not due():
        if not process.is_alive():
            assert process.exitcode == 0, "the process failed before its moment came"
            return False
        assert time.monotonic() < deadline, f"its moment did not come within {seconds} s"
        process.join(0.001)
    process.kill()
    process.join()
    return process.exitcode == -9


def wait_until(true: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
    """Return as soon as `true()`; an AssertionError saying `what` did not happen in time."""
    deadline = time.monotonic() + seconds
    idle = threading.Event()
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        idle.wait(0.01)


def lines_of(path: Path) -> int:
    """Whole lines of a file; 0 while it is missing."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


class Command:
    """A program in a process of its own, with the methods `kill_when` needs."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        log: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        told = os.environ | (environment or {})
        with log.open("a") as out:
            self._process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=told)
        self.pid = self._process.pid
        self.kill = self._process.kill

    @property
    def exitcode(self) -> int | None:
        """None while it runs; minus the signal that ended it."""
        return self._process.poll()

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.exitcode is None

    def join(self, seconds: float | None = None) -> None:
        """Wait until it ends, or so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)


def assert_same_items(ours: Sequence[ItemRow], theirs: Sequence[ItemRow]) -> None:
    """The same rows in the same order, likelihoods to rounding: it depends on what is asked
    together."""
    numbers = ("value", "metrics", "samples")
    for mine, other in zip(ours, theirs, strict=True):
        rest = [
            dataclasses.replace(row, value=None, metrics={}, samples=[]) for row in (mine, other)
        ]
        assert rest[0] == rest[1]
        for name in numbers:
            found, wanted = (_flat(as_json(row)[name]) for row in (mine, other))
            assert found.keys() == wanted.keys()
            for place, value in wanted.items():
                near = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
                assert found[place] == near, (mine.task, mine.doc_id, name, place)


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """The leaves of a JSON value by their places."""
    if isinstance(value, dict):
        parts = [(f"{place}.{key}", one) for key, one in value.items()]
    elif isinstance(value, list):
        parts = [(f"{place}[{number}]", one) for number, one in enumerate(value)]
    else:
        return {place: value}
    return {at: leaf for name, one in parts for at, leaf in _flat(one, name).items()}
