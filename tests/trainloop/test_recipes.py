"""The recipes that ship: each can be read and settled, and the micro ones run when cut short."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from decon.policy import load_policy
from evalsuite import config, microworld
from evalsuite.suites import load_suite
from evalsuite.verifiers import check_name
from tests.trainloop import minirun
from trainloop.objectives import load_objective, read_options
from trainloop.objectives.sft import encode
from trainloop.records import Recipe, Stage

FOLDER = Path(__file__).parent.parent.parent / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
MICRO = ("tulu3-micro", "ppo-micro", "olmo2-small", "micro-anneal")
"""Recipes that need nothing but this machine."""


def load(name: str) -> Recipe:
    """The recipe `name` as it ships."""
    return config.load(FOLDER / f"{name}.yaml", Recipe)


def settled(recipe: Recipe) -> Iterator[Stage]:
    """Its stages that train, with every key decided, if each source had a million documents."""
    documents = {name: source.documents or 1_000_000 for name, source in recipe.sources.items()}
    for stage in recipe.stages:
        if not stage.soup:
            yield stage.settled(load_objective(stage.objective).defaults, documents)


@pytest.mark.parametrize("name", RECIPES)
def test_every_name_in_a_recipe_is_known_and_every_stage_says_how_much(name):
    recipe = load(name)
    assert recipe.name == name and recipe.description
    for suite in recipe.suites:
        load_suite(suite)
    load_policy(recipe.policy)
    for source in recipe.sources.values():
        assert source.microworld is None or source.microworld in microworld.KINDS
        if source.verifier is not None:
            check_name(source.verifier)
    for stage in recipe.stages:
        if not stage.soup:
            read_options(load_objective(stage.objective), stage.options, stage.name)
    whole = [stage for stage in settled(recipe) if stage.learning_rate != "parent"]
    assert all(stage.steps > 0 and stage.peak > 0 for stage in whole)


def test_full_size_templates_have_their_papers_settings():
    stages = {stage.name: stage for stage in settled(load("tulu3-8b"))}
    sft, dpo, reward, rl = (stages[name] for name in ("sft", "dpo", "reward", "rlvr"))
    assert (sft.peak, sft.batch, sft.epochs, sft.sequence_length) == (5e-6, 128, 2, 4096)
    assert (dpo.peak, dpo.batch, dpo.epochs, dpo.options) == (5e-7, 128, 1, {"beta": 5})
    assert (sft.schedule.warmup, dpo.schedule.warmup) == (0.03, 0.1)
    assert (reward.peak, reward.batch) == (3e-6, 256)
    assert (rl.peak, rl.options["beta"], rl.options["lam"]) == (3e-7, 0.05, 0.95)
    assert rl.start_from == "dpo" and rl.reward_model == "reward"

    first, *anneals = settled(load("olmo2-1b"))
    assert first.schedule.kind == "cosine" and first.schedule.horizon == 1.25
    assert first.steps * first.schedule.warmup == pytest.approx(2000, rel=0.1)
    assert {stage.learning_rate for stage in anneals} == {"parent"}
    assert {stage.schedule.kind for stage in anneals} == {"linear"}
    assert {stage.schedule.floor for stage in anneals} == {0.0}
    assert len({stage.seed for stage in anneals}) == len(anneals) == 3
    assert sum(anneals[0].mixture.values()) == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize("name", ["tulu3-8b", "tulu3-small"])
def test_tulus_template_marks_what_the_assistant_says_and_its_end(name, world):
    tokenizer = copy.deepcopy(world.tokenizer)
    tokenizer.chat_template = load(name).model.chat_template
    said = [("user", "two and two"), ("assistant", "4"), ("user", "and one"), ("assistant", "5")]
    messages = [{"role": role, "content": text} for role, text in said]
    [tree] = encode([{"id": "a", "messages": messages}], tokenizer)
    kept = [i for i, wanted in zip(tree.branches[0], tree.targets[0], strict=True) if wanted]
    end = tokenizer.eos_token
    assert tokenizer.decode(kept).replace("\n", "") == f"4{end}5{end}"
    whole = tokenizer.decode(tree.branches[0])
    assert whole == (
        f"<|user|>\ntwo and two\n<|assistant|>\n4{end}\n<|user|>\nand one\n<|assistant|>\n5{end}"
    )


def cut_short(name: str) -> dict[str, Any]:
    """A micro recipe with a hundredth of its data and steps, and few docs to score."""
    text = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    text["suites"] = ["tiny.yaml"]
    text["model"]["tokenizer"]["vocab_size"] = 320
    text["model"]["config"] |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text["model"]["config"] |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    for source in text["sources"].values():
        source["documents"] = min(source["documents"], 120)
        if source["microworld"].startswith(("pairs", "rl")):
            source["documents"] = 16
    for stage in text["stages"]:
        stage.pop("score_every", None)
        if "tokens" in stage:
            stage["tokens"] = 8 * stage["batch_tokens"]
        if "batch" in stage:
            stage["batch"] = 4
        if "steps" in stage:
            stage["steps"] = 4
        if "max_new_tokens" in stage.get("options", {}):
            stage["options"]["max_new_tokens"] = 6
    return text


@pytest.mark.parametrize("name", MICRO)
def test_a_micro_recipe_cut_short_runs_through_every_stage(name, tmp_path):
    text = cut_short(name)
    recipe = minirun.write_recipe(tmp_path, text)
    _, run = minirun.finish(recipe, tmp_path / "runs")
    assert [plan.stage.name for plan in run.stages] == [stage["name"] for stage in text["stages"]]
    for plan in run.stages:
        for checkpoint in plan.checkpoint_ids:
            assert (tmp_path / "runs" / "checkpoints" / checkpoint / "model.safetensors").is_file()
