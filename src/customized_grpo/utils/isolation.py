"""Random states and settings of the process around calls of a user's own code."""

from __future__ import annotations

import asyncio
import builtins
import os
import random
import signal
import sys
import threading
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from customized_grpo.utils.noise import generator

T = TypeVar("T")

#: Held while a state is changed, and during a step of a coroutine: none is restored in the midst of another's step.
_SWITCHING = threading.RLock()
_stepping = False  # whether a coroutine's step is running


def seed_all(*key: int | str) -> None:
    """Seed the global random numbers of Python, NumPy and torch by `key` alone."""
    seed = generator(*key).initial_seed()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    # Not torch.manual_seed, which queues a call each time until CUDA is initialised.
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@dataclass(frozen=True)
class _State:
    """State of the process, at one moment, that user code may change."""

    builtins: dict[str, Any]
    random: tuple[Any, Any, torch.Tensor]
    cuda: list[torch.Tensor] | None
    dtype: torch.dtype
    device: torch.device
    grad: bool
    threads: int
    deterministic: tuple[bool, bool]
    cudnn: tuple[bool, bool]
    precision: str
    folder: str | None
    handlers: dict[int, Any]
    streams: tuple[Any, Any]
    recursion: int
    modules: tuple[str, ...]  # folders that modules are imported from

    @staticmethod
    def now() -> _State:
        folder = None
        with suppress(OSError):  # of a directory that was removed
            folder = os.getcwd()
        return _State(
            builtins=dict(vars(builtins)),
            random=(random.getstate(), np.random.get_state(), torch.get_rng_state()),
            cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,
            dtype=torch.get_default_dtype(),
            device=torch.get_default_device(),
            grad=torch.is_grad_enabled(),
            threads=torch.get_num_threads(),
            deterministic=(
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            cudnn=(torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
            precision=torch.get_float32_matmul_precision(),
            folder=folder,
            handlers={number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
            streams=(sys.stdout, sys.stderr),
            recursion=sys.getrecursionlimit(),
            modules=tuple(sys.path),
        )

    def restore(self) -> None:
        vars(builtins).update(self.builtins)
        random.setstate(self.random[0])
        np.random.set_state(self.random[1])
        torch.set_rng_state(self.random[2])
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
        torch.set_default_dtype(self.dtype)
        if torch.get_default_device() != self.device:
            torch.set_default_device(None if self.device.type == "cpu" else self.device)
        torch.set_grad_enabled(self.grad)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(self.deterministic[0], warn_only=self.deterministic[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = self.cudnn
        if torch.get_float32_matmul_precision() != self.precision:
            torch.set_float32_matmul_precision(self.precision)
        if self.folder is not None:
            with suppress(FileNotFoundError):  # of a directory that user code removed
                os.chdir(self.folder)
        # One that was closed cannot be opened again; a new one takes its number before another file does.
        sys.stdout, sys.stderr = (open(os.devnull, "w") if _is_closed(one) else one for one in self.streams)  # noqa: SIM115
        if sys.getrecursionlimit() < self.recursion:
            sys.setrecursionlimit(self.recursion)
        sys.path += [folder for folder in self.modules if folder not in sys.path]
        for number, handler in self.handlers.items() if _on_main() else ():
            if handler is not None and signal.getsignal(number) is not handler:  # None: not set by Python
                signal.signal(number, handler)


@contextmanager
def isolated(*key: int | str) -> Iterator[None]:
    """Seed random numbers by `key` inside the block, and undo what it changes for the rest of the process.

    Restored are the random states of Python, NumPy and torch, torch's default dtype and device, gradient mode, number
    of threads, deterministic flags and precision of matrix products, the working directory, standard output and error,
    a recursion limit that was lowered, built-in names that were removed or replaced, folders that were removed from
    sys.path, and on the main thread the handlers of SIGINT and SIGTERM.
    """
    with _SWITCHING:
        outside = _State.now()
        seed_all(*key)
    try:
        yield
    finally:
        with _SWITCHING:
            outside.restore()


def isolated_coroutine(body: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
    """Return a coroutine that runs `body` isolated: what a step changes is in force in its later steps only.

    It begins with the random states and settings that are in force when this is called. Tasks that it creates are
    isolated in the same way, each with random numbers of its own, on an event loop with `isolated_task` as factory. An
    exit or interrupt that it raises becomes a RuntimeError: either would end the loop, and its waiters would wait for
    ever.
    """
    state = _State.now()

    @types.coroutine
    def steps() -> Generator[Any, Any, T]:
        global _stepping
        nonlocal state
        resume: Callable[[Any], Any] = body.send
        given: Any = None
        while True:
            with _SWITCHING:
                outside = _State.now()
                state.restore()
                _stepping = True
                try:
                    waited_for = resume(given)
                except StopIteration as ended:
                    result: T = ended.value
                    return result
                except (SystemExit, KeyboardInterrupt) as error:
                    raise RuntimeError(f"{type(error).__name__}: {error}") from error
                finally:
                    _stepping = False
                    state = _State.now()
                    outside.restore()
            try:
                resume, given = body.send, (yield waited_for)
            except BaseException as error:  # as of a task that is cancelled
                resume, given = body.throw, error

    async def run() -> T:
        return await steps()

    return run()


def isolated_task(loop: asyncio.AbstractEventLoop, body: Any, **options: Any) -> asyncio.Task[Any]:
    """Create a task, isolated if an isolated coroutine creates it; the factory of an event loop's tasks."""
    if _stepping:
        with isolated("task", random.getrandbits(63)):
            body = isolated_coroutine(body)
    return asyncio.Task(body, loop=loop, **options)


def _is_closed(stream: Any) -> bool:
    return bool(getattr(stream, "closed", False))


def _on_main() -> bool:
    return threading.current_thread() is threading.main_thread()
