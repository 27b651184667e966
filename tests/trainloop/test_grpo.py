"""grpo: its loss is TRL's, its advantages are the papers', and what teaches nothing is counted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evalsuite.errors import UserError
from tests.trainloop import tinyrl
from trainloop.advantages import group_advantages, k3
from trainloop.data import Batch, Tree, batch_of, micro_batches
from trainloop.objectives import grpo, load_objective, read_options
from trainloop.objectives.grpo import OBJECTIVE, Options
from trainloop.policy import Policy, tensors
from trainloop.rollouts import Rollout

# --- advantages --------------------------------------------------------------------------------


def test_advantages_of_one_right_answer_in_four() -> None:
    group = [1.0, 0.0, 0.0, 0.0]
    assert group_advantages(group, "centred").tolist() == [0.75, -0.25, -0.25, -0.25]
    assert group_advantages(group, "standardised") == pytest.approx([1.5, -0.5, -0.5, -0.5])
    third = -1 / 3
    assert group_advantages(group, "leave_one_out") == pytest.approx([1, third, third, third])


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=16))
def test_advantages_sum_to_zero_and_leaving_one_out_is_what_it_says(rewards: list[float]) -> None:
    for how in ("standardised", "centred", "leave_one_out"):
        assert group_advantages(rewards, how).sum() == pytest.approx(0, abs=1e-6)
    others = [one - np.mean(rewards[:n] + rewards[n + 1 :]) for n, one in enumerate(rewards)]
    assert group_advantages(rewards, "leave_one_out") == pytest.approx(others, abs=1e-6)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=16), st.floats(0.1, 9), st.floats(-9, 9))
def test_standardised_advantages_do_not_depend_on_scale_and_zero_of_the_reward(
    rewards: list[float], scale: float, shift: float
) -> None:
    if np.ptp(rewards) > 1e-3:
        moved = [scale * one + shift for one in rewards]
        found = group_advantages(rewards, "standardised")
        assert group_advantages(moved, "standardised") == pytest.approx(found, abs=1e-6)
        assert found.std(ddof=1) == pytest.approx(1)


def test_rewards_that_differ_by_rounding_alone_are_equal() -> None:
    assert not group_advantages([0.1 + 0.2, 0.3, 0.3], "standardised").any()


@given(st.floats(-1e3, 1e3), st.integers(1, 9))
def test_equal_rewards_have_advantages_of_exactly_zero(reward: float, count: int) -> None:
    for how in ("standardised", "centred", "leave_one_out"):
        assert not group_advantages([reward] * count, how).any()


@given(st.lists(st.floats(-20, 0), min_size=1), st.floats(-5, 5))
def test_k3_is_zero_for_equal_policies_and_never_negative(
    logprobs: list[float], gap: float
) -> None:
    assert not k3(logprobs, logprobs).any()
    far = k3(logprobs, np.array(logprobs) + gap)
    assert (far >= 0).all() and far == pytest.approx(math.exp(gap) - gap - 1, abs=1e-9)


# --- the loss ----------------------------------------------------------------------------------

BRANCHES = ([5, 6, 7, 8, 1], [9, 1], [6, 6, 10, 1], [12, 13, 14, 5, 6, 7])
ADVANTAGES = [1.2, -0.4, -0.9, 0.6]


def _tree(old: bool = True, reference: bool = True) -> Tree:
    """One prompt with four answers, and numbers that make some ratios be clipped."""
    rng = np.random.default_rng(0)
    of_target: dict[str, Any] = {}
    if old:
        of_target["old"] = [rng.normal(-2.7, 0.4, len(ids)) for ids in BRANCHES]
    if reference:
        of_target["reference"] = [rng.normal(-2.7, 0.4, len(ids)) for ids in BRANCHES]
    asked = tuple([True] * len(ids) for ids in BRANCHES)
    return Tree((3, 7, 4), BRANCHES, asked, {"advantage": ADVANTAGES}, of_target)


def _loss(policy: Policy, batch: Batch, options: Options) -> Any:
    flat = tensors(batch, "cpu", dtype=torch.float64)
    found = OBJECTIVE.loss(policy(flat, **OBJECTIVE.forward(options)), flat, options)
    return found.total / OBJECTIVE.total(batch, options), found.metrics


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's own trainer, around the model that the tests train."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    trainer = GRPOTrainer(
        model=tinyrl.exact(),
        reward_funcs=lambda **_: [0.0],
        args=GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            use_cpu=True,
            bf16=False,
            report_to=[],
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=8,
            epsilon=0.2,
            epsilon_high=0.272,
            use_bias_correction_kl=False,  # as GRPO was published
        ),
        train_dataset=Dataset.from_list([{"prompt": "Q 1 A"}] * 4),
        processing_class=tinyrl.tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def _padded(parts: list[Any], value: float = 0) -> Any:
    rows = [torch.as_tensor(part) for part in parts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


@pytest.mark.parametrize(
    ("length", "kind"), [("sequence", "grpo"), ("tokens", "dapo"), ("constant", "dr_grpo")]
)
@pytest.mark.parametrize("beta", [0.0, 0.05])
@pytest.mark.parametrize("old", [True, False])
def test_loss_and_gradient_are_those_of_trl(
    trl_trainer: Any, length: Any, kind: str, beta: float, old: bool
) -> None:
    options = Options(max_new_tokens=8, length=length, beta=beta)
    tree = _tree(old=old)
    policy = Policy(tinyrl.exact())
    mine, metrics = _loss(policy, batch_of([tree]), options)
    found = {
        name.removeprefix("model."): value for name, value in tinyrl.gradients(policy, mine).items()
    }

    trl_trainer.loss_type, trl_trainer.beta = kind, beta
    trl_trainer.model.zero_grad()
    theirs = trl_trainer._compute_loss(
        trl_trainer.model,
        {
            "prompt_ids": torch.tensor([list(tree.prompt)] * 4),
            "prompt_mask": torch.ones(4, 3, dtype=torch.long),
            "completion_ids": _padded(list(BRANCHES)),
            "completion_mask": _padded([[1] * len(ids) for ids in BRANCHES]),
            "advantages": torch.tensor(ADVANTAGES, dtype=torch.float64),
            "old_per_token_logps": _padded(list(tree.of_target["old"])) if old else None,
            "ref_per_token_logps": _padded(list(tree.of_target["reference"])),
            "num_items_in_batch": torch.tensor(sum(map(len, BRANCHES))),
        },
    )
    theirs.backward()
    assert mine.item() == pytest.approx(theirs.item(), abs=1e-10)
    for name, parameter in trl_trainer.model.named_parameters():
        assert found[name] == pytest.approx(parameter.grad.numpy(), abs=1e-10), name
    if old:
        for side in ("low", "high"):
            total, count = metrics[f"clipped_{side}"]
            theirs_share = trl_trainer._metrics["eval"][f"clip_ratio/{side}_mean"][-1]
            assert float(total) / count == pytest.approx(theirs_share) and total > 0
    if beta:
        total, count = metrics["kl"]
        assert float(total) / count == pytest.approx(trl_trainer._metrics["eval"]["kl"][-1])


def test_at_ratio_one_without_kl_the_loss_is_minus_the_mean_advantage() -> None:
    policy = Policy(tinyrl.exact())
    batch = batch_of([_tree(old=False, reference=False)])
    by_answer, _ = _loss(policy, batch, Options(beta=0.0))
    by_token, _ = _loss(policy, batch, Options(beta=0.0, length="tokens"))
    sizes = [len(ids) for ids in BRANCHES]
    assert by_answer.item() == pytest.approx(-np.mean(ADVANTAGES))
    assert by_token.item() == pytest.approx(-np.average(ADVANTAGES, weights=sizes))


def test_gradients_do_not_depend_on_how_a_group_is_cut_or_shared_among_ranks() -> None:
    from trainloop.rollouts import cut

    options = Options()
    policy = Policy(tinyrl.exact())
    whole, _ = _loss(policy, batch_of([_tree()]), options)
    wanted = tinyrl.gradients(policy, whole)
    batch = batch_of(cut(_tree(), 12))
    assert batch.documents > 1
    summed: dict[str, Any] = {name: 0.0 for name in wanted}
    for rank in (0, 1):
        for piece in micro_batches(batch, rank=rank, ranks=2, tokens=12):
            flat = tensors(piece, "cpu", dtype=torch.float64)
            found = OBJECTIVE.loss(policy(flat), flat, options).total
            part = found * (0 if piece.padding else 1) / OBJECTIVE.total(batch, options)
            for name, value in tinyrl.gradients(policy, part).items():
                summed[name] = summed[name] + value
    for name, value in wanted.items():
        assert summed[name] == pytest.approx(value, abs=1e-10), name


# --- rollouts ----------------------------------------------------------------------------------


def _live_with(
    monkeypatch: pytest.MonkeyPatch,
    answers: Sequence[Sequence[tuple[list[int], float | None]]],
    options: Options,
    **changes: Any,
) -> tuple[Any, dict[str, float]]:
    """A Live whose policy writes these (tokens, reward), whatever its weights."""
    from trainloop import rollouts

    found = [
        [Rollout(tuple(ids), ids[-1] == tinyrl.END, " ".join(map(str, ids))) for ids, _ in group]
        for group in answers
    ]
    told = iter([reward for group in answers for _, reward in group])
    monkeypatch.setattr(rollouts, "sample", lambda *_, **__: found)
    monkeypatch.setattr(
        rollouts,
        "judge",
        lambda rows, *_, **__: [
            (reward, None if reward is not None else "asleep")
            for reward in (next(told) for _ in rows)
        ],
    )
    log: dict[str, float] = {}
    policy = Policy(tinyrl.language_model())
    return tinyrl.tiny_live(policy, tinyrl.prompts(len(answers)), options, log, **changes), log


RIGHT, WRONG, CUT = [5, 1], [6, 7, 1], [8, 9, 10]


def test_a_prompt_and_its_answers_are_one_document_with_the_end_of_text_as_a_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = [(RIGHT, 1.0), (WRONG, 0.0), (WRONG, 0.0), (RIGHT, 1.0)]
    live, log = _live_with(monkeypatch, [group] * 2, Options(advantages="centred"))
    [batch] = OBJECTIVE.rollout(live)  # type: ignore[misc]
    assert (batch.documents, batch.sequences) == (2, 8)
    assert batch.tokens == 2 * (3 + 2 + 3 + 3 + 2)
    assert batch.labels.tolist() == [*RIGHT, *WRONG, *WRONG, *RIGHT] * 2
    assert batch.of_sequence["advantage"].tolist() == [0.5, -0.5, -0.5, 0.5] * 2
    assert set(batch.of_target) == {"reference"}, "with one update the ratio is 1"
    assert log["reward"] == 0.5 and log["groups"] == 2 and log["dropped_groups"] == 0


def test_groups_without_variance_are_dropped_and_counted_and_the_divisor_counts_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    same, mixed = [(RIGHT, 1.0), (RIGHT, 1.0)], [(RIGHT, 1.0), (WRONG, 0.0)]
    live, log = _live_with(monkeypatch, [same, mixed, same], Options())
    [batch] = OBJECTIVE.rollout(live)  # type: ignore[misc]
    assert log["dropped_groups"] == 2 and log["groups"] == 3
    assert batch.documents == 1
    assert OBJECTIVE.total(batch, Options()) == 2
    assert OBJECTIVE.total(batch, Options(length="tokens")) == 5
    assert OBJECTIVE.total(batch, Options(length="constant", max_new_tokens=9)) == 18


def test_when_every_group_is_dropped_the_steps_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(updates=2, epochs=2)
    live, log = _live_with(monkeypatch, [[(RIGHT, 1.0), (RIGHT, 1.0)]], options)
    batches = OBJECTIVE.rollout(live)  # type: ignore[misc]
    assert len(batches) == OBJECTIVE.steps_per_rollout(options) == 4
    assert [batch.documents for batch in batches] == [0] * 4
    assert [OBJECTIVE.total(batch, options) for batch in batches] == [0.0] * 4
    assert log["dropped_groups"] == 1


def test_a_group_without_variance_has_no_gradient() -> None:
    tree = dataclasses.replace(
        _tree(old=False, reference=False), of_sequence={"advantage": [0] * 4}
    )
    policy = Policy(tinyrl.exact())
    loss, _ = _loss(policy, batch_of([tree]), Options(beta=0.0))
    assert not any(value.any() for value in tinyrl.gradients(policy, loss).values())


def test_an_unjudged_answer_is_dropped_and_counted_and_never_taken_for_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = [(RIGHT, 1.0), (WRONG, None), (WRONG, 0.0)]
    alone = [(RIGHT, 1.0), (WRONG, None)]
    live, log = _live_with(monkeypatch, [group, alone], Options(advantages="centred"))
    [batch] = OBJECTIVE.rollout(live)  # type: ignore[misc]
    assert log["unjudged"] == 2 and log["dropped_groups"] == 1
    assert batch.of_sequence["advantage"].tolist() == [0.5, -0.5]
    assert log["reward"] == pytest.approx(2 / 3)


def test_truncated_answers_are_kept_or_masked_but_stay_in_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = [(RIGHT, 1.0), (CUT, 0.0), (WRONG, 0.0), (RIGHT, 1.0)]
    masked = Options(advantages="centred", truncated="masked")
    live, log = _live_with(monkeypatch, [group], masked)
    [batch] = OBJECTIVE.rollout(live)  # type: ignore[misc]
    assert batch.labels.tolist() == [*RIGHT, *WRONG, *RIGHT]
    assert batch.of_sequence["advantage"].tolist() == [0.5, -0.5, 0.5]
    assert log["masked_answers"] == 1 and log["ended"] == 0.75
    live, log = _live_with(monkeypatch, [group], Options(advantages="centred"))
    [batch] = OBJECTIVE.rollout(live)  # type: ignore[misc]
    assert batch.sequences == 4 and log["masked_answers"] == 0
    assert batch.labels.tolist()[2:5] == CUT, "no end-of-text token was written, none is a target"


def test_a_reward_model_counts_with_its_weight_beside_the_verifier_or_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = [(RIGHT, 1.0), (WRONG, 0.0)]
    settings: dict[str, Any] = {"advantages": "centred", "model_weight": 2.0}
    for reward, wanted in (("both", [1 + 2 * 4, 2 * 1]), ("model", [2 * 4, 2 * 1])):
        options = Options(reward=reward, **settings)  # type: ignore[arg-type]
        live, log = _live_with(
            monkeypatch, [group], options, reward=lambda batch: np.array([4.0, 1.0])
        )
        [batch] = OBJECTIVE.rollout(live)  # type: ignore[misc]
        half = (wanted[0] - wanted[1]) / 2
        assert batch.of_sequence["advantage"].tolist() == [half, -half]
        assert log["reward"] == np.mean(wanted) and ("verified" in log) == (reward == "both")
    with pytest.raises(UserError, match=r"stage 'rl': options.reward is 'model', but.*no reward_"):
        OBJECTIVE.rollout(_live_with(monkeypatch, [group], options)[0])  # type: ignore[misc]


def test_several_steps_per_rollout_get_the_log_probabilities_of_its_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = Options(updates=2, epochs=2)
    live, _ = _live_with(monkeypatch, [[(RIGHT, 1.0), (WRONG, 0.0)]] * 4, options)
    batches = OBJECTIVE.rollout(live)  # type: ignore[misc]
    assert [batch.documents for batch in batches] == [2] * 4
    for batch in batches:
        assert batch.of_target["old"] == pytest.approx(live.logprobs(batch), abs=1e-5)
        assert batch.of_target["reference"] == pytest.approx(batch.of_target["old"], abs=1e-5)


def test_a_group_longer_than_micro_tokens_becomes_several_documents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = [(RIGHT, 1.0), (WRONG, 0.0), (WRONG, 0.0), (RIGHT, 1.0)]
    live, _ = _live_with(monkeypatch, [group], Options(), stage=tinyrl.stage(micro_tokens=9))
    [batch] = OBJECTIVE.rollout(live)  # type: ignore[misc]
    assert (batch.documents, batch.sequences) == (2, 4)
    sizes = [piece.tokens for piece in micro_batches(batch, rank=0, ranks=1, tokens=9)]
    assert max(sizes) <= 9


def test_a_tiny_policy_learns_what_its_verifier_asks_for() -> None:
    options = Options(samples=16, max_new_tokens=2, beta=0.005, length="tokens")
    model = tinyrl.language_model(seed=2, hidden_size=32, intermediate_size=64)
    policy = Policy(model)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-2, weight_decay=0.0)
    first = tinyrl.tiny_live(policy, tinyrl.prompts(2), options)
    rewards = []
    for step in range(35):
        told: dict[str, float] = {}
        live = dataclasses.replace(first, step=step, log=told.update)
        tinyrl.steps_of(policy, grpo.rollout(live), OBJECTIVE, options, optimizer)
        rewards.append(told["reward"])
    assert np.mean(rewards[:3]) < 0.2
    assert np.mean(rewards[-3:]) > 0.8


# --- settings and prompts ----------------------------------------------------------------------


def test_prompts_are_rendered_up_to_where_the_answer_begins() -> None:
    rows = [{"id": "1", "messages": [{"role": "user", "content": "4 2"}], "answer": "6"}]
    [tree] = OBJECTIVE.encode(rows, tinyrl.tokenizer())
    assert [tinyrl.WORDS[token] for token in tree.branches[0]] == ["Q", "4", "2", "A"]
    assert not any(tree.targets[0])
    assert list(OBJECTIVE.encode([], tinyrl.tokenizer())) == []


def test_prompts_without_messages_or_template_are_refused() -> None:
    with pytest.raises(UserError, match="document '7' has no 'messages'"):
        list(OBJECTIVE.encode([{"id": "7", "text": "a"}], tinyrl.tokenizer()))
    with pytest.raises(UserError, match="give the recipe's model a chat_template"):
        list(OBJECTIVE.encode([{"id": "7"}], SimpleNamespace(chat_template=None)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"samples": 1}, "samples is 1, but a group needs 2"),
        ({"temperature": 0}, "temperature is 0"),
        ({"clip_low": -0.1}, "clip_low is -0.1"),
        ({"beta": -1}, "beta is -1"),
        ({"updates": 0}, "updates is 0"),
        ({"advantages": "ranked"}, "'ranked' is not allowed here"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_options(load_objective("grpo"), given, "rl")
