"""Every kind of stage in one run: what it starts from, what it hands on, and exact resume."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from evalsuite.errors import UserError
from evalsuite.files import read_json, read_jsonl, sha256_file
from evalsuite.records import ALL
from tests.trainloop import minirun, stagesrun
from tests.trainloop.stagesrun import LENGTH
from trainloop import checkpoint as checkpoints
from trainloop import model as models
from trainloop.plans import output, plan_stages
from trainloop.scoring import measures_file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The recipe with every kind of stage, run to its end."""
    folder = tmp_path_factory.mktemp("stages")
    recipe = minirun.write_recipe(folder, stagesrun.recipe_text())
    said: list[str] = []
    prepared, run = minirun.finish(recipe, folder / "runs", say=said.append)
    plans = {plan.stage.name: plan for plan in run.stages}
    return SimpleNamespace(
        folder=folder,
        recipe=recipe,
        root=folder / "runs",
        prepared=prepared,
        run=run,
        plans=plans,
        said=said,
    )


def record_of(whole: SimpleNamespace, stage: str) -> Any:
    return checkpoints.read(whole.root, output(whole.prepared, whole.plans[stage]))


def rows_of(whole: SimpleNamespace, stage: str, name: str = "metrics") -> list[dict[str, Any]]:
    path = whole.root / "stages" / whole.plans[stage].id / f"{name}.jsonl"
    return [row for _, row in read_jsonl(path)]


def test_each_stage_descends_from_the_stage_it_names_or_the_last_language_model(whole):
    parents = {name: record_of(whole, name).parent for name in whole.plans}
    of = {name: output(whole.prepared, plan) for name, plan in whole.plans.items()}
    assert parents == {
        "pretrain": None,
        "midtrain": of["pretrain"],
        "sibling": of["pretrain"],
        "soup": of["midtrain"],
        "sft": of["soup"],
        "dpo": of["sft"],
        "reward": of["dpo"],
        "grpo": of["dpo"],
        "ppo": of["dpo"],
    }
    assert record_of(whole, "ppo").ingredients == [of["reward"]], "its answers were judged by it"
    assert record_of(whole, "soup").ingredients == [of["midtrain"], of["sibling"]]
    certificates = {record_of(whole, name).certificate for name in whole.plans}
    assert certificates == {whole.prepared.certificate.id}


def test_a_stage_with_a_rule_hands_on_its_best_dev_checkpoint_and_says_so(whole):
    plan = whole.plans["pretrain"]
    told = read_json(whole.root / "stages" / plan.id / f"best-{plan.rule}.json")
    assert whole.said == [f"stage pretrain hands on {told['checkpoint']}: {told['why']}"]
    assert told["why"].startswith("best of 3 checkpoints on tiny.yaml knowledge: ")
    values = {}
    for checkpoint in plan.checkpoint_ids:
        [folder] = (whole.root / "scores" / checkpoint).iterdir()
        values[checkpoint] = next(
            row["value"]
            for _, row in read_jsonl(folder / "scores.jsonl")
            if (row["capability"], row["task"], row["subset"]) == ("knowledge", ALL, "all")
        )
    assert values[told["checkpoint"]] == max(values.values())
    assert record_of(whole, "midtrain").parent == told["checkpoint"]


def test_a_soup_is_the_mean_of_its_ingredients_and_counts_what_they_cost_once(whole):
    folders = [
        checkpoints.folder_of(whole.root, output(whole.prepared, whole.plans[name]))
        for name in ("midtrain", "sibling", "soup")
    ]
    one, other, soup = (load_file(folder / "model.safetensors") for folder in folders)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    for name, value in soup.items():
        torch.testing.assert_close(value, (one[name] + other[name]) / 2, rtol=0, atol=1e-7)
    pretrain, midtrain = record_of(whole, "pretrain"), record_of(whole, "midtrain")
    assert record_of(whole, "soup").total_tokens == pretrain.tokens + 2 * midtrain.tokens
    assert record_of(whole, "sft").total_tokens == record_of(whole, "soup").total_tokens + (
        record_of(whole, "sft").tokens
    )


def test_an_anneal_starts_at_the_rate_where_its_parent_ended_and_ends_at_exactly_zero(whole):
    last = rows_of(whole, "pretrain")[-1]["lr"]
    rates = [row["lr"] for row in rows_of(whole, "midtrain")]
    steps = len(rates)
    assert last > 0
    assert rates[0] == pytest.approx(last * (1 - 1 / steps), rel=1e-12)
    assert rates[-1] == 0.0


def test_a_reward_model_is_measured_on_held_out_pairs_and_scored_on_no_suite(whole):
    plan = whole.plans["reward"]
    [checkpoint] = plan.checkpoint_ids
    assert not (whole.root / "scores" / checkpoint).exists()
    measures = read_json(measures_file(whole.prepared, checkpoint))["held_pairs"]
    assert 0 <= measures["accuracy"] <= 1 and measures["documents"] == 20
    scorer = models.load_scorer(checkpoints.folder_of(whole.root, checkpoint))
    assert scorer.config.num_labels == 1


def test_held_out_bits_per_byte_are_the_loss_of_all_targets_over_their_bytes(whole):
    plan = whole.plans["pretrain"]
    checkpoint = plan.checkpoint_ids[-1]
    measures = read_json(measures_file(whole.prepared, checkpoint))["held_facts"]
    folder = checkpoints.folder_of(whole.root, checkpoint)
    model, tokenizer = models.load_model(folder), models.load_tokenizer(folder, None)
    nats = size = 0.0
    for file in whole.prepared.clean["held_facts"].files:
        for _, row in read_jsonl(file):
            ids = [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            nats -= sum(float(logp[n - 1, ids[n]]) for n in range(1, len(ids)))
            size += len(tokenizer.decode(ids[1:], skip_special_tokens=True).encode())
    assert measures["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_preference_starts_at_ln_2_and_its_reference_is_kept(whole):
    assert rows_of(whole, "dpo")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert list((whole.root / "reference").iterdir())


def test_rollouts_are_written_down_once_each(whole):
    rows = rows_of(whole, "grpo", "samples")
    assert len(rows) == 4 * 8 * 4, "steps x prompts x samples"
    assert sorted({row["step"] for row in rows}) == [1, 2, 3, 4]


def test_ppo_saves_its_critic_beside_the_policy(whole):
    folder = checkpoints.folder_of(whole.root, whole.plans["ppo"].checkpoint_ids[-1])
    assert models.load_scorer(folder / "critic").config.num_labels == 1
    start = checkpoints.folder_of(whole.root, whole.plans["reward"].checkpoint_ids[-1])
    now, before = (load_file(f / "model.safetensors") for f in (folder / "critic", start))
    assert now.keys() == before.keys()
    assert any(not torch.equal(now[name], before[name]) for name in now)


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("stage", ["dpo", "reward", "grpo", "ppo"])
def test_a_stage_stopped_between_checkpoints_ends_with_the_same_bits(whole, tmp_path, stage):
    root = tmp_path / "runs"
    shutil.copytree(whole.root, root)
    plan = whole.plans[stage]
    later = list(whole.plans.values())[list(whole.plans).index(stage) :]
    for each in later:
        shutil.rmtree(root / "stages" / each.id)
        for checkpoint in each.checkpoint_ids:
            for room in ("checkpoints", "scores"):
                shutil.rmtree(root / room / checkpoint, ignore_errors=True)
    prepared = minirun.ready(whole.recipe, root)
    stop = plan.stage.steps - 1

    def progress(label: str, done: float, total: float) -> None:
        if label.endswith(f": {stage}") and done >= stop:
            raise KilledError

    from trainloop.run import run_stages

    names = [each.stage.name for each in plan_stages(prepared, variant=None, seed=0)]
    until = names.index(stage) + 1
    with pytest.raises(KilledError):
        run_stages(prepared, seed=0, stages=until, progress=progress)
    run_stages(prepared, seed=0, stages=until)
    for checkpoint in plan.checkpoint_ids:
        for name in ("model.safetensors", "optimizer.safetensors"):
            place = Path("checkpoints") / checkpoint / name
            assert sha256_file(root / place) == sha256_file(whole.root / place)
    place = Path("stages") / plan.id / "samples.jsonl"
    if stage in ("grpo", "ppo"):
        assert (root / place).read_text() == (whole.root / place).read_text()
    steps = [
        json.loads(line)["step"]
        for line in (root / "stages" / plan.id / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, plan.stage.steps + 1))


def test_patience_ends_a_stage_early_and_its_child_starts_from_the_best(tmp_path):
    text = minirun.recipe_text()
    text["stages"] = text["stages"][:2]
    # Weights that hardly move: no later checkpoint is better than the first.
    text["stages"][0] |= {
        "learning_rate": 1e-12,
        "score_every": 4 * minirun.ROWS * minirun.LENGTH,
        "best": {"suite": "tiny.yaml", "capability": "math", "patience": 2},
    }
    said: list[str] = []
    recipe = minirun.write_recipe(tmp_path, text)
    prepared, run = minirun.finish(recipe, tmp_path / "runs", say=said.append)
    pretrain, midtrain = run.stages
    assert "ended early, 2 checkpoints without a better one" in said[0]
    there = [c for c in pretrain.checkpoint_ids if checkpoints.read(prepared.root, c)]
    assert there == pretrain.checkpoint_ids[:3], "the rest was not trained"
    record = checkpoints.read(prepared.root, midtrain.checkpoint_ids[-1])
    assert record is not None and record.parent == pretrain.checkpoint_ids[0]
    told = read_json(prepared.root / "runs" / run.id / "run.json")["stages"][0]
    assert told["checkpoints"] == there and told["final"] == there[0]
    _, same = minirun.finish(recipe, tmp_path / "runs", say=said.append)
    assert same.final == run.final and len(said) == 1, "a second call finds all done"


def still_text() -> dict[str, Any]:
    """Two stages; the first hands on its best of four checkpoints, which is the first one."""
    text = minirun.recipe_text()
    text["stages"] = text["stages"][:2]
    text["stages"][0] |= {
        "learning_rate": 1e-12,
        "score_every": 6 * minirun.ROWS * minirun.LENGTH,
        "best": {"suite": "tiny.yaml", "capability": "math"},
    }
    return text


def test_what_a_finished_stage_hands_on_is_read_to_the_last_byte_before_it_is_used(tmp_path):
    recipe, root = minirun.write_recipe(tmp_path, still_text()), tmp_path / "runs"
    prepared, run = minirun.finish(recipe, root)
    pretrain, midtrain = run.stages
    best = output(prepared, pretrain)
    assert best == pretrain.checkpoint_ids[0], "not the newest, which is looked at anyway"
    file = checkpoints.folder_of(root, best) / "model.safetensors"
    child = checkpoints.folder_of(root, midtrain.checkpoint_ids[-1])
    good = sha256_file(file), sha256_file(child / "model.safetensors")
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    file.write_bytes(damaged)
    shutil.rmtree(child)
    said: list[str] = []
    minirun.finish(recipe, root, say=said.append)
    assert "its bytes are not those that were saved; moved to" in said[0]
    assert (sha256_file(file), sha256_file(child / "model.safetensors")) == good
    shutil.rmtree(child)
    checkpoints.retire(root, best)
    with pytest.raises(UserError, match="a retired checkpoint, its weights were removed"):
        minirun.finish(recipe, root)


def test_a_suite_that_changed_makes_another_rule_and_other_children(tmp_path):
    recipe, root = minirun.write_recipe(tmp_path, still_text()), tmp_path / "runs"
    prepared = minirun.ready(recipe, root)
    before = plan_stages(prepared, variant=None, seed=0)
    suite = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    suite["capabilities"]["math"][0]["chance"] = 0.1
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    after = plan_stages(minirun.ready(recipe, root), variant=None, seed=0)
    assert after[0].checkpoint_ids == before[0].checkpoint_ids, "the first is trained alike"
    assert after[1].id != before[1].id, "it may start from another checkpoint"


def test_patience_chooses_the_same_whatever_an_earlier_run_left_on_disk(tmp_path):
    text = still_text()
    _, whole = minirun.finish(minirun.write_recipe(tmp_path, text), tmp_path / "runs")
    text["stages"][0]["best"]["patience"] = 1
    said: list[str] = []
    recipe = minirun.write_recipe(tmp_path, text)
    _, run = minirun.finish(recipe, tmp_path / "runs", say=said.append)
    assert whole.stages[0].checkpoint_ids == run.stages[0].checkpoint_ids
    assert "best of 2 checkpoints" in said[0] and "ended early" in said[0]


def test_keep_needed_given_to_a_finished_stage_frees_its_weights(tmp_path):
    text = still_text()
    del text["stages"][1]
    recipe, root = minirun.write_recipe(tmp_path, text), tmp_path / "runs"
    _, run = minirun.finish(recipe, root)
    text["stages"][0]["keep"] = "needed"
    minirun.finish(minirun.write_recipe(tmp_path, text), root)
    retired = [checkpoints.is_retired(root, one) for one in run.stages[0].checkpoint_ids]
    assert retired == [False, True, True, False], "the best and the last one stay"


def test_runs_that_differ_in_a_side_branch_are_two_runs(tmp_path):
    text = minirun.recipe_text()
    pretrain, midtrain, sft = text["stages"]
    text["stages"] = [pretrain, midtrain, sft | {"start_from": "pretrain"}]
    root = tmp_path / "runs"
    minirun.finish(minirun.write_recipe(tmp_path, text), root)
    midtrain["learning_rate"] = 2e-2
    minirun.finish(minirun.write_recipe(tmp_path, text), root)
    told = [read_json(file)["stages"] for file in (root / "runs").glob("*/run.json")]
    assert len(told) == 2
    assert len({stages[1]["stage_id"] for stages in told}) == 2
    assert len({stages[2]["stage_id"] for stages in told}) == 1


def test_a_source_that_changed_under_a_killed_run_stops_it_by_name(tmp_path):
    text = minirun.recipe_text()
    recipe = minirun.write_recipe(tmp_path, text)
    root = tmp_path / "runs"

    def progress(label: str, done: float, total: float) -> None:
        if label.endswith(": midtrain") and done >= 3:
            raise KilledError

    with pytest.raises(KilledError):
        minirun.finish(recipe, root, progress=progress)
    lines = (tmp_path / "sums.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "sums.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="begun on source 'sums'") as caught:
        minirun.finish(recipe, root)
    assert "put the source back, or delete" in str(caught.value)
    (tmp_path / "sums.jsonl").write_text("".join(lines))
    minirun.finish(recipe, root)


def mistakes() -> dict[str, tuple[dict[str, Any], str]]:
    """What is wrong -> changes of the last stage, and what the message must hold."""
    return {
        "later stage": ({"start_from": "later"}, "start_from is 'later', which is no stage before"),
        "no reward model": ({"reward_model": "sft"}, "'sft', which trains no reward model"),
        "from a reward model": ({"start_from": "reward"}, "which trains a reward model"),
        "unknown option": ({"options": {"sampels": 4}}, "no option 'sampels'; did you mean"),
        "two budgets": ({"tokens": 1000, "batch_tokens": 100}, "not both"),
        "held out and trained on": ({"held_out": ["prompts"]}, "held out and in the mixture"),
        "unseen suite": ({"best": {"suite": "other.yaml", "capability": "x"}}, "not among"),
        "no capability": ({"best": {"suite": "tiny.yaml", "capability": "maths"}}, "did you mean"),
        "held-out prompts": ({"held_out": ["held_pairs"]}, "so it measures no held-out source"),
        "reward without model": (
            {"reward_model": None, "options": {"reward": "both"}},
            "options.reward is 'both', but the stage names no reward_model",
        ),
        "tokens of prompts": (
            {"batch": None, "steps": 0, "tokens": 960, "batch_tokens": LENGTH},
            "reads prompts whole, so its batch counts them",
        ),
        "epochs and steps": ({"epochs": 1}, "give epochs (1) or steps (4), not both"),
        "a model that is not asked": (
            {"objective": "dpo_norm", "mixture": {"pairs": 1}, "options": {}},
            "asks no reward model; drop reward_model ('reward')",
        ),
        "a rate of zero": (
            {
                "objective": "dpo_norm",
                "mixture": {"pairs": 1},
                "options": {},
                "reward_model": None,
                "steps": 1,
                "score_every": None,
            },
            "the learning rate of its 1 step is 0",
        ),
        "texts by document": (
            {
                "objective": "next_token",
                "mixture": {"facts": 1},
                "options": {},
                "reward_model": None,
                "batch": None,
                "score_every": None,
            },
            "cuts texts at sequence_length, so its batch counts tokens",
        ),
        "best reward model": (
            {
                "objective": "reward",
                "mixture": {"pairs": 1},
                "options": {},
                "reward_model": None,
                "best": {"suite": "tiny.yaml", "capability": "math"},
            },
            "no suite scores a reward model",
        ),
        "pairs held out": ({"held_out": ["own"]}, "they are for mixtures alone"),
        "pairs of a reward model": (
            {
                "objective": "dpo_norm",
                "mixture": {"judged": 1},
                "options": {},
                "reward_model": None,
            },
            "trains a reward model and writes nothing",
        ),
        "a soup that reads": (
            {"name": "mean", "objective": "soup", "soup": ["midtrain", "sibling"]},
            "a soup is not trained, so mixture",
        ),
    }


@pytest.mark.parametrize("mistake", mistakes())
def test_a_stage_that_cannot_be_is_refused_before_anything_is_trained(whole, tmp_path, mistake):
    change, told = mistakes()[mistake]
    text = stagesrun.recipe_text()
    text["stages"][-1] |= change
    for name, policy in (("own", "sft"), ("judged", "reward")):
        text["sources"][name] = {"pairs": {"prompts": "prompts", "policy": policy}}
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(yaml.safe_dump(text))
    for name in ("tiny.yaml", "sums.jsonl"):
        shutil.copy(whole.folder / name, tmp_path / name)
    with pytest.raises(UserError) as caught:
        minirun.finish(recipe, whole.root)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_on_policy_pairs_are_written_by_the_stage_they_name(tmp_path):
    """The model learned to answer with one of two letters: half of its answers are right."""
    text = minirun.recipe_text()
    text["sources"] |= {
        "letters": {"files": ["letters.jsonl"]},
        "prompts": {"files": ["prompts.jsonl"]},
        "own": {
            "pairs": {"prompts": "prompts", "policy": "sft", "samples": 8, "max_new_tokens": 8}
        },
    }
    sft = text["stages"][2] | {"mixture": {"letters": 1}, "learning_rate": 3e-2}
    dpo = {"name": "dpo", "objective": "dpo_norm", "mixture": {"own": 1}, "sequence_length": 64}
    text["stages"] = [
        sft | {"tokens": 60 * minirun.ROWS * minirun.LENGTH},
        dpo | {"batch": 4, "steps": 2},
    ]
    recipe = minirun.write_recipe(tmp_path, text)
    ask = {"role": "user", "content": "say a letter"}
    chats = [[ask, {"role": "assistant", "content": "ab"[n % 2]}] for n in range(40)]
    prompts = [{"messages": [ask], "answer": "a", "verifier": "match", "doc": {}}] * 12
    for name, rows in (("letters", [{"messages": chat} for chat in chats]), ("prompts", prompts)):
        lines = [json.dumps({"id": str(n)} | row) + "\n" for n, row in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    prepared, run = minirun.finish(recipe, tmp_path / "runs")
    [folder] = (prepared.root / "pairs").iterdir()
    pairs = [row for _, row in read_jsonl(folder / "pairs.jsonl")]
    assert len(pairs) > 6
    assert {row["chosen"] for row in pairs} == {"a"}
    assert "a" not in {row["rejected"] for row in pairs}
    record = checkpoints.read(prepared.root, run.final)
    assert record is not None and record.parent == run.stages[0].checkpoint_ids[-1]
    minirun.write_recipe(tmp_path, text | {"stages": [sft, dpo | {"batch": 4, "epochs": 1}]})
    with pytest.raises(UserError, match="give steps instead of epochs"):
        minirun.finish(recipe, tmp_path / "runs")
