"""What fp32 means while something runs: matrix products and convolutions in full, or rounded to TF32.

NVIDIA's GPUs since Ampere can multiply fp32 numbers with ten bits of their fractions, several times as fast. By default
torch does that in convolutions and not in matrix products. Here it is one decision, made in one place: everything is
computed in full, but for the steps of trainings that ask for `training.tf32`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside, products and convolutions of fp32 on NVIDIA GPUs may round to TF32, or may not; then as it was before.

    Nothing changes on other devices, nor for bf16 and fp16.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
