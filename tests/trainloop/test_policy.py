"""The policy's forward pass against plain passes of the same model, a document at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from evalsuite.errors import UserError
from evalsuite.livemodel import quiet
from trainloop import flat, head
from trainloop.data import Tree, batch_of, micro_batches
from trainloop.policy import Outputs, Policy, Tensors, tensors, unsupported

VOCABULARY = 61
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = ["sliding_attention", "full_attention"]
FLAT: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 4, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"sliding_window": 5, "query_pre_attn_scalar": 4, "layer_types": SLIDING},
    "olmo2": {},
    "gpt_neox": {},
    "gpt2": {"n_positions": 64},
    "phi3": {"sliding_window": 7},
    "mistral": {"sliding_window": 6},
    "granite": {"logits_scaling": 3.0},
    "cohere": {},
}


class WithoutFloat32(TorchFunctionMode):
    """Models bring norms and softmaxes to float32; here float64 stays what it is."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        args, kwargs = tuple(args), dict(kwargs or {})
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.dtype == torch.float64:
            if func is torch.Tensor.float:
                return first
            args = (first, *(torch.float64 if a is torch.float32 else a for a in args[1:]))
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(
    kind: str = "llama", *, dtype: torch.dtype = torch.float64, scores: bool = False, **changes: Any
) -> Any:
    """A model of this architecture with random weights, biases and norms included."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, **(TINY | FLAT.get(kind, {}) | changes))
    if scores:
        config.num_labels = 1
    auto = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    with quiet():
        model = auto.from_config(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def ids(rng: np.random.Generator, count: int) -> list[int]:
    return rng.integers(3, VOCABULARY, count).tolist()


def forest(seed: int = 0) -> list[Tree]:
    """Plain documents, trees with shared prompts, tokens nobody asks for, single tokens."""
    rng = np.random.default_rng(seed)
    return [
        Tree((), (ids(rng, 11),), ([True] * 11,)),
        Tree(ids(rng, 9), (ids(rng, 5), ids(rng, 12)), ([True] * 5, [False] * 3 + [True] * 9)),
        Tree((), (ids(rng, 19),), ([False] * 5 + [True] * 14,)),
        Tree(ids(rng, 4), (ids(rng, 3), ids(rng, 3), ids(rng, 1)), ([True] * 3,) * 2 + ([True],)),
        Tree((), (ids(rng, 2),), ([False, True],)),
    ]


def repeated(trees: Sequence[Tree]) -> list[Tree]:
    """Each branch as a document of its own, its prompt before it."""
    return [
        Tree((), ([*tree.prompt, *branch],), ([False] * len(tree.prompt) + list(wanted),))
        for tree in trees
        for branch, wanted in zip(tree.branches, tree.targets, strict=True)
    ]


def one_by_one(
    model: Any, trees: Sequence[Tree], read: Callable[[torch.Tensor, int], torch.Tensor]
) -> torch.Tensor:
    """`read` of the logits before each target and the target, from plain forward passes."""
    found = []
    for tree in repeated(trees):
        [text], [wanted] = tree.branches, tree.targets
        logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0]
        found += [read(logits[n - 1], text[n]) for n in range(1, len(text)) if wanted[n]]
    return torch.stack(found)


def logprob(logits: torch.Tensor, token: int) -> torch.Tensor:
    return logits.log_softmax(dim=-1)[token]


def plainly(model: Any, trees: Sequence[Tree]) -> torch.Tensor:
    return one_by_one(model, trees, logprob)


def read(model: Any, trees: Sequence[Tree], **settings: Any) -> Outputs:
    return Policy(model)(tensors(batch_of(trees), "cpu"), **settings)


def logprobs(model: Any, trees: Sequence[Tree]) -> torch.Tensor:
    found = read(model, trees).logprobs
    assert found is not None
    return found


def gradients(model: torch.nn.Module, values: torch.Tensor) -> list[torch.Tensor]:
    """Of a weighted sum of the values, in the order of the parameters."""
    weights = torch.linspace(-1, 2, len(values), dtype=values.dtype)
    model.zero_grad()
    (values * weights).sum().backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    model.zero_grad()
    return [gradient.clone() for gradient in found]


def assert_close(found: Any, wanted: Any, within: float = 1e-10) -> None:
    torch.testing.assert_close(found, wanted, rtol=within, atol=within)


@contextmanager
def in_chunks(monkeypatch: pytest.MonkeyPatch, logits: int) -> Iterator[None]:
    """The output head as for a large vocabulary: so many logits at a time, none kept."""
    with monkeypatch.context() as patch:
        patch.setattr(head, "KEEP_VOCABULARY", 0)
        patch.setattr(head, "CHUNK_LOGITS", logits)
        patch.setattr(head, "ROWS", 20)
        yield


# --- the same numbers as a document at a time --------------------------------------------------


@pytest.mark.parametrize("kind", FLAT)
def test_logprobs_and_gradients_are_those_of_plain_passes(kind: str) -> None:
    with WithoutFloat32():
        model = tiny(kind)
        assert unsupported(model) is None
        found, wanted = logprobs(model, forest()), plainly(model, forest())
        assert_close(found, wanted)
        assert_close(gradients(model, found), gradients(model, wanted))


@pytest.mark.parametrize("kind", ["mamba", "bloom"])
def test_a_model_that_cannot_be_read_flat_gets_padded_rows_and_the_same_numbers(kind: str) -> None:
    with WithoutFloat32():
        model = tiny(kind, state_size=4, expand=2, n_head=4)
        policy = Policy(model)
        assert policy.why_padded == unsupported(model) == "it takes no position ids"
        found = policy(tensors(batch_of(forest()), "cpu")).logprobs
        wanted = plainly(model, forest())
        assert_close(found, wanted)
        assert_close(gradients(model, found), gradients(model, wanted))


def test_padded_rows_and_documents_end_to_end_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    with WithoutFloat32():
        model = tiny("gemma2")
        flat_way = logprobs(model, forest())
        monkeypatch.setattr("trainloop.policy._told", lambda model: "told so by this test")
        policy = Policy(model)
        assert policy.why_padded == "told so by this test"
        padded_way = policy(tensors(batch_of(forest()), "cpu")).logprobs
        assert_close(padded_way, flat_way)
        assert_close(gradients(model, padded_way), gradients(model, flat_way))


def test_a_shared_prompt_gives_what_repeated_prompts_give() -> None:
    with WithoutFloat32():
        model = tiny("qwen3")
        shared, again = logprobs(model, forest()), logprobs(model, repeated(forest()))
        assert_close(shared, again)
        assert_close(gradients(model, shared), gradients(model, again))


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(5)), tokens=st.integers(8, 80), window=st.integers(2, 20))
def test_no_order_and_no_packing_changes_a_number(
    order: list[int], tokens: int, window: int
) -> None:
    with WithoutFloat32(), torch.no_grad():
        policy = Policy(tiny("mistral", sliding_window=window))
        trees = forest()
        alone = [policy(tensors(batch_of([tree]), "cpu")).logprobs for tree in trees]
        batch = batch_of([trees[number] for number in order])
        found = [
            policy(tensors(piece, "cpu")).logprobs
            for piece in micro_batches(batch, rank=0, ranks=1, tokens=tokens)
            if not piece.padding
        ]
        wanted = torch.cat([alone[number] for number in order])
        # Pieces may hold documents in another order.
        assert_close(torch.cat(found).sort().values, wanted.sort().values)
        assert_close(policy(tensors(batch, "cpu")).logprobs, wanted)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), window=st.sampled_from([None, 3, 17, 130]))
def test_groups_of_any_documents_attend_as_a_dense_mask_does(
    data: st.DataObject, window: int | None
) -> None:
    size = st.integers(1, 20) if data.draw(st.booleans()) else st.integers(1, 140)
    shapes = data.draw(
        st.lists(st.tuples(st.integers(0, 9), st.lists(size, min_size=1, max_size=4)), min_size=1)
    )
    trees = [
        Tree([1] * prompt, tuple([1] * n for n in branches), tuple([True] * n for n in branches))
        for prompt, branches in shapes[:5]
    ]
    batch = batch_of(trees)
    layout = flat.Layout(batch.segments, "cpu")
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, batch.tokens, 4, generator=generator, dtype=torch.float64)
        for heads in (4, 2, 2)
    )
    for x in (query, key, value):
        x.requires_grad_()
    found, _ = flat.flat_attention(
        torch.nn.Module(), query, key, value, flat_layout=layout, sliding_window=window
    )
    segment = np.repeat(np.arange(len(batch.segments)), np.diff(batch.segments[:, :2])[:, 0])
    place, at = np.arange(batch.tokens), batch.position_ids
    prefix = batch.segments[segment]
    seen = (segment[:, None] == segment) & (place <= place[:, None])
    seen |= (place >= prefix[:, 2:3]) & (place < prefix[:, 3:4])
    if window is not None:
        seen &= at > at[:, None] - window
    mask = torch.from_numpy(np.where(seen, 0.0, -np.inf))
    wide = (x.repeat_interleave(2, dim=1) for x in (key, value))
    scores = torch.einsum("bhqd,bhkd->bhqk", query, next(wide)) / 2 + mask
    wanted = (scores.softmax(dim=-1) @ next(wide)).transpose(1, 2)
    assert_close(found, wanted)
    of_found = torch.autograd.grad(found.square().sum(), (query, key, value))
    assert_close(of_found, torch.autograd.grad(wanted.square().sum(), (query, key, value)))


def test_short_documents_share_calls_and_long_ones_do_not_pad(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths = [30, 400, 28, 25, 31, 29, 900, 30]
    ends = np.cumsum(lengths)
    segments = np.stack([ends - lengths, ends, ends - lengths, ends - lengths], axis=1)
    plan = flat.Layout(segments, "cpu").plan(None)
    assert sorted((g.rows, g.queries) for g in plan.groups) == [(1, 400), (1, 900), (6, 31)]
    equal = np.array([[n * 64, n * 64 + 64, n * 64, n * 64] for n in range(8)])
    plan = flat.Layout(equal, "cpu").plan(None)
    assert [(g.rows, g.queries) for g in plan.groups] == [(8, 64)]
    assert plan.queries is None and plan.keys is None, "nothing to copy"


# --- what the model is, before and after -------------------------------------------------------


def test_without_a_layout_the_model_is_what_it_was() -> None:
    model, text = tiny("gemma2"), torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    before = model(input_ids=text).logits
    policy = Policy(model)
    policy(tensors(batch_of(forest()), "cpu"))
    assert model.config._attn_implementation == "eager"
    assert torch.equal(model(input_ids=text).logits, before)
    with pytest.raises(IndexError):
        model(input_ids=text + VOCABULARY, flat_layout=flat.Layout(np.array([[0, 7, 0, 0]]), "cpu"))
    assert model.config._attn_implementation == "eager"


def test_checkpointed_activations_give_the_same_gradients() -> None:
    model = tiny("gemma3_text").train()
    policy = Policy(model)
    batch, other = (tensors(batch_of(forest(seed)), "cpu") for seed in (0, 1))
    wanted = gradients(model, policy(batch).logprobs)
    for reentrant in (False, True):
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": reentrant}
        )
        found = policy(batch).logprobs
        computed = len(batch.layout.windows)
        policy(other)  # another batch in between: the layers are computed again for theirs
        assert_close(gradients(model, found), wanted)
        assert len(batch.layout.windows) > computed, "layers were computed again"
    assert model.config._attn_implementation == "sdpa"


def test_a_batch_without_targets_reaches_every_weight_with_gradient_zero() -> None:
    tree = Tree((), ([5, 6, 7],), ([False, False, False],))
    model = tiny(dtype=torch.float32)
    found = logprobs(model, [tree])
    assert found.shape == (0,)
    found.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


# --- the output head ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere", "granite"])
def test_a_chunked_head_gives_the_same_gradients(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WithoutFloat32():
        model = tiny(kind)
        whole = read(model, forest(), entropy=True, temperature=0.7)
        assert whole.logprobs is not None and whole.entropy is not None
        wanted = gradients(model, torch.cat([whole.logprobs, whole.entropy]))
        with in_chunks(monkeypatch, 7 * VOCABULARY):
            parts = read(model, forest(), entropy=True, temperature=0.7)
            assert parts.logprobs is not None and parts.entropy is not None
            assert_close(parts.logprobs, whole.logprobs)
            assert_close(parts.entropy, whole.entropy)
            assert_close(gradients(model, torch.cat([parts.logprobs, parts.entropy])), wanted)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("logits", [2**22, 50])
def test_the_gradients_of_the_head_are_those_of_differences(
    softcap: float | None, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(3, 10, dtype=torch.float64)
    hidden = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(9)

    def of(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
        linear.weight, linear.bias = weight, bias
        last = head.Head(linear=linear, scale=1.3, softcap=softcap)
        return head.target_logprobs(last, hidden, labels, temperature=0.8, entropy=True)

    weight, bias = linear.weight, linear.bias
    del linear.weight, linear.bias
    with in_chunks(monkeypatch, logits):
        assert torch.autograd.gradcheck(of, (hidden, weight, bias))


def test_the_head_never_holds_logits_of_all_targets() -> None:
    vocabulary, width, count = head.KEEP_VOCABULARY + 1, 8, 2000
    linear = torch.nn.Linear(width, vocabulary, bias=False)
    hidden = torch.randn(count, width, requires_grad=True)
    labels = torch.arange(count)
    with torch.profiler.profile(profile_memory=True) as profile:
        found, _ = head.target_logprobs(head.Head(linear=linear), hidden, labels)
        found.sum().backward()
    total = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    logits = 4 * count * vocabulary
    assert 0 < peak < logits / 2
    assert hidden.grad is not None and linear.weight.grad is not None


def test_logits_that_nobody_knows_come_from_the_models_own_head() -> None:
    class Odd(type(tiny())):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.cumsum(dim=-1)
            return out

    with WithoutFloat32():
        model = tiny()
        model.__class__ = Odd
        found, wanted = logprobs(model, forest()), plainly(model, forest())
        assert_close(found, wanted)
        assert_close(gradients(model, found), gradients(model, wanted))


def test_temperature_divides_logits_and_entropy_is_that_of_the_distribution() -> None:
    with WithoutFloat32():
        model, temperature = tiny(), 0.6

        def spread(logits: torch.Tensor, token: int) -> torch.Tensor:
            p = (logits / temperature).softmax(dim=-1)
            return -(p * p.log()).sum()

        out = read(model, forest(), temperature=temperature, entropy=True)
        sharper = one_by_one(model, forest(), lambda x, token: logprob(x / temperature, token))
        assert_close(out.logprobs, sharper)
        assert_close(out.entropy, one_by_one(model, forest(), spread))
        assert read(model, forest()).entropy is None


def test_equal_logits_have_the_entropy_of_the_vocabulary() -> None:
    linear = torch.nn.Linear(2, 8, bias=False)
    torch.nn.init.zeros_(linear.weight)
    labels = torch.tensor([3, 0])
    found = head.target_logprobs(head.Head(linear=linear), torch.randn(2, 2), labels, entropy=True)
    assert found[0].tolist() == pytest.approx([-math.log(8)] * 2)
    assert found[1] is not None and found[1].tolist() == pytest.approx([math.log(8)] * 2)


# --- scalar heads ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "gemma2"])
def test_a_reward_models_scores_are_its_own_at_the_last_token(kind: str) -> None:
    with WithoutFloat32():
        model = tiny(kind, scores=True)
        out = read(model, forest())
        wanted = torch.stack(
            [
                model(input_ids=torch.tensor([tree.branches[0]])).logits[0, 0]
                for tree in repeated(forest())
            ]
        )
        assert out.logprobs is None and out.values is None
        assert_close(out.scores, wanted)
        assert_close(gradients(model, out.scores), gradients(model, wanted))


def test_scores_of_a_half_precision_model_are_not_rounded_to_half_precision() -> None:
    scores = read(tiny(dtype=torch.bfloat16, scores=True), forest()).scores
    assert scores is not None and scores.dtype == torch.float32
    assert (scores != scores.bfloat16().float()).any()


def test_values_are_the_critics_before_each_target() -> None:
    with WithoutFloat32():
        model, critic = tiny(), tiny("qwen2", scores=True)
        policy = Policy(model, critic)
        out = policy(tensors(batch_of(forest()), "cpu"), values=True)
        wanted = []
        for tree in repeated(forest()):
            [text], [asked] = tree.branches, tree.targets
            states = critic.model(input_ids=torch.tensor([text])).last_hidden_state[0]
            values = states @ critic.score.weight[0]
            wanted += [values[n - 1] for n in range(1, len(text)) if asked[n]]
        assert_close(out.values, torch.stack(wanted))
        assert_close(out.logprobs, plainly(model, forest()))
        assert policy(tensors(batch_of(forest()), "cpu")).values is None


# --- precision, modes, refusals ----------------------------------------------------------------


def test_bfloat16_is_close_and_its_results_are_float32() -> None:
    model = tiny(dtype=torch.float32)
    policy, batch = Policy(model), tensors(batch_of(forest()), "cpu")
    wanted = policy(batch, entropy=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = policy(batch, entropy=True)
    assert found.logprobs.dtype == found.entropy.dtype == torch.float32
    assert_close(found.logprobs, wanted.logprobs, within=0.1)
    assert not torch.equal(found.logprobs, wanted.logprobs), "autocast was on"
    cosine = torch.nn.functional.cosine_similarity(
        torch.cat([g.flatten() for g in gradients(model, found.logprobs)]),
        torch.cat([g.flatten() for g in gradients(model, wanted.logprobs)]),
        dim=0,
    )
    assert cosine > 0.99
    half = tiny(dtype=torch.bfloat16)
    assert unsupported(half) is None
    assert logprobs(half, forest()).dtype == torch.float32


def test_a_batch_keeps_its_numbers_as_tensors_of_one_kind() -> None:
    tree = Tree(
        [5],
        ([6, 7], [8]),
        ([True, True], [True]),
        of_sequence={"reference": [-1.5, -0.25]},
        of_target={"advantages": [[0.5, 1.0], [2.0]]},
    )
    batch = batch_of([tree])
    found = tensors(batch, "cpu", dtype=torch.float64)
    assert isinstance(found, Tensors) and not found.padding
    assert found.of_sequence["reference"].dtype == torch.float64
    assert found.of_sequence["reference"].tolist() == [-1.5, -0.25]
    assert found.of_target["advantages"].tolist() == [0.5, 1.0, 2.0]
    assert found.labels.dtype == torch.int64 and found.labels.tolist() == [6, 7, 8]
    assert (found.tokens, found.sequences, found.documents, found.target_tokens) == (4, 2, 1, 3)
    assert tensors(batch, "cpu").of_target["advantages"].dtype == torch.float32


def test_rescaled_positions_are_refused_beyond_their_length() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = tiny(max_position_embeddings=24, rope_parameters=rope)
    assert logprobs(model, forest()).isfinite().all()
    long = Tree((), ([5] * 25,), ([True] * 25,))
    with pytest.raises(UserError, match=r"25 tokens.*beyond 24.*sequence_length"):
        logprobs(model, [long])


def test_layers_of_other_kinds_are_named() -> None:
    odd = tiny()
    odd.config.layer_types = ["full_attention", "linear_attention"]
    assert unsupported(odd) == "it has layers of type linear_attention"
    both = tiny()
    both.model.layers[1].self_attn.is_causal = False
    assert "attends in both directions" in str(unsupported(both))
    stuck = tiny()
    stuck.config.layer_types, stuck.config.sliding_window = SLIDING, 3
    assert unsupported(stuck) == "layer 0 attends to all tokens, its config says 3"


def test_encoder_decoders_and_critics_without_a_head_are_refused() -> None:
    t5 = AutoConfig.for_model("t5", d_model=8, d_ff=8, num_layers=1, num_heads=2, vocab_size=9)
    from transformers import AutoModelForSeq2SeqLM

    with pytest.raises(UserError, match="encoder-decoder"):
        Policy(AutoModelForSeq2SeqLM.from_config(t5))
    with pytest.raises(UserError, match="critic is a LlamaForCausalLM"):
        Policy(tiny(), tiny())
    with pytest.raises(ValueError, match="without critic"):
        Policy(tiny())(tensors(batch_of(forest()), "cpu"), values=True)


def test_the_probe_leaves_no_trace() -> None:
    model = tiny(dtype=torch.float32).train()
    wanted = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    Policy(model)
    assert model.training and [p.requires_grad for p in model.parameters()] == wanted
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in itertools.chain(model.parameters()))
