"""A reward model made of a language model: its body, and a fresh scalar head.

    scorer = reward_model(models.load_model(folder), tokenizer, seed=0)
    scorer.save_pretrained(folder)            # a Hugging Face sequence classifier with one label

The head's weights are drawn from N(0, 1 / (d + 1)), d being the width it reads (Stiennon et al.
2020, arXiv:2009.01325; Huang et al. 2024, arXiv:2403.17031): so first scores have a deviation of
about 1 for a body whose outputs have unit size. It has no bias: only differences are trained.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from evalsuite.errors import UserError


def reward_model(model: Any, tokenizer: Any, *, seed: int) -> Any:
    """A sequence classifier with one label, in float32, around a copy of the model's body.

    The causal language model stays as it is. The head depends on `seed` and the width alone.
    Raises UserError for an architecture that transformers cannot score with.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    config = deepcopy(model.config)
    config.num_labels = 1
    config.pad_token_id = (
        tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    )
    kind = type(model).__name__
    try:
        with torch.device("meta"):
            scorer = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise UserError(
            f"{kind}: transformers has no sequence classifier of this architecture; start the "
            "reward stage from another model"
        ) from None
    head = getattr(scorer, "score", None)
    place = scorer.base_model_prefix
    alike = type(getattr(scorer, place, None)) is type(model.base_model)
    if not isinstance(head, torch.nn.Linear) or not alike:
        raise UserError(
            f"{kind}: its sequence classifier {type(scorer).__name__} is not the same body with a "
            "linear head 'score'; start the reward stage from another model"
        )
    setattr(scorer, place, deepcopy(model.base_model).float())
    scorer.score = torch.nn.Linear(head.in_features, 1, bias=False)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        values = torch.randn(scorer.score.weight.shape, generator=drawn, dtype=torch.float64)
        scorer.score.weight.copy_(values / (head.in_features + 1) ** 0.5)
    scorer.config.architectures = [type(scorer).__name__]
    return scorer.to(next(model.parameters()).device)
