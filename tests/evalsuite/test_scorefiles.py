"""A scored suite on disk: whole, typed, and the same when read back."""

from __future__ import annotations

import dataclasses
import json

import pyarrow.parquet
import pytest
from toys import CHOICE, GOLD, WRITTEN

from evalsuite.errors import UserError
from evalsuite.harness import score
from evalsuite.scorefiles import read_evaluation, write_evaluation


@pytest.fixture
def evaluation(sums, random_model, tokenizer):
    suite = sums.suite(math=[WRITTEN, CHOICE], bpb=[GOLD])
    return score(random_model, suite, tokenizer=tokenizer, mirror=sums.mirror, dirty={})


def test_what_is_written_reads_back_the_same(evaluation, tmp_path):
    write_evaluation(tmp_path / "scores", evaluation, checkpoint="ab12")
    assert read_evaluation(tmp_path / "scores") == evaluation


def test_files_hold_one_score_a_line_and_one_doc_a_row(evaluation, tmp_path):
    folder = tmp_path / "deep" / "scores"
    write_evaluation(folder, evaluation, checkpoint="ab12")
    assert sorted(path.name for path in folder.iterdir()) == [
        "items.parquet",
        "scores.jsonl",
        "suite.json",
    ]
    lines = [json.loads(line) for line in (folder / "scores.jsonl").open()]
    assert len(lines) == len(evaluation.scores)
    assert {line["checkpoint"] for line in lines} == {"ab12"}
    table = pyarrow.parquet.read_table(folder / "items.parquet")
    assert table.num_rows == len(evaluation.items) == 36
    row = table.to_pylist()[0]
    assert json.loads(row["metrics"]) == evaluation.items[0].metrics
    assert (row["checkpoint"], row["suite"]) == ("ab12", "toy")
    assert row["suite_fingerprint"] == evaluation.suite.fingerprint
    suite = json.loads((folder / "suite.json").read_text())
    assert suite["fingerprint"] == evaluation.suite.fingerprint


def test_a_column_of_nothing_keeps_its_type(evaluation, tmp_path):
    silent = [dataclasses.replace(row, value=None, error="no number") for row in evaluation.items]
    nothing = dataclasses.replace(evaluation, items=silent)
    write_evaluation(tmp_path / "a", nothing, checkpoint="x")
    write_evaluation(tmp_path / "b", evaluation, checkpoint="x")
    schemas = [
        pyarrow.parquet.read_schema(tmp_path / name / "items.parquet") for name in ("a", "b")
    ]
    assert schemas[0] == schemas[1]
    assert read_evaluation(tmp_path / "a") == nothing


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("suite.json", lambda data: data.replace(b'"toy"', b'"tox"'), "says fingerprint"),
        ("suite.json", lambda data: data[:20], "not valid JSON"),
        ("scores.jsonl", lambda data: data[:-30], "not valid JSON lines"),
        ("scores.jsonl", lambda data: data.replace(b'"stderr"', b'"error"'), "not a Score"),
        ("items.parquet", lambda data: data[:100], "not a whole Parquet file"),
        ("items.parquet", None, "no such file"),
    ],
)
def test_a_spoiled_folder_is_refused_by_name(evaluation, tmp_path, name, spoil, message):
    write_evaluation(tmp_path / "scores", evaluation, checkpoint="ab12")
    path = tmp_path / "scores" / name
    if spoil is None:
        path.unlink()
    else:
        path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=message) as raised:
        read_evaluation(tmp_path / "scores")
    assert name in str(raised.value)


def test_a_failed_write_leaves_nothing(evaluation, tmp_path):
    unwritable = dataclasses.replace(
        evaluation, scores=[dataclasses.replace(evaluation.scores[0], value=float("nan"))]
    )
    with pytest.raises(ValueError, match="JSON"):
        write_evaluation(tmp_path / "scores", unwritable, checkpoint="x")
    assert list(tmp_path.glob("*scores*")) == []
