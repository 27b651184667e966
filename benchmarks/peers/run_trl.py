"""Another trainer on a task of ours, one optimizer step per turn; runs in its own environment.

    python run_trl.py TASK.json     stdin: a line per step to take; stdout: a JSON line per step

`TASK.json` is written by turns.py, which says what its keys mean. The trainer gets token ids, in
our order, and its own collator makes batches of them: for transformers' Trainer padded rows, for
SFTTrainer rows packed with positions (packing, strategy bfd), for DPOTrainer padded pairs, for
GRPOTrainer and PPOTrainer prompts. A step begins when the line arrives, so what is timed holds
loading, collating, forward, backward and the optimizer, and nothing of what other sides do
meanwhile. `shipped` leaves precision, gradient checkpointing and loss at the library's defaults;
logging, saving and evaluation are off either way.
"""

import contextlib
import itertools
import json
import os
import resource
import sys
import tempfile
import time

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

transformers.logging.set_verbosity_error()


class Turns(transformers.TrainerCallback):
    """Says what each step cost, and waits for the next line before the next step."""

    def __init__(self, out):
        self.out = out
        self.losses = []
        self.tokens = 0

    def wait(self):
        if not sys.stdin.readline():
            sys.exit()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def on_train_begin(self, args, state, control, **kwargs):
        self.say({"ready": True})
        self.wait()

    def on_step_end(self, args, state, control, **kwargs):
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        loss = float(sum(self.losses)) if self.losses else None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.say({"cpu": cpu, "wall": wall, "loss": loss, "written": self.tokens, "peak": peak})
        self.losses, self.tokens = [], 0
        self.wait()

    def say(self, row):
        self.out.write(json.dumps(row) + "\n")
        self.out.flush()


def watched(trainer, turns):
    """`trainer`, a class, whose steps leave their losses with `turns`."""

    class Watched(trainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            turns.losses.append(loss.detach())
            return loss

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset  # it holds token ids already

    return Watched


def settings(task, kind, folder, **more):
    """The trainer's configuration: ours in all that changes the work, unless `shipped`."""
    fair = {} if task["shipped"] else {"bf16": False, "gradient_checkpointing": False}
    return kind(
        output_dir=folder,
        use_cpu=True,
        max_steps=task["steps"],
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=task["weight_decay"],
        adam_beta2=task["beta2"],
        max_grad_norm=task["clip"],
        optim=task["optimizer"],
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        seed=task["seed"],
        **fair,
        **more,
    )


def spread(documents, parts):
    """The documents in `parts` groups of like size in tokens: longest first, to the emptiest."""
    groups = [[] for _ in range(parts)]
    for document in sorted(documents, key=lambda d: -len(d["ids"])):
        min(groups, key=lambda g: sum(len(d["ids"]) for d in g)).append(document)
    return [group or [{"ids": [0], "labels": [-100]}] for group in groups]


def neighbours(documents, parts, *, by_length):
    """The documents in `parts` groups; of neighbours in length they need the least padding."""
    ranked = sorted(documents, key=lambda d: -len(d["ids"])) if by_length else documents
    edges = [round(n * len(ranked) / parts) for n in range(parts + 1)]
    groups = [ranked[a:b] for a, b in itertools.pairwise(edges)]
    # A document without labels fills up an update of fewer documents than micro-batches.
    return [group or [{"ids": [0], "labels": [-100]}] for group in groups]


def padded(groups):
    """Collator of transformers' Trainer: one group of documents as rows of one length."""
    [documents] = groups
    longest = max(len(d["ids"]) for d in documents)

    def rows(key, filler):
        return torch.tensor([d[key] + [filler] * (longest - len(d[key])) for d in documents])

    mask = [[1] * len(d["ids"]) + [0] * (longest - len(d["ids"])) for d in documents]
    attention = {"attention_mask": torch.tensor(mask)}
    return {"input_ids": rows("ids", 0), "labels": rows("labels", -100)} | attention


def trainer(task, steps, model, tokenizer, folder, turns):
    """transformers' Trainer on padded rows."""
    grouped = [
        group
        for step in steps
        for group in neighbours(step, task["parts"], by_length=task["sorted"])
    ]
    args = settings(
        task,
        transformers.TrainingArguments,
        folder,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=task["parts"],
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
    )
    kind = watched(transformers.Trainer, turns)
    return kind(model, args, train_dataset=grouped, data_collator=padded, callbacks=[turns])


def packed(task, steps, model, tokenizer, folder, turns):
    """TRL's SFTTrainer, packed: rows that hold several documents, told apart by positions."""
    rows = [row for step in steps for row in spread(step, task["parts"])]
    columns = {
        "input_ids": [[i for d in row for i in d["ids"]] for row in rows],
        "labels": [[i for d in row for i in d["labels"]] for row in rows],
        "seq_lengths": [[len(d["ids"]) for d in row] for row in rows],
    }
    args = settings(
        task,
        trl.SFTConfig,
        folder,
        packing=True,
        max_length=task["row"],
        per_device_train_batch_size=1,
        gradient_accumulation_steps=task["parts"],
        train_sampling_strategy="sequential",
        **({"loss_type": task["loss"]} if task.get("loss") else {}),
    )
    return watched(trl.SFTTrainer, turns)(
        model,
        args,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        callbacks=[turns],
    )


def dpo(task, steps, model, tokenizer, folder, turns):
    """TRL's DPOTrainer; `cached` computes the reference's log-probabilities before the steps."""
    pairs = [
        pair
        for step in steps
        for pair in sorted(step, key=lambda p: -max(len(p["chosen"]), len(p["rejected"])))
    ]
    columns = {f"{key}_ids": [p[key] for p in pairs] for key in ("prompt", "chosen", "rejected")}
    args = settings(
        task,
        trl.DPOConfig,
        folder,
        beta=task["beta"],
        max_length=None,
        precompute_ref_log_probs=task["cached"],
        per_device_train_batch_size=len(steps[0]) // task["parts"],
        gradient_accumulation_steps=task["parts"],
        train_sampling_strategy="sequential",
    )
    # The model is given as a folder's weights: DPOTrainer loads its reference from the same place.
    return watched(trl.DPOTrainer, turns)(
        model,
        ref_model=None if task["cached"] else load(task),
        args=args,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        callbacks=[turns],
    )


def grpo(task, steps, model, tokenizer, folder, turns):
    """TRL's GRPOTrainer: `samples` answers to each prompt, one update per rollout."""

    def variety(completions, completion_ids, **kwargs):
        turns.tokens += sum(map(len, completion_ids))
        return [len(set(text)) / max(len(text), 1) for text in completions]

    prompts = [prompt for step in steps for prompt in step]
    rows = len(steps[0]) * task["samples"]
    args = settings(
        task,
        trl.GRPOConfig,
        folder,
        num_generations=task["samples"],
        max_completion_length=task["max_new_tokens"],
        temperature=1.0,
        beta=task["beta"],
        epsilon=task["clip_low"],
        epsilon_high=task["clip_high"],
        loss_type="grpo",
        shuffle_dataset=False,
        per_device_train_batch_size=rows // task["parts"],
        gradient_accumulation_steps=task["parts"],
    )
    return watched(trl.GRPOTrainer, turns)(
        model,
        reward_funcs=variety,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [p["text"] for p in prompts]}),
        processing_class=tokenizer,
        callbacks=[turns],
    )


def ppo(task, steps, model, tokenizer, folder, turns):
    """TRL's PPOTrainer: one answer per row, reward model and critic of the policy's size."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    prompts = [p["ids"] for step in steps for p in step for _ in range(task["samples"])]
    rows = len(steps[0]) * task["samples"]
    args = settings(
        task | {"steps": -1},
        PPOConfig,
        folder,
        total_episodes=rows * task["steps"],
        per_device_train_batch_size=rows // task["parts"],
        gradient_accumulation_steps=task["parts"],
        num_mini_batches=1,
        num_ppo_epochs=task["epochs"],
        response_length=task["max_new_tokens"],
        local_rollout_forward_batch_size=rows,
        temperature=1.0,
        kl_coef=task["beta"],
        cliprange=task["clip_low"],
        num_sample_generations=0,
    )
    turns.rows = rows * task["max_new_tokens"]

    class Watched(PPOTrainer):
        def log(self, logs, *args, **kwargs):
            turns.losses = [torch.tensor(logs["loss/policy_avg"])]
            turns.tokens = turns.rows

    def scored():
        one = AutoModelForSequenceClassification.from_pretrained(task["reward_model"])
        return one.float()

    return Watched(
        args=args,
        processing_class=tokenizer,
        model=model,
        ref_model=load(task),
        reward_model=scored(),
        value_model=scored(),
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        callbacks=[turns],
    )


def load(task):
    """The starting weights, in float32."""
    return AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)


def main():
    """Read the task, hand stdout to the turns alone, train."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    with open(sys.argv[1], encoding="utf-8") as handle:
        task = json.load(handle)
    with open(task["data"], encoding="utf-8") as handle:
        steps = [step for step in map(json.loads, handle)][: task["steps"]]
    torch.manual_seed(task["seed"])
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    makers = {"trainer": trainer, "packed": packed, "dpo": dpo, "grpo": grpo, "ppo": ppo}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        made = makers[task["side"]](task, steps, load(task), tokenizer, folder, Turns(out))
        made.train()


if __name__ == "__main__":
    main()
