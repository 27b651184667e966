"""The micro-world's recipes in full: each stage lifts the capability it aims at, beyond doubt."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

AIMS = {
    "tulu3-micro": [
        ("micro-dev", "midtrain", "math"),
        ("micro-dev", "sft", "instructions"),
        ("micro-dev", "dpo", "safety"),
        ("micro-sampled", "grpo", "math"),
    ],
    "ppo-micro": [
        ("micro-dev", "sft", "instructions"),
        ("micro-sampled", "ppo", "safety"),
    ],
}
"""Recipe -> suite, stage and the capability that it lifts."""


@pytest.mark.parametrize("recipe", AIMS)
def test_each_stage_lifts_what_it_aims_at_by_an_interval_above_zero(recipe, repository, tmp_path):
    file = repository / "recipes" / f"{recipe}.yaml"
    words = [sys.executable, "-m", "assay", "train", str(file), "--runs", str(tmp_path / "runs")]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, done.stdout + done.stderr
    for suite, stage, capability in AIMS[recipe]:
        [line] = [
            line
            for line in done.stdout.splitlines()
            if line.startswith(f"{suite}, {stage} moved from")
        ]
        found = re.search(rf"{capability} \+[\d.]+ \[\+[\d.]+, \+[\d.]+\]", line)
        assert found, line
    first = next(line for line in done.stdout.splitlines() if " after pretrain: " in line)
    aim = "knowledge" if recipe == "tulu3-micro" else "math"
    assert float(re.search(rf"{aim} [-\d.]+ \[([-\d.]+),", first)[1]) > 0, "above guessing"


def test_the_recipes_that_ship_are_those_the_readme_names(repository):
    text = (repository / "README.md").read_text()
    for file in sorted(Path(repository / "recipes").glob("*.yaml")):
        assert file.stem in text, f"{file.name} stands nowhere in the README"
