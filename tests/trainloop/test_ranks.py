"""Ranks: several compute what one does, and processes that do not know of each other are found."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from evalsuite.errors import UserError
from tests.trainloop.gradients import (
    batch,
    critic_gradients,
    fresh_policy,
    gradients,
    joined,
    steps,
)
from tests.trainloop.ranked import environment, meeting_place, together
from trainloop import ranks as joining
from trainloop.launch import FOREIGN
from trainloop.policy import tensors

SPLITS = [None, 40, 20, 1]
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def nobody_launched(monkeypatch):
    for name in (*LAUNCHED, *FOREIGN, "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-10, atol=1e-13)
        assert np.any(wanted[name]), name


# --- the same numbers --------------------------------------------------------------------------


def test_a_split_into_micro_batches_leaves_the_gradient_as_it_is():
    whole, *split = gradients("alone", SPLITS, True)
    for one in split:
        assert one["loss"] == pytest.approx(whole["loss"], rel=1e-12)
        assert_equal(one["gradients"], whole["gradients"])


@pytest.mark.parametrize(
    ("kind", "tied", "count"), [("ddp", True, 2), ("fsdp", True, 2), ("fsdp", False, 3)]
)
def test_in_float64_ranks_have_the_gradient_of_one_process_however_it_is_split(kind, tied, count):
    [alone] = gradients("alone", [None], tied)
    for rank, found in enumerate(together(gradients, kind, SPLITS, tied, ranks=count)):
        for one in found:
            assert one["ranks"] == (rank, count, kind)
            assert one["loss"] == pytest.approx(alone["loss"], rel=1e-12)
            assert one["norm"] == pytest.approx(alone["norm"], rel=1e-10)
            assert_equal(one["gradients"], alone["gradients"])


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_critic_is_trained_beside_the_policy_on_all_ranks(kind):
    for found in together(critic_gradients, kind):
        assert_equal(found, critic_gradients("alone"))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_optimizer_steps_lead_to_the_weights_of_one_process(kind, tmp_path):
    alone = steps("alone", 0, 3, root=tmp_path)
    main, other = together(_steps, kind, tmp_path)
    assert main["norms"] == other["norms"] == pytest.approx(alone["norms"], rel=1e-10)
    assert_equal(main["weights"], alone["weights"])
    assert other["weights"] == {}


def _steps(kind, root):
    return steps(kind, 0, 3, root=root)


def test_in_bfloat16_the_sum_over_ranks_is_near_that_of_one_process():
    [exact] = gradients("alone", [None], True)
    for kind in ("alone", "ddp", "fsdp"):
        found = gradients(kind, [20], True, "bfloat16") if kind == "alone" else None
        [one] = found or together(gradients, kind, [20], True, "bfloat16")[1]
        assert one["loss"] == pytest.approx(exact["loss"], rel=2e-2)
        assert one["norm"] == pytest.approx(exact["norm"], rel=5e-2)
        assert one["loss"] != pytest.approx(exact["loss"], rel=1e-7), "it is bfloat16"


def test_sharded_parameters_stay_in_float32_and_are_halves():
    for kinds, sizes, wanted in together(_shards):
        assert kinds == {torch.float32}
        assert sum(sizes) < 0.6 * wanted


def _shards():
    whole = sum(p.numel() for p in fresh_policy(double=False).parameters())
    with joined("fsdp") as ranks:
        module = ranks.wrap(fresh_policy(double=False), precision="bfloat16")
        local = [p.to_local() for p in module.parameters()]
        return {p.dtype for p in local}, [p.numel() for p in local], whole


def test_the_whole_model_of_shards_says_what_one_process_says():
    with torch.no_grad():
        alone = fresh_policy().model(input_ids=_ids()).logits
    for logits, again, same, tied, finite in together(_whole_model):
        np.testing.assert_allclose(logits, alone.numpy(), rtol=1e-10)
        np.testing.assert_allclose(again, 2 * logits, rtol=1e-10)
        assert same, "the copy is filled anew, not made anew"
        assert tied
        assert finite, "the shards still work"


def test_a_pass_without_gradient_does_not_round_the_whole_model_of_shards():
    exact = fresh_policy(double=False).model.state_dict()
    for state, ends in together(_whole_after_a_pass):
        assert ends == [5, 6], "what ends a text in the live model's generation config"
        for name, wanted in exact.items():
            kind, value = state[name]
            assert kind == torch.float32, name
            np.testing.assert_array_equal(value, wanted.numpy())


@torch.no_grad()
def _whole_after_a_pass():
    with joined("fsdp") as ranks:
        policy = fresh_policy(double=False)
        policy.model.generation_config.eos_token_id = [5, 6]
        module = ranks.wrap(policy, precision="bfloat16")
        module(tensors(batch(0), ranks.device))
        copy = ranks.full_model(module)
        state = {n: (v.dtype, v.float().numpy()) for n, v in copy.state_dict().items()}
        return state, copy.generation_config.eos_token_id


def _ids():
    return torch.arange(1, 13).reshape(2, 6)


@torch.no_grad()
def _whole_model():
    with joined("fsdp") as ranks:
        module = ranks.wrap(fresh_policy())
        copy = ranks.full_model(module)
        logits = copy(input_ids=_ids()).logits
        module.model.model.norm.weight.mul_(2)
        again = ranks.full_model(module, copy)
        doubled = again(input_ids=_ids()).logits
        tied = again.lm_head.weight is again.model.embed_tokens.weight
        out = module(tensors(batch(0), ranks.device))
        finite = bool(out.logprobs.isfinite().all())
        return logits.numpy(), doubled.numpy(), again is copy, tied, finite


def test_alone_and_in_parallel_the_whole_model_is_the_live_one():
    policy = fresh_policy()
    alone = joining.join("fsdp")
    assert alone.kind == "alone"
    assert alone.wrap(policy) is alone.bare(policy) is policy
    assert alone.full_model(policy) is policy.model


# --- what is said among ranks ------------------------------------------------------------------


def test_ranks_share_gather_and_sum():
    for rank, told in enumerate(together(_talk, ranks=3)):
        assert told == ({"from": 0}, [0, 1, 4], [3.0, 6.0], rank == 0)


def _talk():
    with joined("ddp") as ranks:
        ranks.wait()
        mine = torch.tensor([1.0, 2.0])
        total = ranks.sum(mine).tolist()
        assert mine.tolist() == [1.0, 2.0]
        return ranks.share({"from": ranks.rank}), ranks.gather(ranks.rank**2), total, ranks.main


def test_what_stops_one_rank_stops_all_with_its_reason():
    first, second = together(_trouble)
    assert first == "rank 1 stopped: no space"
    assert second == "no space"


def _trouble():
    with joined("ddp") as ranks:
        try:
            with ranks.together():
                if ranks.rank == 1:
                    raise UserError("no space")
        except UserError as error:
            return str(error)
    return "went on"


def test_one_process_is_its_own_company():
    alone = joining.join("ddp")
    assert (alone.rank, alone.count, alone.kind, alone.main) == (0, 1, "alone", True)
    assert alone.share(3) == 3
    assert alone.gather(3) == [3]
    assert alone.sum(torch.tensor(3.0)) == 3
    with pytest.raises(UserError, match="as it is"), alone.together():
        raise UserError("as it is")


# --- traps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2 and WORLD_SIZE 2"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is 'two'"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS says 2"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "each would train as the only one"),
        (
            {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"},
            "asked for several processes .* but started one",
        ),
    ],
)
def test_a_launch_that_would_train_unconnected_replicas_is_refused(told, says, monkeypatch):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says) as caught:
        joining.join("ddp")
    assert "torchrun" in str(caught.value)


def test_a_rank_whose_others_never_come_says_so(monkeypatch):
    store = meeting_place()
    for name, value in environment(0, 2, store.port).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")  # it keeps the store itself, and waits
    monkeypatch.setenv("MASTER_PORT", "0")
    monkeypatch.setattr(joining, "JOIN_MINUTES", 0.001)
    with pytest.raises(UserError, match="rank 0 of 2 could not join"):
        joining.join("ddp")


def test_ranks_that_were_told_different_things_are_refused():
    for said in together(_different_kinds):
        assert "2 processes were launched" in said
        assert "fsdp" in said


def _different_kinds():
    try:
        joining.join("fsdp" if os.environ["RANK"] == "1" else "ddp")
    except UserError as error:
        return str(error)
    return "joined"


def test_a_model_without_layers_is_not_sharded_in_silence():
    for said in together(_no_layers):
        assert "has no decoder layers" in said


def _no_layers():
    with joined("fsdp") as ranks:
        try:
            ranks.wrap(torch.nn.Sequential(torch.nn.Linear(2, 2)))
        except UserError as error:
            return str(error)
    return "sharded"
