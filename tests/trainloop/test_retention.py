"""Which checkpoints may lose their weights, on records and on a finished run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalsuite.records import ALL, Score
from trainloop import checkpoint as checkpoints
from trainloop.plans import StagePlan
from trainloop.retention import apply, best_of, parents_under, retirable, retired_among
from trainloop.scoring import is_done, score_folder

IDS = ["a", "b", "c", "d"]


def test_what_is_scored_and_neither_best_last_nor_a_parent_may_go():
    assert retired_among(IDS, scored=IDS, best={"b"}, parents={"x"}) == ["a", "c"]


def test_what_is_unscored_or_a_parent_stays():
    assert retired_among(IDS, scored={"a", "b", "d"}, best=set(), parents={"a"}) == ["b"]


@given(
    ids=st.lists(st.integers(0, 30).map(str), unique=True, max_size=12),
    scored=st.sets(st.integers(0, 30).map(str)),
    best=st.sets(st.integers(0, 30).map(str)),
    parents=st.sets(st.integers(0, 30).map(str)),
)
def test_nothing_that_is_needed_ever_goes(ids, scored, best, parents):
    gone = retired_among(ids, scored=scored, best=best, parents=parents)
    assert set(gone) <= scored
    assert not set(gone) & (best | parents | set(ids[-1:]))
    assert retired_among(ids, scored=ids, best=(), parents=()) == ids[:-1]


def score(capability: str, value: float | None, unit: str = "share", **changes: object) -> Score:
    whole = Score(
        suite="s",
        suite_fingerprint="f",
        capability=capability,
        task=ALL,
        metric="acc",
        filter="none",
        subset="all",
        value=value,
        low=None,
        high=None,
        stderr=None,
        attempted=1,
        scored=1,
        truncated=0,
        tokens=0,
        chance=0.0,
        unit=unit,  # type: ignore[arg-type]
        primary=True,
        partial=False,
    )
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def test_the_best_of_each_capability_is_kept_and_bits_are_better_when_fewer():
    found = best_of(
        [
            ("a", [score("math", 0.5), score("text", 1.1, "bits")]),
            ("b", [score("math", 0.7), score("text", 1.2, "bits")]),
            ("c", [score("math", 0.6), score("text", 1.3, "bits")]),
        ]
    )
    assert found == {"a", "b"}


def test_equals_and_what_has_no_value_are_all_kept_and_parts_do_not_count():
    found = best_of(
        [
            ("a", [score("math", 0.7)]),
            ("b", [score("math", 0.7)]),
            ("c", [score("math", None)]),
            (
                "d",
                [
                    score("math", 0.1),
                    score("math", 0.9, task="one"),
                    score("math", 1, subset="dirty"),
                ],
            ),
        ]
    )
    assert found == {"a", "b", "c"}


@pytest.fixture
def copied(finished: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """The finished mini run, as a copy that may be changed; its pretraining saved three times."""
    shutil.copytree(finished.root, tmp_path / "runs")
    prepared = dataclasses.replace(finished.prepared, root=tmp_path / "runs")
    return SimpleNamespace(prepared=prepared, root=tmp_path / "runs", plans=finished.run.stages)


def set_scores(copied: SimpleNamespace, checkpoint: str, value: float) -> None:
    """Let every aggregate of the checkpoint be `value`."""
    [suite] = copied.prepared.suites.values()
    path = score_folder(copied.prepared, checkpoint, suite) / "scores.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"value": value}) + "\n" for row in rows))


def test_a_finished_stage_keeps_its_best_and_its_last(copied):
    plan = copied.plans[0]
    first, second, last = plan.checkpoint_ids
    for checkpoint, value in ((first, 0.1), (second, 0.9), (last, 0.5)):
        set_scores(copied, checkpoint, value)
    assert retirable(copied.prepared, plan) == [first]
    set_scores(copied, second, 0.2)
    assert retirable(copied.prepared, plan) == [first, second]


def test_a_retired_checkpoint_leaves_its_record_and_scores_and_is_not_named_again(copied):
    plan = copied.plans[0]
    first = plan.checkpoint_ids[0]
    for number, checkpoint in enumerate(plan.checkpoint_ids):
        set_scores(copied, checkpoint, 0.1 * number)
    ids = retirable(copied.prepared, plan)
    assert ids[0] == first and apply(copied.root, ids) > 0
    assert not list((copied.root / "checkpoints" / first).glob("*.safetensors"))
    assert checkpoints.read(copied.root, first).id == first
    assert retirable(copied.prepared, plan) == []
    assert is_done(copied.prepared, plan)
    checkpoints.verify(checkpoints.folder_of(copied.root, plan.checkpoint_ids[-1]))


def test_the_parent_of_another_runs_checkpoint_stays(copied):
    plan = copied.plans[0]
    first, second, last = plan.checkpoint_ids
    for checkpoint, value in ((first, 0.1), (second, 0.2), (last, 0.5)):
        set_scores(copied, checkpoint, value)
    child = copied.root / "checkpoints" / "another"
    child.mkdir()
    record = dataclasses.asdict(checkpoints.read(copied.root, last))
    (child / "checkpoint.json").write_text(json.dumps(record | {"parent": first}))
    assert retirable(copied.prepared, plan) == [second]
    (child / "checkpoint.json").write_text(json.dumps(record | {"ingredients": [second]}))
    assert second in parents_under(copied.root)
    assert retirable(copied.prepared, plan) == [first]


def test_what_another_recipes_rule_chose_stays(copied):
    plan = copied.plans[0]
    first, second, last = plan.checkpoint_ids
    for checkpoint, value in ((first, 0.1), (second, 0.2), (last, 0.5)):
        set_scores(copied, checkpoint, value)
    result = copied.root / "stages" / plan.id / "best-0123.json"
    result.write_text(json.dumps({"checkpoint": second, "scored": 3, "why": "it was best"}))
    assert retirable(copied.prepared, plan) == [first]


def test_a_stage_that_is_not_done_keeps_everything(copied):
    plan: StagePlan = copied.plans[0]
    shutil.rmtree(copied.root / "scores" / plan.checkpoint_ids[1])
    assert retirable(copied.prepared, plan) == []
