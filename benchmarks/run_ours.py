"""Our training loop on a task of turns.py, one step per turn: `train_stage` and nothing else.

    python run_ours.py TASK.json     stdin: a line per step to take; stdout: a JSON line per step

Documents are tokenised, planned, packed and fetched as in a run of a recipe; the task's `source`
names a file of canonical rows. A step lasts from one call of the objective's `total` (of `rollout`,
where there is one) to the next, so it holds everything: loading, forward, backward, optimizer,
metrics. CPU seconds count all threads, also what the thread that makes the next batch does between
two turns. A task has, beside what turns.py lists: objective, options, stage (keys of a Stage),
source, files, root; `written` is how many tokens a rollout wrote, `reference_cpu` what the
reference policy cost before the first step.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers

from evalsuite.files import content_id, sha256_file
from trainloop import rollouts, train
from trainloop.data import BatchPlan, Tokens, plan_batches, tokenise
from trainloop.model import load_model, load_tokenizer
from trainloop.objectives import Objective, load_objective, read_options
from trainloop.ranks import join
from trainloop.records import Schedule, Stage

Task = dict[str, Any]


def stage_of(task: Task) -> tuple[Stage, Objective]:
    """The task's stage, but for its steps where they follow from documents."""
    stage = Stage(
        name="benchmark",
        objective=task["objective"],
        mixture={task["source"]: 1.0},
        options=task["options"],
        learning_rate=task["learning_rate"],
        schedule=Schedule(kind="constant"),
        weight_decay=task["weight_decay"],
        beta2=task["beta2"],
        clip=task["clip"],
        **task["stage"],
    )
    return stage, load_objective(task["objective"])


def planned(task: Task) -> tuple[Stage, Objective, Tokens, BatchPlan]:
    """All that is known before the first step; the benchmark and our side both call this."""
    stage, objective = stage_of(task)
    files = [Path(file) for file in task["files"]]
    tokens = tokenise(
        task["source"],
        files,
        load_tokenizer(Path(task["model"]), None),
        Path(task["model"]).name,
        objective,
        stage.sequence_length,
        root=Path(task["root"]),
        data_id=content_id([sha256_file(file) for file in files]),
    )
    stage = stage.settled(objective.defaults, {task["source"]: tokens.documents})
    return (
        stage,
        objective,
        tokens,
        plan_batches({task["source"]: tokens}, stage, objective, seed=task["seed"]),
    )


class Turns:
    """Says what each step cost, and waits for a line before the next one."""

    def __init__(self, out: TextIO, metrics: Path, samples: Path) -> None:
        self.out, self.metrics, self.samples = out, metrics, samples
        self.first: dict[str, Any] = {"ready": True}
        self.rows = self.answers = 0

    def between(self) -> None:
        """A step is over, or none has begun."""
        cpu = time.process_time()
        if self.first:
            self.say(self.first)
            self.first = {}
        else:
            told, self.rows = self.new(self.metrics, self.rows)
            wrote, self.answers = self.new(self.samples, self.answers)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            row = {"cpu": cpu - self.cpu, "wall": time.perf_counter() - self.wall, "peak": peak}
            written = sum(answer["tokens"] for answer in wrote)
            waited = sum(each["wait_seconds"] for each in told)
            self.say(row | {"loss": told[0]["loss"], "written": written, "waited": waited})
        # What the loader's thread does while other sides have their turn counts too.
        self.cpu = time.process_time()
        if not sys.stdin.readline():
            sys.exit()
        self.wall = time.perf_counter()

    def say(self, row: dict[str, Any]) -> None:
        self.out.write(json.dumps(row) + "\n")
        self.out.flush()

    @staticmethod
    def new(path: Path, seen: int) -> tuple[list[dict[str, Any]], int]:
        """The lines of a file past the first `seen`, and how many there are now."""
        if not path.is_file():
            return [], 0
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in itertools.islice(lines, seen, None)]
        return rows, seen + len(rows)


def in_turns(objective: Objective, turns: Turns) -> Objective:
    """The objective, with a pause between any two steps (two rollouts)."""

    def pausing(work: Callable[..., Any]) -> Callable[..., Any]:
        def paused(*arguments: Any) -> Any:
            turns.between()
            return work(*arguments)

        return paused

    if objective.rollout is not None:
        return replace(objective, rollout=pausing(objective.rollout))
    return replace(objective, total=pausing(objective.total))


def variety(
    rows: Sequence[Any], texts: Sequence[str], *, workers: int = 1
) -> list[tuple[float, None]]:
    """A reward that differs between answers, though fresh weights solve nothing; TRL has it too."""
    return [(len(set(text)) / max(len(text), 1), None) for text in texts]


def main() -> None:
    """Read the task, hand stdout to the turns alone, train."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    task: Task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    root, folder = Path(task["root"]), Path(task["model"])
    stage, objective, tokens, _ = planned(task)
    run = f"benchmark-{os.getpid()}"
    stages = root / "stages" / run
    turns = Turns(out, stages / "metrics.jsonl", stages / "samples.jsonl")
    tokenizer, ranks = load_tokenizer(folder, None), join()
    models = train.Models(policy=load_model(folder))
    references = None
    if objective.reference:
        references = measured_reference(tokens, load_model(folder), stage, root, turns)
    if objective.rollout is not None:
        rollouts.judge = variety  # type: ignore[assignment]
        models = replace(models, reference=load_model(folder))
    if objective.critic:
        critic, reward = (scored(task["reward_model"]) for _ in range(2))
        models = replace(models, critic=critic, reward=reward)
    made = replace(
        leg(task, run),
        objective=in_turns(objective, turns),
        references=references,
    )
    try:
        train.train_stage(made, models, tokenizer, ranks, after_checkpoint=lambda *_: True)
    finally:
        shutil.rmtree(stages, ignore_errors=True)


def leg(task: Task, run: str) -> train.Leg:
    """The task as what `train_stage` takes."""
    stage, objective, _, plan = planned(task)
    return train.Leg(
        stage=stage,
        id=run,
        parent=None,
        rests_on=[],
        total_tokens=0,
        flops=0.0,
        objective=objective,
        options=read_options(objective, task["options"], stage.name),
        plan=plan,
        references=None,
        first=0,
        first_tokens=0,
        root=Path(task["root"]),
        seed=task["seed"],
        cpu_threads=1,
        certificate=None,
        label="benchmark",
    )


def scored(folder: str) -> Any:
    """A reward model's weights, in float32."""
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32
    )


def measured_reference(
    tokens: Tokens, model: Any, stage: Stage, root: Path, turns: Turns
) -> dict[str, Any]:
    """The reference's log-probabilities, and what they cost."""
    from trainloop.live import Everywhere, frozen_policy
    from trainloop.reference import reference

    ranks = join()
    logprobs = Everywhere(frozen_policy(model, ranks, "float32"), ranks, stage, "logprobs", {})
    before = time.process_time()
    found = reference(
        {tokens.source: tokens},
        logprobs,
        weights_id=f"benchmark-{os.getpid()}",
        root=root,
        ranks=ranks,
    )
    cost = time.process_time() - before
    turns.first |= {"reference_cpu": cost / tokens.documents}
    return found


if __name__ == "__main__":
    main()
