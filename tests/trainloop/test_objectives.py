"""Objectives: which tokens are asked for, and that a packed row computes what its documents do."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import processors

from evalsuite.errors import UserError
from tests.trainloop.conftest import CHAT, tokens_of
from trainloop import data
from trainloop import model as models
from trainloop.objectives import NoOptions, load_objective, objective_names, read_options
from trainloop.policy import Policy, tensors


def test_a_next_token_document_ends_with_the_end_token_and_asks_for_all_but_its_first(world):
    [tree] = load_objective("next_token").encode([{"id": "1", "text": "the cat"}], world.tokenizer)
    [ids], [targets] = tree.branches, tree.targets
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
    [tree] = load_objective("sft").encode([{"id": "1", "messages": turns}], world.tokenizer)
    [ids], [targets] = tree.branches, tree.targets
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


def test_documents_packed_together_compute_what_they_compute_alone(world, tmp_path):
    tokens = tokens_of(world, tmp_path)
    trees = [tokens.tree(n) for n in range(8)]
    model = models.fresh_model(world.model, world.tokenizer, seed=0).double().eval()
    policy = Policy(model)
    with torch.no_grad():
        packed = policy(tensors(data.batch_of(trees), "cpu", dtype=torch.float64)).logprobs
        alone = []
        for tree in trees:
            [ids] = tree.branches
            logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            alone += [logp[n - 1, ids[n]] for n in range(1, len(ids))]
    torch.testing.assert_close(packed, torch.stack(alone), rtol=1e-10, atol=1e-10)


def test_documents_without_targets_have_loss_zero_and_no_nan(world):
    none = data.Tree((), ([5, 6, 7],), ([False, False, False],))
    policy = Policy(models.fresh_model(world.model, world.tokenizer, seed=0))
    batch = tensors(data.batch_of([none, none]), "cpu")
    said = load_objective("next_token").loss(policy(batch), batch, NoOptions())
    said.total.backward()
    assert float(said.total.detach()) == 0.0
    for parameter in policy.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_an_option_that_the_objective_lacks_is_named_with_those_it_has():
    with pytest.raises(
        UserError, match=r"objective 'dpo_norm' has no option 'betta'; did you mean 'beta'"
    ):
        read_options(load_objective("dpo_norm"), {"betta": 5}, "tune")
    with pytest.raises(UserError, match="it has none"):
        read_options(load_objective("sft"), {"beta": 5}, "tune")
    assert read_options(load_objective("dpo_norm"), {"beta": 2.5}, "tune").beta == 2.5


def test_blanks_that_a_tokenizer_trims_off_its_offsets_are_asked_for_as_others_are(world):
    trimming = copy.deepcopy(world.tokenizer)
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    plain = copy.deepcopy(world.tokenizer)
    plain.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    turns = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "a   7  \n 8 "}]
    row = {"id": "1", "messages": turns[:1], "chosen": turns[1]["content"], "rejected": "   9"}
    for name, document in (("sft", {"id": "1", "messages": turns}), ("dpo", row)):
        [found], [wanted] = (
            load_objective(name).encode([document], each) for each in (trimming, plain)
        )
        assert [list(ids) for ids in found.branches] == [list(ids) for ids in wanted.branches]
        assert [list(asked) for asked in found.targets] == [list(a) for a in wanted.targets]


def test_a_conversation_read_as_text_has_one_start_token_where_its_template_writes_one(world):
    tokenizer = copy.deepcopy(world.tokenizer)
    tokenizer.bos_token = "<|pad|>"
    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", start)]
    )
    turns = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "a cat"}]
    for template in (CHAT, "{{ bos_token }}" + CHAT):
        tokenizer.chat_template = template
        rows = [{"id": "1", "messages": turns}, {"id": "2", "text": "the cat"}]
        for tree in load_objective("next_token").encode(rows, tokenizer):
            assert list(tree.branches[0]).count(start) == 1 and tree.branches[0][0] == start
