"""A tiny model that can be told what to say, and toy tasks with their data in a small mirror."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from evalsuite import taskfiles

sys.path.insert(0, str(Path(__file__).parent))  # the tests import toys.py beside them

from toys import MEAN, SUMS, Toys

settings.register_profile("same every time", derandomize=True, deadline=None)
settings.load_profile("same every time")


@pytest.fixture(scope="session")
def tokenizer():
    """One token per byte, and <s> </s>; nothing is added to a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: 2 + i for i, letter in enumerate(letters)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def random_model():
    """A Llama with random weights from a fixed seed."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(3)
    return LlamaForCausalLM(_config(hidden_size=32, context=256)).eval()


@pytest.fixture(scope="session")
def model_that_says(tokenizer) -> Callable[..., object]:
    """model_that_says({":": "4", "4": "</s>"}): after a colon it writes 4, after a 4 it stops.

    A Llama whose layers add nothing: the last token alone decides. A token that is not named is
    followed by any token with equal probability.
    """
    import torch
    from transformers import LlamaForCausalLM

    def build(follows: dict[str, str], context: int = 256):
        size = 264
        model = LlamaForCausalLM(_config(hidden_size=size, context=context)).eval()
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.model.embed_tokens.weight.copy_(torch.eye(258, size))
            model.lm_head.weight.zero_()
            for last, following in follows.items():
                [a] = tokenizer.encode(last)
                [b] = tokenizer.encode(following)
                model.lm_head.weight[b, a] = 4.0
        return model

    return build


def _config(hidden_size: int, context: int):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=258,
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )


@pytest.fixture
def toys(tmp_path, monkeypatch) -> Toys:
    """An empty folder of tasks in place of the shipped ones, and an empty mirror."""
    made = Toys(tmp_path / "toys")
    monkeypatch.setattr(taskfiles, "OWN", made.tasks)
    return made


@pytest.fixture
def sums(toys) -> Toys:
    """Twelve sums as four tasks: written answer, choice, gold likelihood, whole text."""
    toys.data("toy/sums", train=[{"question": "9 + 1", "answer": "10"}] * 2 + SUMS, test=SUMS)
    common = {
        "dataset_path": "toy/sums",
        "test_split": "test",
        "training_split": "train",
        "doc_to_text": "Q: {{question}}\nA:",
        "metadata": {"version": 1.0},
    }
    written = {"do_sample": False, "max_gen_toks": 8, "until": ["\n"]}
    exact = [{"metric": "exact_match", **MEAN}]
    toys.task(
        "sums_written",
        **common,
        output_type="generate_until",
        doc_to_target="{{answer}}",
        generation_kwargs=written,
        metric_list=exact,
    )
    toys.task(
        "sums_choice",
        **common,
        output_type="multiple_choice",
        doc_to_choice=[str(number) for number in range(2, 8)],
        doc_to_target="answer",
        metric_list=[{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
    )
    toys.task(
        "sums_gold",
        **common,
        output_type="loglikelihood",
        doc_to_target=" {{answer}}",
        metric_list=[{"metric": "acc", **MEAN}, {"metric": "perplexity"}],
    )
    toys.task(
        "sums_text",
        **(common | {"doc_to_text": ""}),
        output_type="loglikelihood_rolling",
        doc_to_target="{{question}} = {{answer}}",
        metric_list=[{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    )
    return toys
