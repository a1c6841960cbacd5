"""Which attention calls work on this device: each backend by the shapes and layouts that a model gives it.

Every call is made in a process of its own, forked from a server that has imported torch and never used the device.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.context import Context
from benchmarks.gpu.sections import Row
from benchmarks.gpu.timing import alternate

#: torch's kernels by the names of `policy.attention`; native leaves the choice to torch.
_KERNELS = {
    "native": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_FLASH_3 = "flash-3"  # of the package `kernels`, by diffusers' dispatcher
_TOLERANCE = 0.02  # of the relative error; half-precision attention has some 0.004
_CALL_SECONDS = 30.0
_AT_ONCE = 8
#: q, k, v (B, heads, tokens, D): contiguous; views of (B, tokens, heads, D), as models make them; parts of one tensor.
_LAYOUTS = ("contiguous", "transposed", "packed")
#: Gradients of the output: contiguous; views of (B, tokens, heads, D); of a slice of a wider tensor, as in FLUX.1's
#: single blocks; one number expanded, as that of a sum.
_GRADIENTS = ("contiguous", "transposed", "slice", "expanded")


@dataclass(frozen=True)
class Call:
    """An attention call, forward and backward. `timed` measures it; `mixed` makes the call with equal lengths first."""

    backend: str
    queries: int
    keys: int
    heads: int
    width: int
    layout: str = "transposed"
    gradient: str = "transposed"
    mixed: bool = False
    timed: bool = False


def attention(context: Context) -> Iterator[Row]:
    backends = [*_KERNELS, *([_FLASH_3] if importlib.util.find_spec("kernels") else [])]
    heads, width, text, image = (2, 16, 8, 16) if context.tiny else (24, 128, 512, 1024)
    row, few = text + 2 * image, image  # tokens of prompt, image and reference; the last block's queries
    # First one plain call of each: a backend that is not there fails in it alone.
    plain = [Call(backend, row, row, heads, width, "contiguous", "contiguous") for backend in backends]
    there = []
    for found in isolated(plain, context.device, _AT_ONCE):
        yield found
        if not str(found["status"]).startswith("unavailable"):
            there.append(str(found["backend"]))
    if _FLASH_3 not in backends:
        yield {"backend": _FLASH_3, "status": "unavailable: the package `kernels` is not installed"}
    calls = [call for backend in backends if backend in there for call in _calls(backend, row, few, heads, width)]
    yield from isolated(calls[:4] if context.tiny else calls, context.device, _AT_ONCE)
    lengths = (row,) if context.tiny else (row, text + 8 * image)
    timed = [Call(backend, n, n, heads, width, timed=True) for n in lengths for backend in backends if backend in there]
    yield from isolated(timed, context.device, 1)


def _calls(backend: str, row: int, few: int, heads: int, width: int) -> Iterator[Call]:
    """Equal and unequal lengths by each layout with one gradient, and by each gradient with one layout."""
    for queries in (row, few):
        call = Call(backend, queries, row, heads, width)
        yield from (replace(call, layout=layout) for layout in _LAYOUTS)
        yield from (replace(call, gradient=gradient) for gradient in _GRADIENTS if gradient != call.gradient)
        yield replace(call, layout="contiguous", gradient="contiguous", mixed=True)
    yield replace(Call(backend, few, row, heads, width), gradient="slice", mixed=True)


def isolated(
    calls: Sequence[Call], device: torch.device, at_once: int, report: Callable[..., None] | None = None
) -> Iterator[Row]:
    """Each call's row, made in a process of its own by `report`, so many at a time."""
    # Forks of it find torch imported. A fork of this process would not do: it may have used the device.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__, "torch.fx.experimental.symbolic_shapes"])  # the latter is autograd's
    at_once = min(at_once, os.cpu_count() or 1)
    waiting = list(reversed(calls))
    running: dict[Any, tuple[Any, Connection, Call, float]] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            call = waiting.pop()
            receiver, sender = processes.Pipe(duplex=False)
            process = processes.Process(target=report or _report, args=(sender, call, str(device)), daemon=True)
            process.start()
            sender.close()
            running[process.sentinel] = process, receiver, call, time.monotonic() + _CALL_SECONDS
        ended = wait(list(running), timeout=0.2)
        for sentinel, (process, receiver, call, deadline) in list(running.items()):
            if sentinel not in ended and time.monotonic() < deadline:
                continue
            late = sentinel not in ended
            if late:
                process.kill()
            process.join()
            del running[sentinel]
            yield _settings(call) | _reported(receiver, "no answer" if late else _exit(process.exitcode))


def _settings(call: Call) -> Row:
    order = ", after equal lengths" if call.mixed else ""
    return asdict(call) | {"queries": f"{call.queries}{order}"}


def _reported(receiver: Connection, otherwise: str) -> Row:
    """The last row that a call's process has sent; it sends one before each part that may end it."""
    row: Row = {"status": "failed"}
    complete = False
    while receiver.poll():
        try:
            row = receiver.recv()
        except EOFError:
            break
        complete = bool(row.pop("complete", False))
    receiver.close()
    return row if complete else row | {"status": f"{row['status']}: {otherwise}"}


def _exit(code: int | None) -> str:
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"


def _report(sender: Connection, call: Call, device: str) -> None:
    """In the call's own process: send what comes of it, step by step."""
    row: Row = {"status": "unavailable"}

    def send(status: str, *, complete: bool = False, **values: float) -> None:
        row.update(values, status=status)
        sender.send(row | {"complete": complete})

    try:
        send("unavailable")
        _work(call, torch.device(device), send)
    except Exception as error:
        send(f"{row['status']}: {type(error).__name__}: {error}".splitlines()[0], complete=True)


def _work(call: Call, device: torch.device, send: Callable[..., None]) -> None:
    attend = _backend(call.backend)
    if call.timed:
        send("failed")
        send("timed", complete=True, **_timed(call, attend, device))
        return
    lengths = [call.keys, call.queries] if call.mixed else [call.queries]
    made = []
    for queries in lengths:
        given = _given(replace(call, queries=queries), device)
        made.append((given, attend(*given)))
        send("failed in the forward pass")
    _finish(device)
    send("failed in the backward pass")
    found = []
    for given, output in reversed(made):
        gradient = _gradient(call.gradient, output)
        found = [gradient, *torch.autograd.grad(output, given, gradient)]
    _finish(device)
    # The last forward pass was the first backward pass; what is checked is the first call, or the only one.
    given, output = made[0]
    expected = _exact([part.detach() for part in given], found[0])
    forward = _distance(output, expected[0])
    backward = max(_distance(part, other) for part, other in zip(found[1:], expected[1:], strict=True))
    wrong = not max(forward, backward) < _TOLERANCE
    send("wrong" if wrong else "ok", complete=True, forward_error=forward, backward_error=backward)


def _backend(name: str) -> Callable[..., Tensor]:
    """Attention (B, heads, tokens, D) by that backend."""
    if name == _FLASH_3:
        from diffusers.models import attention_dispatch

        backend = attention_dispatch.AttentionBackendName._FLASH_3_HUB
        attention_dispatch._check_attention_backend_requirements(backend)
        attention_dispatch._maybe_download_kernel_for_backend(backend)

        def flash_3(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            across = [part.transpose(1, 2) for part in (query, key, value)]
            output: Tensor = attention_dispatch.dispatch_attention_fn(*across, backend=backend)
            return output.transpose(1, 2)

        return flash_3
    kernel = _KERNELS[name]
    if kernel is None:
        return scaled_dot_product_attention

    def by_kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return scaled_dot_product_attention(query, key, value)

    return by_kernel


def _given(call: Call, device: torch.device) -> list[Tensor]:
    """Queries, keys and values in the layout of the call, as leaves of autograd."""
    draws = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16, generator=draws)

    if call.layout == "contiguous":
        parts = [normal(1, call.heads, n, call.width) for n in (call.queries, call.keys, call.keys)]
    elif call.layout == "transposed":
        parts = [normal(1, n, call.heads, call.width).transpose(1, 2) for n in (call.queries, call.keys, call.keys)]
    else:
        together = normal(1, call.keys, 3, call.heads, call.width).unbind(2)
        parts = [part.transpose(1, 2) for part in (together[0][:, : call.queries], *together[1:])]
    return [part.requires_grad_() for part in parts]


def _gradient(layout: str, output: Tensor) -> Tensor:
    """A gradient of the output (B, heads, tokens, D) in that layout."""
    batch, heads, tokens, width = output.shape
    draws = torch.Generator(output.device).manual_seed(1)
    if layout == "expanded":
        return output.new_ones(()).expand(output.shape)
    wider = 5 if layout == "slice" else 1
    made = torch.randn(batch, tokens, wider * heads, width, device=output.device, dtype=output.dtype, generator=draws)
    gradient = made[:, :, :heads].transpose(1, 2)
    return gradient.contiguous() if layout == "contiguous" else gradient


def _exact(given: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
    """Output and gradients in float32 by plain products."""
    query, key, value = leaves = [part.float().requires_grad_() for part in given]
    output = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, -1) @ value
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient.float())]


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().float() - expected).norm() / expected.norm())


def _timed(call: Call, attend: Callable[..., Tensor], device: torch.device) -> Row:
    given = _given(call, device)
    gradient = _gradient(call.gradient, attend(*given))
    work = {
        "forward": lambda: attend(*[part.detach() for part in given]),
        "both": lambda: torch.autograd.grad(attend(*given), given, gradient),
    }
    found = alternate(work, device, repeats=10, warm=3)
    product = 2 * call.heads * call.queries * call.keys * call.width
    # Two products forward; five backward, the scores being made again.
    products = {"forward": 2, "both": 7}
    return {f"{name}_tflops": products[name] * product / found[name].per()["median"] / 1e12 for name in work}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
