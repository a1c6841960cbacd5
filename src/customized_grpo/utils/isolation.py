"""Random states and settings of the process around calls of a user's own code."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch

from customized_grpo.utils.noise import generator


def seed_all(*key: int | str) -> None:
    """Seed the global random numbers of Python, NumPy and torch by `key` alone."""
    seed = generator(*key).initial_seed()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    # Not torch.manual_seed, which queues a call each time until CUDA is initialised.
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def isolated(*key: int | str) -> Iterator[None]:
    """Seed random numbers by `key` inside the block, and undo what it changes for the rest of the process.

    Restored are the random states of Python, NumPy and torch, torch's default dtype and device, gradient mode, number
    of threads, deterministic flags and precision of matrix products, and the working directory.
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    folder = None
    with suppress(OSError):  # of a directory that was removed
        folder = os.getcwd()
    dtype, device, grad, threads = (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    )
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    precision = torch.get_float32_matmul_precision()
    seed_all(*key)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if torch.get_float32_matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)
        if folder is not None:
            os.chdir(folder)
