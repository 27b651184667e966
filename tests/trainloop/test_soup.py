"""Soups of small sibling models."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from evalsuite.errors import UserError
from tests.trainloop.conftest import LLAMA
from trainloop import soup as soups
from trainloop.soup import soup


def sibling(folder: Path, seed: int, *, shard: str = "5GB", **changes: object) -> Path:
    settings = {k: v for k, v in LLAMA.items() if k != "model_type"} | {"vocab_size": 50}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**(settings | changes)))
    model.float().save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.json").write_text(f'{{"of": {seed}}}')
    (folder / "optimizer.safetensors").write_bytes(b"moments")
    (folder / "checkpoint.json").write_text("{}")
    return folder


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [sibling(tmp_path / f"m{seed}", seed) for seed in (1, 2, 3)]


def cooked(folders: list[Path], out: Path) -> Path:
    out.mkdir()
    soup(folders, out)
    return out


def sha256(folder: Path) -> list[str]:
    return [hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())]


def test_each_weight_is_the_mean_of_the_siblings(three, tmp_path):
    got = load_file(cooked(three, tmp_path / "out") / "model.safetensors")
    parts = [load_file(folder / "model.safetensors") for folder in three]
    assert got.keys() == parts[0].keys()
    for name, tensor in got.items():
        exact = torch.stack([part[name].double() for part in parts]).mean(dim=0)
        assert torch.equal(tensor, exact.float()), name


def test_the_soup_loads_as_a_model_with_the_first_siblings_tokenizer_and_no_trainer(
    three, tmp_path
):
    out = cooked(three, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out, use_safetensors=True)
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 50)
    assert (out / "tokenizer.json").read_text() == '{"of": 1}'
    assert {file.name for file in out.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
    }


def test_the_same_siblings_give_the_same_bytes(three, tmp_path):
    assert sha256(cooked(three, tmp_path / "a")) == sha256(cooked(three, tmp_path / "b"))


def test_a_soup_of_one_model_with_itself_is_that_model(three, tmp_path):
    got = load_file(cooked([three[0]] * 3, tmp_path / "out") / "model.safetensors")
    for name, tensor in load_file(three[0] / "model.safetensors").items():
        assert torch.equal(got[name], tensor)


def test_sharded_siblings_and_a_sharded_soup_hold_the_same_weights(three, tmp_path, monkeypatch):
    whole = load_file(cooked(three, tmp_path / "whole") / "model.safetensors")
    parts = [sibling(tmp_path / f"s{seed}", seed, shard="4KB") for seed in (1, 2, 3)]
    assert len(list(parts[0].glob("model-*.safetensors"))) > 1
    monkeypatch.setattr(soups, "SHARD_BYTES", 4096)
    out = cooked(parts, tmp_path / "out")
    files = sorted(out.glob("model-*.safetensors"))
    assert len(files) > 1
    got = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert got.keys() == whole.keys()
    assert all(torch.equal(got[name], whole[name]) for name in got)
    model = AutoModelForCausalLM.from_pretrained(out, use_safetensors=True)
    assert torch.equal(model.model.embed_tokens.weight, whole["model.embed_tokens.weight"])


def test_bfloat16_weights_stay_bfloat16_and_are_summed_wider(tmp_path):
    values = [1.0, 0.00390625, 0.00390625, 0.00390625]
    folders = []
    for number, value in enumerate(values):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file({"w": torch.tensor([value], dtype=torch.bfloat16)}, folder / "model.safetensors")
        folders.append(folder)
    got = load_file(cooked(folders, tmp_path / "out") / "model.safetensors")["w"]
    assert got.dtype == torch.bfloat16
    assert float(got) == float(torch.tensor(sum(values) / 4).bfloat16())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_hidden_layers": 3}, "only other has 'model.layers.2"),
        ({"intermediate_size": 48}, r"'model.layers.0.mlp.down_proj.weight' is \[16, 32\]"),
    ],
)
def test_models_of_other_shapes_are_refused_by_the_first_tensor_that_differs(
    three, tmp_path, changes, complaint
):
    other = sibling(tmp_path / "other", 1, **changes)
    with pytest.raises(UserError, match=complaint):
        cooked([three[0], other], tmp_path / "out")


def test_a_retired_sibling_and_a_soup_of_one_are_mistakes(three, tmp_path):
    (three[1] / "model.safetensors").unlink()
    with pytest.raises(UserError, match="m2: no safetensors weights there"):
        cooked(three, tmp_path / "out")
    with pytest.raises(UserError, match="two models or more, not 1"):
        soup(three[:1], tmp_path)


def test_a_broken_sibling_is_named(three, tmp_path):
    file = three[2] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match=r"m3/model.safetensors: not a whole safetensors file"):
        cooked(three, tmp_path / "out")
