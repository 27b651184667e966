"""`assay decon` as a user runs it, on a shipped suite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from decon_parts import SHARED, jsonl

from decon.cli import cli, parse_sources
from evalsuite.errors import UserError
from evalsuite.references import references
from evalsuite.suites import load_suite

SUITE = """
name: small
description: Eight GSM8K questions.
role: dev
capabilities:
  math:
    - {task: gsm8k_short, metric: exact_match, filter: flexible-extract, docs: 8}
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], env={"COLUMNS": "100"})


@cache
def questions(suite_file: Path) -> list[str]:
    found = references(load_suite(suite_file), mirror=SHARED.parent)
    return [reference.text for reference in found if reference.field == "question"]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "small.yaml"
    path.write_text(SUITE)
    return path


@pytest.mark.parametrize("rate", [0, 0.2])
def test_the_folder_that_data_micro_writes_can_be_scanned_whole(
    tmp_path: Path, rate: float
) -> None:
    from evalsuite.cli import data

    out = tmp_path / "world"
    arguments = ["micro", str(out), "--kind", "facts", "--count", "50", "--leak-rate", str(rate)]
    written = CliRunner().invoke(data, arguments)
    assert written.output.startswith(f"{out}: 50 documents of 1 kinds")
    assert (out / ".planted.jsonl").exists() == ("planted.jsonl" in written.output) == bool(rate)
    done = run("scan", "micro-dev", out)
    assert done.exit_code == 0, done.output
    assert "data: 50 read = " in done.output
    assert ("CONTAMINATED" in done.output) == bool(rate)


def test_two_suites_of_one_name_are_refused(tmp_path: Path, suite: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(SUITE.replace("docs: 8", "docs: 3"))
    web = jsonl(tmp_path / "web.jsonl", ["nothing"])
    done = run("scan", f"{suite},{other}", web, "--mirror", SHARED.parent)
    assert isinstance(done.exception, UserError)
    assert "other.yaml' is a second suite named 'small'; drop one" in str(done.exception)


def test_clean_takes_planted_items_of_a_suite_out_and_reports_them(
    tmp_path: Path, suite: Path
) -> None:
    leak, *_ = questions(suite)
    web = jsonl(tmp_path / "web.jsonl.gz", ["nothing", f"He asked: {leak}", "more of nothing"])
    sft = jsonl(tmp_path / "sft.jsonl", [{"prompt": "Hello", "completion": "Good day"}])
    command = ["clean", suite, f"web={web}", f"sft={sft}", "--mirror", SHARED.parent]
    done = run(*command, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "web: 3 read = 2 kept + 1 removed + 0 malformed; CONTAMINATED: small/gsm8k_short" in (
        done.output
    )
    assert "small/gsm8k_short: 1 of 8 items (12.50 %) in 1 document" in done.output
    assert "sft: 1 read = 1 kept + 0 removed + 0 malformed; no task above 2 %" in done.output
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert certificate["id"] in done.output
    assert certificate["dirty_items"] == {"small": {"gsm8k_short": [0]}}
    again = run(*command, "--out", tmp_path / "out")
    assert again.exit_code == 0
    assert again.output.splitlines()[-1] == done.output.splitlines()[-1]


def test_scan_writes_only_what_it_is_asked_to(tmp_path: Path, suite: Path) -> None:
    path = jsonl(tmp_path / "in" / "a.jsonl", [{"body": questions(suite)[3]}])
    shared = ["scan", suite, path, "--mirror", SHARED.parent, "--field", "body"]
    plain = run(*shared)
    assert plain.exit_code == 0, plain.output
    assert "data: 1 read = 0 kept + 1 to remove" in plain.output and "not written" in plain.output
    assert run(*shared, "--out", tmp_path / "report").exit_code == 0
    [hit] = [json.loads(line) for line in (tmp_path / "report" / "hits.jsonl").open()]
    assert (hit["doc_id"], hit["overlap"]) == (3, 1.0)
    assert not (tmp_path / "report" / "clean").exists()
    twice = run(*shared, "--out", tmp_path / "report")
    assert isinstance(twice.exception, UserError)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-suite", "a.jsonl"], "no-such-suite"),
        (["SUITE", "a.jsonl", "--policy", "tulu"], "did you mean 'tulu3'"),
        (["SUITE", "missing.jsonl"], "missing.jsonl: no such file"),
        (["SUITE", "web="], "'web='"),
        (["SUITE", "broken.jsonl"], "broken.jsonl:2: not valid JSON"),
        (["SUITE", "fields.jsonl"], "fields.jsonl:1: the row has no known text field"),
    ],
)
def test_a_users_mistake_is_one_line_that_names_it(
    tmp_path: Path, suite: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(Path("a.jsonl"), ["x"])
    Path("broken.jsonl").write_text('{"text": "x"}\n{"text": \n')
    jsonl(Path("fields.jsonl"), [{"body": "x"}])
    filled = [str(suite) if a == "SUITE" else a for a in arguments]
    failed = run("clean", *filled, "--out", "out", "--mirror", SHARED.parent)
    assert isinstance(failed.exception, UserError)
    assert said in str(failed.exception) and "\n" not in str(failed.exception)
    assert not Path("out").exists()


def test_policies_are_listed_with_what_they_cannot_catch() -> None:
    listed = run("policies")
    assert listed.exit_code == 0
    assert "tulu3:" in listed.output and "cannot catch: Rephrased" in listed.output


def test_sources_are_named_or_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.jsonl").touch()
    assert parse_sources(("x.jsonl", "web=y.jsonl", "web=z", "a=b.jsonl", "dir/q=1.jsonl")) == {
        "data": [Path("x.jsonl"), Path("a=b.jsonl"), Path("dir/q=1.jsonl")],
        "web": [Path("y.jsonl"), Path("z")],
    }


def test_the_command_line_loads_nothing_heavy_before_it_is_used() -> None:
    code = (
        "import sys, decon.cli; "
        "print(sorted({'numba', 'numpy', 'datasketch', 'torch', 'lm_eval'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
