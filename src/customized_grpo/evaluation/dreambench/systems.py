"""Systems that can be evaluated: a model, a run, a LoRA, or images that another system made."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import load_config
from customized_grpo.config.reading import flow_yaml
from customized_grpo.evaluation.dreambench.folder import IMAGES, SETTINGS, TEMPLATE, ImageFolder
from customized_grpo.policies import build_policy
from customized_grpo.policies.adapters import lora_file, lora_settings
from customized_grpo.protocols import Policy
from customized_grpo.trainer.folder import CONFIG, LORA
from customized_grpo.utils.hub import EMBEDDED, fingerprint, resolve

#: Settings of a policy that do not change its images.
_IRRELEVANT = {
    "device", "lora", "conditions", "offload", "offload_activations", "gradient_checkpointing", "compile",
}  # fmt: skip


@dataclass(frozen=True)
class System:
    """One column of a comparison: a policy, with weights if it has an `adapter`; only images; or an `evaluation`."""

    name: str
    config: Config
    adapter: Path | None = None
    images: ImageFolder | None = None
    evaluation: Path | None = None
    run: Path | None = None

    def settings(self) -> dict[str, object]:
        """Return everything that its images depend on, besides benchmark, seed and steps."""
        if self.images is not None:
            return {"images": str(self.images.root.resolve()), "template": self.images.template}
        policy = self.config.policy.model_dump(mode="json", exclude=_IRRELEVANT)
        if self.adapter is None:
            return {"policy": policy, "adapter": None}
        file = lora_file(self.adapter)  # a whole transformer is identified by names, sizes and times of its files
        content = file.read_bytes() if file.is_file() else fingerprint(str(self.adapter)).encode()
        return {"policy": policy, "adapter": hashlib.blake2b(content, digest_size=8).hexdigest()}

    def open(self) -> Policy:
        """Load its policy. Raises ModelError."""
        policy = build_policy(self.config.policy)
        if self.adapter is not None:
            policy.load(self.adapter)
        return policy


def find_system(
    given: str, files: Sequence[Path] = (), overrides: Sequence[str] = (), template: str = TEMPLATE
) -> System:
    """Find the system that PATH or NAME=PATH names; nothing is loaded yet. Raises ConfigError or ModelError.

    A PATH is the folder of a finished run, of an earlier evaluation, of a diffusers pipeline, of a LoRA or of images; a
    LoRA's .safetensors; a YAML configuration, whose policy is untrained; or `embedded/NAME`. A LoRA and a pipeline take
    their other settings from `files`; `overrides` apply to all.
    """
    name, sign, rest = given.partition("=")
    if not sign or not name or Path(given).exists():
        name, rest = "", given
    path = Path(rest).expanduser()
    pipeline = [*overrides, f"policy.path={flow_yaml(rest if rest.startswith(f'{EMBEDDED}/') else str(path))}"]
    name = name or (path.stem if path.is_file() else path.resolve().name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        system = System(name, load_config([*files, path], overrides))
    elif rest.startswith(f"{EMBEDDED}/"):
        name = name if given != rest else rest.replace("/", "-")
        system = System(name, load_config(files, pipeline))
    elif not path.is_dir() and not (path.suffix == ".safetensors" and path.is_file()):
        raise ConfigError(f"{rest}: no such run, model, LoRA, configuration or folder of images; correct the path")
    elif (path / CONFIG).is_file():
        if not (path / LORA).exists():
            raise ConfigError(f"{path}: has no {LORA} yet; finish it with cgrpo train --resume {path}")
        system = System(name, load_config(path / CONFIG, overrides), adapter=path / LORA, run=path)
    elif (path / SETTINGS).is_file() and (path / IMAGES).is_dir():
        return System(name, load_config(files, overrides), images=ImageFolder(path / IMAGES), evaluation=path)
    elif (path / "model_index.json").is_file():
        system = System(name, load_config(files, pipeline))
    elif lora_file(path).is_file():
        config = load_config(files, overrides)
        policy = config.policy.model_copy(update={"lora": lora_settings(path)})
        system = System(name, config.model_copy(update={"policy": policy}), adapter=path)
    else:
        return System(name, load_config(files, overrides), images=ImageFolder(path, template))
    if ":" not in system.config.policy.kind:  # a kind of the user's own resolves its path itself
        resolve(system.config.policy.path)
    return system
