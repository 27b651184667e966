"""Every command in the README runs, in its order, as a reader would run it.

The real recipe is shortened (a tenth of its tokens) and the suite `real` asked two docs of each
task, to keep the tests short.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

INSTALLING = {  # what brought this test here: run by tox itself, and by .ci/run
    "pip install -c constraints.txt -e . && assay quickstart",
    "pip install -c constraints.txt tox && tox",
}
EXPECTED = {
    "assay quickstart": "open the dashboard with: assay board serve",
    "assay train recipes/real-gsm8k.yaml --mirror ../shared": "50 of 50 planted leaks found",
    "assay train recipes/tulu3-micro.yaml": "micro-sampled, grpo moved from dpo: ",
    "assay train curve recipes/tulu3-micro.yaml grpo": "grpo: micro-sampled math",
    "assay train plan olmo2-1b --gpus 8": "stage2-a: the same as stage1",
    "assay eval list": "micro-unseen",
    "assay eval run real --model ../shared/models/stories260K --mirror ../shared --limit 100": (
        "language_bpb"
    ),
    "assay eval validate tulu3-dev": "AlpacaEval 2",
    "assay eval run micro-dev --model runs/checkpoints/ID --out scores": "knowledge",
    "assay eval compare scores scores --max-loss math=1": "at most 1 allowed: holds",
    "assay eval export scores lm_eval --model mine": "lm_eval/mine/results_",
    "assay data micro out --kind facts --count 1000": "out: 1,000 documents",
    "assay decon scan micro-dev out/facts.jsonl": "no task above 2 %",
    "assay decon clean micro-dev out/facts.jsonl --out cleaned": "cleaned",
    "assay decon report cleaned": "cleaned.html: 0 of 0 hits shown",
    "assay decon audit micro-dev out/facts.jsonl": "policy tulu3: 200 of 498 items of micro-dev",
    "assay decon dedup out/facts.jsonl --out deduped": "data: 1,000 read",
    "assay train recipes/quickstart.yaml": "micro-dev after sft: knowledge",
    "assay train plan quickstart --gpus 1": "fits",
    "assay train curve quickstart sft": "sft: micro-dev math",
    "assay sweep quickstart": "4 of 4 cells are done already",
    "assay board ingest": "unchanged",
    "assay board show": "micro-dev (dev)",
    "torchrun --nproc-per-node 2 -m assay train recipes/quickstart.yaml": "micro-dev after sft:",
    "scripts/install-chromium": "chromium",
}
"""Command -> what its output must hold; in the order in which they run here."""
SERVE = "assay board serve"


def commands(repository: Path) -> list[str]:
    """The lines of the README's code blocks that name no language, without their comments."""
    text = (repository / "README.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    return [line.split(" #")[0].strip() for line in lines]


def test_the_first_block_is_the_two_commands(repository):
    assert commands(repository)[:2] == [
        "pip install -c constraints.txt -e . && assay quickstart",
        "pip install -c constraints.txt tox && tox",
    ]


def test_every_command_in_the_readme_is_run_by_these_tests(repository):
    tested = INSTALLING | set(EXPECTED) | {SERVE}
    assert set(commands(repository)) == tested - {"assay quickstart"}  # it stands behind an &&


def test_ci_runs_what_the_readme_says_and_nothing_else(repository):
    script = (repository / ".ci" / "run").read_text().splitlines()
    own = {"set -euo pipefail", 'cd "$(dirname "$0")/.."', "source .venv/bin/activate"}
    rest = [line for line in script if line and not line.startswith("#") and line not in own]
    assert rest == [
        "python3 -m venv .venv",
        "scripts/install-chromium",
        "pip install --quiet -c constraints.txt tox",
        "tox",
    ]


@pytest.fixture(scope="module")
def workspace(repository: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout's recipes and scripts in an empty folder, with the real data beside it."""
    root = tmp_path_factory.mktemp("readme")
    (root / "shared").symlink_to(shared)
    checkout = root / "checkout"
    shutil.copytree(repository / "recipes", checkout / "recipes")
    shutil.copytree(repository / "scripts", checkout / "scripts")
    for name in ("real-gsm8k", "tulu3-micro"):  # tests/test_learning.py runs the latter in full
        recipe = checkout / "recipes" / f"{name}.yaml"
        settings = yaml.safe_load(recipe.read_text())
        for stage in settings["stages"]:
            if "tokens" in stage:
                stage["tokens"] //= 10
                stage.pop("score_every", None)
            elif "steps" in stage:
                stage |= {"steps": 4, "score_every": 2 * stage["batch"]}
            else:
                stage["epochs"] = 0.1
        recipe.write_text(yaml.safe_dump(settings))
    return checkout


def run(workspace: Path, command: str) -> str:
    """Run one command in the workspace; its output, which must end well."""
    words = command.split()
    programs = {
        "assay": [sys.executable, "-m", "assay"],
        "torchrun": [sys.executable, "-m", "torch.distributed.run"],
    }
    words = programs.get(words[0], [words[0]]) + words[1:]
    if "runs/checkpoints/ID" in words:
        final = max((workspace / "runs" / "runs").glob("*/run.json"))
        chosen = json.loads(final.read_text())["stages"][-1]["final"]
        words[words.index("runs/checkpoints/ID")] = f"runs/checkpoints/{chosen}"
    words = ["2" if word == "100" and "real" in words else word for word in words]
    # Whatever walls this machine has: the sandbox's own tests look at them.
    walls = os.environ | {"ASSAY_WEAKER_SANDBOX": "1"}
    done = subprocess.run(
        words, cwd=workspace, env=walls, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("command", EXPECTED)
def test_the_command_does_what_the_readme_says(workspace, command):
    output = run(workspace, command)
    assert EXPECTED[command] in output
    if command == "assay quickstart":
        planted, found = re.search(r"plants in facts: (\d+) of (\d+)", output).groups()
        assert planted == found != "0"
        [math] = re.findall(r"^math: math_heavy above facts_heavy by .*$", output, re.MULTILINE)
        assert "not identified" not in math
        assert re.search(r"^verdict: (math_heavy beats|not identified)", output, re.MULTILINE)
    if command.startswith("assay train recipes/real"):
        bits = re.findall(r"after (\w+): .*math_bpb ([\d.]+)", output)
        assert [stage for stage, _ in bits] == ["pretrain", "midtrain", "sft"]
        values = [float(value) for _, value in bits]
        assert values == sorted(values, reverse=True), "bits per byte fall from stage to stage"


def test_the_dashboard_opens(workspace):
    server = subprocess.Popen(
        [sys.executable, "-m", "assay", *SERVE.split()[1:]],
        cwd=workspace,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = server.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line).group()
        assert b"streamlit" in _fetch(address, server).lower()
    finally:
        server.kill()
        server.wait()


def _fetch(address: str, server: subprocess.Popen) -> bytes:
    """The page at `address` as soon as its server answers."""
    while True:
        try:
            return urllib.request.urlopen(address, timeout=10).read()
        except OSError:
            assert server.poll() is None, "the server ended"
