"""Rollouts written by vLLM, where it is installed (the extra `vllm`): the same call as rollouts.py.

    found = sample(model, tokenizer, [prompt_ids], samples=4, temperature=1.0,
                   max_new_tokens=64, seed=7, rows=256, ranks=ranks)

Rank 0 holds the engine, hands it the policy's weights as a published Hugging Face folder, writes
all answers and shares them. Between rollouts the engine sleeps, so that its weights and cache
leave the GPU to training; woken, it loads the new folder into its place.

Answers are drawn by vLLM's own generators, so they differ from those of rollouts.py for the same
seed, and vLLM promises the same answers again only for the same version, machine and batch:
a run that uses it cannot be repeated bit by bit. Log-probabilities are not taken from it.

This file is written from vLLM's documentation (offline inference, sleep mode, reload_weights) and
tested against a module that records the calls, not against a GPU.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalsuite.errors import UserError
from evalsuite.files import publish
from trainloop.rollouts import Rollout, answer_seed, check_context

if TYPE_CHECKING:
    from trainloop.ranks import Ranks

MEMORY_SHARE = 0.5
"""Of the GPU's memory, for the engine while it is awake."""


@dataclass(slots=True)
class _Engine:
    """The one engine of this process."""

    folder: tempfile.TemporaryDirectory[str]
    """Where weights are handed over."""
    handed: int = 0
    """Times that weights were."""
    llm: Any = None


@cache
def _engine() -> _Engine:
    return _Engine(tempfile.TemporaryDirectory(prefix="assay-vllm-"))


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    rows: int,
    ranks: Ranks,
) -> list[list[Rollout]]:
    """`samples` answers to each prompt, in order; the same on every rank.

    Raises UserError where vLLM is not installed, and where a prompt and its answer do not fit
    the model's context.
    """
    found: list[list[Rollout]] = []
    with ranks.together():
        if find_spec("vllm") is None:
            raise UserError(
                "options.engine is 'vllm', which is not installed: run pip install "
                "'assay-lm[vllm]', or drop the option"
            )
        check_context(model, prompts, max_new_tokens)
        if ranks.main:
            vllm = importlib.import_module("vllm")
            engine = _awake(vllm, model, tokenizer, rows)
            found = _written(vllm, engine, prompts, samples, temperature, max_new_tokens, seed)
            engine.sleep(level=2)
    return ranks.share(found)


def _awake(vllm: Any, model: Any, tokenizer: Any, rows: int) -> Any:
    """The engine with the model's weights of now."""
    engine = _engine()
    engine.handed += 1
    folder = Path(engine.folder.name) / f"weights-{engine.handed}"
    with publish(folder) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
    if engine.llm is None:
        engine.llm = vllm.LLM(
            model=str(folder),
            # "auto" would take float16 for a float32 model.
            dtype=str(model.dtype).removeprefix("torch."),
            max_num_seqs=rows,
            gpu_memory_utilization=MEMORY_SHARE,
            enable_prefix_caching=True,
            enable_sleep_mode=True,
            trust_remote_code=False,
        )
        return engine.llm
    engine.llm.wake_up(tags=["weights"])
    engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
    engine.llm.wake_up(tags=["kv_cache"])
    engine.llm.reset_prefix_cache()  # its keys and values are the old weights'
    shutil.rmtree(folder.with_name(f"weights-{engine.handed - 1}"), ignore_errors=True)
    return engine.llm


def _written(
    vllm: Any,
    engine: Any,
    prompts: Sequence[Sequence[int]],
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> list[list[Rollout]]:
    """One request per answer: each has a seed of its own, and shares its prompt's cache."""
    asked, settings = [], []
    for number, prompt in enumerate(prompts):
        for which in range(samples):
            asked.append({"prompt_token_ids": [int(token) for token in prompt]})
            settings.append(
                vllm.SamplingParams(
                    n=1,
                    temperature=temperature,
                    top_p=1.0,
                    top_k=-1,
                    max_tokens=max_new_tokens,
                    seed=answer_seed(seed, number, which),
                    skip_special_tokens=True,
                )
            )
    found = []
    for output in engine.generate(asked, settings, use_tqdm=False):
        [answer] = output.outputs
        found.append(
            Rollout(
                ids=tuple(int(token) for token in answer.token_ids),
                ended=answer.finish_reason == "stop",
                text=answer.text,
                error=None if answer.token_ids else f"vLLM wrote nothing ({answer.finish_reason})",
            )
        )
    return [found[start : start + samples] for start in range(0, len(found), samples)]
