"""Models and tokenizers: fresh from a configuration, or from a folder; offline once local.

A fresh tokenizer is a byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) whose digits are
tokens of their own, trained on the recipe's cleaned sources: the same documents give the same
tokenizer. Weights are drawn from the seed alone. Only safetensors are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError
from evalsuite.files import content_id, publish, read_jsonl, sha256_file
from evalsuite.progress import Progress, silent
from trainloop.records import Model

END = "<|end|>"
PAD = "<|pad|>"
TOKENIZER_DOCUMENTS = 20_000
"""Documents of each source that a new tokenizer is trained on."""
MODEL_FILES = (".json", ".txt", ".model", ".jinja", ".safetensors")
"""Endings of the files that decide a model's tokens and answers."""
OUR_FILES = ("checkpoint.json", "manifest.json", "optimizer.safetensors")
"""What Assay's own checkpoints hold beside them."""


def start_id(model: Model, folder: Path | None, tokenizer_data: Sequence[str], seed: int) -> str:
    """The id of the weights before the first stage: what its checkpoint ids descend from."""
    if folder is None:
        return content_id(
            ["scratch", model.config, _tokenizer_identity(model, tokenizer_data), seed]
        )
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.suffix in MODEL_FILES and file.name not in OUR_FILES and file.is_file()
    ]
    return content_id([[(f.name, sha256_file(f)) for f in files], model.chat_template])


def _is_weights(path: Path) -> bool:
    return path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")


def _tokenizer_identity(model: Model, data: Sequence[str]) -> list[Any]:
    assert model.tokenizer is not None
    return ["bpe", 1, model.tokenizer.vocab_size, list(data), model.chat_template]


def new_tokenizer(
    model: Model,
    files: Sequence[Sequence[Path]],
    data: Sequence[str],
    *,
    root: Path,
    progress: Progress = silent,
) -> Path:
    """Folder of the byte-level BPE trained on `files` (shards per source); made once.

    `data` names the content of each source's shards.
    """
    assert model.tokenizer is not None
    folder = root / "tokenizers" / content_id(_tokenizer_identity(model, data))
    if folder.is_dir():
        return folder
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    progress("tokenizer", 0, 1)
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=model.tokenizer.vocab_size,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for source in files for text in _texts(source))
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = model.chat_template
    with publish(folder) as work:
        tokenizer.save_pretrained(work)
    progress("tokenizer", 1, 1)
    return folder


def _texts(files: Sequence[Path]) -> Iterator[str]:
    count = 0
    for file in files:
        for _, row in read_jsonl(file):
            if count == TOKENIZER_DOCUMENTS:
                return
            count += 1
            yield from ([row["text"]] if "text" in row else [m["content"] for m in row["messages"]])


def load_tokenizer(folder: Path, chat_template: str | None) -> Any:
    """The tokenizer of a local folder, with the recipe's chat template when it names one."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder}: no tokenizer_config.json there; this is no Hugging Face folder")
    with _broken_files_are_a_user_error(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no end-of-text token (eos_token)")
    return tokenizer


def fresh_model(model: Model, tokenizer: Any, *, seed: int) -> Any:
    """A model of `model.config` with weights drawn from `seed`, in float32."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {k: v for k, v in model.config.items() if k != "model_type"}
    special = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    try:
        config = AutoConfig.for_model(model.config["model_type"], **(special | settings))
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).float()
    except (
        ArithmeticError,  # a division by zero heads, a number beyond the machine's
        AttributeError,
        KeyError,
        RuntimeError,
        StrictDataclassError,
        TypeError,
        ValueError,
    ) as error:
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"model config {model.config}: transformers refuses it: {first}") from error


def load_model(folder: Path) -> Any:
    """The causal language model of a local folder, in float32; safetensors only."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # ours is the one progress display
    if not any(_is_weights(f) for f in folder.iterdir()):
        raise UserError(f"{folder}: no safetensors weights there; other formats are not read")
    with _broken_files_are_a_user_error(folder):
        return AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype="float32",
        )


def load_scorer(folder: Path) -> Any:
    """The model with a scalar head (reward model, critic) of a local folder, in float32."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with _broken_files_are_a_user_error(folder):
        return AutoModelForSequenceClassification.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype="float32",
        )


def unpacked(file: Path, root: Path) -> Path:
    """A GGUF file as a Hugging Face folder with float32 safetensors under `root`; made once."""
    from transformers.utils.logging import disable_progress_bar

    from evalsuite import livemodel

    disable_progress_bar()
    folder = root / "models" / sha256_file(file)[:16]
    if not folder.is_dir():
        model, tokenizer = livemodel.load_model(file, device="cpu")
        with publish(folder) as work:
            model.float().save_pretrained(work)
            tokenizer.save_pretrained(work)
    return folder


@contextmanager
def _broken_files_are_a_user_error(folder: Path) -> Iterator[None]:
    """What the loaders raise for files that are cut short, missing or of an unknown kind."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{folder}: its files cannot be loaded ({type(error).__name__}: {reason}); "
            "fetch or save the model anew"
        ) from error
