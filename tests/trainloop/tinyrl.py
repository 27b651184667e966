"""A policy of a few thousand weights, its tokenizer, and the Live that a rollout is given.

live = tiny_live(policy, prompts(4), Options(...), told)     # told: what the rollout logs
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from trainloop.data import Batch, Tree
from trainloop.objectives import Live
from trainloop.policy import Policy, tensors
from trainloop.ranks import Ranks
from trainloop.records import Stage

ALONE = Ranks(rank=0, count=1, device=torch.device("cpu"), kind="alone")
WORDS = ("<pad>", "</s>", "<unk>", "Q", "A", *"0123456789")
PAD, END = 0, 1
CHAT = (
    "{% for m in messages %}Q {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}A{% endif %}"
)
WAIT_SECONDS = 60


def tokenizer() -> Any:
    """One token per word; digits are words."""
    model = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT,
    )


def config(**changes: Any) -> Any:
    """Of a Llama with two layers."""
    settings = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "tie_word_embeddings": False,
    }
    return transformers.LlamaConfig(**(settings | changes))


def language_model(seed: int = 0, **changes: Any) -> Any:
    """A policy that knows nothing."""
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(config(**changes)).eval()


def scorer(seed: int) -> Any:
    """A critic, or a reward model."""
    torch.manual_seed(seed)
    return transformers.LlamaForSequenceClassification(config(num_labels=1)).eval()


def exact(seed: int = 0, *, scores: bool = False) -> Any:
    """A policy, or a critic, that computes in float64 throughout: Llama's norms do not."""
    torch.manual_seed(seed)
    gpt2 = transformers.GPT2Config(
        vocab_size=len(WORDS),
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.2,
        eos_token_id=END,
        bos_token_id=None,
        pad_token_id=PAD,
        num_labels=1,
    )
    kind = transformers.GPT2ForSequenceClassification if scores else transformers.GPT2LMHeadModel
    return kind(gpt2).double().eval()


def prompts(count: int, **row: Any) -> list[tuple[Tree, dict[str, Any]]]:
    """Prompts "Q d A" that are right when answered with the digit d."""
    found = []
    for number in range(count):
        digit = str(number % 10)
        ids = [WORDS.index("Q"), WORDS.index(digit), WORDS.index("A")]
        told = {"id": f"p{number}", "answer": digit, "verifier": "match", "doc": {}} | row
        found.append((Tree((), (ids,), ([False] * 3,)), told))
    return found


def stage(**changes: Any) -> Stage:
    """A stage that reads prompts."""
    settings: dict[str, Any] = {"name": "rl", "objective": "grpo", "mixture": {"a": 1.0}}
    settings |= {"steps": 1, "batch": 4, "sequence_length": 32, "learning_rate": 1e-3}
    return Stage(**(settings | changes))


def asked(policy: Policy, what: str, **forward: Any) -> Any:
    """A function from a batch to the policy's numbers."""

    @torch.no_grad()
    def numbers(batch: Batch) -> Any:
        dtype = next(policy.parameters()).dtype
        outputs = policy(tensors(batch, "cpu", dtype=dtype), **forward)
        return getattr(outputs, what).double().numpy()

    return numbers


def tiny_live(
    policy: Policy,
    given: list[tuple[Tree, dict[str, Any]]],
    options: Any,
    told: dict[str, float] | None = None,
    **changes: Any,
) -> Live:
    """A Live of one process around `policy`, whose copy is the reference."""
    told = {} if told is None else told
    settings: dict[str, Any] = {
        "stage": stage(),
        "options": options,
        "seed": 5,
        "step": 0,
        "tokenizer": tokenizer(),
        "prompts": given,
        "model": policy.model,
        "logprobs": asked(policy, "logprobs", temperature=options.temperature),
        "values": asked(policy, "values", values=True) if policy.value is not None else None,
        "reference": asked(
            Policy(copy.deepcopy(policy.model)), "logprobs", temperature=options.temperature
        ),
        "reward": None,
        "ranks": ALONE,
        "log": told.update,
        "samples": None,
    }
    return Live(**(settings | changes))


class ThreadRanks:
    """Ranks that are threads of this process and talk through a list."""

    def __init__(self, rank: int, count: int, box: list[Any], gate: threading.Barrier) -> None:
        self.rank, self.count, self._box, self._gate = rank, count, box, gate
        self.main = rank == 0

    def gather(self, value: Any) -> list[Any]:
        self._box[self.rank] = value
        self._gate.wait(WAIT_SECONDS)
        found = list(self._box)
        self._gate.wait(WAIT_SECONDS)
        return found

    def share(self, value: Any) -> Any:
        return self.gather(value)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        yield


def on_ranks(count: int, work: Any) -> list[Any]:
    """work(ranks) on each of `count` ranks at once; what each returned."""
    gate = threading.Barrier(count)
    box: list[Any] = [None] * count
    found: list[Any] = [None] * count

    def run(rank: int) -> None:
        try:
            found[rank] = work(ThreadRanks(rank, count, box, gate))
        except BaseException as error:
            found[rank] = error
            gate.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_SECONDS)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


def gradients(policy: Policy, loss: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Of every weight, for a scalar loss."""
    policy.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.double().numpy().copy()
        for name, parameter in policy.named_parameters()
        if parameter.grad is not None
    }


def steps_of(
    policy: Policy, batches: Sequence[Batch], objective: Any, options: Any, optimizer: Any
) -> None:
    """An optimizer step per batch; none for a batch of which nothing is left."""
    dtype = next(policy.parameters()).dtype
    for batch in batches:
        if not batch.documents:
            continue
        flat = tensors(batch, "cpu", dtype=dtype)
        optimizer.zero_grad()
        found = objective.loss(policy(flat, **objective.forward(options)), flat, options)
        (found.total / objective.total(batch, options)).backward()
        optimizer.step()
