"""A model for scoring: loaded from a folder or the hub, and borrowed without a trace.

    model, tokenizer = load_model("runs/checkpoints/ab12")
    with random_state_put_back(), modes_put_back(model):
        ...                                    # draws numbers, switches to eval mode

Weights come as safetensors only and no code of a model's author runs.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers

from evalsuite import hubdata
from evalsuite.errors import UserError


def load_model(
    name: str | Path, *, mirror: Path | None = None, device: str | None = None
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """A model and its tokenizer: a folder, the mirror's, or the hub's; safetensors only."""
    folder = hubdata.model_folder(str(name), base=Path(), mirror=mirror)
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, use_safetensors=True, dtype="auto", **options
            )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"model {name} cannot be loaded ({type(error).__name__}: {reason}); "
            "give a whole Hugging Face model folder with safetensors weights"
        ) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "safetensors":
            raise
        raise UserError(
            f"model {name}: its weights are cut short or broken ({error}); make or fetch them again"
        ) from error
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(torch.device(target)), tokenizer


@contextmanager
def random_state_put_back() -> Iterator[None]:
    """Whatever is drawn inside, python, numpy and torch go on as if nothing had been."""
    python, numpy = random.getstate(), np.random.get_state()
    cpu = torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)


@contextmanager
def modes_put_back(model: torch.nn.Module) -> Iterator[None]:
    """Each module's train mode, each parameter's requires_grad and the grad mode stay."""
    training = [(module, module.training) for module in model.modules()]
    wants_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    grad = torch.is_grad_enabled()
    model.eval()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        for module, mode in training:
            module.training = mode
        for parameter, wanted in wants_grad:
            parameter.requires_grad_(wanted)


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and warnings of the libraries below; what matters of them is in our rows."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = datasets.utils.logging.is_progress_bar_enabled()
    model_bars = transformers.utils.logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
        if model_bars:
            transformers.utils.logging.enable_progress_bar()


@contextmanager
def no_number_steps(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """The list to which each forward pass adds which rows of its batch have no usable next token.

    A row has none when its largest logit is NaN or infinite (a vocabulary that is masked in part
    has one). Such logits are put to zero, so that sampling goes on for the other rows.
    """
    steps: list[torch.Tensor] = []

    def watch(_: torch.nn.Module, __: object, out: transformers.utils.ModelOutput) -> None:
        logits = out.logits[:, -1]
        wrong = ~logits.amax(dim=-1).isfinite()
        steps.append(wrong)
        if wrong.any():
            logits[wrong] = 0.0

    hook = model.register_forward_hook(watch)
    try:
        yield steps
    finally:
        hook.remove()
