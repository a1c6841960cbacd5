"""Parameters and activations of a policy, counted on torch's meta device without weights.

The policy's own code runs there: operations create tensors with shapes but no numbers, whose bytes are added up while
they live. Gradient checkpointing, casts and copies therefore count as they are. Activations are those of a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from customized_grpo.config import ConfigError, PolicyConfig
from customized_grpo.policies import build_policy
from customized_grpo.policies.checkpointing import checkpointing
from customized_grpo.policies.live import LiveBytes
from customized_grpo.policies.pipelines import NEGATIVE, REFERENCE, PipelinePolicy
from customized_grpo.protocols import Conditions
from customized_grpo.utils.named import NamedError, find

#: Settings of a policy that do not change its shapes.
_IRRELEVANT = {"offload": False, "conditions": None, "quantise": None, "quantise_text_encoders": None, "compile": False}
_LONGEST_LIST = 3  # blocks of a kind from which the memory of further ones is extrapolated
#: Bytes per weight of a quantised linear layer. nf4: 4 bits, and per 64 weights one absolute maximum, itself quantised
#: to a byte, of which 256 share a float32 (QLoRA, arXiv 2305.14314, double quantisation).
_QUANTISED = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}


@dataclass(frozen=True)
class Model:
    """Number of parameters; `linear` of them, in `rows` rows, are weights of linear layers and can be quantised."""

    parameters: int
    linear: int = 0
    rows: int = 0

    def bytes(self, width: int, quantise: str | None = None) -> int:
        """Return the bytes of the weights, `width` each, with quantised linear layers (int8: one scale per row)."""
        if quantise is None:
            return self.parameters * width
        scales = self.rows * width if quantise == "int8" else 0
        return (self.parameters - self.linear) * width + int(self.linear * _QUANTISED[quantise]) + scales


@dataclass(frozen=True)
class Shapes:
    """Sizes of a policy that its memory depends on.

    Attributes:
        transformer: Parameters without the LoRA.
        text_encoders: Parameters by name.
        vae: Parameters of the VAE.
        trained: Number of trained parameters, in `trained_tensors` tensors of `trained_bytes` bytes.
        largest_linear: Parameters of the transformer's largest linear layer.
        latent: Elements of one image's latents.
        condition: Bytes of one pair's conditioning.
        forward: Bytes of activations of a forward pass for one image; likewise `training` (forward and backward),
            `encode` and `decode` (of the VAE), and `waiting` (activations that are offloaded to host memory).
        forward_flops: Floating-point operations of a forward pass for one image; so is `training_flops` (forward
            and backward, with what gradient checkpointing repeats).
    """

    transformer: Model
    text_encoders: dict[str, Model]
    vae: Model
    trained: int
    trained_tensors: int
    trained_bytes: int
    largest_linear: int
    latent: int
    condition: int
    forward: int
    training: int
    encode: int
    decode: int
    waiting: int
    forward_flops: int
    training_flops: int


def shapes_of(config: PolicyConfig, references: int) -> Shapes:
    """Return the shapes of a policy for pairs with that number of references.

    Raises:
        ConfigError: The policy is a class of the user's own that is no `PipelinePolicy`.
        ModelError: There are no configs of the model.
    """
    if ":" in config.kind:
        try:
            found = find(config.kind)
        except NamedError as error:
            raise ConfigError(f"policy.kind: {error}") from error
        if not (isinstance(found, type) and issubclass(found, PipelinePolicy)):
            raise ConfigError(f"policy.kind: {config.kind} has no plan; derive the class from PipelinePolicy")
    return _shapes(config.model_copy(update={**_IRRELEVANT, "device": "meta"}).model_dump_json(), references)


@lru_cache(maxsize=32)
def _shapes(config_json: str, references: int) -> Shapes:
    config = PolicyConfig.model_validate_json(config_json)
    policy = build_policy(config)
    assert isinstance(policy, PipelinePolicy)
    pipeline, transformer = policy._pipeline, policy._transformer
    trained = list(policy.trainable().values())
    whole = count(transformer)
    own = 0 if config.lora is None else sum(weight.numel() for weight in trained)
    adapted = [m for n, m in transformer.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in n]
    conditions = _conditions(policy, references)
    latents = torch.empty(1, *policy.latent_shape, device="meta")
    sigma = torch.empty(1, device="meta")
    for weight in trained:
        weight.grad = torch.empty_like(weight)

    def forward() -> None:
        with torch.no_grad():
            policy.velocity(latents, sigma, conditions)

    def training() -> None:
        torch.autograd.backward(policy.velocity(latents, sigma, conditions).square().mean())

    # Without gradients, each block frees its activations; only keys and values of references may stay.
    forward_bytes, forward_flops = of_all_blocks(transformer, partial(measure, forward))
    training_bytes, training_flops = of_all_blocks(transformer, partial(measure, training))
    waiting = 0
    if config.offload_activations:
        transformer.enable_gradient_checkpointing(checkpointing(policy.device, on_host=False))
        waiting = of_all_blocks(transformer, partial(measure, training))[0] - training_bytes
    encode, decode = _vae_activations(pipeline.vae, config)
    linear, rows = sum(m.weight.numel() for m in adapted), sum(m.out_features for m in adapted)
    return Shapes(
        transformer=Model(whole.parameters - own, linear, rows),
        text_encoders={name: count(getattr(pipeline, name)) for name in policy._placement.encoders},
        vae=count(pipeline.vae),
        trained=sum(weight.numel() for weight in trained),
        trained_tensors=len(trained),
        trained_bytes=sum(weight.numel() * weight.element_size() for weight in trained),
        largest_linear=max(module.weight.numel() for module in adapted),
        latent=latents.numel(),
        condition=sum(row.numel() * row.element_size() for row in conditions.rows.values()),
        forward=forward_bytes,
        training=training_bytes,
        encode=encode,
        decode=decode,
        waiting=waiting,
        forward_flops=forward_flops,
        training_flops=training_flops,
    )


def count(model: nn.Module) -> Model:
    """Count the parameters of a model, tied ones once."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights = {id(module.weight): module.weight.numel() for module in linear}
    rows = sum(module.out_features for module in linear)
    return Model(sum(weight.numel() for weight in model.parameters()), sum(weights.values()), rows)


def _conditions(policy: PipelinePolicy, references: int) -> Conditions:
    """Return conditioning of one pair on meta, with a long prompt."""
    config = policy._config
    dtype = getattr(torch, config.dtype)
    rows = {n: torch.empty(1, *s, dtype=dtype, device="meta") for n, s in policy.prompt_shapes(references).items()}
    if config.true_cfg != 1:
        rows |= {f"{NEGATIVE}{name}": torch.empty_like(row) for name, row in rows.items()}
    height, width = max(config.reference_sizes or [(1024, 1024)], key=prod)
    image = Image.new("RGB", (width, height))
    with torch.no_grad():
        for k in range(1, references + 1):
            rows[REFERENCE.format(k)] = policy.encode_reference(image, references)
    return Conditions(rows, policy.latent_shape)


def _vae_activations(vae: Any, config: PolicyConfig) -> tuple[int, int]:
    """Return the bytes of encoding and of decoding one image of the largest size."""
    frames = (1,) if hasattr(vae, "temperal_downsample") else ()  # a VAE of videos
    pixels = torch.empty(1, 3, *frames, *config.largest_size, dtype=vae.dtype, device="meta")
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        return measure(lambda: vae.encode(pixels))[0], measure(lambda: vae.decode(latents))[0]


def of_all_blocks(transformer: nn.Module, count: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    """Extrapolate `count()` to the whole transformer from few blocks, since each more of a kind adds as much.

    Args:
        transformer: A diffusers model; it has fewer blocks while `count` is called.
        count: Computes with the transformer, and counts things that grow with its blocks by equal amounts.
    """
    lists = {name: part for name, part in transformer.named_children() if isinstance(part, nn.ModuleList)}
    few = {name: min(len(blocks), _LONGEST_LIST - 1) for name, blocks in lists.items()}
    with _cut(transformer, few):
        total = base = count()
    for name, blocks in few.items():
        left = len(lists[name]) - blocks
        if left:
            with _cut(transformer, {**few, name: blocks + 1}):
                more = count()
            total = tuple(t + left * (m - b) for t, m, b in zip(total, more, base, strict=True))
    return total


@contextmanager
def _cut(transformer: nn.Module, counts: dict[str, int]) -> Iterator[None]:
    """Shorten each list of blocks to so many: its first ones and its last, which may differ."""
    whole: dict[str, Any] = {name: getattr(transformer, name) for name in counts}
    try:
        for name, blocks in whole.items():
            few = [*blocks[: counts[name] - 1], blocks[-1]] if counts[name] else []
            setattr(transformer, name, nn.ModuleList(few))
        yield
    finally:
        for name, blocks in whole.items():
            setattr(transformer, name, blocks)


def measure(compute: Callable[[], object]) -> tuple[int, int]:
    """Return peak bytes of tensors created inside `compute`, and floating-point operations of products and attention.

    Bytes include those of autograd's graph. A multiplication counts as two operations. Attention counts as a fused
    kernel (flash or memory-efficient) needs it: queries, keys, values, output and one number per query, but no matrix
    of all pairs of tokens.
    """
    counted, functional = _Counted(), torch.nn.functional

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        return _Fused.apply(query, key, value, counted)

    # Not by a TorchFunctionMode, which is off where gradient checkpointing recomputes a block.
    own = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = fused
    try:
        with counted:
            compute()
    finally:
        functional.scaled_dot_product_attention = own
    return counted.peak, counted.flops


class _Counted(LiveBytes):  # type: ignore[no-untyped-call, unused-ignore]
    """Counts operations beside bytes. FlopCounterMode would dispatch each one again; its formulas are used here."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_dispatch__(func, types, args, kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=output)
        return output

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Find the layout of a result once: torch does that in Python on meta, and blocks repeat operations."""
        given = [one for one in args if isinstance(one, Tensor)]
        if not given or not given[0].is_meta:
            return func(*args, **kwargs)
        key = (func, _layout(args), _layout(tuple(kwargs.items())))
        changes = func._schema.is_mutable
        if (known := _LAYOUTS.get(key)) is not None:
            return given[0] if changes else torch.empty_strided(*known[:2], dtype=known[2], device="meta")
        storages = [one.untyped_storage()._cdata for one in given]
        made = func(*args, **kwargs)
        if isinstance(made, Tensor):
            storage = made.untyped_storage()._cdata
            as_before = made is given[0] and storage == storages[0] and _layout(args) == key[1]
            if as_before if changes else storage not in storages:
                _LAYOUTS[key] = _layout(made)
        return made


#: Shape, strides and dtype of the new tensor that an operation returns, or of the first one, which it changes in place,
#: by the operation and the layouts of its arguments.
_LAYOUTS: dict[Any, Any] = {}


def _layout(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_layout, value))
    return type(value), value


class _Fused(torch.autograd.Function):
    """Tensors that a fused kernel creates and saves, without numbers; on meta torch would materialise the scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, counted: _Counted) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        ctx.counted = counted
        ctx.flops = sdpa_flop_count(query.shape, key.shape, value.shape)
        counted.flops += ctx.flops
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors[:3]
        ctx.counted.flops += 2 * ctx.flops
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None
