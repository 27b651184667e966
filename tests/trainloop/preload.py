"""What a process started by minirun.start has imported before it begins."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import accelerate  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401

import trainloop.run  # noqa: F401
