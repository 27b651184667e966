"""Objectives: which tokens are asked for, and that a packed row computes what its documents do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evalsuite.errors import UserError
from tests.trainloop.conftest import CHAT, small_stage, tokens_of
from trainloop import data, train
from trainloop import model as models
from trainloop.objectives import load_objective, objective_names


def test_a_next_token_document_ends_with_the_end_token_and_asks_for_all_but_its_first(world):
    [(ids, targets)] = load_objective("next_token").encode(
        [{"id": "1", "text": "the cat"}], world.tokenizer
    )
    assert world.tokenizer.decode(ids[:-1]) == "the cat"
    assert ids[-1] == world.tokenizer.eos_token_id
    assert targets == [False] + [True] * (len(ids) - 1)


def test_sft_asks_for_the_assistants_tokens_and_its_end_token_only(world):
    turns = [
        {"role": "user", "content": "who ?"},
        {"role": "assistant", "content": "the cat"},
        {"role": "user", "content": "where ?"},
        {"role": "assistant", "content": "on a mat"},
    ]
    [(ids, targets)] = load_objective("sft").encode(
        [{"id": "1", "messages": turns}], world.tokenizer
    )
    asked = world.tokenizer.decode([i for i, t in zip(ids, targets, strict=True) if t])
    end = world.tokenizer.eos_token
    assert asked == f" the cat\n{end} on a mat\n{end}"


def test_sft_refuses_a_template_that_rewrites_earlier_turns(world):
    world.tokenizer.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        with pytest.raises(UserError, match="prefix"):
            list(load_objective("sft").encode([{"id": "7", "messages": turns}], world.tokenizer))
    finally:
        world.tokenizer.chat_template = CHAT


def test_sft_without_a_chat_template_says_where_to_give_one(world):
    world.tokenizer.chat_template = None
    try:
        with pytest.raises(UserError, match="chat_template"):
            list(load_objective("sft").encode([{"id": "7", "messages": []}], world.tokenizer))
    finally:
        world.tokenizer.chat_template = CHAT


def test_sft_names_the_document_that_is_no_conversation(world):
    with pytest.raises(UserError, match="'d9' has no 'messages'"):
        list(load_objective("sft").encode([{"id": "d9", "text": "plain"}], world.tokenizer))


def test_an_unknown_objective_gets_the_closest_name():
    with pytest.raises(UserError, match="did you mean 'next_token'"):
        load_objective("next_tokens")
    assert {"next_token", "sft"} <= set(objective_names())


def test_documents_packed_in_one_row_compute_what_they_compute_alone(world, tmp_path):
    tokens = tokens_of(world, tmp_path)
    objective = load_objective("next_token")
    plan = data.plan_batches({"a": tokens}, small_stage(), objective, seed=5)
    model = models.fresh_model(world.model, world.tokenizer, seed=0).double().eval()
    batch = plan.batch(0)
    packed = train.to_tensors(batch, "cpu")
    with torch.no_grad():
        got = model(
            input_ids=packed["input_ids"],
            position_ids=packed["position_ids"],
            attention_mask=packed["attention_mask"],
        ).logits
        checked = 0
        for row in range(len(batch.input_ids)):
            for segment in np.unique(batch.segments[row]):
                here = np.flatnonzero(batch.segments[row] == segment)
                alone = model(input_ids=packed["input_ids"][row : row + 1, here]).logits[0]
                torch.testing.assert_close(got[row, here], alone, rtol=1e-10, atol=1e-10)
                checked += 1
    assert checked > len(batch.input_ids), "some row holds several documents"


def test_a_row_without_targets_has_loss_zero_and_no_nan(world, tmp_path):
    tokens = tokens_of(world, tmp_path)
    objective = load_objective("next_token")
    batch = data.plan_batches({"a": tokens}, small_stage(), objective, seed=5).batch(0)
    empty = data.Batch(
        batch.input_ids,
        batch.position_ids,
        np.full_like(batch.segments, -1),
        np.full_like(batch.labels, -100),
    )
    model = models.fresh_model(world.model, world.tokenizer, seed=0)
    loss = objective.loss(model, train.to_tensors(empty, "cpu"))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
