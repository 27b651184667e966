"""Sweeps: what is shared is trained once, what fails is named, and verdicts known by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evalsuite.errors import UserError
from evalsuite.files import read_json, sha256_file
from evalsuite.records import ALL, ItemRow, Suite, Task
from evalsuite.scorefiles import read_evaluation
from tests.trainloop import minirun
from trainloop import run as runs
from trainloop import sweep

CELLS = [(v, s) for v in ("sums_heavy", "facts_heavy") for s in (1, 2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Every cell of the mini sweep run in this process, one after the other."""
    folder = tmp_path_factory.mktemp("alone")
    recipe = minirun.write_recipe(folder, minirun.sweep_text())
    prepared = minirun.ready(recipe, folder / "runs")
    made = {
        (variant, seed): runs.run_stages(prepared, variant=variant, seed=seed)
        for variant, seed in CELLS
    }
    return SimpleNamespace(recipe=recipe, root=folder / "runs", prepared=prepared, runs=made)


def living_workers(parent: int) -> list[int]:
    """Processes whose parent was `parent` when it was asked, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_sweep_killed_and_run_again_trains_shared_stages_once_and_decides(alone, tmp_path):
    root, log = tmp_path / "runs", tmp_path / "log"
    command = ["sweep", str(alone.recipe), "--runs", str(root)]
    shared = alone.runs[CELLS[0]].stages[0]
    workers: list[int] = []

    def one_cell_is_training() -> bool:
        logs = [f for f in root.glob("stages/*/metrics.jsonl") if f.parent.name != shared.id]
        if not any(minirun.lines_of(f) >= 3 for f in logs):
            return False
        workers[:] = living_workers(process.pid)
        return True

    process = minirun.start(command, log)
    assert minirun.kill_when(process, one_cell_is_training, seconds=120)
    assert workers, "cells run in processes of their own"
    assert not list(root.glob("sweeps/*/sweep.json"))
    minirun.wait_until(lambda: not any(map(is_alive, workers)), "its workers die with it")

    before = sha256_file(root / "stages" / shared.id / "metrics.jsonl")
    again = minirun.start(command, log)
    again.join(240)
    assert again.exitcode == 0, log.read_text()

    # The shared stage stands once and was not trained again; each cell has two of its own.
    assert sha256_file(root / "stages" / shared.id / "metrics.jsonl") == before
    stages = {plan.id for run in alone.runs.values() for plan in run.stages}
    assert {f.name for f in (root / "stages").iterdir()} == stages
    assert len(stages) == 1 + 2 * len(CELLS)
    for plans in (run.stages for run in alone.runs.values()):
        for plan in plans:
            metrics = (root / "stages" / plan.id / "metrics.jsonl").read_text().splitlines()
            steps = [json.loads(line)["step"] for line in metrics]
            assert steps == list(range(1, plan.stage.steps + 1))
    for run in alone.runs.values():
        place = Path("checkpoints") / run.final / "model.safetensors"
        assert sha256_file(root / place) == sha256_file(alone.root / place), "bits of a cell alone"
        [ours] = (root / "scores" / run.final).iterdir()
        [theirs] = (alone.root / "scores" / run.final).iterdir()
        assert read_evaluation(ours).items == read_evaluation(theirs).items
        told = read_json(root / "runs" / run.id / "run.json")
        assert told["variant"] == run.variant and told["seed"] == run.seed
        assert [stage["shared"] for stage in told["stages"]] == [True, False, False]

    [file] = root.glob("sweeps/*/sweep.json")
    told = read_json(file)
    assert told["id"] == file.parent.name
    assert (told["recipe"], told["stage"], told["suite"]) == ("mini", "midtrain", "tiny")
    assert told["seeds"] == [1, 2]
    assert told["variants"] == [
        {"name": "sums_heavy", "mixture": {"sums": 1.0}},
        {"name": "facts_heavy", "mixture": {"facts": 1.0}},
    ]
    assert told["runs"] == [
        {"variant": v, "seed": s, "run": alone.runs[v, s].id, "final": alone.runs[v, s].final}
        for v, s in CELLS
    ]
    assert [row["capability"] for row in told["comparisons"]] == [ALL, "math", "knowledge"]
    for row in told["comparisons"]:
        assert (row["a"], row["b"], row["seeds"]) == ("sums_heavy", "facts_heavy", 2)
        assert row["low"] <= row["difference"] <= row["high"]
    assert f"verdict: {told['sentence']}" in log.read_text()

    # Run once more, nothing is left to do, and the verdict is the same bytes.
    raw = file.read_bytes()
    minirun.start(command, log).join(60)
    assert file.read_bytes() == raw


def test_a_failing_cell_is_named_and_the_others_are_kept(alone, tmp_path):
    text = minirun.sweep_text()
    text["cpu_threads"] = 64  # one worker after the other
    long = "word " * 100
    (tmp_path / "long.jsonl").write_text(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": long},
                    {"role": "assistant", "content": "yes"},
                ]
            }
        )
    )
    text["sources"]["long"] = {"files": ["long.jsonl"]}
    text["sweep"] = {
        "stage": "sft",
        "suite": "tiny.yaml",
        "seeds": [1],
        "variants": {"broken": {"long": 1}, "whole": {"chat": 1}},
    }
    recipe = minirun.write_recipe(tmp_path, text)
    root = tmp_path / "runs"
    prepared = minirun.ready(recipe, root)
    with pytest.raises(UserError) as caught:
        sweep.run_sweep(prepared)
    said = str(caught.value)
    assert said.startswith(
        "1 of 2 cells failed (broken seed 1: source 'long': none of its 1 documents can be trained"
    )
    assert "\n" not in said
    assert not list(root.glob("sweeps/*/sweep.json"))
    [run_json] = root.glob("runs/*/run.json")
    assert read_json(run_json)["variant"] == "whole"
    plan = runs.plan_stages(prepared, variant="whole", seed=1)[-1]
    assert runs.is_done(prepared, plan), "the other cell is kept"


def test_a_recipe_without_a_sweep_is_told_to_train(finished):
    with pytest.raises(UserError, match="the recipe has no 'sweep'; run it with: assay train"):
        sweep.run_sweep(finished.prepared)


# --- verdicts --------------------------------------------------------------------------------

SUITE = Suite(
    name="hand",
    description="",
    role="dev",
    capabilities={
        "math": [
            Task(task="one", metric="m"),
            Task(task="two", metric="m", chance=0.5),
        ],
        "facts": [Task(task="three", metric="m", chance=0.25)],
        "text": [Task(task="bits", metric="bpb", unit="bits")],
    },
)
CAPABILITY = {t.task: name for name, t in SUITE.tasks}


def rows(values: dict[str, list[float | None]], weights: list[float] | None = None):
    """Item rows of one run: task -> a value per doc."""
    return [
        ItemRow(
            capability=CAPABILITY[task],
            task=task,
            doc_id=number,
            doc_hash="d",
            prompt_hash="p",
            prompt="",
            gold="",
            output="",
            value=value,
            weight=weights[number] if weights and task == "bits" else 1.0,
            error=None if value is not None else "no answer",
        )
        for task, found in values.items()
        for number, value in enumerate(found)
    ]


FULL: dict[str, list[float | None]] = {
    "one": [1.0, 1.0, 0.0, 1.0],
    "two": [1.0, 0.0],
    "three": [1.0, 1.0, 0.0],
    "bits": [2.0, 4.0],
}
LESS: dict[str, list[float | None]] = {
    "one": [0.0, 1.0, 0.0, 0.0],
    "two": [0.0, 0.0],
    "three": [0.0, 1.0, 0.0],
    "bits": [3.0, 4.5],
}


def by_capability(a, b, suite: Suite = SUITE) -> dict[str, sweep.Comparison]:
    return {row.capability: row for row in sweep.compare("a", "b", a, b, suite)}


def test_the_overall_difference_is_the_macro_mean_of_chance_corrected_tasks():
    found = by_capability([rows(FULL)], [rows(LESS)])
    assert list(found) == [ALL, "math", "facts", "text"]
    # one: 2/4.  two: (1/2) / (1 - 0.5) = 1.  math: their mean.  three: (1/3) / 0.75.
    assert found["math"].difference == pytest.approx((0.5 + 1.0) / 2)
    assert found["facts"].difference == pytest.approx((1 / 3) / 0.75)
    assert found[ALL].difference == pytest.approx((0.75 + 4 / 9) / 2)
    assert found["text"].difference == pytest.approx(-0.75)
    assert (found[ALL].items, found["text"].items, found[ALL].unit) == (9, 2, "share")
    assert (found["text"].unit, found[ALL].unpaired, found[ALL].seeds) == ("bits", 0, 1)


def test_fewer_bits_are_better():
    fewer = [rows(FULL | {"bits": [1.0, 1.0, 1.0]}) for _ in range(2)]
    more = [rows(FULL | {"bits": [2.0, 2.1, 1.9]}) for _ in range(2)]
    found = by_capability(fewer, more)["text"]
    assert (found.verdict, found.difference) == ("better", pytest.approx(-1.0))
    assert found.probability_better > 0.99
    assert by_capability(more, fewer)["text"].verdict == "worse"


def test_bits_per_byte_count_each_doc_by_its_bytes_as_the_score_does():
    one = [rows(FULL | {"bits": [2.0, 4.0]}, weights=[30.0, 10.0])]
    other = [rows(FULL | {"bits": [3.0, 4.0]}, weights=[30.0, 10.0])]
    # (30 x 2 + 10 x 4) / 40 - (30 x 3 + 10 x 4) / 40
    assert by_capability(one, other)["text"].difference == pytest.approx(-0.75)


def test_an_item_that_one_run_could_not_score_is_left_out_of_all_and_counted():
    gap = FULL | {"one": [None, 1.0, 0.0, 1.0]}
    found = by_capability([rows(FULL), rows(gap)], [rows(LESS), rows(LESS)])
    assert (found["math"].items, found["math"].unpaired) == (5, 1)
    assert (found["facts"].unpaired, found[ALL].unpaired) == (0, 1)
    # one: docs 1, 2, 3 differ by 0, 0, 1 in both seeds.
    assert found["math"].difference == pytest.approx((1 / 3 + 1.0) / 2)


def test_a_task_that_no_run_scores_stops_the_verdict_and_is_named():
    gap = FULL | {"two": [None, None]}
    with pytest.raises(UserError, match="too few items of task 'two' are scored in all"):
        sweep.compare("a", "b", [rows(gap)], [rows(LESS)], SUITE)


def test_the_sentence_says_who_won_by_how_much_on_what():
    rng = random.Random(0)
    full = {task: values * 10 for task, values in FULL.items()}
    good = [rows(full | {"one": [1.0] * 40}) for _ in range(2)]
    less = full | {"three": LESS["three"] * 10}
    bad = [rows(less | {"one": [float(rng.random() < 0.2) for _ in range(40)]}) for _ in range(2)]
    found = sweep.compare("steps", "bare", good, bad, SUITE)
    said = sweep.verdict_sentence(found, SUITE)
    assert said.startswith(f"steps beats bare overall by {100 * found[0].difference:.1f} points [")
    assert f"({found[0].items} items x 2 seeds of hand)" in said
    swapped = sweep.compare("bare", "steps", bad, good, SUITE)
    assert sweep.verdict_sentence(swapped, SUITE) == said
    same = sweep.verdict_sentence(sweep.compare("x", "y", good, good, SUITE), SUITE)
    assert same.startswith("not identified: x minus y is +0.0 points overall [-")
    alone = sweep.verdict_sentence(sweep.compare("x", "y", good[:1], bad[:1], SUITE), SUITE)
    assert "one seed: noise between seeds left out" in alone


def test_a_suite_of_bits_alone_gets_a_sentence_too():
    text = Suite(
        name="bits-only",
        description="",
        role="dev",
        capabilities={"text": [Task(task="bits", metric="bpb", unit="bits")]},
    )
    fewer = [rows({"bits": [1.0, 1.0, 1.0]}) for _ in range(2)]
    more = [rows({"bits": [2.0, 2.1, 1.9]}) for _ in range(2)]
    said = sweep.verdict_sentence(sweep.compare("a", "b", more, fewer, text), text)
    assert said.startswith("b beats a on text by 1.000 bits per byte [")


shares = st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=3)
bits = st.lists(st.floats(0.1, 9.0), min_size=3, max_size=3)
one_run = st.fixed_dictionaries({"one": shares, "two": shares, "three": shares, "bits": bits})


@settings(max_examples=100, deadline=None)
@given(runs_of=st.lists(st.tuples(one_run, one_run), min_size=1, max_size=3))
def test_swapping_the_variants_turns_every_sign_and_verdict(runs_of):
    a = [rows(values) for values, _ in runs_of]
    b = [rows(values) for _, values in runs_of]
    turned = {"better": "worse", "worse": "better", "not identified": "not identified"}
    for there, back in zip(
        sweep.compare("a", "b", a, b, SUITE), sweep.compare("b", "a", b, a, SUITE), strict=True
    ):
        assert back.verdict == turned[there.verdict]
        assert back.difference == pytest.approx(-there.difference, abs=1e-12)
        assert (back.low, back.high) == (
            pytest.approx(-there.high, abs=1e-9),
            pytest.approx(-there.low, abs=1e-9),
        )
        assert back.probability_better == pytest.approx(1 - there.probability_better, abs=1e-9)
        assert (there.verdict == "better") == (
            there.low > 0 if there.unit == "share" else there.high < 0
        )


def test_variants_that_name_an_unknown_source_are_refused(tmp_path):
    text = minirun.sweep_text()
    text["sweep"]["variants"]["sums_heavy"] = {"sum": 1}
    recipe = minirun.write_recipe(tmp_path, yaml.safe_load(json.dumps(text)))
    with pytest.raises(UserError, match=r"'sums_heavy' names source 'sum'.*did you mean 'sums'"):
        minirun.ready(recipe, tmp_path / "runs")
