"""The model card of a LoRA. Decisions for a person, such as the license, are marked TODO."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from customized_grpo.config import KINDS, Config, PolicyConfig
from customized_grpo.config.reading import dump_yaml
from customized_grpo.config.redaction import redact, redact_text
from customized_grpo.evaluation import Evaluation
from customized_grpo.trainer.credit import reward_name
from customized_grpo.utils.hub import ModelError, is_embedded, resolve
from customized_grpo.utils.tables import markdown_text
from customized_grpo.utils.terminal import ABSENT

if TYPE_CHECKING:
    from customized_grpo.policies import PipelinePolicy

_TAGS = [
    "lora", "text-to-image", "subject-driven-generation", "image-editing", "reinforcement-learning", "grpo",
    "customized-grpo",
]  # fmt: skip
_EXAMPLE = "a dog wearing a red hat in the snow"


def model_card(
    config: Config,
    evaluations: tuple[Evaluation, Evaluation] | None = None,
    prompts: Sequence[str] = (),
    image: str | None = None,
) -> ModelCard:
    """Build the card of a run's LoRA.

    Args:
        config: Configuration of the run. Local paths, addresses and secrets are removed from it.
        evaluations: Evaluations of the base and of the tuned model.
        prompts: Examples of prompts.
        image: Name of an image file beside the card.
    """
    from customized_grpo.policies import PipelinePolicy, class_of  # takes seconds to import

    policy = config.policy
    embedded = is_embedded(policy.path)
    base = policy.path if embedded else _base_model(policy)
    model = class_of(policy.kind) if policy.kind in KINDS else PipelinePolicy
    height, width = (policy.reference_sizes or [(policy.height, policy.width)])[0]
    recipe = dump_yaml(redact(config.model_dump(mode="json")))
    data = ModelCardData(
        license="other",
        license_name="todo-choose-a-license",
        library_name="diffusers",
        pipeline_tag="image-to-image",
        base_model=None if embedded else base,
        tags=[*_TAGS, policy.kind],
    )
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("card.md")),
        config=config,
        policy=policy,
        base=base,
        embedded=embedded,
        call=_example_call(policy, model),
        load=model.example_load,
        sizes=policy.sizes if len(policy.sizes or ()) > 1 else None,
        adapter=policy.adapter is not None and policy.adapter_as == "fused",  # else the LoRA contains it
        settings=_changed_settings(policy),
        scores=_scores(config, *evaluations) if evaluations else None,
        images=len(evaluations[1].images) if evaluations else 0,
        prompts=[markdown_text(redact_text(prompt)) for prompt in prompts or [_EXAMPLE]],
        prompt=repr((prompts or [_EXAMPLE])[0]),
        image=image,
        reference_height=height,
        reference_width=width,
        data=redact_text(config.data.path or "no data").replace("`", "'"),
        recipe=recipe,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", recipe)), default=0)),  # text in it cannot end the block
    )
    return card


def _base_model(policy: PolicyConfig) -> str | None:
    """Return the base model's hub id, or None for a local folder."""
    try:
        source = resolve(policy.path)
    except ModelError:
        return None  # a folder that no longer exists
    return source if isinstance(source, str) else None


def _example_call(policy: PolicyConfig, model: type[PipelinePolicy]) -> str:
    """Return the policy's arguments of its diffusers pipeline, or "" if no pipeline takes its references."""
    if not model.example_call:
        return ""
    call = model.example_call + (model.example_guidance if policy.true_cfg != 1 else "") + model.example_size
    return call.format(
        # The base models of FLUX.2 klein take classifier-free guidance as `guidance_scale`.
        guidance=policy.true_cfg if policy.kind == "flux2" and policy.true_cfg != 1 else policy.guidance,
        true_cfg=policy.true_cfg,
        negative=policy.negative_prompt,
        tokens=policy.max_sequence_length,
        height=_size(policy)[0],
        width=_size(policy)[1],
    )


def _size(policy: PolicyConfig) -> tuple[int | str, int | str]:
    """Return height and width in the example: variables where there are several sizes."""
    return ("height", "width") if len(policy.sizes or ()) > 1 else (policy.height, policy.width)


def _changed_settings(policy: PolicyConfig) -> dict[str, Any]:
    """Return the settings that differ from the defaults of the policy's kind, without local paths."""
    default = PolicyConfig(kind=policy.kind, path=policy.path).model_dump(mode="json", exclude={"kind"})
    found = policy.model_dump(mode="json", exclude={"path", "adapter", "adapter_as", "device", "revision"})
    return {key: value for key, value in found.items() if key not in default or value != default[key]}


def _scores(config: Config, base: Evaluation, tuned: Evaluation) -> list[list[str]]:
    monitors = {reward_name(monitor) for monitor in config.evaluation.monitors}
    rows = []
    for name in base.scores:
        before, after = base.mean(name), tuned.mean(name)
        cells = [f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"]
        cells = [ABSENT if cell.endswith("nan") else cell for cell in cells]
        rows.append([markdown_text(name.replace("|", " ")), "monitor" if name in monitors else "reward", *cells])
    return rows
