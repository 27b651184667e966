"""A recipe end to end: what a run leaves, what it never does twice, and what never gets in."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from decon.clean import clean
from decon.index import build_index
from decon.policy import load_policy
from evalsuite import config, hubdata, microworld
from evalsuite.errors import UserError
from evalsuite.files import read_json, read_jsonl
from evalsuite.harness import docs
from evalsuite.references import references
from evalsuite.scorefiles import read_evaluation
from evalsuite.suites import load_suite
from tests.trainloop import minirun
from trainloop import checkpoint as checkpoints
from trainloop import model as models
from trainloop import prepare as preparing
from trainloop import run as runs
from trainloop import shapes, sources, train
from trainloop.records import Recipe, Source


@pytest.fixture
def copy(finished: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """The finished run in a folder that a test may damage."""
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    return SimpleNamespace(folder=folder, recipe=folder / "mini.yaml", root=folder / "runs")


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that trains."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a stage was trained anew")

    monkeypatch.setattr(train, "train_stage", refuse)


def scores_of(root: Path, checkpoint: str) -> Path:
    """The one folder of scores of a checkpoint."""
    [folder] = (root / "scores" / checkpoint).iterdir()
    return folder


def test_a_run_names_its_stages_checkpoints_and_suites(finished):
    told = read_json(finished.root / "runs" / finished.run.id / "run.json")
    assert set(told) == {
        "id", "name", "recipe", "recipe_file", "seed", "variant", "sweep", "stages", "suites",
        "certificate", "code",
    }  # fmt: skip
    assert told["id"] == finished.run.id
    assert (told["name"], told["seed"], told["variant"], told["sweep"]) == ("mini", 0, None, None)
    assert told["suites"] == ["tiny"], "a suite given by its path goes by its own name"
    assert told["recipe"]["sources"]["sums"]["files"] == ["sums.jsonl"]
    assert [stage["name"] for stage in told["stages"]] == list(minirun.STEPS)
    assert [stage["objective"] for stage in told["stages"]] == ["next_token", "next_token", "sft"]
    assert [len(stage["checkpoints"]) for stage in told["stages"]] == [3, 1, 1]
    for stage in told["stages"]:
        assert stage["final"] == stage["checkpoints"][-1]
        assert stage["tokens"] == minirun.STEPS[stage["name"]] * minirun.ROWS * minirun.LENGTH
        assert stage["shared"] is False
    assert told["stages"][1]["mixture"] == {"sums": 3.0, "facts": 1.0}
    assert told["code"] == {"assay": "0.1.0"}
    every = {c for stage in told["stages"] for c in stage["checkpoints"]}
    for room in ("checkpoints", "scores"):
        assert {folder.name for folder in (finished.root / room).iterdir()} == every


def test_each_stage_descends_from_the_last_checkpoint_of_the_one_before(finished):
    told = read_json(finished.root / "runs" / finished.run.id / "run.json")
    records = {
        stage["name"]: [checkpoints.read(finished.root, c) for c in stage["checkpoints"]]
        for stage in told["stages"]
    }
    assert {r.parent for r in records["pretrain"]} == {None}
    for before, after in pairwise(told["stages"]):
        assert {r.parent for r in records[after["name"]]} == {before["final"]}
    tokens = {name: n * minirun.ROWS * minirun.LENGTH for name, n in minirun.STEPS.items()}
    last = records["sft"][-1]
    assert last.total_tokens == sum(tokens.values())
    assert last.flops == 6.0 * last.parameters * sum(tokens.values())
    assert [r.final for r in records["pretrain"]] == [False, False, True]
    assert [r.step for r in records["pretrain"]] == [8, 16, 24]
    for stage in told["stages"]:
        assert {r.stage_id for r in records[stage["name"]]} == {stage["stage_id"]}
        for checkpoint in stage["checkpoints"]:
            checkpoints.verify(finished.root / "checkpoints" / checkpoint)


def test_a_stage_starts_from_its_parents_weights(finished):
    rows = {
        plan.stage.name: [
            row for _, row in read_jsonl(finished.root / "stages" / plan.id / "metrics.jsonl")
        ]
        for plan in finished.run.stages
    }
    for name, steps in minirun.STEPS.items():
        assert [row["step"] for row in rows[name]] == list(range(1, steps + 1))
        assert set(rows[name][0]) == {
            "step", "tokens", "loss", "lr", "grad_norm", "target_tokens", "tokens_per_second",
            "wait_seconds",
        }  # fmt: skip
    fresh, going_on = rows["pretrain"][0]["loss"], rows["midtrain"][0]["loss"]
    assert fresh > 5, "fresh weights guess among 300 tokens: ln 300 is 5.7"
    assert going_on < rows["pretrain"][-1]["loss"] + 0.5 < fresh - 0.5


def test_every_checkpoint_is_scored_on_every_suite(finished):
    suite = finished.prepared.suites["tiny"]
    for plan in finished.run.stages:
        for checkpoint in plan.checkpoint_ids:
            folder = scores_of(finished.root, checkpoint)
            assert folder.name == f"tiny-{suite.fingerprint}"
            assert {f.name for f in folder.iterdir()} == {
                "scores.jsonl", "items.parquet", "suite.json", "basis.json",
            }  # fmt: skip
            evaluation = read_evaluation(folder)
            assert len(evaluation.items) == 2 * minirun.ITEMS
            assert all(item.value is not None for item in evaluation.items)
            assert not any(score.partial for score in evaluation.scores)


def test_one_certificate_binds_run_checkpoints_suite_and_sources(finished):
    told = read_json(finished.root / "runs" / finished.run.id / "run.json")
    [folder] = [f for f in (finished.root / "decon").iterdir()]
    certificate = read_json(folder / "certificate.json")
    assert told["certificate"] == certificate["id"]
    for plan in finished.run.stages:
        for checkpoint in plan.checkpoint_ids:
            assert checkpoints.read(finished.root, checkpoint).certificate == certificate["id"]
    assert certificate["suites"] == {"tiny": finished.prepared.suites["tiny"].fingerprint}
    assert set(certificate["sources"]) == {"facts", "sums", "chat"}
    for count in certificate["sources"].values():
        assert count["read"] == count["kept"] + count["removed"] + count["malformed"]


def test_every_planted_item_of_the_suite_is_found(finished):
    planted = {name: (n, found) for name, n, found in preparing.plants_found(finished.prepared)}
    assert planted["sums"] == (minirun.ITEMS, minirun.ITEMS)
    truth = microworld.planted(
        "facts",
        count=400,
        seed=0,
        leaks=microworld.Leaks(rate=0.3, forms=("verbatim",), suite="micro-dev"),
    )
    tasks = {"micro_math", "micro_knowledge"}
    ours = {
        row["document_id"]
        for row in truth
        if row["task"] in tasks and row["doc_id"] < minirun.ITEMS
    }
    hits = {
        row["document_id"]
        for _, row in read_jsonl(finished.prepared.decon_folder / "hits.jsonl")
        if row["source"] == "facts"
    }
    assert len(ours) > 3
    assert ours <= hits, "each leak of an item that the suite scores"
    assert planted["facts"][0] == len(truth) > planted["facts"][1] >= len(ours)


def decoded(finished: SimpleNamespace) -> dict[str, list[str]]:
    """Source -> texts of the documents in its token files."""
    tokenizer = models.load_tokenizer(next((finished.root / "tokenizers").iterdir()), None)
    texts: dict[str, list[str]] = {}
    for folder in (finished.root / "tokens").iterdir():
        tokens = np.fromfile(folder / "tokens.u32", dtype=np.uint32)
        offsets = np.load(folder / "offsets.npy")
        name = read_json(folder / "tokens.json")["source"]
        texts[name] = [
            tokenizer.decode(tokens[a:b], skip_special_tokens=True) for a, b in pairwise(offsets)
        ]
    return texts


def test_no_removed_document_reaches_the_model_and_every_kept_one_does(finished):
    texts = decoded(finished)
    items = microworld.eval_rows("micro_math", "dev")[: minirun.ITEMS]
    planted = [minirun.PLANTED.format(**item) for item in items]
    raw = [row["text"] for _, row in read_jsonl(finished.recipe.parent / "sums.jsonl")]
    removed = {
        source: [row["document"] for _, row in read_jsonl(path)]
        for source in ("facts", "sums")
        if (path := finished.prepared.decon_folder / "removed" / f"{source}.jsonl")
    }
    assert len(removed["facts"]) > 3
    for plant in planted:
        assert plant in [row["text"] for row in removed["sums"]]
    for source, rows in removed.items():
        for row in rows:
            assert row["text"] not in texts[source]
    questions = [item["question"] for item in items]
    for source in texts:
        assert not [t for t in texts[source] for q in questions if q.lower() in t.lower()]
    gone = [row["text"] for row in removed["sums"]]
    assert sorted(texts["sums"]) == sorted(text for text in raw if text not in gone)


def test_scoring_another_suite_trains_nothing(copy, no_training):
    other = minirun.SUITE | {
        "name": "other",
        "role": "unseen",
        "capabilities": {
            "code": [{"task": "micro_code_unseen", "metric": "exact_match", "docs": 4}]
        },
    }
    (copy.folder / "other.yaml").write_text(yaml.safe_dump(other))
    text = minirun.recipe_text() | {"suites": ["tiny.yaml", "other.yaml"]}
    before = {f.name for f in (copy.root / "checkpoints").iterdir()}
    copy.recipe.write_text(yaml.safe_dump(text))
    prepared, run = minirun.finish(copy.recipe, copy.root)
    assert {f.name for f in (copy.root / "checkpoints").iterdir()} == before
    for plan in run.stages:
        for checkpoint in plan.checkpoint_ids:
            folders = sorted(f.name for f in (copy.root / "scores" / checkpoint).iterdir())
            assert [name.rpartition("-")[0] for name in folders] == ["other", "tiny"]
    assert read_json(copy.root / "runs" / run.id / "run.json")["suites"] == ["tiny", "other"]
    assert set(prepared.suites) == {"tiny", "other"}


@pytest.mark.parametrize(
    ("source", "kept"), [("facts", 0), ("sums", 0), ("chat", 2), ("nothing", 3)]
)
def test_a_changed_source_changes_the_stages_that_read_it_and_those_after(finished, source, kept):
    prepared = finished.prepared
    clean = {
        name: preparing.Clean(id=one.id + "x" * (name == source), files=one.files)
        for name, one in prepared.clean.items()
    }
    # The tokenizer reads every source; with one of its own, only the stages do.
    text = minirun.recipe_text()
    text["model"]["tokenizer"]["train_on"] = ["sums"] if source != "sums" else ["facts"]
    changed = with_recipe(prepared, text, clean)
    same = with_recipe(prepared, text, dict(prepared.clean))
    ids = [
        [plan.id for plan in runs.plan_stages(one, variant=None, seed=0)] for one in (same, changed)
    ]
    alike = [a == b for a, b in zip(*ids, strict=True)]
    assert alike == [True] * kept + [False] * (3 - kept)


def with_recipe(prepared: Any, text: dict[str, Any], clean: Any) -> Any:
    """`prepared` with another recipe and other clean data."""
    recipe = config.loads(yaml.safe_dump(text), Recipe, place="changed")
    return dataclasses.replace(prepared, recipe=recipe, clean=clean)


def test_one_changed_line_of_a_file_makes_another_source_and_another_run(copy):
    before = minirun.ready(copy.recipe, copy.root)
    file = copy.folder / "sums.jsonl"
    file.write_text(file.read_text().replace("finds", "gains", 1))
    after = minirun.ready(copy.recipe, copy.root)
    assert after.shards["sums"].id != before.shards["sums"].id
    assert after.shards["facts"].id == before.shards["facts"].id
    plans = [runs.plan_stages(one, variant=None, seed=0) for one in (before, after)]
    assert not {plan.id for plan in plans[0]} & {plan.id for plan in plans[1]}


RERUN = """
import sys, assay
try:
    assay.main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "transformers", "lm_eval", "datasets", "accelerate"} & set(sys.modules)
print("heavy:", sorted(heavy))
"""


def test_a_finished_run_is_recognised_without_loading_torch_and_left_as_it_was(copy, repository):
    before = {f: f.read_bytes() for f in copy.root.rglob("*") if f.is_file()}
    done = subprocess.run(
        [sys.executable, "-c", RERUN, "train", str(copy.recipe), "--runs", str(copy.root)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(repository)},
    )
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout
    assert "plants in sums: 6 of 6 planted leaks found" in done.stdout
    after = {f: f.read_bytes() for f in copy.root.rglob("*") if f.is_file()}
    told = {f for f in before if f.name == "run.json"}
    assert {f: b for f, b in after.items() if f not in told} == {
        f: b for f, b in before.items() if f not in told
    }
    [run_json] = told
    changed = json.loads(after[run_json]), json.loads(before[run_json])
    assert {k: v for k, v in changed[0].items() if k != "recipe_file"} == {
        k: v for k, v in changed[1].items() if k != "recipe_file"
    }


def test_a_checkpoint_without_scores_is_scored_from_its_folder_with_the_same_numbers(
    copy, finished, no_training
):
    unscored = [plan.checkpoint_ids[0] for plan in finished.run.stages]
    for checkpoint in unscored:
        shutil.rmtree(copy.root / "scores" / checkpoint)
    minirun.finish(copy.recipe, copy.root)
    for checkpoint in unscored:
        live = read_evaluation(scores_of(finished.root, checkpoint))
        from_folder = read_evaluation(scores_of(copy.root, checkpoint))
        assert from_folder.items == live.items
        assert from_folder.scores == live.scores


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_parent_is_named_and_made_again_from_the_last_good_checkpoint(
    copy, finished, damage
):
    pretrain, _, _ = finished.run.stages
    for plan in finished.run.stages[1:]:
        for room in ("checkpoints", "scores"):
            shutil.rmtree(copy.root / room / plan.checkpoint_ids[-1])
    damaged, good = pretrain.checkpoint_ids[-1], pretrain.checkpoint_ids[-2]
    file = copy.root / "checkpoints" / damaged / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw if damage == "flip" else raw[: len(raw) // 2])
    if damage == "remove":
        file.unlink()
    said: list[str] = []
    _, run = minirun.finish(copy.recipe, copy.root, say=said.append)
    [line] = said
    assert damaged in line and "model.safetensors" in line and good in line and "\n" not in line
    assert run.final == finished.run.final
    for checkpoint in (damaged, run.final):
        for name in ("model.safetensors", "optimizer.safetensors"):
            place = Path("checkpoints") / checkpoint / name
            assert (copy.root / place).read_bytes() == (finished.root / place).read_bytes()
    assert [f for f in (copy.root / "damaged").iterdir() if f.name.startswith(damaged)]


def test_two_suites_of_one_name_are_an_error(copy):
    (copy.folder / "again.yaml").write_text((copy.folder / "tiny.yaml").read_text())
    text = minirun.recipe_text() | {"suites": ["tiny.yaml", "again.yaml"]}
    copy.recipe.write_text(yaml.safe_dump(text))
    with pytest.raises(UserError, match=r"'again\.yaml' is a second suite named 'tiny'"):
        minirun.ready(copy.recipe, copy.root)


def test_scores_of_other_docs_are_made_again_and_nothing_is_trained(copy, finished, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(train, "train_stage", refuse)
    [basis] = (copy.root / "scores" / finished.run.final).glob("*/basis.json")
    rows = (basis.parent / "scores.jsonl").read_text()
    told = json.loads(basis.read_text())
    basis.write_text(json.dumps(told | {"references": "of yesterday's data"}))
    (basis.parent / "scores.jsonl").write_text("")
    minirun.finish(copy.recipe, copy.root)
    assert json.loads(basis.read_text()) == told
    assert (basis.parent / "scores.jsonl").read_text() == rows


def test_an_unseen_suite_may_not_decide_a_sweep(copy):
    suite = copy.folder / "tiny.yaml"
    suite.write_text(suite.read_text().replace("role: dev", "role: unseen"))
    text = minirun.recipe_text()
    mixture = text["stages"][1]["mixture"]
    text["sweep"] = {
        "stage": text["stages"][1]["name"],
        "suite": "tiny.yaml",
        "seeds": [1],
        "variants": {"a": mixture, "b": mixture},
    }
    copy.recipe.write_text(yaml.safe_dump(text))
    with pytest.raises(UserError, match="'tiny' is unseen, and only a dev suite may decide"):
        minirun.ready(copy.recipe, copy.root)


def test_a_source_that_gives_away_an_unseen_suite_is_dropped_unless_the_recipe_says_otherwise(
    copy,
):
    before = minirun.ready(copy.recipe, copy.root).certificate
    suite = copy.folder / "tiny.yaml"
    suite.write_text(suite.read_text().replace("role: dev", "role: unseen"))
    with pytest.raises(
        UserError, match=r"source 'facts' is dropped: .* of tiny/.*on_unseen"
    ) as told:
        minirun.ready(copy.recipe, copy.root)
    assert "write `on_unseen: drop_documents`" in str(told.value)
    certificates = {before.id: before}
    for decision in ("drop_documents", "keep"):
        text = minirun.recipe_text() | {"on_unseen": decision}
        copy.recipe.write_text(yaml.safe_dump(text))
        prepared = minirun.ready(copy.recipe, copy.root)
        assert prepared.certificate.sources["facts"].decision == decision
        assert prepared.certificate.overrides == {"on_unseen": decision}
        # The memory in known/ tells the decisions apart, too.
        assert minirun.ready(copy.recipe, copy.root).certificate == prepared.certificate
        certificates[prepared.certificate.id] = prepared.certificate
    assert len(certificates) == 3
    kept = [certificate.sources["facts"].kept for certificate in certificates.values()]
    assert kept[0] == kept[1] < kept[2] == 400


def test_a_long_passage_is_found_though_sources_are_cut_into_pieces(shared, tmp_path):
    pages = hubdata.rows("Salesforce/wikitext", "wikitext-2-raw-v1", "test", mirror=shared)
    texts = [doc.target for doc in docs(load_suite("real-small"), mirror=shared) if doc.rolling]
    assert pages and max(map(len, texts)) > 2 * shapes.LONGEST
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (tmp_path / "leak.jsonl").write_text("".join(lines))
    leak = Source(files=["leak.jsonl"])
    shards = sources.materialise("leak", leak, root=tmp_path, base=tmp_path, mirror=None)
    suite = load_suite("real-small")
    index = build_index(
        references(suite, mirror=shared),
        policy=load_policy("tulu3"),
        suites={suite.name: suite.fingerprint},
    )
    certificate = clean({"leak": shards.files}, index, tmp_path / "out")
    count = certificate.sources["leak"]
    assert count.read > len(texts), "the articles were cut"
    assert count.removed == count.read
    assert certificate.dirty_items[suite.name]["wikitext"] == list(range(len(texts)))
