"""The model card of a LoRA: what it is, how it was made, what it changed, how to load it.

What a person must decide (licence, ids on the hub) stands there as TODO.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import dedent

from huggingface_hub import ModelCard, ModelCardData

from customized_grpo.config import KINDS, Config, PolicyConfig
from customized_grpo.config.loading import dump_yaml
from customized_grpo.config.redaction import redact, redact_text
from customized_grpo.utils.hub import EMBEDDED, ModelError, resolve
from customized_grpo.utils.terminal import ABSENT

_LICENCES = {
    "black-forest-labs/FLUX.1-Kontext-dev": "FLUX.1 [dev] Non-Commercial License",
    "black-forest-labs/FLUX.1-dev": "FLUX.1 [dev] Non-Commercial License",
    "black-forest-labs/FLUX.2-dev": "FLUX [dev] Non-Commercial License",
    "black-forest-labs/FLUX.2-klein-4B": "Apache-2.0",
    "black-forest-labs/FLUX.2-klein-base-4B": "Apache-2.0",
    "black-forest-labs/FLUX.2-klein-9B": "FLUX Non-Commercial License",
    "black-forest-labs/FLUX.2-klein-base-9B": "FLUX Non-Commercial License",
    "Qwen/Qwen-Image-Edit-2509": "Apache-2.0",
    "Qwen/Qwen-Image-Edit-2511": "Apache-2.0",
    f"{EMBEDDED}/pipeline": "Apache-2.0",
}
"""Of base models, by policy.path. The licence itself decides; this is where to look first."""

_EXAMPLE = "a dog wearing a red hat in the snow"


@dataclass(frozen=True)
class Scores:
    """Means over `pictures` held-out pictures, a row each: name, whether it was only watched, base, tuned."""

    rows: Sequence[tuple[str, bool, float, float]]
    pictures: int


def model_card(config: Config, scores: Scores | None, prompts: Sequence[str], picture: str | None) -> ModelCard:
    """The card of a run's LoRA. `prompts` are examples, `picture` is the file beside the card to show."""
    base = base_model(config.policy)
    embedded = config.policy.path.startswith(f"{EMBEDDED}/")
    data = ModelCardData(
        license="other",
        license_name="todo-choose-a-licence",
        library_name="diffusers",
        pipeline_tag="image-to-image",
        base_model=base if base is not None and not embedded else None,
        tags=[
            "lora", "text-to-image", "subject-driven-generation", "image-editing", config.policy.kind,
            "reinforcement-learning", "grpo", "customized-grpo",
        ],
    )  # fmt: skip
    parts = [
        "# TODO: a name",
        _what(config, base),
        f"![held-out subjects: the reference, the base model's picture, the tuned model's]({picture})"
        if picture
        else "",
        _scores(scores),
        _prompts(prompts),
        f"## Use\n\n```python\n{snippet(config, (prompts or [_EXAMPLE])[0])}\n```",
        _recipe(config),
        _licence(config.policy),
    ]
    body = "\n\n".join(part for part in parts if part)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def base_model(policy: PolicyConfig) -> str | None:
    """The base model's id on the hub, or its name inside the package; None where it is a folder of this machine."""
    if policy.path.startswith(f"{EMBEDDED}/"):
        return policy.path
    try:
        source = resolve(policy.path)
    except ModelError:
        return None  # a folder that is no longer there
    return source if isinstance(source, str) else None


def snippet(config: Config, prompt: str) -> str:
    """Python that loads the LoRA and draws a picture with it; BASE, LORA and reference.jpg are what a user sets."""
    from customized_grpo.policies import PipelinePolicy, class_of  # takes seconds to import

    policy = config.policy
    base = base_model(policy)
    if base is not None and base.startswith(f"{EMBEDDED}/"):
        source = f'from customized_grpo.utils.hub import EMBEDDED, resolve\n\nBASE = resolve("{base}")'
    else:
        source = f'BASE = "{base}"' if base else 'BASE = "TODO"  # the base model: its hub id or folder'
    lora = 'LORA = "TODO/TODO"  # the id of this model on the hub, or the folder of this file'
    values = {
        # FLUX.2's klein base models take the one for the other.
        "guidance": policy.true_cfg if policy.kind == "flux2" and policy.true_cfg != 1 else policy.guidance,
        "true_cfg": policy.true_cfg,
        "negative": policy.negative_prompt,
        "tokens": policy.max_sequence_length,
        "height": policy.height,
        "width": policy.width,
    }
    model = class_of(policy.kind) if policy.kind in KINDS else PipelinePolicy
    if not model.example_call:
        return _own_snippet(policy, source, lora, prompt, config.evaluation.steps)
    call = model.example_call + (model.example_guidance if policy.true_cfg != 1 else "")
    return f"""\
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import load_image
{source}
{lora}

pipeline = DiffusionPipeline.from_pretrained(BASE, dtype=torch.{policy.dtype})
pipeline.load_lora_weights(LORA)
# pipeline.to("cuda")
reference = load_image("reference.jpg").resize(({_reference(policy)}))
picture = pipeline(
    prompt={prompt!r},
    {call.format(**values)}
    height={policy.height},
    width={policy.width},
    num_inference_steps={config.evaluation.steps},
    generator=torch.Generator().manual_seed(0),
).images[0]
picture.save("picture.png")"""


def _own_snippet(policy: PolicyConfig, source: str, lora: str, prompt: str, steps: int) -> str:
    """Of a model whose references no pipeline of diffusers takes."""
    without = {"path", "adapter", "adapter_as", "device", "revision"}
    usual = PolicyConfig(kind=policy.kind, path=policy.path).model_dump(mode="json", exclude={"kind"})
    found = policy.model_dump(mode="json", exclude=without).items()
    settings = {key: value for key, value in found if key not in usual or value != usual[key]}
    fused = policy.adapter is not None and policy.adapter_as == "fused"  # else what was trained has it
    if fused:
        source += '\nADAPTER = "TODO"  # the .safetensors file of policy.adapter'
    adapter = "adapter=ADAPTER, " if fused else ""
    return f"""\
# pip install customized-grpo: no pipeline of diffusers takes this model's references
from pathlib import Path

from customized_grpo.config import PolicyConfig
from customized_grpo.data.pictures import load
from customized_grpo.policies import build_policy
from customized_grpo.evaluation.generate import generate
{source}
{lora.replace("the id of this model on the hub, or the folder of this file", "the folder of this file")}

policy = build_policy(PolicyConfig(path=BASE, {adapter}**{settings!r}))
policy.load(Path(LORA))
reference = load(Path("reference.jpg"))
picture = generate(policy, {prompt!r}, [reference], steps={steps}, seed=0, images=1)[0]
picture.save("picture.png")"""


def _reference(policy: PolicyConfig) -> str:
    """Width and height of a reference as the run saw it."""
    height, width = (policy.reference_sizes or [(policy.height, policy.width)])[0]
    return f"{width}, {height}"


def _what(config: Config, base: str | None) -> str:
    named = f"`{base}`" if base else "TODO: the base model"
    lora = config.policy.lora
    rank = f", of rank {lora.rank}," if lora is not None else ""
    return (
        f"A LoRA{rank} for {named}: it draws the subject of a reference photo as a prompt says. It was tuned by "
        "[Customized-GRPO](https://arxiv.org/abs/2510.18263), online reinforcement learning on a reward for identity "
        f"and one for the prompt, over {config.train.iterations} iterations."
    )


def _scores(scores: Scores | None) -> str:
    if scores is None:
        return "## Scores\n\nTODO: the run holds no evaluation by its own settings; `cgrpo evaluate RUN` makes one."
    lines = [
        "## Scores",
        "",
        f"Means over {scores.pictures} held-out pictures, base and tuned drawn from the same noise. "
        "*Watched* scores were never optimised.",
        "",
        "| score | | base | tuned | change |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, watched, base, tuned in scores.rows:
        cells = [name, "watched" if watched else "reward", _number(base), _number(tuned), _number(tuned - base, "+")]
        lines.append(f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |")
    return "\n".join(lines)


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.2f}" if math.isfinite(value) else ABSENT


def _prompts(prompts: Sequence[str]) -> str:
    listed = "\n".join(f"- {redact_text(' '.join(prompt.split()))}" for prompt in prompts or [_EXAMPLE])
    return (
        f"## Prompts\n\nThere is no trigger word: the reference photo is the subject. Prompts are such as\n\n{listed}"
    )


def _recipe(config: Config) -> str:
    text = dump_yaml(redact(config.model_dump(mode="json")))
    data = redact_text(config.data.path or "no data")
    return dedent(
        """\
        ## Recipe

        Trained on `{data}` (split `{split}`, seed {seed}); method: shaping `{shaping}`, weighting `{weighting}`.
        All settings, as `cgrpo train --config` takes them:

        <details><summary>config.yaml</summary>

        ```yaml
        {text}```

        </details>"""
    ).format(
        data=data,
        split=config.data.split,
        seed=config.seed,
        shaping=config.method.shaping,
        weighting=config.method.weighting,
        text=text,
    )


def _licence(policy: PolicyConfig) -> str:
    known = _LICENCES.get(policy.path)
    of_base = (
        f"The base model, `{policy.path}`, is under: {known}. That licence also binds what is made of the model."
        if known
        else "TODO: name the base model's licence, which also binds what is made of the model."
    )
    adapter = " So does that of the adapter it started from (UNO's own: CC BY-NC 4.0)." if policy.adapter else ""
    return (
        "## Licence\n\n**TODO: choose a licence, and set `license` (or `license_name` and `license_link`) at the head "
        f"of this file.** {of_base}{adapter}"
    )
