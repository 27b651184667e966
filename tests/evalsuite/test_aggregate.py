"""Item rows to scores: chance correction, aggregates, and what is missing stays missing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalsuite.aggregate import Cell, Measured, all_scores
from evalsuite.records import ItemRow, Suite, Task
from evalsuite.stats import wilson


def measured(name, values, *, capability="math", chance=0.0, metric="acc", weights=None):
    """A task whose docs got these values; None is a doc without a number."""
    task = Task(
        task=name,
        metric=metric,
        chance=chance,
        unit="bits" if metric == "bits_per_byte" else "share",
    )
    weights = weights or [1.0] * len(values)
    rows = [
        ItemRow(
            capability=capability, task=name, doc_id=i, doc_hash="", prompt_hash="", prompt="",
            gold="", output="", value=value,
        )
        for i, value in enumerate(values)
    ]  # fmt: skip
    cells = [
        None if value is None else Cell(value=value, weight=weight)
        for value, weight in zip(values, weights, strict=True)
    ]
    return Measured(capability=capability, task=task, rows=rows, cells={(metric, "none"): cells})


def scored(*tasks, dirty=None):
    """(capability, task, subset) -> Score of the suite that holds these tasks."""
    capabilities: dict[str, list[Task]] = {}
    for one in tasks:
        capabilities.setdefault(one.capability, []).append(one.task)
    suite = Suite(name="toy", description="", role="dev", capabilities=capabilities)
    return {(one.capability, one.task, one.subset): one for one in all_scores(suite, tasks, dirty)}


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=30), st.sampled_from([0, 0.25]))
def test_a_capability_of_one_task_is_that_task_above_chance(values, chance):
    found = scored(measured("a", values, chance=chance))
    task, whole = found["math", "a", "all"], found["math", "*", "all"]
    assert (task.low, task.high) == wilson(sum(values), len(values))
    for got, raw in ((whole.value, task.value), (whole.low, task.low), (whole.high, task.high)):
        assert got == pytest.approx((raw - chance) / (1 - chance))


def test_aggregates_combine_half_widths_in_quadrature():
    found = scored(measured("a", [1.0, 0.0] * 8), measured("b", [1.0] * 10))
    a, b, both = (found["math", name, "all"] for name in ("a", "b", "*"))
    assert both.value == pytest.approx(0.75)
    assert both.low == pytest.approx(0.75 - math.hypot(0.5 - a.low, 1 - b.low) / 2)
    assert both.high == pytest.approx(0.75 + math.hypot(a.high - 0.5, 0.0) / 2)
    assert both.stderr == pytest.approx(math.hypot(a.stderr, b.stderr) / 2)


def test_the_suite_is_the_mean_of_its_share_capabilities_alone():
    found = scored(
        measured("a", [1.0, 1.0]),
        measured("b", [0.0, 0.0], capability="facts"),
        measured("c", [5.0, 6.0], capability="text", metric="bits_per_byte", weights=[1, 3]),
    )
    assert found["*", "*", "all"].value == 0.5
    assert found["text", "c", "all"].value == pytest.approx(5.75)
    assert found["text", "*", "all"].value == pytest.approx(5.75)
    assert found["text", "*", "all"].unit == "bits"


def test_docs_without_a_number_leave_the_value_of_the_others():
    found = scored(measured("a", [1.0, None, 0.0, None]))["math", "a", "all"]
    assert (found.value, found.attempted, found.scored) == (0.5, 4, 2)


def test_an_aggregate_with_a_missing_task_is_missing():
    found = scored(measured("a", [1.0]), measured("b", [None, None]))
    assert found["math", "b", "all"].value is None
    assert found["math", "*", "all"].value is None
    assert found["*", "*", "all"].value is None
    assert found["*", "*", "all"].attempted == 3


def test_a_subset_without_docs_has_no_value():
    found = scored(measured("a", [1.0, 0.0]), measured("b", [1.0, 1.0]), dirty={"a": [0]})
    assert found["math", "a", "dirty"].value == 1.0
    assert found["math", "a", "clean"].value == 0.0
    assert found["math", "b", "dirty"].value is None
    assert found["math", "b", "dirty"].attempted == 0
    assert found["math", "*", "dirty"].value is None
    assert found["math", "*", "clean"].value == 0.5


def test_one_graded_doc_has_a_value_and_no_interval():
    found = scored(measured("a", [0.3]))
    assert found["math", "a", "all"].value == 0.3
    assert found["math", "a", "all"].low is None
    assert found["math", "*", "all"].low is None
