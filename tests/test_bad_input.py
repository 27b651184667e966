"""A user's mistake is one line that names place, value and way out, and exit code 2."""

from __future__ import annotations

import copy
import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import assay
from tests.trainloop import minirun

Change = Callable[[dict[str, Any]], None]


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `assay ARGUMENTS` ends with; progress lines may stand before it."""
    with pytest.raises(SystemExit) as caught:
        assay.main(arguments)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if not re.search(r": (done in|\d+ %)", line)] == lines[-1:]
    assert lines[-1].startswith("assay: ")
    return lines[-1]


def half_written(folder: Path) -> list[str]:
    """What no command may leave behind."""
    return [str(f.relative_to(folder)) for f in folder.rglob("*.partial")]


def set_in(path: str, value: Any) -> Change:
    """A change of the recipe: set_in("stages.0.tokens", 5)."""

    def change(text: dict[str, Any]) -> None:
        *keys, last = path.split(".")
        place: Any = text
        for key in keys:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[int(last) if isinstance(place, list) else last] = value

    return change


RECIPES: dict[str, tuple[Change, list[str]]] = {
    "an unknown key": (
        set_in("stages.0.tokns", 4000),
        ["unknown key 'tokns' (value '4000')", "did you mean 'tokens'?"],
    ),
    "a weight below zero": (
        set_in("stages.1.mixture.facts", -2),
        ["'midtrain'", "the weight of 'facts' is -2.0, but must be 0 or more"],
    ),
    "weights that are all zero": (
        set_in("stages.1.mixture", {"facts": 0, "sums": 0}),
        ["'midtrain'", "all weights are 0"],
    ),
    "a mixture without a source": (
        set_in("stages.1.mixture", {}),
        ["'midtrain'", "the mixture names no source"],
    ),
    "a mixture of an unknown source": (
        set_in("stages.1.mixture", {"fact": 1}),
        ["'midtrain' names source 'fact'", "did you mean 'facts'?"],
    ),
    "an unknown objective": (
        set_in("stages.0.objective", "next_tokens"),
        ["'next_tokens'", "did you mean 'next_token'?"],
    ),
    "an unknown policy": (
        set_in("policy", "tulu4"),
        ["no policy is named 'tulu4'", "did you mean 'tulu3'?"],
    ),
    "an unknown suite": (
        set_in("suites", ["micro-def"]),
        ["no suite is called 'micro-def'", "did you mean 'micro-dev'?"],
    ),
    "a suite file that is missing": (
        set_in("suites", ["tinny.yaml"]),
        ["tinny.yaml: no such file"],
    ),
    "an unknown kind of micro-world documents": (
        set_in("sources.facts.microworld", "fact"),
        ["source 'facts'", "kind 'fact'", "did you mean 'facts'?"],
    ),
    "an unknown form of leak": (
        set_in("sources.facts.leaks.forms", ["verbatm"]),
        ["no form 'verbatm'", "did you mean 'verbatim'?"],
    ),
    "a missing source file": (
        set_in("sources.sums.files", ["sum.jsonl"]),
        ["sum.jsonl: no such file", "paths from the recipe's folder"],
    ),
    "a data set that neither mirror nor hub gives": (
        set_in("sources.sums", {"hub": "nobody/nothing", "config": "main"}),
        ["'nobody/nothing', config 'main', split 'train'", "no mirror is set", "--mirror DIR"],
    ),
    "a model folder that is missing": (
        set_in("model", {"path": "./weights"}),
        ["weights: no such folder", "'./weights' is no hub name (owner/model)"],
    ),
    "a model that neither mirror nor hub gives": (
        set_in("model", {"path": "nobody/model"}),
        ["model nobody/model cannot be had", "pass --mirror DIR"],
    ),
    "a model type that does not exist": (
        set_in("model.config.model_type", "lama"),
        ["model config", "'lama'", "transformers refuses it"],
    ),
    "a seed below zero": (set_in("seed", -1), ["seed is -1, but must be 0 or more"]),
    "a sweep's seed below zero": (
        set_in("sweep", minirun.sweep_text()["sweep"] | {"seeds": [1, -2]}),
        ["sweep: a seed is -2, but must be 0 or more"],
    ),
    "a vocabulary of another size than the tokenizer's": (
        set_in("model.config.vocab_size", 999),
        ["config has vocab_size (999)", "drop it, and set tokenizer.vocab_size"],
    ),
    "a number of the model's that is not finite": (
        set_in("model.config.rope_theta", float("inf")),
        ["model: config rope_theta is inf, but must be a finite number"],
    ),
    "a number deep in the model's configuration that is not finite": (
        set_in("model.config.rope_scaling", {"factors": [1.0, float("nan")]}),
        ["model: config rope_scaling is {'factors': [1.0, nan]}, but must be a finite number"],
    ),
    "a model without attention heads": (
        set_in("model.config.num_attention_heads", 0),
        ["model config", "'num_attention_heads': 0", "transformers refuses it"],
    ),
    "a model of less than no width": (
        set_in("model.config.hidden_size", -16),
        ["model config", "'hidden_size': -16", "transformers refuses it"],
    ),
    "a number that is none": (
        set_in("stages.0.learning_rate", "fast"),
        ["'fast' is not a number"],
    ),
    "a word of a fixed set": (
        set_in("stages.0.schedule", {"kind": "cosin"}),
        ["'cosin' is not allowed here", "did you mean 'cosine'?"],
    ),
}


@pytest.mark.parametrize("mistake", RECIPES)
def test_a_recipe_with(mistake, tmp_path, capsys):
    """...one mistake ends in one line."""
    change, words = RECIPES[mistake]
    text = copy.deepcopy(minirun.recipe_text())
    change(text)
    recipe = minirun.write_recipe(tmp_path, text)
    line = said(["train", str(recipe), "--runs", str(tmp_path / "runs")], capsys)
    for word in words:
        assert word in line
    assert half_written(tmp_path) == []
    assert not (tmp_path / "runs" / "checkpoints").exists()


def test_a_complaint_about_a_recipe_names_file_and_line(tmp_path, capsys):
    text = minirun.recipe_text()
    text["stages"][0]["tokns"] = 4000
    recipe = minirun.write_recipe(tmp_path, text)
    number = next(n for n, line in enumerate(recipe.read_text().splitlines(), 1) if "tokns" in line)
    assert f"assay: {recipe}:{number}: unknown key" in said(["train", str(recipe)], capsys)


def test_a_seed_below_zero_on_the_command_line(tmp_path, capsys):
    recipe = minirun.write_recipe(tmp_path)
    line = said(["train", str(recipe), "--seed", "-1", "--runs", str(tmp_path / "runs")], capsys)
    assert "'--seed': -1 is not in the range x>=0" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_recipe_that_is_missing(command, tmp_path, capsys):
    recipe = tmp_path / "nowhere.yaml"
    assert said([command, str(recipe)], capsys) == f"assay: {recipe}: no such file"
    assert "'quickstrat'; did you mean 'quickstart'?" in said([command, "quickstrat"], capsys)


def test_a_recipe_that_is_empty(tmp_path, capsys):
    (tmp_path / "empty.yaml").write_text("")
    line = said(["train", str(tmp_path / "empty.yaml")], capsys)
    assert line.endswith("empty.yaml: the file is empty; it must hold a recipe")


def test_a_recipe_that_is_no_yaml(tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("name: mini\nsuites: [tiny\nseed: 1\n")
    line = said(["train", str(tmp_path / "broken.yaml")], capsys)
    assert re.search(r"broken\.yaml:3: not valid YAML: ", line)


def test_a_recipe_that_is_binary(tmp_path, capsys):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert "binary.yaml: cannot be read as text" in said(
        ["train", str(tmp_path / "binary.yaml")], capsys
    )


FILES: dict[str, tuple[str, list[str]]] = {
    "that is empty": ("", ["sums.jsonl: the file is empty", "remove it"]),
    "with a broken line": (
        '{"id": "1", "text": "one"}\n{"id": "2", "text": "tw\n',
        ["sums.jsonl:2: not valid JSON lines", "mend or remove the line"],
    ),
    "with a line that is no object": (
        '{"id": "1", "text": "one"}\n[1, 2]\n',
        ["sums.jsonl:2: a JSON list where an object is needed"],
    ),
    "with a wrong field": (
        '{"id": "1", "text": "one"}\n{"id": "2", "txt": "two"}\n',
        ["sums.jsonl:2: source 'sums' needs a field 'text'", "the row has 'id', 'txt'"],
    ),
}


@pytest.mark.parametrize("mistake", FILES)
def test_a_source_file(mistake, tmp_path, capsys):
    """...with one mistake ends in one line."""
    content, words = FILES[mistake]
    recipe = minirun.write_recipe(tmp_path)
    (tmp_path / "sums.jsonl").write_text(content)
    line = said(["train", str(recipe), "--runs", str(tmp_path / "runs")], capsys)
    for word in words:
        assert word in line
    assert half_written(tmp_path) == []


def test_a_suite_with_an_unknown_task(tmp_path, capsys):
    recipe = minirun.write_recipe(tmp_path)
    suite = copy.deepcopy(minirun.SUITE)
    suite["capabilities"]["math"][0]["task"] = "micro_maths"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(suite))
    line = said(["train", str(recipe), "--runs", str(tmp_path / "runs")], capsys)
    assert "'micro_maths'" in line and "did you mean 'micro_math'?" in line
    assert half_written(tmp_path) == []
    assert not (tmp_path / "runs" / "decon").exists()


def test_a_suite_with_an_unknown_metric(tmp_path, capsys):
    recipe = minirun.write_recipe(tmp_path)
    suite = copy.deepcopy(minirun.SUITE)
    suite["capabilities"]["math"][0]["metric"] = "exact_mach"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(suite))
    line = said(["train", str(recipe), "--runs", str(tmp_path / "runs")], capsys)
    assert "'exact_mach'" in line and "did you mean 'exact_match'?" in line
    assert half_written(tmp_path) == []


COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "an unknown command": (["trian"], ["no command 'trian'", "did you mean 'train'?"]),
    "an unknown command of a room": (["board", "sho"], ["'sho'", "assay board --help"]),
    "an unknown option": (
        ["train", "x.yaml", "--sed", "3"],
        ["'--sed'", "--seed", "assay train run --help"],
    ),
    "a missing argument": (["train"], ["'RECIPE'", "assay train run --help"]),
    "a seed that is no number": (
        ["train", "x.yaml", "--seed", "one"],
        ["'one'", "--seed", "assay train run --help"],
    ),
    "a mirror that is no folder": (
        ["train", "x.yaml", "--mirror", "nowhere"],
        ["'nowhere'", "--mirror"],
    ),
    "a board of nothing": (["board", "show", "nowhere"], ["nowhere"]),
    "an unknown suite to score": (
        ["eval", "run", "micro-def", "--model", "x"],
        ["'micro-def'", "did you mean 'micro-dev'?"],
    ),
    "a model to score that is missing": (
        ["eval", "run", "micro-dev", "--model", "./nowhere"],
        ["model nowhere: no such folder", "'./nowhere' is no hub name"],
    ),
    "a file to clean that is missing": (
        ["decon", "scan", "micro-dev", "nowhere.jsonl"],
        ["nowhere.jsonl"],
    ),
    "an unknown kind to write": (
        ["data", "micro", "world", "--kind", "fact"],
        ["'fact'", "did you mean 'facts'?"],
    ),
}


@pytest.mark.parametrize("mistake", COMMANDS)
def test_a_command_with(mistake, tmp_path, capsys, monkeypatch):
    """...one mistake ends in one line, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    arguments, words = COMMANDS[mistake]
    line = said(arguments, capsys)
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


# --- what a finished run may meet ---------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the mini recipe and its finished run."""
    folder = tmp_path_factory.mktemp("whole")
    minirun.finish(minirun.write_recipe(folder), folder / "runs")
    return folder


def test_a_checkpoint_that_was_cut_short(whole, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    weights = sorted(folder.glob("runs/checkpoints/*/model.safetensors"))[0]
    os.truncate(weights, weights.stat().st_size // 2)
    line = said(["train", str(folder / "mini.yaml"), "--runs", str(folder / "runs")], capsys)
    assert line.startswith(f"assay: {weights}: ") and "bytes where" in line
    assert f"delete the folder {weights.parent} and run the same command again" in line
    line = said(["eval", "run", str(folder / "tiny.yaml"), "--model", str(weights.parent)], capsys)
    assert str(weights.parent) in line


def mount(place: Path, kilobytes: int) -> bool:
    """Put a small disk in the folder's place, where the system and its rights allow."""
    program = shutil.which("mount")
    if program is None:
        return False
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    return subprocess.run([program, *options], capture_output=True).returncode == 0


def whole_but(file: str, damage: str, whole: Path, folder: Path) -> Path:
    """A recipe in `folder` that starts from a model folder with one damaged file."""
    source = sorted((whole / "runs" / "checkpoints").iterdir())[0]
    shutil.copytree(source, folder / "weights")
    place = folder / "weights" / file
    if damage == "cut":
        os.truncate(place, place.stat().st_size // 2)
    else:
        place.unlink()
    text = minirun.recipe_text()
    text["model"] = {"path": "./weights", "chat_template": text["model"]["chat_template"]}
    return minirun.write_recipe(folder, text)


@pytest.mark.parametrize("damage", ["cut", "missing"])
@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_model_folder_with_a_file(file, damage, whole, tmp_path, capsys):
    """...cut short or missing is named, and nothing is trained."""
    recipe = whole_but(file, damage, whole, tmp_path)
    line = said(["train", str(recipe), "--runs", str(tmp_path / "runs")], capsys)
    assert f"{tmp_path / 'weights'}: " in line
    assert not (tmp_path / "runs" / "checkpoints").exists()
    assert half_written(tmp_path) == []


def test_a_run_folder_below_a_file(whole, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = said(
        ["train", str(whole / "mini.yaml"), "--runs", str(tmp_path / "file" / "runs")], capsys
    )
    assert line.startswith(f"assay: {tmp_path / 'file' / 'runs'}") and "Not a directory" in line


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Path]]:
    """A folder on a disk of so many kilobytes.

    Who may not mount one gets a folder where the disk is full after so many files instead.
    """
    mounted: list[Path] = []

    def make(kilobytes: int) -> Path:
        place = tmp_path / f"disk-{kilobytes}"
        place.mkdir()
        if mount(place, kilobytes):
            mounted.append(place)
            return place
        # Each published file is synced once: so many of them is all there is room for.
        left = kilobytes // 12
        real = os.fsync

        def full(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize(
    ("kilobytes", "room"),
    [
        (4, "sources"),
        (88, "decon"),
        (208, "tokens"),
        (408, "checkpoints"),
        (512, "scores"),
        (928, "checkpoints"),
    ],
)
def test_a_disk_that_is_full(kilobytes, room, whole, small_disk, capsys):
    """...is named with the room that was being written, and leaves only whole things."""
    disk = small_disk(kilobytes)
    line = said(["train", str(whole / "mini.yaml"), "--runs", str(disk / "runs")], capsys)
    assert re.match(rf"assay: {disk}/runs/\w+/[^:]+: no space left on the disk", line)
    assert "free some space, or choose another folder with --runs, and run again" in line
    assert half_written(disk) == []
    if os.path.ismount(disk):
        assert f"{disk}/runs/{room}/" in line
    for folder in (disk / "runs").glob("*/*"):
        if folder.parent.name in ("sources", "tokens", "checkpoints"):
            twin = whole / "runs" / folder.parent.name / folder.name
            assert sorted(f.name for f in folder.iterdir()) == sorted(
                f.name for f in twin.iterdir()
            )
