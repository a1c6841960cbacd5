"""Load diffusers pipelines and their parts: safetensors only, no remote code, no missing weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import DiffusionPipeline, ModelMixin
from torch import nn

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.quantisation import (
    check_packages,
    kept_in_float32,
    quantise,
    text_encoder_quantisation,
    unpacked_on_cpus,
)
from customized_grpo.utils.hub import ModelError, first_line, loadable, no_code_of_its_own, resolve
from customized_grpo.utils.outlines import outline_pipeline

Prepare = Callable[[nn.Module], None]


@no_code_of_its_own()
def load_pipeline(config: PolicyConfig, *pipelines: Any, prepare: Prepare | None = None) -> Any:
    """Load the diffusers pipeline at `config.path`, frozen, in `config.dtype`; on the device "meta" only its shapes.

    `prepare` changes the transformer's weights in place, on the CPU, before they are quantised. Raises ModelError if
    the path holds none of the classes `pipelines` in safetensors, or a package is missing.
    """
    check_packages(config)
    classes = {pipeline.__name__: pipeline for pipeline in pipelines}
    remedy = f"give the folder or hub id of a diffusers {' or '.join(classes)}"
    try:
        if config.device == "meta":
            return outline_pipeline(config.path, config.revision, getattr(torch, config.dtype), classes)
        source = loadable(config.path)
    except ModelError as error:
        raise ModelError(f"policy.path: {error}") from None
    try:
        index = pipelines[0].load_config(source, revision=config.revision)
        kind = index["_class_name"]
        if kind not in classes:
            raise ModelError(f"policy.path: {config.path} is a {kind}; {remedy}")
        _check_processors(config, source, index)
        encoders = [name for name, part in index.items() if name.startswith("text_encoder") and part[0] is not None]
        later = config.conditions is not None  # loaded when a pair is not cached
        parts = {name: None if later else load_part(config, pipelines[0], name) for name in encoders}
        loaded = classes[kind].from_pretrained(
            source, trust_remote_code=False, use_safetensors=True, **load_options(config), **parts
        )
    except ModelError:
        raise
    except Exception as error:  # three libraries raise many classes here
        raise ModelError(
            f"policy.path: cannot load {config.path} ({first_line(error)}); {remedy} in safetensors"
        ) from error
    for name, part in loaded.components.items():
        weights = part.named_parameters() if isinstance(part, nn.Module) else ()
        # diffusers leaves a weight that its file lacks on the meta device.
        if absent := next((weight for weight, values in weights if values.is_meta), None):
            raise ModelError(f"policy.path: {name} of {config.path} lacks the weight {absent}; download it again")
        # transformers makes an empty one if its files are missing.
        if isinstance(part, transformers.PreTrainedTokenizerBase) and len(part) <= len(part.all_special_tokens):
            raise ModelError(
                f"policy.path: cannot load {config.path} (no files of its {name}); {remedy} in safetensors"
            )
    return _frozen(config, loaded, prepare)


def _check_processors(config: PolicyConfig, source: str | Path, index: Mapping[str, Any]) -> None:
    """Raise ModelError, before weights load, if a processor needs a missing package such as torchvision."""
    for name, part in index.items():
        if not (isinstance(part, list) and part[0] == "transformers" and str(part[1]).endswith("Processor")):
            continue
        try:
            processor = getattr(transformers, part[1])
            processor.from_pretrained(source, subfolder=name, revision=config.revision)
        except ImportError as error:
            remedy = "pip install torchvision" if "torchvision" in str(error).lower() else "install it"
            raise ModelError(
                f"policy.path: {part[1]} of {config.path} needs a package ({first_line(error)}); {remedy}"
            ) from error
        except Exception:  # noqa: S112, diffusers reports it
            continue


def pipeline_name(path: str, revision: str | None = None) -> str:
    """Return the class name of the diffusers pipeline at a hub id or in a folder. ModelError if there is none."""
    try:
        return str(DiffusionPipeline.load_config(loadable(path), revision=revision)["_class_name"])
    except ModelError:
        raise
    except Exception as error:  # of huggingface_hub, diffusers and JSON
        raise ModelError(f"{path}: no diffusers pipeline ({first_line(error)}); give its folder or hub id") from error


def adopt_pipeline(config: PolicyConfig, pipeline: Any, *pipelines: Any, prepare: Prepare | None = None) -> Any:
    """Prepare a diffusers pipeline that is in memory as `load_pipeline` prepares one from disk, in place.

    Raises ModelError if it is of none of the classes `pipelines` or has a LoRA, or a package is missing.
    """
    check_packages(config)
    if type(pipeline) not in pipelines:
        names = " or ".join(kind.__name__ for kind in pipelines)
        raise ModelError(f"policy.kind: {config.kind} takes a {names}, not a {type(pipeline).__name__}; pass one")
    if getattr(pipeline.transformer, "peft_config", None):
        raise ModelError("the pipeline's transformer has a LoRA; take it off by transformer.unload_lora()")
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            _cast(part, getattr(torch, config.dtype))
    return _frozen(config, pipeline, prepare)


@torch.no_grad()
def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert a model as loading it in this dtype does: not what it keeps in float32, and no computed buffer."""
    own = isinstance(model, ModelMixin)  # transformers keeps such weights in float32 only beside float16
    for place, part in model.named_modules():
        for weights, left in ((part._parameters, set()), (part._buffers, part._non_persistent_buffers_set)):
            for name, weight in weights.items():
                if weight is None or name in left or not weight.is_floating_point():
                    continue
                if not (own and kept_in_float32(model, f"{place}.{name}")):
                    weight.data = weight.data.to(dtype)


def _frozen(config: PolicyConfig, pipeline: Any, prepare: Prepare | None) -> Any:
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    if prepare is not None:
        prepare(pipeline.transformer)
    quantise(pipeline.transformer, config.quantise)
    return pipeline


def load_part(config: PolicyConfig, pipeline: Any, name: str) -> nn.Module:
    """Load a text encoder from the folder of a pipeline, on the CPU. ModelError if it is missing or lacks weights."""
    source = resolve(config.path)
    _, kind = pipeline.load_config(source, revision=config.revision)[name]
    try:
        part, report = getattr(transformers, kind).from_pretrained(
            source,
            subfolder=name,
            trust_remote_code=False,
            quantization_config=text_encoder_quantisation(config),
            output_loading_info=True,
            use_safetensors=True,
            **load_options(config),
        )
    except ModelError:
        raise
    except Exception as error:  # two libraries raise many classes here
        raise ModelError(
            f"policy.path: cannot load {name} of {config.path} ({first_line(error)}); "
            f"give the folder or hub id of a whole pipeline in safetensors"
        ) from error
    if absent := sorted(report["missing_keys"]):  # transformers leaves them at random values
        raise ModelError(f"policy.path: {name} of {config.path} lacks the weight {absent[0]}; download it again")
    unpacked_on_cpus(part)
    return part.requires_grad_(False).eval()


def load_transformer(kind: Any, config: PolicyConfig, prepare: Prepare | None) -> nn.Module:
    """Load the untuned transformer, of class `kind`, on the CPU and prepare it."""
    model: nn.Module = kind.from_pretrained(
        resolve(config.path), subfolder="transformer", use_safetensors=True, **load_options(config)
    )
    if prepare is not None:
        prepare(model)
    return model


def load_options(config: PolicyConfig) -> dict[str, Any]:
    """Return options of `from_pretrained` that all parts of a pipeline share."""
    return {"revision": config.revision, "dtype": getattr(torch, config.dtype)}
