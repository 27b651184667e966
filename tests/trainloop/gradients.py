"""Gradients of a batch over however many processes run this; for test_distributed.py.

RANK=0 WORLD_SIZE=2 ... python -m tests.trainloop.gradients RECIPE RUNS OUT.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from evalsuite.files import write_json
from tests.trainloop import minirun
from trainloop import data, train
from trainloop import model as models
from trainloop.objectives import load_objective
from trainloop.run import plan_stages

ROWS = 3
"""Of the batch's four: an odd number cannot be shared out evenly."""


def gradients(recipe: Path, root: Path) -> dict[str, Any]:
    """Losses and float64 gradients of two batches of a finished mini run's first stage."""
    prepared = minirun.ready(recipe, root)
    plan = plan_stages(prepared, variant=None, seed=0)[0]
    tokenizer = models.load_tokenizer(next((root / "tokenizers").iterdir()), None)
    objective = load_objective("next_token")
    tokens = {
        name: data.tokenise(
            name,
            prepared.clean[name].files,
            tokenizer,
            "gradients",
            objective,
            minirun.LENGTH,
            root=root,
            data_id=prepared.clean[name].id,
        )
        for name in plan.stage.mixture
    }
    batches = data.plan_batches(tokens, plan.stage, objective, seed=plan.seed)
    accelerator = train.make_accelerator()
    model = models.fresh_model(prepared.recipe.model, tokenizer, seed=0).double()
    ready = accelerator.prepare(model)
    found: dict[str, Any] = {"ranks": accelerator.num_processes, "loss": [], "gradients": []}
    for step in range(2):
        whole = batches.batch(step)
        batch = data.Batch(*(getattr(whole, name)[:ROWS] for name in data.Batch.__slots__))
        part = train.backward_step(ready, batch, objective, accelerator, micro_batch=1)
        found["loss"].append(float(accelerator.reduce(part, "sum")))
        found["gradients"].append([p.grad.ravel().tolist() for p in model.parameters()])
        ready.zero_grad()
    found["main"] = accelerator.is_main_process
    accelerator.end_training()
    return found


if __name__ == "__main__":
    result = gradients(Path(sys.argv[1]), Path(sys.argv[2]))
    if result.pop("main"):
        write_json(Path(sys.argv[3]), result)
