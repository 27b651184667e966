"""The bill of a recipe: published parameter counts, sums by hand, and memory against a meter."""

from __future__ import annotations

import dataclasses
import json
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from evalsuite import config
from evalsuite.errors import UserError
from tests.trainloop import minirun
from trainloop import costs
from trainloop.data import Tree, batch_of
from trainloop.memory import (
    GIB,
    RESERVE,
    SETTINGS,
    THRIFTIEST,
    Setting,
    Shape,
    memory,
    model_shape,
    shape_of,
)
from trainloop.policy import Policy, tensors
from trainloop.records import Model, Recipe

OLMO_2_1B = {
    "model_type": "olmo2",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 100352,
    "tie_word_embeddings": False,
}
OLMO_2_7B = OLMO_2_1B | {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
LLAMA_31_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
LLAMA_31_70B = LLAMA_31_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "bos_token_id": None,
    "eos_token_id": None,
}
FP32 = Setting(distributed="ddp", precision="float32", gradient_checkpointing=False)


def configured(settings: dict[str, Any]) -> Any:
    settings = dict(settings)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def setting(distributed: Any, precision: Any, recompute: bool = False) -> Setting:
    return Setting(distributed=distributed, precision=precision, gradient_checkpointing=recompute)


# --- parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "published"),
    [
        (OLMO_2_1B, 1_484_916_736),
        (OLMO_2_7B, 7_298_617_344),
        (LLAMA_31_8B, 8_030_261_248),
        (LLAMA_31_70B, 70_553_706_496),
    ],
    ids=["OLMo 2 1B", "OLMo 2 7B", "Llama 3.1 8B", "Llama 3.1 70B"],
)
def test_parameters_are_those_of_the_published_weights(settings, published):
    shape = shape_of(configured(settings))
    assert shape.parameters == published
    vocabulary = 2 * settings["vocab_size"] * settings["hidden_size"]
    assert shape.outside == vocabulary + settings["hidden_size"]


def test_a_tied_matrix_counts_once():
    tied = shape_of(configured(SMALL | {"tie_word_embeddings": True}))
    untied = shape_of(configured(SMALL | {"tie_word_embeddings": False}))
    assert untied.parameters - tied.parameters == 1000 * 64


def test_a_folder_is_counted_from_its_configuration_alone(tmp_path):
    configured(SMALL).save_pretrained(tmp_path)
    model = Model(path=str(tmp_path))
    assert model_shape(model, base=Path()).parameters == shape_of(configured(SMALL)).parameters


def test_a_model_with_experts_is_refused_by_name():
    with pytest.raises(UserError, match="'mixtral': num_local_experts is 4"):
        shape_of(configured(SMALL | {"model_type": "mixtral", "num_local_experts": 4}))


# --- memory ------------------------------------------------------------------------------------


class Meter(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and their peak."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0
        for tensor in held:
            self.add(tensor)

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, key, size)

    def drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = call(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return found


def metered(settings: dict[str, Any], lengths: list[int], how: Setting) -> int:
    """Peak bytes of two optimizer steps of two micro-batches each."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configured(settings), attn_implementation="sdpa")
    model = model.float()
    if how.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(model).train()
    optimizer = torch.optim.AdamW(policy.parameters(), fused=True)
    trees = [Tree((), (list(range(1, n + 1)),), ([True] * n,)) for n in lengths]
    batch = tensors(batch_of(trees), torch.device("cpu"))
    bf16 = how.precision == "bfloat16"
    with Meter(list(model.parameters())) as meter:
        for _ in range(2):
            for _ in range(2):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                    outputs = policy(batch)
                (-outputs.logprobs.sum()).backward()
                del outputs
            optimizer.step()
            optimizer.zero_grad()
    return meter.peak


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", ["llama", "olmo2"])
def test_the_memory_formula_is_at_most_a_quarter_above_a_metered_peak(
    model_type, precision, recompute
):
    settings, lengths = SMALL | {"model_type": model_type}, [200, 33, 100, 67]
    how = setting("ddp", precision, recompute)
    expected = memory(shape_of(configured(settings)), how, tokens=sum(lengths), head_logits=2**22)
    measured = metered(settings, lengths, how)
    assert 0.99 < (expected.total - RESERVE) / measured < 1.25


def test_adamw_in_float32_takes_sixteen_bytes_per_parameter():
    shape = shape_of(configured(OLMO_2_1B))
    found = memory(shape, FP32, tokens=1)
    assert found.parameters + found.gradients + found.moments == 16 * shape.parameters
    assert found.gathered == 0


def test_fsdp_divides_state_by_the_gpus_and_adds_a_whole_copy_for_scoring():
    shape = shape_of(configured(LLAMA_31_8B))
    eight = memory(shape, setting("fsdp", "bfloat16"), tokens=4096, gpus=8)
    sixteen = memory(shape, setting("fsdp", "bfloat16"), tokens=4096, gpus=16)
    assert eight.moments == 2 * sixteen.moments == shape.parameters
    assert eight.whole == sixteen.whole == 4 * shape.parameters
    assert eight.activations == sixteen.activations
    assert memory(shape, setting("fsdp", "bfloat16"), tokens=4096, gpus=1).whole == 0


def test_gradient_checkpointing_keeps_one_number_per_unit_of_the_stream_and_layer():
    shape = shape_of(configured(LLAMA_31_8B))
    kept = memory(shape, setting("fsdp", "bfloat16"), tokens=4096, gpus=8)
    again = memory(shape, setting("fsdp", "bfloat16", True), tokens=4096, gpus=8)
    stream = 2 * 4096 * shape.hidden * shape.layers
    assert stream < again.activations < 1.2 * stream
    assert kept.activations > 15 * again.activations
    assert again.again == pytest.approx(kept.activations / shape.layers, rel=0.02)


def test_logits_are_held_a_tile_at_a_time_however_long_the_batch():
    shape = shape_of(configured(LLAMA_31_8B))
    short, long = (memory(shape, FP32, tokens=n).logits for n in (4096, 1 << 20))
    assert short == long < 6 * GIB


# --- a recipe's bill ---------------------------------------------------------------------------


def bill(folder: Path, text: dict[str, Any] | None = None, **options: Any) -> costs.Plan:
    recipe = minirun.write_recipe(folder, text)
    found = config.load(recipe, Recipe)
    return costs.plan(found, base=folder, **({"gpus": 1} | options))


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> costs.Plan:
    return bill(tmp_path_factory.mktemp("bill"))


def test_tokens_steps_and_operations_are_sums_one_can_do_by_hand(mini):
    [pretrain, midtrain, sft] = mini.stages
    assert [stage.steps for stage in mini.stages] == [24, 12, 12]
    assert midtrain.tokens == 12 * minirun.ROWS * minirun.LENGTH and not midtrain.at_most
    n, shape = mini.shape.parameters, mini.shape
    assert pretrain.training_flops == 6 * n * pretrain.tokens
    width = shape.heads * shape.head_dim
    assert pretrain.attention_flops == 6 * shape.layers * width * minirun.LENGTH * pretrain.tokens
    assert pretrain.checkpoints == 3
    assert pretrain.evaluation_flops == 2 * n * mini.evaluation_tokens * 3
    assert pretrain.checkpoint_bytes == 12 * n
    assert sft.flops == sft.training_flops + sft.attention_flops + sft.evaluation_flops


def test_parameters_in_the_bill_are_those_the_run_trains(mini, finished):
    saved = finished.root / "checkpoints" / finished.run.final / "checkpoint.json"
    trained = json.loads(saved.read_text())["parameters"]
    # A new tokenizer may find fewer merges than it was allowed; here it finds all.
    assert mini.shape.parameters == trained


def test_evaluation_tokens_are_near_those_that_scoring_counts(mini, finished):
    from evalsuite.scorefiles import read_evaluation
    from trainloop.run import score_folder

    [suite] = finished.prepared.suites.values()
    found = read_evaluation(score_folder(finished.prepared, finished.run.final, suite))
    spent = sum(item.tokens for item in found.items)
    assert 0.2 < mini.evaluation_tokens / spent < 5


def test_epochs_become_steps_by_the_documents_of_the_sources(tmp_path):
    text = minirun.recipe_text()
    text["stages"][2] = {
        "name": "sft",
        "objective": "sft",
        "mixture": {"chat": 1},
        "epochs": 2,
        "batch": 16,
        "sequence_length": 64,
        "learning_rate": 1e-3,
    }
    stage = bill(tmp_path, text).stages[2]
    assert stage.steps == 25  # 2 x 200 / 16
    assert stage.tokens == 25 * 16 * 64 and stage.at_most


def test_a_file_source_is_counted_and_a_missing_one_named(tmp_path):
    recipe = config.load(minirun.write_recipe(tmp_path), Recipe)
    source = recipe.sources["sums"]
    assert costs._count("sums", source, tmp_path, None) == 300
    with pytest.raises(UserError, match=r"source 'sums': .*give the source 'documents'"):
        costs._count("sums", source, tmp_path / "elsewhere", None)


def rollout_recipe(objective: str, **options: Any) -> dict[str, Any]:
    text = minirun.recipe_text()
    text["sources"]["sums_asked"] = {
        "files": ["asked.jsonl"],
        "prompt": "{question}",
        "answer": "{answer}",
        "verifier": "gsm8k",
    }
    text["stages"].append(
        {
            "name": "rl",
            "objective": objective,
            "mixture": {"sums_asked": 1},
            "steps": 6,
            "batch": 4,
            "sequence_length": 32,
            "learning_rate": 1e-4,
            "options": {"max_new_tokens": 16} | options,
        }
    )
    return text


def test_rollouts_are_written_read_by_the_reference_and_learned_from(tmp_path):
    found = bill(tmp_path, rollout_recipe("grpo", samples=8, updates=2, beta=0.05))
    stage, n = found.stages[-1], found.shape.parameters
    written = 6 * 4 * 8 * (32 + 16)  # steps x prompts x answers x tokens
    assert stage.tokens == written
    assert stage.rollout_flops == 2 * n * written
    assert stage.reference_flops == 2 * 2 * n * written  # as the policy was, and the reference
    assert stage.memory[0].reference == 4 * n and stage.memory[0].cache > 0


def test_ppo_trains_two_models_and_learns_from_each_answer_epochs_times(tmp_path):
    found = bill(tmp_path, rollout_recipe("ppo", epochs=3))
    stage, n = found.stages[-1], found.shape.parameters
    written = 6 * 4 * (32 + 16)
    assert stage.tokens == 3 * written
    assert stage.training_flops == 2 * 6 * n * stage.tokens
    assert stage.checkpoint_bytes == 2 * 12 * n
    assert stage.memory[0].critic == 16 * n and stage.memory[0].critic_activations > 0


def test_the_recipes_own_setting_is_taken_when_it_fits(mini):
    assert all(str(stage.memory[0].setting) == "ddp float32" for stage in mini.stages)
    assert all(stage.fits == stage.memory[0] and stage.hours for stage in mini.stages)


@pytest.fixture
def seven_billion(monkeypatch: pytest.MonkeyPatch) -> Shape:
    shape = shape_of(configured(OLMO_2_7B))
    monkeypatch.setattr(costs, "model_shape", lambda *_, **__: shape)
    return shape


def test_a_smaller_setting_is_proposed_for_7b_on_eight_gpus(tmp_path, seven_billion):
    found = bill(tmp_path, gpus=8)
    fits = found.stages[0].fits
    assert fits.setting.distributed == "fsdp" and fits.total < 80 * GIB
    assert all(
        one.total > 80 * GIB for one in found.stages[0].memory if one.setting.distributed == "ddp"
    )
    said = "\n".join(costs.lines(found))
    assert f"-> {fits.setting}" in said and "7,298,617,344 parameters" in said


def test_a_smaller_micro_batch_is_proposed_before_another_setting(tmp_path, monkeypatch):
    shape = shape_of(configured(OLMO_2_1B))
    monkeypatch.setattr(costs, "model_shape", lambda *_, **__: shape)
    text = minirun.recipe_text()
    long = {"sequence_length": 4096, "batch_tokens": 16 * 4096, "tokens": 32 * 4096}
    text["stages"] = [text["stages"][0] | long | {"precision": "bfloat16", "score_every": None}]
    [stage] = bill(tmp_path, text).stages
    own = stage.memory[0]
    assert own.tokens == 16 * 4096 and own.total > 80 * GIB
    assert stage.fits.setting == own.setting and stage.fits.tokens % 4096 == 0
    assert stage.fits.total <= 80 * GIB
    more = memory(shape, own.setting, tokens=stage.fits.tokens + 4096)
    assert more.total > 80 * GIB


def test_too_few_gpus_are_told_how_many_would_do(tmp_path, seven_billion):
    found = bill(tmp_path, gpus=1, memory_gib=48)
    assert found.stages[0].fits is None and found.stages[0].hours is None
    assert found.stages[0].least_gpus == 8
    said = "\n".join(costs.lines(found))
    assert (
        "nothing fits 48 GiB; from 8 GPUs on, fsdp bfloat16 + gradient checkpointing does" in said
    )
    none = bill(tmp_path, gpus=1, memory_gib=8)
    assert none.stages[0].least_gpus is None
    assert "more of these GPUs would not help" in "\n".join(costs.lines(none))


def test_a_model_whose_whole_copy_fits_no_gpu_is_told_so(tmp_path, monkeypatch):
    shape = shape_of(configured(LLAMA_31_70B))
    monkeypatch.setattr(costs, "model_shape", lambda *_, **__: shape)
    found = bill(tmp_path, gpus=64)
    assert found.stages[0].fits is None and found.stages[0].least_gpus is None
    said = "\n".join(costs.lines(found))
    assert "the whole copy for scoring takes 263 GiB on any number of GPUs" in said


def test_hours_are_operations_at_the_stated_share_of_the_peak(mini):
    stage = mini.stages[0]
    speed = mini.device.peak["float32"] * costs.UTILISATION
    assert stage.hours == pytest.approx(stage.flops / speed / 3600)
    assert "40% of the peak of H100 SXM 80 GB" in "\n".join(costs.lines(mini))


def test_no_gpus_are_a_mistake(tmp_path):
    with pytest.raises(UserError, match="gpus is 0"):
        bill(tmp_path, gpus=0)


def test_lines_align_and_name_every_stage(mini):
    said = costs.lines(mini)
    assert [line.split()[0] for line in said[3:6]] == ["pretrain", "midtrain", "sft"]
    assert len({len(line) for line in said[2:6]}) == 1


def test_the_settings_go_from_fast_to_thrifty():
    shape = shape_of(configured(LLAMA_31_8B))
    totals = [memory(shape, each, tokens=8192, gpus=8).training for each in SETTINGS[:4]]
    assert all(a > b for a, b in pairwise(totals)) and SETTINGS[3] == THRIFTIEST
    assert len({dataclasses.astuple(each) for each in SETTINGS}) == 8
