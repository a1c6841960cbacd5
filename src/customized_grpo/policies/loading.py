"""A diffusers pipeline, or a part of it, off the disk: of safetensors alone, no code of its own, each weight there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.quantisation import (
    check_packages,
    quantise,
    text_encoder_quantisation,
    unpacked_on_cpus,
)
from customized_grpo.utils.hub import ModelError, first_line, no_code_of_its_own, resolve
from customized_grpo.utils.outlines import outline_pipeline


@no_code_of_its_own()
def load_pipeline(config: PolicyConfig, *pipelines: Any, prepare: Callable[[nn.Module], None] | None = None) -> Any:
    """The diffusers pipeline at `config.path`, of one of the classes `pipelines`, in `config.dtype`.

    Which class that is, the folder's model_index.json says. Frozen, for inference. On the device "meta" it is an
    outline, of its JSON configs alone, and has shapes but no numbers.

    `prepare` may change the transformer's weights in place, on the CPU, before they are quantised.

    Raises:
        ModelError: the path holds no such pipeline in safetensors, or a package is missing; one line with the remedy.
    """
    check_packages(config)
    try:
        source = resolve(config.path)
    except ModelError as error:
        raise ModelError(f"policy.path: {error}") from None
    classes = {pipeline.__name__: pipeline for pipeline in pipelines}
    remedy = f"give the folder or hub id of a diffusers {' or '.join(classes)}"
    if config.device == "meta":
        try:
            return outline_pipeline(config.path, config.revision, getattr(torch, config.dtype), classes)
        except ModelError as error:
            raise ModelError(f"policy.path: {error}") from None
    try:
        index = pipelines[0].load_config(source, revision=config.revision)
        kind = index["_class_name"]
        if kind not in classes:
            raise ModelError(f"policy.path: {config.path} is a {kind}; {remedy}")
        dtype = getattr(torch, config.dtype)
        encoders = [name for name, kind in index.items() if name.startswith("text_encoder") and kind[0] is not None]
        later = config.conditions is not None
        parts = {name: None if later else load_part(config, pipelines[0], name) for name in encoders}
        loaded = classes[kind].from_pretrained(
            source,
            revision=config.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            **parts,
        )
    except ModelError:
        raise
    except Exception as error:  # Three libraries raise here, from many classes.
        raise ModelError(
            f"policy.path: cannot load {config.path} ({first_line(error)}); {remedy} in safetensors"
        ) from error
    for name, part in loaded.components.items():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
            # diffusers leaves a weight that its file lacks without numbers.
            if absent := next((weight for weight, values in part.named_parameters() if values.is_meta), None):
                raise ModelError(f"policy.path: {name} of {config.path} lacks the weight {absent}; download it again")
        # transformers makes an empty one where its files are missing.
        if isinstance(part, transformers.PreTrainedTokenizerBase) and len(part) <= len(part.all_special_tokens):
            raise ModelError(
                f"policy.path: cannot load {config.path} (no files of its {name}); {remedy} in safetensors"
            )
    if prepare is not None:
        prepare(loaded.transformer)
    quantise(loaded.transformer, config.quantise)
    return loaded


def pipeline_name(path: str, revision: str | None = None) -> str:
    """Return the class name of the diffusers pipeline at a hub id or in a folder, of its model_index.json.

    Raises:
        ModelError: There is no such pipeline; one line with the remedy.
    """
    try:
        index = DiffusionPipeline.load_config(resolve(path), revision=revision)
        return str(index["_class_name"])
    except ModelError:
        raise
    except Exception as error:  # of huggingface_hub, diffusers and JSON
        raise ModelError(f"{path}: no diffusers pipeline ({first_line(error)}); give its folder or hub id") from error


def adopt_pipeline(
    config: PolicyConfig, pipeline: Any, *pipelines: Any, prepare: Callable[[nn.Module], None] | None = None
) -> Any:
    """Prepare a diffusers pipeline that is in memory as `load_pipeline` prepares one from disk.

    Its models are changed in place: frozen, in evaluation mode, in `config.dtype`.

    Raises:
        ModelError: the pipeline is of none of the classes `pipelines` or has a LoRA, or a package is missing.
    """
    check_packages(config)
    if type(pipeline) not in pipelines:
        names = " or ".join(kind.__name__ for kind in pipelines)
        raise ModelError(f"policy.kind: {config.kind} takes a {names}, not a {type(pipeline).__name__}; pass one")
    if getattr(pipeline.transformer, "peft_config", None):
        raise ModelError("the pipeline's transformer has a LoRA; take it off by transformer.unload_lora()")
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            # Not the model's own `to`, which warns of what `dtype` in from_pretrained does otherwise.
            nn.Module.to(part, getattr(torch, config.dtype)).requires_grad_(False).eval()
    if prepare is not None:
        prepare(pipeline.transformer)
    quantise(pipeline.transformer, config.quantise)
    return pipeline


def load_part(config: PolicyConfig, pipeline: Any, name: str) -> nn.Module:
    """The text encoder of that name in the pipeline's folder, on the CPU; `pipeline` may be the class alone.

    Raises:
        ModelError: it is not there in safetensors, or lacks weights.
    """
    source = resolve(config.path)
    _, kind = pipeline.load_config(source, revision=config.revision)[name]
    try:
        part, report = getattr(transformers, kind).from_pretrained(
            source,
            subfolder=name,
            revision=config.revision,
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            quantization_config=text_encoder_quantisation(config),
            output_loading_info=True,
        )
    except ModelError:
        raise
    except Exception as error:  # Two libraries raise here, from many classes.
        raise ModelError(
            f"policy.path: cannot load {name} of {config.path} ({first_line(error)}); "
            f"give the folder or hub id of a whole pipeline in safetensors"
        ) from error
    if absent := sorted(report["missing_keys"]):  # which transformers leaves at random values
        raise ModelError(f"policy.path: {name} of {config.path} lacks the weight {absent[0]}; download it again")
    unpacked_on_cpus(part)
    encoder: nn.Module = part.requires_grad_(False).eval()
    return encoder


def load_transformer(config: PolicyConfig, transformer: Any) -> nn.Module:
    """The untuned transformer of the pipeline at `config.path` again, on the CPU."""
    model: nn.Module = transformer.from_pretrained(
        resolve(config.path),
        subfolder="transformer",
        revision=config.revision,
        dtype=getattr(torch, config.dtype),
        use_safetensors=True,
    )
    return model
