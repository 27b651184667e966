"""Objectives on pairs: what is asked for, closed forms, TRL's numbers, and the reward model."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM

from evalsuite.errors import UserError
from tests.trainloop.conftest import CHAT, LLAMA, WORDS
from trainloop import model as models
from trainloop import preference
from trainloop.data import Batch, Tree, batch_of, micro_batches
from trainloop.objectives import load_objective
from trainloop.policy import Outputs, Policy, tensors
from trainloop.reference import filled
from trainloop.reward_model import reward_model

POLICIES = ("dpo", "dpo_norm", "simpo")
ALL = (*POLICIES, "reward")


def pair(number: int, question: str, chosen: str, rejected: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"id": str(number), "messages": messages, "chosen": chosen, "rejected": rejected}


ROWS = [
    pair(0, "who sat ?", "the cat", "a dog ran off with one hat"),
    pair(1, "where ?", "on the mat and a hat", "on"),
    pair(2, "who ran off ?", "the dog", "the cat"),
    pair(3, "and ?", "with a cat", "the cat sat on the mat with the dog"),
]


@pytest.fixture(scope="module")
def toys(world) -> SimpleNamespace:
    """A policy, a reference that differs from it, a reward model, and the rows' batch."""
    policy, reference = (models.fresh_model(world.model, world.tokenizer, seed=s) for s in (0, 1))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(3.0)  # far from uniform: log-ratios of some size
    scorer = reward_model(policy, world.tokenizer, seed=2)
    batch = batch_of(list(preference.encode(ROWS, world.tokenizer)))
    with torch.no_grad():
        found = preference.sums(run(reference, batch).logprobs, tensors(batch, "cpu"))
    rows = found.double().numpy().reshape(-1, 2)
    batch = filled(batch, [("a", n) for n in range(len(ROWS))], {"a": rows})
    return SimpleNamespace(policy=policy, reference=reference, scorer=scorer, batch=batch)


def run(model: Any, batch: Batch) -> Outputs:
    outputs: Outputs = Policy(model)(tensors(batch, "cpu", dtype=model.dtype))
    return outputs


def loss_of(name: str, toys: SimpleNamespace, batch: Batch | None = None, **options: Any) -> Any:
    """The objective's Loss of the batch (the toys' by default) by the toys' policy or scorer."""
    objective = load_objective(name)
    batch = toys.batch if batch is None else batch
    model = toys.scorer if objective.head == "score" else toys.policy
    told = objective.options(**options)
    return objective.loss(run(model, batch), tensors(batch, "cpu", dtype=model.dtype), told)


def numbers_batch(lengths: list[tuple[int, int]], rng: np.random.Generator) -> Batch:
    """A batch of pairs whose answers have so many targets, with a reference at random."""
    trees = [
        Tree(
            (1, 2),
            tuple([3] * max(1, n) for n in both),
            tuple([True] * n if n else [False] for n in both),
            of_sequence={"reference": list(rng.normal(-3.0, 1.0, 2))},
        )
        for both in lengths
    ]
    return batch_of(trees)


# --- encoding -----------------------------------------------------------------------------------


def test_a_pair_has_one_prompt_and_asks_for_both_answers_with_their_ends(world):
    [tree] = preference.encode(ROWS[:1], world.tokenizer)
    end = world.tokenizer.eos_token
    assert world.tokenizer.decode(tree.prompt) == "Q: who sat ?\nA:"
    assert [world.tokenizer.decode(b) for b in tree.branches] == [
        f" the cat\n{end}",
        f" a dog ran off with one hat\n{end}",
    ]
    assert all(all(wanted) for wanted in tree.targets)


answers = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)


@given(question=answers, chosen=answers, rejected=answers)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_each_answer_has_the_tokens_and_targets_that_sft_gives_its_conversation(
    world, question, chosen, rejected
):
    row = pair(0, question, chosen, rejected)
    [tree] = preference.encode([row], world.tokenizer)
    for content, branch, targets in zip(
        (chosen, rejected), tree.branches, tree.targets, strict=True
    ):
        turns = [*row["messages"], {"role": "assistant", "content": content}]
        [whole] = load_objective("sft").encode([{"id": "0", "messages": turns}], world.tokenizer)
        assert [*tree.prompt, *branch] == list(whole.branches[0])
        assert [False] * len(tree.prompt) + list(targets) == list(whole.targets[0])


def test_a_token_across_the_prompts_end_belongs_to_its_answer_and_is_not_asked_for():
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"q": 0, ":": 1, "x": 2, "y": 3, "$": 4, ":x": 5}
    bpe = Tokenizer(BPE(vocab=vocabulary, merges=[(":", "x")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="$")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{{ ':' if m.role == 'user' else '$' }}{% endfor %}"
    )
    [tree] = preference.encode([pair(0, "q", "xy", "yx")], tokenizer)
    assert list(tree.prompt) == [0]  # not ":", which the chosen answer has in one token with x
    assert [list(branch) for branch in tree.branches] == [[5, 3, 4], [1, 3, 2, 4]]
    assert tree.targets == ((False, True, True), (False, True, True, True))


def test_an_answer_that_becomes_no_token_leaves_its_pair_without_targets(world):
    template = CHAT.replace(" {{ m.content }}\n{{ eos_token }}", "{{ m.content }}")
    world.tokenizer.chat_template = template
    try:
        [tree] = preference.encode([pair(0, "who ?", "cat", "")], world.tokenizer)
    finally:
        world.tokenizer.chat_template = CHAT
    assert all(len(branch) for branch in tree.branches)
    assert not any(flag for wanted in tree.targets for flag in wanted)


def test_a_row_that_is_no_pair_and_a_missing_or_rewriting_template_are_named(world):
    with pytest.raises(UserError, match="'d7' is no pair: it has no 'rejected'"):
        list(preference.encode([{**ROWS[0], "id": "d7", "rejected": None}], world.tokenizer))
    rewriting = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    for template, said in ((None, "needs a chat template"), (rewriting, "prefix")):
        world.tokenizer.chat_template = template
        try:
            with pytest.raises(UserError, match=said):
                list(preference.encode(ROWS, world.tokenizer))
        finally:
            world.tokenizer.chat_template = CHAT


def test_a_reward_models_branch_ends_with_its_end_token(world):
    world.tokenizer.chat_template = CHAT.replace("{{ eos_token }}", "{{ eos_token }} and more")
    try:
        [tree] = load_objective("reward").encode(ROWS[:1], world.tokenizer)
        [longer] = load_objective("dpo").encode(ROWS[:1], world.tokenizer)
    finally:
        world.tokenizer.chat_template = CHAT
    for branch, targets, whole in zip(tree.branches, tree.targets, longer.branches, strict=True):
        assert branch[-1] == world.tokenizer.eos_token_id
        assert len(branch) == len(targets) < len(whole)


# --- closed forms -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dpo", "dpo_norm"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_policy_that_equals_its_reference_has_loss_ln_2_exactly(world, toys, name, kind):
    model = models.fresh_model(world.model, world.tokenizer, seed=0).to(kind)
    outputs = run(model, toys.batch)
    batch = tensors(toys.batch, "cpu", dtype=kind)
    batch.of_sequence["reference"] = preference.sums(outputs.logprobs, batch).detach()
    objective = load_objective(name)
    loss = objective.loss(outputs, batch, objective.options())
    mean = loss.total.detach() / objective.total(toys.batch, None)
    assert mean == torch.tensor(math.log(2), dtype=kind)
    found = {metric: float(total / count) for metric, (total, count) in loss.metrics.items()}
    assert found.pop("accuracy") == 0.5, "a tie is half right"
    assert set(found.values()) == {0.0}


def test_dpo_norm_equals_dpo_where_answers_have_one_token():
    batch = numbers_batch([(1, 1)] * 5, np.random.default_rng(0))
    logprobs = torch.randn(10, generator=torch.Generator().manual_seed(0))
    losses = []
    for name in ("dpo", "dpo_norm"):
        objective = load_objective(name)
        options = objective.options(beta=0.7, label_smoothing=0.1)
        outputs = Outputs(logprobs=logprobs)
        losses.append(objective.loss(outputs, tensors(batch, "cpu"), options).total)
    assert losses[0] == losses[1]


lengths = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6)


@pytest.mark.parametrize("name", POLICIES)
@given(lengths=lengths, smoothing=st.sampled_from([0.0, 0.2]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_loss_and_gradient_of_every_token_equal_the_closed_form(name, lengths, smoothing, seed):
    rng = np.random.default_rng(seed)
    batch = numbers_batch(lengths, rng)
    values = rng.normal(-2.0, 1.5, batch.target_tokens)
    objective = load_objective(name)
    options = objective.options(label_smoothing=smoothing)
    logprobs = torch.tensor(values, requires_grad=True)
    held = tensors(batch, "cpu", dtype=torch.float64)
    loss = objective.loss(Outputs(logprobs=logprobs), held, options).total
    loss.backward()

    total, slopes, at = 0.0, [], 0
    for number, (first, second) in enumerate(lengths):
        sums = [values[at : at + first].sum(), values[at + first : at + first + second].sum()]
        at += first + second
        if name != "simpo":
            reference = batch.of_sequence["reference"][2 * number : 2 * number + 2]
            sums = [own - other for own, other in zip(sums, reference, strict=True)]
        weights = (1, 1) if name == "dpo" else (1 / first, 1 / second)
        h = options.beta * (sums[0] * weights[0] - sums[1] * weights[1])
        if name == "simpo":
            h -= options.beta * options.gamma_ratio
        up, down = 1 / (1 + math.exp(-h)), 1 / (1 + math.exp(h))
        total -= (1 - smoothing) * math.log(up) + smoothing * math.log(down)
        slope = options.beta * (smoothing * up - (1 - smoothing) * down)
        slopes += [slope * weights[0]] * first + [-slope * weights[1]] * second
    assert float(loss.detach()) == pytest.approx(total, rel=1e-12)
    np.testing.assert_allclose(logprobs.grad.numpy(), slopes, rtol=1e-12, atol=1e-15)


def test_the_reward_losss_gradient_is_minus_the_chance_of_being_wrong(world, toys):
    scores = torch.tensor([1.5, -0.25, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    trees = list(load_objective("reward").encode(ROWS[:2], world.tokenizer))
    batch = tensors(batch_of(trees), "cpu", dtype=torch.float64)
    loss = load_objective("reward").loss(Outputs(scores=scores), batch, None)
    loss.total.backward()
    wrong = [1 / (1 + math.exp(1.75)), 1 / (1 + math.exp(-2.0))]
    expected = [-wrong[0], wrong[0], -wrong[1], wrong[1]]
    np.testing.assert_allclose(scores.grad.numpy(), expected, rtol=1e-12)
    assert float(loss.metrics["accuracy"][0]) == 1 and float(loss.metrics["accuracy"][1]) == 2


# --- masks and splits ---------------------------------------------------------------------------


def masked(batch_rows: list[Tree], number: int, branches: tuple[int, ...]) -> list[Tree]:
    """The trees, of which tree `number` has no target in these branches."""
    tree = batch_rows[number]
    targets = tuple(
        [False] * len(wanted) if place in branches else wanted
        for place, wanted in enumerate(tree.targets)
    )
    return [*batch_rows[:number], replace(tree, targets=targets), *batch_rows[number + 1 :]]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("branches", [(0, 1), (0,), (1,)])
def test_a_pair_without_targets_gives_no_loss_no_gradient_and_no_nan(world, toys, name, branches):
    trees = list(preference.encode(ROWS[:1], world.tokenizer))
    batch = batch_of(masked(trees, 0, branches))
    batch = replace(batch, of_sequence={"reference": np.full(2, -7.0)})
    loss = loss_of(name, toys, batch)
    loss.total.backward()
    model = toys.scorer if name == "reward" else toys.policy
    assert float(loss.total.detach()) == 0.0
    assert load_objective(name).total(batch, None) == 1.0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(bool((g == 0).all()) for g in gradients)
    assert all(float(count) == 0 for _, count in loss.metrics.values())
    model.zero_grad()


@pytest.mark.parametrize("name", ALL)
def test_a_masked_pair_among_others_changes_neither_their_loss_nor_their_measures(
    world, toys, name
):
    trees = list(preference.encode(ROWS, world.tokenizer))
    reference = toys.batch.of_sequence["reference"]
    with_it = replace(batch_of(masked(trees, 2, (1,))), of_sequence={"reference": reference})
    without = replace(
        batch_of([*trees[:2], trees[3]]),
        of_sequence={"reference": np.delete(reference, [4, 5])},
    )
    one, other = loss_of(name, toys, with_it), loss_of(name, toys, without)
    assert float(one.total.detach()) == pytest.approx(float(other.total.detach()), rel=1e-6)
    objective = load_objective(name)
    assert objective.total(with_it, None) == objective.total(without, None) == 3.0
    for metric, (total, count) in one.metrics.items():
        assert float(count) == float(other.metrics[metric][1])
        assert float(total) == pytest.approx(float(other.metrics[metric][0]), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_losses_and_counts_of_micro_batches_add_up_to_the_whole_batchs(toys, name):
    whole = loss_of(name, toys)
    pieces = micro_batches(toys.batch, rank=0, ranks=1, tokens=30)
    assert len(pieces) > 1
    parts = [loss_of(name, toys, piece) for piece in pieces]
    assert sum(float(p.total.detach()) for p in parts) == pytest.approx(
        float(whole.total.detach()), rel=1e-5
    )
    for metric, (_, count) in whole.metrics.items():
        assert sum(float(part.metrics[metric][1]) for part in parts) == float(count)


def test_options_out_of_range_are_refused_in_one_line():
    for name, options, said in (
        ("dpo", {"beta": 0.0}, "dpo: beta is 0"),
        ("dpo_norm", {"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ("simpo", {"gamma_ratio": -1.0}, "gamma_ratio is -1"),
    ):
        with pytest.raises(UserError, match=said):
            load_objective(name).options(**options)


# --- TRL ----------------------------------------------------------------------------------------


def trl_loss(trainer: Any) -> float:
    """The trainer's loss of its first batch, which holds all rows, by its own collator."""
    [batch] = trainer.get_train_dataloader()
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, batch))


def common(tmp_path: Any, **more: Any) -> dict[str, Any]:
    plain = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    plain |= {"gradient_checkpointing": False, "per_device_train_batch_size": len(ROWS)}
    return plain | {"max_length": 64, "disable_tqdm": True} | more


def rows_for_trl() -> Any:
    from datasets import Dataset

    turn = [{"role": "assistant"}]
    return Dataset.from_list(
        [
            {
                "prompt": row["messages"],
                "chosen": [turn[0] | {"content": row["chosen"]}],
                "rejected": [turn[0] | {"content": row["rejected"]}],
            }
            for row in ROWS
        ]
    )


@pytest.mark.parametrize(
    ("name", "kind", "beta"), [("dpo", "sigmoid", 0.5), ("dpo_norm", "sigmoid_norm", 5.0)]
)
def test_dpo_and_dpo_norm_equal_trls_on_the_same_rows(world, toys, tmp_path, name, kind, beta):
    trainer = trl.DPOTrainer(
        toys.policy,
        ref_model=toys.reference,
        args=trl.DPOConfig(**common(tmp_path, beta=beta, loss_type=[kind])),
        train_dataset=rows_for_trl(),
        processing_class=world.tokenizer,
    )
    ours = loss_of(name, toys, beta=beta)
    assert abs(float(ours.total.detach()) / len(ROWS) - math.log(2)) > 0.01, "not the start's ln 2"
    assert float(ours.total.detach()) / len(ROWS) == pytest.approx(trl_loss(trainer), abs=1e-5)
    logged = trainer._metrics["train"]
    for metric, theirs in (("accuracy", "accuracies"), ("margin", "margins")):
        if name == "dpo" or metric == "accuracy":
            total, count = ours.metrics[metric]
            assert float(total / count) == pytest.approx(logged[f"rewards/{theirs}"][0], abs=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo_equals_trls_without_its_extra_cross_entropy(
    world, toys, tmp_path, smoothing, monkeypatch
):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    settings = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}
    trainer = CPOTrainer(
        toys.policy,
        args=CPOConfig(**common(tmp_path, label_smoothing=smoothing, **settings)),
        train_dataset=rows_for_trl(),
        processing_class=world.tokenizer,
    )
    ours = loss_of("simpo", toys, label_smoothing=smoothing).total.detach()
    assert float(ours) / len(ROWS) == pytest.approx(trl_loss(trainer), abs=1e-5)


def test_the_reward_loss_equals_trls_on_the_same_rows(world, toys, tmp_path):
    trainer = trl.RewardTrainer(
        toys.scorer,
        args=trl.RewardConfig(**common(tmp_path)),
        train_dataset=rows_for_trl(),
        processing_class=world.tokenizer,
    )
    ours = loss_of("reward", toys)
    assert float(ours.total.detach()) / len(ROWS) == pytest.approx(trl_loss(trainer), abs=1e-5)
    for metric in ("accuracy", "margin"):
        total, count = ours.metrics[metric]
        assert float(total / count) == pytest.approx(trainer._metrics["train"][metric][0], abs=1e-5)


# --- the reward model ---------------------------------------------------------------------------


def test_a_reward_models_head_is_drawn_from_its_seed_with_variance_one_over_d_plus_one(world):
    wide = replace(world.model, config=LLAMA | {"hidden_size": 1024, "num_hidden_layers": 1})
    language = models.fresh_model(wide, world.tokenizer, seed=0)
    one, again, other = (reward_model(language, world.tokenizer, seed=s) for s in (5, 5, 6))
    weight = one.score.weight.detach()
    assert weight.dtype == torch.float32 and weight.shape == (1, 1024) and one.score.bias is None
    # The deviation of 1,024 draws is known to 1/sqrt(2 * 1024) = 2.2 %; 4 of these.
    assert float(weight.std()) * math.sqrt(1025) == pytest.approx(1.0, abs=0.09)
    assert torch.equal(weight, again.score.weight)
    assert not torch.equal(weight, other.score.weight)


def test_a_reward_model_copies_the_body_and_survives_being_saved(world, toys, tmp_path):
    from transformers import AutoModelForSequenceClassification

    scorer = reward_model(toys.policy, world.tokenizer, seed=0)
    for name, weight in toys.policy.base_model.state_dict().items():
        copied = scorer.base_model.state_dict()[name]
        assert torch.equal(weight, copied) and weight.data_ptr() != copied.data_ptr()
    assert scorer.config.num_labels == 1
    assert scorer.config.pad_token_id == world.tokenizer.pad_token_id
    scorer.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype="float32")
    assert type(loaded) is type(scorer)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded.eval()(ids).logits, scorer.eval()(ids).logits)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3"])
def test_a_reward_model_that_was_loaded_again_learns_as_the_one_that_was_saved(kind, tmp_path):
    torch.manual_seed(0)
    settings = {"vocab_size": 20, "head_dim": 8, "pad_token_id": None, "eos_token_id": 2}
    config = AutoConfig.for_model(**(LLAMA | settings | {"model_type": kind}))
    language = AutoModelForCausalLM.from_config(config)
    # Without padding of its own a tokenizer's end of text names it; that is a token all the same.
    fresh = reward_model(language, SimpleNamespace(eos_token_id=2, pad_token_id=None), seed=0)
    fresh.save_pretrained(tmp_path)
    batch = tensors(
        batch_of([Tree((3, 2, 4), ((5, 2), (6, 7, 2)), ((True,) * 2, (True,) * 3))]), "cpu"
    )
    found = []
    for scorer in (fresh, models.load_scorer(tmp_path)):
        load_objective("reward").loss(Policy(scorer)(batch), batch, None).total.backward()
        found.append(scorer.get_input_embeddings().weight.grad)
    assert found[0][2].any()
    torch.testing.assert_close(found[1], found[0])


def test_an_architecture_without_a_sequence_classifier_is_refused(world):
    from transformers import CodeGenConfig, CodeGenForCausalLM

    config = CodeGenConfig(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=4, rotary_dim=4
    )
    with pytest.raises(UserError, match="CodeGenForCausalLM"):
        reward_model(CodeGenForCausalLM(config), world.tokenizer, seed=0)


def test_a_few_steps_teach_a_reward_model_and_each_policy_to_tell_the_pairs_apart(world, toys):
    for name in ALL:
        objective = load_objective(name)
        source = toys.scorer if name == "reward" else toys.policy
        model = type(source)(source.config)
        model.load_state_dict(source.state_dict())
        batch = tensors(toys.batch, "cpu")
        policy = Policy(model)
        batch.of_sequence["reference"] = preference.sums(
            run(toys.policy, toys.batch).logprobs, batch
        ).detach()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(12):
            loss = objective.loss(policy(batch), batch, objective.options())
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            losses.append(float(loss.total.detach()))
        total, count = loss.metrics["accuracy"]
        assert losses[-1] < losses[0] and float(total) == float(count), name


def test_log_sigmoid_keeps_far_pairs_finite():
    batch = tensors(numbers_batch([(1, 1)], np.random.default_rng(0)), "cpu")
    rewards = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss = preference.pair_loss(rewards, batch)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(-float(logsigmoid(torch.tensor(-1000.0))))
    assert rewards.grad.tolist() == [-1.0, 1.0]
