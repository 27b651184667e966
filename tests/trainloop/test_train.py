"""The loop: gradients that no split changes, exact resume, whole checkpoints, clear failures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evalsuite.errors import UserError
from evalsuite.files import sha256_file
from tests.trainloop.conftest import small_stage, tokens_of
from trainloop import checkpoint as checkpoints
from trainloop import data, heldout, train
from trainloop import model as models
from trainloop.objectives import NoOptions, load_objective
from trainloop.policy import Policy, tensors
from trainloop.ranks import join
from trainloop.records import Checkpoint, Schedule, Stage


class KilledError(Exception):
    """Stands for a kill between two checkpoints."""


def train_to_end(
    world: SimpleNamespace,
    root: Path,
    stage: Stage,
    *,
    stop_after: int | None = None,
    seen: list[Checkpoint] | None = None,
) -> str:
    """Train `stage` under `root` and return the final weights' sha256; or stop at a step."""
    objective = load_objective(stage.objective)
    tokens = tokens_of(world, root, stage.objective)
    plan = data.plan_batches({"a": tokens}, stage, objective, seed=3)
    this_id = train.stage_id(stage, "weights", {"a": "data"}, objective, seed=3)
    steps = stage.checkpoint_steps
    good, damaged = checkpoints.newest_good(root, [train.checkpoint_id(this_id, s) for s in steps])
    assert damaged == []
    first = 0
    model = models.fresh_model(world.model, world.tokenizer, seed=3)
    if good is not None:
        record = checkpoints.read(root, good)
        assert record is not None
        first = record.step
        model = models.load_model(checkpoints.folder_of(root, good))

    def after_checkpoint(live: Any, checkpoint: Checkpoint) -> bool:
        if seen is not None:
            seen.append(checkpoint)
        return False

    def progress(label: str, done: float, total: float) -> None:
        if stop_after is not None and done >= stop_after:
            raise KilledError

    leg = train.Leg(
        stage=stage,
        id=this_id,
        parent=None,
        rests_on=[],
        total_tokens=0,
        flops=0.0,
        objective=objective,
        options=NoOptions(),
        plan=plan,
        references=None,
        first=first,
        first_tokens=first * (stage.batch_tokens or 0),
        root=root,
        seed=3,
        cpu_threads=1,
        certificate=None,
        label="stage",
    )
    final = train.train_stage(
        leg,
        train.Models(policy=model),
        world.tokenizer,
        join(),
        after_checkpoint=after_checkpoint,
        progress=progress,
    )
    return sha256_file(checkpoints.folder_of(root, final.id) / "model.safetensors")


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def backward(model: Any, batch: data.Batch, objective: str, **options: Any) -> float:
    """Add the batch's gradient to the model's; the loss."""
    loss, _ = train.backward_step(
        Policy(model), batch, load_objective(objective), NoOptions(), join(), **options
    )
    return float(loss)


@settings(max_examples=8, deadline=None)
@given(size=st.integers(1, 200))
def test_the_gradient_does_not_depend_on_the_micro_batch(world, tmp_path_factory, size):
    root = tmp_path_factory.mktemp("gradient")
    stage = small_stage(batch_tokens=6 * 32, tokens=6 * 32, score_every=None)
    plan = data.plan_batches(
        {"a": tokens_of(world, root)}, stage, load_objective("next_token"), seed=1
    )
    model = models.fresh_model(world.model, world.tokenizer, seed=0).double()
    whole = backward(model, plan.batch(0), "next_token")
    expected = gradients(model)
    model.zero_grad()
    split = backward(model, plan.batch(0), "next_token", micro_tokens=size)
    assert split == pytest.approx(whole, rel=1e-12)
    for got, want in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_the_gradient_does_not_depend_on_the_packing(world, tmp_path):
    tokens = tokens_of(world, tmp_path)
    trees = [tokens.tree(n) for n in range(12)]
    model = models.fresh_model(world.model, world.tokenizer, seed=0).double()
    together = backward(model, data.batch_of(trees), "next_token")
    expected = gradients(model)
    model.zero_grad()
    turned = backward(model, data.batch_of(trees[::-1]), "next_token")
    assert turned == pytest.approx(together, rel=1e-12)
    for got, want in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_the_loss_is_the_mean_over_target_tokens_whatever_document_they_stand_in(world, tmp_path):
    tokens = tokens_of(world, tmp_path, "sft")
    trees = [tokens.tree(n) for n in range(6)]
    model = models.fresh_model(world.model, world.tokenizer, seed=0).double()
    got = backward(model, data.batch_of(trees), "sft", micro_tokens=1)
    nats = []
    with torch.no_grad():
        for tree in trees:
            [ids], [asked] = tree.branches, tree.targets
            logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            nats += [-float(logp[n - 1, ids[n]]) for n in range(1, len(ids)) if asked[n]]
    assert got == pytest.approx(sum(nats) / len(nats), rel=1e-12)


@pytest.mark.parametrize("objective", ["next_token", "sft"])
def test_a_run_stopped_anywhere_and_resumed_ends_with_the_same_bits(world, tmp_path, objective):
    stage = small_stage(objective=objective)
    undisturbed = train_to_end(world, tmp_path / "whole", stage)
    for stop in (2, 6, 9):
        root = tmp_path / f"stopped-{stop}"
        with pytest.raises(KilledError):
            train_to_end(world, root, stage, stop_after=stop)
        assert train_to_end(world, root, stage) == undisturbed
        lines = (root / "stages").glob("*/metrics.jsonl")
        steps = [json.loads(line)["step"] for f in lines for line in f.read_text().splitlines()]
        assert steps == list(range(1, 13)), "metrics are neither lost nor doubled"


def test_dropout_draws_the_same_after_a_resume(world, tmp_path):
    config = world.model.config | {"attention_dropout": 0.5}
    dropped = SimpleNamespace(**vars(world))
    dropped.model = type(world.model)(
        config=config, tokenizer=world.model.tokenizer, chat_template=world.model.chat_template
    )
    plain = train_to_end(world, tmp_path / "plain", small_stage())
    whole = train_to_end(dropped, tmp_path / "whole", small_stage())
    assert whole != plain
    with pytest.raises(KilledError):
        train_to_end(dropped, tmp_path / "stopped", small_stage(), stop_after=6)
    assert train_to_end(dropped, tmp_path / "stopped", small_stage()) == whole


def test_checkpoints_come_at_their_cadence_and_count_tokens_and_flops(world, tmp_path):
    seen: list[Checkpoint] = []
    train_to_end(world, tmp_path, small_stage(), seen=seen)
    assert [c.step for c in seen] == [4, 8, 12]
    assert [c.final for c in seen] == [False, False, True]
    assert [c.tokens for c in seen] == [512, 1024, 1536]
    assert seen[-1].flops == 6.0 * seen[-1].parameters * 1536


def test_no_checkpoint_is_saved_right_before_the_last():
    stage = small_stage(tokens=9 * 128, score_every=4 * 128)
    assert stage.checkpoint_steps == [4, 9]
    assert small_stage(tokens=11 * 128, score_every=4 * 128).checkpoint_steps == [4, 8, 11]
    assert small_stage(tokens=3 * 128, score_every=128).checkpoint_steps == [1, 2, 3]


def test_how_often_a_stage_is_scored_does_not_change_its_weights_or_its_id(world, tmp_path):
    often, once = small_stage(score_every=128), small_stage(score_every=None)
    objective = load_objective("next_token")
    ids = {
        train.stage_id(stage, "weights", {"a": "data"}, objective, seed=3)
        for stage in (often, once)
    }
    assert len(ids) == 1
    assert train_to_end(world, tmp_path / "often", often) == train_to_end(
        world, tmp_path / "once", once
    )


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 2e-2},
        {"mixture": {"a": 1.0, "b": 1.0}},
        {"tokens": 13 * 128},
        {"weight_decay": 0.0},
    ],
)
def test_whatever_changes_the_weights_changes_the_id(world, change):
    objective = load_objective("next_token")
    sources = {"a": "data", "b": "more"}
    ids = {
        train.stage_id(stage, "weights", sources, objective, seed=3)
        for stage in (small_stage(), small_stage(**change))
    }
    assert len(ids) == 2
    seeds = {
        train.stage_id(small_stage(), "weights", {"a": d}, objective, seed=s)
        for d, s in [("data", 3), ("data", 4), ("other", 3)]
    }
    assert len(seeds) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_checkpoint_is_refused_with_its_file_named(world, tmp_path, damage):
    train_to_end(world, tmp_path, small_stage(score_every=None))
    [folder] = (tmp_path / "checkpoints").iterdir()
    file = folder / ("manifest.json" if damage == "manifest" else "model.safetensors")
    raw = bytearray(file.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    elif damage == "cut":
        file.write_bytes(raw[: len(raw) // 2])
    else:
        file.unlink()
    with pytest.raises(UserError, match=file.name) as caught:
        checkpoints.verify(folder)
    assert "run the same command again" in str(caught.value)
    if damage != "flip":
        with pytest.raises(UserError, match=file.name):
            checkpoints.read(tmp_path, folder.name)


def test_a_checkpoint_is_a_hugging_face_folder_without_pickles(world, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    train_to_end(world, tmp_path, small_stage(score_every=None))
    [folder] = (tmp_path / "checkpoints").iterdir()
    AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert AutoTokenizer.from_pretrained(folder).eos_token == world.tokenizer.eos_token
    assert not [f for f in folder.rglob("*") if f.suffix in (".bin", ".pt", ".pkl", ".pth")]


def test_a_full_disk_while_saving_is_one_line_and_leaves_nothing(world, tmp_path, monkeypatch):
    import errno

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match="no space left on the disk"):
        train_to_end(world, tmp_path, small_stage())
    assert list((tmp_path / "checkpoints").iterdir()) == []
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "stages")
    train_to_end(world, tmp_path, small_stage())


def test_a_loss_that_is_no_number_stops_the_stage_before_its_checkpoint(world, tmp_path):
    with pytest.raises(UserError, match="is nan at step 2 of 12; lower learning_rate"):
        train_to_end(world, tmp_path, small_stage(learning_rate=1e30, clip=1e30))
    saved = tmp_path / "checkpoints"
    assert not saved.exists() or not list(saved.iterdir())


def test_weights_that_the_last_step_blew_up_are_never_published(world, tmp_path):
    one_step = small_stage(
        tokens=128, score_every=None, learning_rate=1e38, schedule=Schedule(kind="constant")
    )
    with pytest.raises(UserError, match="weights are no longer finite at step 1 of 1"):
        train_to_end(world, tmp_path, one_step)
    saved = tmp_path / "checkpoints"
    assert not saved.exists() or not list(saved.iterdir())


def test_a_finished_stage_scored_more_often_gets_the_missing_checkpoints(world, tmp_path):
    final = train_to_end(world, tmp_path, small_stage(score_every=None))
    seen: list[Checkpoint] = []
    assert train_to_end(world, tmp_path, small_stage(score_every=512), seen=seen) == final
    assert [c.step for c in seen] == [4, 8, 12]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_a_log_cut_short_by_a_kill_keeps_its_whole_lines_up_to_the_checkpoint(tmp_path):
    log = tmp_path / "samples.jsonl"
    rows = [{"step": step, "text": f"a\u2028{{x}} {step}"} for step in (1, 1, 2, 3)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    log.write_bytes("".join(lines).encode()[:-4])
    train.cut_log(log, 2)
    assert log.read_text(encoding="utf-8") == "".join(lines[:3])
    train.cut_log(log, 0)
    assert log.read_text() == ""
    train.cut_log(tmp_path / "none.jsonl", 0)
    assert (tmp_path / "none.jsonl").read_text() == ""


def test_a_damaged_line_of_a_log_is_named(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: no JSON object with a step"):
        train.cut_log(log, 2)


def test_held_out_texts_longer_than_a_row_are_measured_in_pieces_as_they_are_trained(
    world, tmp_path
):
    stage = small_stage(sequence_length=16)
    tokens = tokens_of(world, tmp_path)
    assert int(tokens.lengths.max()) > stage.sequence_length
    model = models.fresh_model(world.model, world.tokenizer, seed=3).eval()
    found = heldout.measure(
        Policy(model),
        tokens,
        load_objective("next_token"),
        NoOptions(),
        stage=stage,
        ranks=join(),
        tokenizer=world.tokenizer,
    )
    nats, count = 0.0, 0
    for document, start, length in zip(
        *data.packing.cut_long(tokens.lengths, stage.sequence_length), strict=True
    ):
        ids = torch.tensor(tokens.tree(document, start, length).branches[0])
        with torch.no_grad():
            logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        nats -= float(logprobs[:-1].gather(1, ids[1:, None]).sum())
        count += len(ids) - 1
    assert found["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert found["documents"] == tokens.documents


def test_nothing_is_dropped_where_probabilities_are_compared():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    model = GPT2LMHeadModel(config).train()
    batch = tensors(data.batch_of([data.Tree((), (list(range(20)),), ([True] * 20,))]), "cpu")
    policy = Policy(model).train()
    assert not torch.equal(policy(batch).logprobs, policy(batch).logprobs)
    train.without_dropout(model)
    assert torch.equal(policy(batch).logprobs, policy(batch).logprobs)
