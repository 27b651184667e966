"""A recipe with every kind of stage, which runs end to end in a few seconds."""

from __future__ import annotations

from typing import Any

from tests.trainloop import minirun

LENGTH = 160


def recipe_text() -> dict[str, Any]:
    """Pretrain (best handed on), siblings and their soup, sft, preferences, reward, grpo, ppo."""
    text = minirun.recipe_text()
    text["name"] = "every-stage"
    text["sources"] |= {
        "pairs": {"microworld": "pairs_safety", "documents": 60},
        "held_pairs": {"microworld": "pairs_safety", "documents": 20, "seed": 9},
        "held_facts": {"microworld": "facts", "documents": 20, "seed": 9},
        "prompts": {"microworld": "rl_math", "documents": 40},
    }
    pretrain, midtrain, sft = text["stages"]
    pretrain |= {
        "held_out": ["held_facts"],
        "best": {"suite": "tiny.yaml", "capability": "knowledge"},
        "schedule": {"kind": "cosine", "warmup": 0.1, "horizon": 1.25},
    }
    anneal = {"learning_rate": "parent", "schedule": {"kind": "linear"}, "start_from": "pretrain"}

    def tune(name: str, objective: str, source: str, **more: Any) -> dict[str, Any]:
        settings = {"name": name, "objective": objective, "mixture": {source: 1}}
        return settings | {"sequence_length": LENGTH, "learning_rate": 1e-3} | more

    rollouts = {"batch": 8, "steps": 4, "options": {"samples": 4, "max_new_tokens": 8}}
    text["stages"] = [
        pretrain,
        midtrain | anneal,
        midtrain | anneal | {"name": "sibling", "seed": 7},
        {"name": "soup", "objective": "soup", "soup": ["midtrain", "sibling"]},
        sft,
        tune("dpo", "dpo_norm", "pairs", batch=16, epochs=1, held_out=["held_pairs"]),
        tune("reward", "reward", "pairs", batch=16, epochs=1, held_out=["held_pairs"]),
        tune("grpo", "grpo", "prompts", score_every=16, **rollouts),
        tune(
            "ppo",
            "ppo",
            "prompts",
            reward_model="reward",
            start_from="dpo",
            score_every=16,
            **rollouts,
        ),
    ]
    return text
