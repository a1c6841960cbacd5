"""Linear layers with weights in 8 bits (torchao) or 4 bits (bitsandbytes).

int8 has a scale a row; nf4 quantises its scales again (arXiv 2305.14314). Both compute in the input's precision.
"""

import importlib.util
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from customized_grpo.config import PolicyConfig
from customized_grpo.utils.hub import ModelError

_PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}
_NF4 = {"compress_statistics": True, "quant_type": "nf4"}
_BLOCK = 64  # weights that share a scale, in nf4


def check_packages(config: PolicyConfig) -> None:
    """Raise ModelError if the package of a configured scheme is not installed."""
    for key in ("quantise", "quantise_text_encoders"):
        scheme = getattr(config, key)
        if scheme is not None and importlib.util.find_spec(_PACKAGES[scheme]) is None:
            package = _PACKAGES[scheme]
            raise ModelError(f"policy.{key}: {scheme} needs {package}, which is not installed; pip install {package}")


def text_encoder_quantisation(config: PolicyConfig) -> Any:
    """Return the quantization_config for `from_pretrained` of a text encoder, if any."""
    if config.quantise_text_encoders is None:
        return None
    if config.quantise_text_encoders == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return transformers.TorchAoConfig(Int8WeightOnlyConfig())
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, config.dtype),
    )


def unpacked_on_cpus(encoder: nn.Module) -> None:
    """Disable bitsandbytes' layout for CPUs with AVX-512, which only takes layers of multiples of 32 rows."""
    part: Any
    for part in encoder.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False


def kept_in_float32(model: Any, name: str) -> bool:
    """Return whether diffusers keeps the weights of this name in float32: the model computes in their dtype."""
    return bool({*name.split(".")} & {*(getattr(model, "_keep_in_fp32_modules", None) or ())})


def quantise(transformer: Any, scheme: str | None) -> None:
    """Quantise all linear layers of a transformer in place: int8 at once, nf4 when it is moved to a device."""
    if scheme == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(transformer, Int8WeightOnlyConfig())
    if scheme == "nf4":
        from bitsandbytes.nn import Params4bit

        kind = _nf4_linear()
        for name, layer in list(transformer.named_modules()):
            if isinstance(layer, nn.Linear) and not kept_in_float32(transformer, name):
                made = kind(layer.in_features, layer.out_features, device="meta", **_NF4)
                # One block a row: on a CPU bitsandbytes 0.50 misreads rows that are no whole blocks.
                whole = layer.weight.numel() % _BLOCK == 0
                rows = layer.weight.data.reshape(-1, _BLOCK) if whole else layer.weight.data
                made.weight = Params4bit(rows, requires_grad=False, **_NF4)
                made.bias = layer.bias
                transformer.set_submodule(name, made)
        transformer.is_loaded_in_4bit = True  # peft reads it


def _nf4_linear() -> Any:
    from bitsandbytes.nn import Linear4bit

    class Nf4Linear(Linear4bit):  # type: ignore[misc, unused-ignore]  # bitsandbytes may not be there
        """Compute alike with gradients and without, where bitsandbytes' own layer takes another kernel.

        A replay then has the bits of its rollout, and on-policy ratios are 1.
        """

        def forward(self, x: Tensor) -> Tensor:
            return _Nf4Product.apply(x, self.weight, self.bias, self.out_features)

    return Nf4Linear


class _Nf4Product(torch.autograd.Function):
    """x (..., I), a quantised weight (O, I) and a bias (O,), both frozen -> (..., O); backward dequantises again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Tensor | None, outputs: int) -> Tensor:
        ctx.weight, ctx.outputs = weight, outputs
        full = _dequantised(weight, outputs, x.dtype)
        return nn.functional.linear(x, full, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] @ _dequantised(ctx.weight, ctx.outputs, gradients[0].dtype), None, None, None


def _dequantised(weight: Any, outputs: int, dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    full: Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return full.reshape(outputs, -1).to(dtype)
