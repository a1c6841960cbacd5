"""Attention calls of a model by backend, shape and layout: which work on this device, and how fast they are."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace

import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import Tensor

from benchmarks.gpu.context import Context
from benchmarks.gpu.timing import Row, alternate, synchronise
from benchmarks.gpu.worker import Worker, WorkerError, first_line

#: diffusers' backends by the names of `policy.attention`; native is torch's own choice.
_BACKENDS = {
    "native": AttentionBackendName.NATIVE,
    "flash": AttentionBackendName._NATIVE_FLASH,
    "cudnn": AttentionBackendName._NATIVE_CUDNN,
    "efficient": AttentionBackendName._NATIVE_EFFICIENT,
    "math": AttentionBackendName._NATIVE_MATH,
    "flash-3": AttentionBackendName._FLASH_3_HUB,  # of the package `kernels`
}
_TOLERANCE = 0.02  # relative error; half-precision attention has about 0.004
_CALL_SECONDS = 30.0
_AT_ONCE = 8
#: Gradients of the output (B, heads, tokens, D): contiguous; views of (B, tokens, heads, D); of a slice of a wider
#: tensor, as in FLUX.1's single blocks.
_GRADIENTS = ("contiguous", "transposed", "slice")


@dataclass(frozen=True)
class Call:
    """An attention call, forward and backward.

    Args:
        layout: q, k, v (B, heads, tokens, D) contiguous, or views of (B, tokens, heads, D), as models make them.
        mixed: Make a call with equal lengths first, whose backward pass comes last.
        timed: Measure speed instead of errors.
    """

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
    """Every call runs in a process of its own on a GPU, since an illegal access ends the CUDA context. Errors are
    relative to attention in float32 by plain products; the backward one is the largest of the three gradients'.
    24 heads of 128, batch 1, bfloat16.
    """
    backends = [name for name in _BACKENDS if name != "flash-3" or importlib.util.find_spec("kernels")]
    heads, width, text, image = (2, 16, 8, 16) if context.tiny else (24, 128, 512, 1024)
    row, few = text + 2 * image, image  # tokens of prompt, image and reference; queries of the last block
    # An unavailable backend fails in a plain call.
    plain = [Call(backend, row, row, heads, width, "contiguous", "contiguous") for backend in backends]
    found = list(_made(plain, context, _AT_ONCE))
    yield from found
    working = [str(one["backend"]) for one in found if not str(one["status"]).startswith("unavailable")]
    calls = [call for backend in working for call in _calls(backend, row, few, heads, width)]
    yield from _made(calls[: 4 if context.tiny else None], context, _AT_ONCE)
    lengths = (row,) if context.tiny else (row, text + 8 * image)
    timed = [Call(backend, n, n, heads, width, timed=True) for n in lengths for backend in working]
    yield from _made(timed, context, 1)


def _calls(backend: str, row: int, few: int, heads: int, width: int) -> Iterator[Call]:
    """Yield equal and unequal lengths with each gradient, and after calls with equal lengths."""
    for queries in (row, few):
        call = Call(backend, queries, row, heads, width)
        yield from (replace(call, gradient=gradient) for gradient in _GRADIENTS)
        yield replace(call, layout="contiguous", gradient="contiguous", mixed=True)
    yield replace(Call(backend, few, row, heads, width), gradient="slice", mixed=True)


def _made(calls: Sequence[Call], context: Context, at_once: int) -> Iterator[Row]:
    """Yield the calls' rows; on a GPU each call has a process of its own."""
    if context.tiny:
        yield from (result(call, make_call(call, context.device)) for call in calls)
        return
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(lambda call: isolated(call, make_call, context.device), calls)


def isolated(call: Call, make: Callable[[Call, torch.device], Iterator[Row]], device: torch.device) -> Row:
    """Return the row of a call that `make` makes in a process of its own."""
    with closing(Worker()) as worker:
        return result(call, worker.run(make, call, device, seconds=_CALL_SECONDS))


def result(call: Call, steps: Iterator[Row]) -> Row:
    """Return the row of a call: the last of its `steps`, with the error that ended it if there was one."""
    row: Row = asdict(call) | {"status": "unavailable"}
    try:
        for step in steps:
            row |= step
    except WorkerError as error:
        row["status"] += f": {error}"
    except Exception as error:
        row["status"] += f": {first_line(error)}"
    return row


def make_call(call: Call, device: torch.device) -> Iterator[Row]:
    """Make a call; yield what is known before each part that may end the process."""
    attend = _backend(call.backend)
    if call.timed:
        yield {"status": "failed"}
        yield {"status": "timed", **_timed(call, attend, device)}
        return
    made = []
    for queries in [call.keys, call.queries] if call.mixed else [call.queries]:
        given = _given(replace(call, queries=queries), device)
        made.append((given, attend(*given)))
        yield {"status": "failed in the forward pass"}
    synchronise(device)
    yield {"status": "failed in the backward pass"}
    found: list[Tensor] = []
    for given, output in reversed(made):
        gradient = _gradient(call.gradient, output)
        found = [gradient, *torch.autograd.grad(output, given, gradient)]
    synchronise(device)
    # The first call is checked, whose backward pass was the last.
    given, output = made[0]
    expected = exact(given, found[0])
    forward = distance(output, expected[0])
    backward = max(distance(part, other) for part, other in zip(found[1:], expected[1:], strict=True))
    status = "ok" if max(forward, backward) < _TOLERANCE else "wrong"
    yield {"status": status, "forward_error": forward, "backward_error": backward}


def _backend(name: str) -> Callable[..., Tensor]:
    """Return attention (B, heads, tokens, D) by that backend."""
    backend = _BACKENDS[name]
    attention_dispatch._check_attention_backend_requirements(backend)
    attention_dispatch._maybe_download_kernel_for_backend(backend)

    def attend(*parts: Tensor) -> Tensor:
        across = [part.transpose(1, 2) for part in parts]
        output: Tensor = attention_dispatch.dispatch_attention_fn(*across, backend=backend)
        return output.transpose(1, 2)

    return attend


def _given(call: Call, device: torch.device) -> list[Tensor]:
    """Return queries, keys and values in the layout of the call, as leaves of autograd."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(1, n, call.heads, call.width) for n in (call.queries, call.keys, call.keys)]
    parts = [torch.randn(s, device=device, dtype=torch.bfloat16, generator=generator).transpose(1, 2) for s in shapes]
    return [(part.contiguous() if call.layout == "contiguous" else part).requires_grad_() for part in parts]


def _gradient(layout: str, output: Tensor) -> Tensor:
    """Return a gradient of the output (B, heads, tokens, D) in that layout."""
    batch, heads, tokens, width = output.shape
    wider = 5 if layout == "slice" else 1
    generator = torch.Generator(output.device).manual_seed(1)
    shape = (batch, tokens, wider * heads, width)
    made = torch.randn(shape, device=output.device, dtype=output.dtype, generator=generator)
    gradient = made[:, :, :heads].transpose(1, 2)
    return gradient.contiguous() if layout == "contiguous" else gradient


def exact(given: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
    """Return output and gradients in float32 by plain products."""
    query, key, value = leaves = [part.detach().float().requires_grad_() for part in given]
    output = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, -1) @ value
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient.float())]


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the relative error in the Euclidean norm."""
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
    products = {"forward": 2, "both": 7}  # two forward; five backward, of which one computes the scores again
    return {f"{name}_tflops": products[name] * product / found[name].per()["median"] / 1e12 for name in work}
