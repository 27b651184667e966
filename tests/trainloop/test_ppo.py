"""ppo: two epochs on a rollout end with the weights of TRL's trainer; scores, GAE and whitening."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evalsuite.errors import UserError
from tests.trainloop import tinyrl
from trainloop import rollouts
from trainloop.advantages import gae, whitened
from trainloop.data import Batch
from trainloop.objectives import load_objective, read_options
from trainloop.objectives.ppo import OBJECTIVE, Options
from trainloop.policy import Policy, tensors
from trainloop.rollouts import Rollout

# --- advantages --------------------------------------------------------------------------------


def test_gae_by_hand() -> None:
    # deltas: 0 + .5 - .5 = 0 and 1 - .5 = .5, so A = [.95 x .5, .5]; the second sequence: 2 - 1.
    found = gae([0, 1, 2], [0.5, 0.5, 1.0], lengths=[2, 1], gamma=1.0, lam=0.95)
    assert found == pytest.approx([0.475, 0.5, 1.0])
    discounted = gae([1, 1], [0, 2], lengths=[2], gamma=0.5, lam=0.5)
    assert discounted == pytest.approx([1 + 0.5 * 2 + 0.25 * -1, -1])


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_gae_is_the_discounted_sum_of_a_sequences_own_deltas(
    lengths: list[int], gamma: float, lam: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, sum(lengths)))
    wanted, start = [], 0
    for length in lengths:
        r, v = rewards[start : start + length], values[start : start + length]
        delta = r + gamma * np.append(v[1:], 0)[: len(r)] - v
        wanted += [
            sum((gamma * lam) ** (later - t) * delta[later] for later in range(t, length))
            for t in range(length)
        ]
        start += length
    assert gae(rewards, values, lengths=lengths, gamma=gamma, lam=lam) == pytest.approx(wanted)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_whitened_numbers_have_mean_zero_and_variance_one_unless_all_equal(
    numbers: list[float],
) -> None:
    found = whitened(numbers)
    assert found.mean() == pytest.approx(0, abs=1e-6)
    if np.var(numbers) > 1e-4:
        assert found.var(ddof=1) == pytest.approx(1, abs=1e-3)
    assert whitened([3.0]).tolist() == [0.0] and whitened([]).tolist() == []


# --- against TRL -------------------------------------------------------------------------------

LENGTH = 6
QUERY = (3, 7, 4)


def _answers(count: int) -> list[tuple[int, ...]]:
    """Answers that fill their rows: TRL puts scores elsewhere in a row that ends early."""
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(3, len(tinyrl.WORDS), LENGTH).tolist()) for _ in range(count)]


@pytest.fixture(scope="module")
def models() -> SimpleNamespace:
    """A policy, its reference, a critic and a reward model, all different."""
    return SimpleNamespace(
        policy=tinyrl.exact(0),
        reference=tinyrl.exact(1),
        critic=tinyrl.exact(2, scores=True),
        reward=tinyrl.exact(3, scores=True),
    )


def _trl(models: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """TRL's trainer after one rollout of eight answers and two epochs."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    answers = torch.tensor(_answers(8))

    def written(model: Any, queries: Any, *_: Any) -> Any:
        whole = torch.cat([queries, answers], dim=1)
        return whole, model(whole).logits[:, len(QUERY) - 1 : -1]

    monkeypatch.setattr(ppo_trainer, "batch_generation", written)
    policy, critic = copy.deepcopy(models.policy), copy.deepcopy(models.critic)
    weights = [*policy.parameters(), *critic.parameters()]
    optimizer = torch.optim.SGD(weights, lr=0.05)
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
            total_episodes=8,
            num_ppo_epochs=2,
            response_length=LENGTH,
            temperature=1.0,
            num_sample_generations=0,
            missing_eos_penalty=None,
        ),
        processing_class=tinyrl.tokenizer(),
        model=policy,
        ref_model=copy.deepcopy(models.reference),
        reward_model=copy.deepcopy(models.reward),
        value_model=critic,
        train_dataset=Dataset.from_list([{"input_ids": list(QUERY)}] * 8),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )
    logged: dict[str, float] = {}
    trainer.log = logged.update
    trainer.train()
    return policy, critic, logged


def _live(
    monkeypatch: pytest.MonkeyPatch,
    policy: Policy,
    answers: list[list[Rollout]],
    options: Options,
    rewards: list[float | None] | None = None,
    **changes: Any,
) -> Any:
    """A Live whose policy writes these answers; `rewards` are the verifier's."""
    told = iter(rewards or [])
    monkeypatch.setattr(rollouts, "sample", lambda *_, **__: answers)
    monkeypatch.setattr(
        rollouts,
        "judge",
        lambda rows, *_, **__: [(one, None if one is not None else "asleep") for one in
                                (next(told) for _ in rows)],
    )  # fmt: skip
    return tinyrl.tiny_live(policy, tinyrl.prompts(len(answers)), options, **changes)


def test_two_epochs_on_a_rollout_end_with_the_weights_of_trl(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(samples=8, reward="model", without_end=None, epochs=2, max_new_tokens=LENGTH)
    policy = Policy(copy.deepcopy(models.policy), copy.deepcopy(models.critic))
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.05)
    log: dict[str, float] = {}
    live = _live(
        monkeypatch,
        policy,
        [[Rollout(ids, False, "") for ids in _answers(8)]],
        options,
        told=log,
        reference=tinyrl.asked(Policy(models.reference), "logprobs"),
        reward=tinyrl.asked(Policy(models.reward), "scores"),
    )
    row = live.prompts[0][1]
    tree = dataclasses.replace(live.prompts[0][0], branches=(QUERY,))
    live = dataclasses.replace(live, prompts=[(tree, row)])
    batches = OBJECTIVE.rollout(live)  # type: ignore[misc]
    assert len(batches) == OBJECTIVE.steps_per_rollout(options) == 2
    tinyrl.steps_of(policy, batches, OBJECTIVE, options, optimizer)

    theirs, their_critic, logged = _trl(models, tmp_path, monkeypatch)
    assert log["reward"] == pytest.approx(logged["objective/scores"])
    assert log["answer_kl"] == pytest.approx(logged["objective/kl"], rel=1e-5)
    for mine, other, start in (
        (policy.model, theirs, models.policy),
        (policy.value, their_critic, models.critic),
    ):
        moved = 0.0
        first = dict(start.named_parameters())
        for name, parameter in other.named_parameters():
            found = dict(mine.named_parameters())[name]  # type: ignore[union-attr]
            # TRL divides logits by 1 + 1e-7 and takes scores in float32.
            assert found.detach().numpy() == pytest.approx(parameter.detach().numpy(), abs=1e-7), (
                name
            )
            moved += (parameter - first[name]).abs().sum().item()
        assert moved > 1e-2


# --- scores ------------------------------------------------------------------------------------

ENDED, CUT = Rollout((5, 6, 1), True, "0 1"), Rollout((7, 8), False, "2 3")


def _batches(
    monkeypatch: pytest.MonkeyPatch,
    answers: list[list[Rollout]],
    options: Options,
    rewards: list[float | None] | None = None,
    **changes: Any,
) -> tuple[list[Batch], dict[str, float]]:
    policy = Policy(tinyrl.language_model(), tinyrl.scorer(1))
    log: dict[str, float] = {}
    live = _live(monkeypatch, policy, answers, options, rewards, told=log, **changes)
    return OBJECTIVE.rollout(live), log  # type: ignore[misc]


def _scores(batch: Batch, options: Options) -> list[float]:
    """What each answer got at its end: the return there, for the next value is 0."""
    ends = np.cumsum(np.bincount(batch.sequence)) - 1
    return batch.of_target["return"][ends].tolist()


def test_a_right_answer_gets_ten_and_one_without_end_minus_ten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = Options(beta=0.0, epochs=1)
    [batch], log = _batches(monkeypatch, [[ENDED], [ENDED], [CUT]], options, [1.0, 0.0, 1.0])
    assert _scores(batch, options) == pytest.approx([10, 0, -10])
    assert log["verified"] == pytest.approx(2 / 3) and log["reward"] == 0
    kept = dataclasses.replace(options, without_end=None)
    [batch], _ = _batches(monkeypatch, [[ENDED], [CUT]], kept, [0.0, 1.0])
    assert _scores(batch, kept) == pytest.approx([0, 10])


def test_both_rewards_are_summed_with_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(beta=0.0, epochs=1, reward="both", verifier_weight=2, model_weight=0.5)
    answers = [[ENDED, ENDED]]
    [batch], _ = _batches(
        monkeypatch,
        answers,
        dataclasses.replace(options, samples=2),
        [1.0, 0.0],
        reward=lambda batch: np.array([3.0, 4.0]),
    )
    assert _scores(batch, options) == pytest.approx([2 + 1.5, 2.0])


def test_kl_to_the_reference_is_paid_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(beta=0.5, epochs=1, lam=1.0)
    reference = tinyrl.asked(Policy(tinyrl.language_model(seed=9)), "logprobs")
    [batch], log = _batches(monkeypatch, [[ENDED]], options, [1.0], reference=reference)
    behind = batch.of_target["old"] - reference(batch)
    paid = -0.5 * behind + np.array([0, 0, 10.0])
    assert batch.of_target["return"] == pytest.approx(paid[::-1].cumsum()[::-1], abs=1e-5)
    assert log["answer_kl"] == pytest.approx(behind.sum(), abs=1e-5)


def test_an_unjudged_answer_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(epochs=1, samples=2)
    answers = [[ENDED, ENDED], [ENDED, CUT]]
    [batch], log = _batches(monkeypatch, answers, options, [1.0, None, None, None])
    assert batch.sequences == 1 and log["unjudged"] == 3
    assert OBJECTIVE.total(batch, options) == 3


def test_a_rollout_without_a_judged_answer_gives_empty_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = Options(epochs=2)
    batches, log = _batches(monkeypatch, [[ENDED]], options, [None])
    assert [batch.documents for batch in batches] == [0, 0]
    assert log["unjudged"] == 1 and "reward" not in log


def test_a_reward_model_that_the_stage_does_not_name_is_asked_for() -> None:
    policy = Policy(tinyrl.language_model(), tinyrl.scorer(1))
    live = tinyrl.tiny_live(policy, tinyrl.prompts(1), Options(reward="both"))
    with pytest.raises(UserError, match=r"stage 'rl': options.reward is 'both'.*no reward_model"):
        OBJECTIVE.rollout(live)  # type: ignore[misc]


# --- the loss ----------------------------------------------------------------------------------


def test_the_loss_by_hand_clips_ratios_and_values() -> None:
    numbers = {
        "old": np.log([0.5, 0.5, 0.5]),
        "advantage": np.array([1.0, -1.0, 1.0]),
        "value": np.array([0.0, 0.0, 1.0]),
        "return": np.array([1.0, -1.0, 1.0]),
    }
    batch = SimpleNamespace(
        of_target={name: torch.tensor(each, dtype=torch.float64) for name, each in numbers.items()}
    )
    outputs = SimpleNamespace(
        logprobs=torch.log(torch.tensor([0.7, 0.7, 0.25], dtype=torch.float64)),
        values=torch.tensor([0.5, -0.1, 1.1], dtype=torch.float64),
    )
    found = OBJECTIVE.loss(outputs, batch, Options(value_weight=0.1))  # type: ignore[arg-type]
    # Ratios 1.4, 1.4, .5: the first is clipped to 1.2; the others cost more unclipped.
    policy = -1.2 + 1.4 - 0.5
    # Values: .5 is .5 from 1 and clipped to .2, .8 from it; -.1 is .9 from -1; 1.1 is .1 from 1.
    critic = 0.5 * (0.8**2 + 0.9**2 + 0.1**2)
    assert found.total.item() == pytest.approx(policy + 0.1 * critic)
    assert [float(v) for v in found.metrics["clipped"]] == [1, 3]
    assert [float(v) for v in found.metrics["clipped_values"]] == [1, 3]


def test_gradients_do_not_depend_on_how_a_group_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(epochs=1, samples=3)
    policy = Policy(tinyrl.exact(0), tinyrl.exact(1, scores=True))
    found = {}
    for tokens in (None, 7):
        live = _live(
            monkeypatch,
            policy,
            [[ENDED, CUT, ENDED]],
            options,
            [1.0, 0.0, 0.5],
            stage=tinyrl.stage(objective="ppo", micro_tokens=tokens),
        )
        [batch] = OBJECTIVE.rollout(live)  # type: ignore[misc]
        assert batch.documents == (1 if tokens is None else 3)
        flat = tensors(batch, "cpu", dtype=torch.float64)
        loss = OBJECTIVE.loss(policy(flat, **OBJECTIVE.forward(options)), flat, options)
        found[tokens] = tinyrl.gradients(policy, loss.total / OBJECTIVE.total(batch, options))
    assert len(found[None]) == len(list(policy.parameters()))
    for name, value in found[None].items():
        assert found[7][name] == pytest.approx(value, abs=1e-10), name


def test_a_tiny_policy_and_its_critic_learn_what_the_verifier_asks_for() -> None:
    options = Options(
        samples=16, max_new_tokens=2, beta=0.005, epochs=2, verifier_weight=1, without_end=0
    )
    policy = Policy(tinyrl.language_model(hidden_size=32, intermediate_size=64), tinyrl.scorer(1))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.0)
    first = tinyrl.tiny_live(policy, tinyrl.prompts(2), options)
    rewards = []
    for step in range(25):
        told: dict[str, float] = {}
        live = dataclasses.replace(first, step=2 * step, log=told.update)
        batches = OBJECTIVE.rollout(live)  # type: ignore[misc]
        tinyrl.steps_of(policy, batches, OBJECTIVE, options, optimizer)
        rewards.append(told["verified"])
    assert np.mean(rewards[:3]) < 0.2
    assert np.mean(rewards[-3:]) > 0.8


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gamma": 1.5}, "gamma is 1.5, not in"),
        ({"clip": -1}, "clip is -1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"rewrad": "model"}, "did you mean 'reward'"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_options(load_objective("ppo"), given, "rl")


def test_cutting_keeps_scores_with_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(beta=0.0, epochs=1, samples=3)
    stage = tinyrl.stage(objective="ppo", micro_tokens=6)
    [batch], _ = _batches(monkeypatch, [[ENDED, CUT, ENDED]], options, [1.0, 1.0, 0.0], stage=stage)
    assert batch.documents == 3
    assert _scores(batch, options) == pytest.approx([10, -10, 0])
