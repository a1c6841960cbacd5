"""What is evaluated: a model, a run, a LoRA, or pictures that another system made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.loading import load_config
from customized_grpo.evaluation.dreambench.folder import PICTURES, SETTINGS, TEMPLATE, PictureFolder
from customized_grpo.policies import build_policy
from customized_grpo.policies.adapters import lora_file, lora_settings
from customized_grpo.protocols import Policy
from customized_grpo.trainer.folder import CONFIG, LORA
from customized_grpo.utils.hub import EMBEDDED, fingerprint, resolve

#: Settings of a policy that leave its pictures what they are.
_NO_MATTER = {
    "device", "lora", "conditions", "offload", "offload_activations", "gradient_checkpointing", "compile",
}  # fmt: skip
_INDEX = "model_index.json"


@dataclass(frozen=True)
class System:
    """One of the columns of a comparison.

    `config` and, where something was trained, `adapter` make a policy; `pictures` are those of a system that is only
    known by them; `evaluation` is the folder of an earlier evaluation, whose pictures they then are.
    """

    name: str
    config: Config
    adapter: Path | None = None
    pictures: PictureFolder | None = None
    evaluation: Path | None = None
    run: Path | None = None

    def settings(self) -> dict[str, object]:
        """All that its pictures depend on but the benchmark, the seed and the steps."""
        if self.pictures is not None:
            return {"pictures": str(self.pictures.root.resolve()), "template": self.pictures.template}
        policy = self.config.policy.model_dump(mode="json", exclude=_NO_MATTER)
        return {"policy": policy, "adapter": None if self.adapter is None else _digest(self.adapter)}

    def open(self) -> Policy:
        """Raises ModelError where it cannot be loaded."""
        policy = build_policy(self.config.policy)
        if self.adapter is not None:
            policy.load(self.adapter)
        return policy


def find_system(
    given: str, files: Sequence[Path] = (), overrides: Sequence[str] = (), template: str = TEMPLATE
) -> System:
    """What a word of the command line stands for, as PATH or NAME=PATH.

    A PATH is the folder of a finished run, of an earlier evaluation, of a diffusers pipeline, of a LoRA or of pictures;
    a LoRA's .safetensors; a YAML configuration, which is its policy untrained; or embedded/pipeline. A LoRA and a
    pipeline take their other settings from `files`; `overrides` apply to all. Raises ConfigError or ModelError.
    """
    name, sign, rest = given.partition("=")
    if not sign or not name or Path(given).exists():
        name, rest = "", given
    path = Path(rest).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _of_model(System(name or path.stem, load_config([*files, path], overrides)))
    if path.suffix == ".safetensors" and path.is_file():
        return _lora(name or path.stem, path, load_config(files, overrides))
    if rest.startswith(f"{EMBEDDED}/"):
        return _pipeline(name or rest.replace("/", "-"), rest, files, overrides)
    if not path.is_dir():
        raise ConfigError(f"{rest}: no such run, model, LoRA, configuration or folder of pictures; correct the path")
    name = name or path.resolve().name
    if (path / CONFIG).is_file():
        if not (path / LORA).exists():
            raise ConfigError(f"{path}: holds no {LORA} yet; finish it by cgrpo train --resume {path}")
        return _of_model(System(name, load_config(path / CONFIG, overrides), adapter=path / LORA, run=path))
    config = load_config(files, overrides)
    if (path / SETTINGS).is_file() and (path / PICTURES).is_dir():
        return System(name, config, pictures=PictureFolder(path / PICTURES), evaluation=path)
    if (path / _INDEX).is_file():
        return _pipeline(name, str(path), files, overrides)
    if lora_file(path).is_file():
        return _lora(name, path, config)
    return System(name, config, pictures=PictureFolder(path, template))


def _pipeline(name: str, path: str, files: Sequence[Path], overrides: Sequence[str]) -> System:
    return _of_model(System(name, load_config(files, [*overrides, f"policy.path={json.dumps(path)}"])))


def _lora(name: str, path: Path, config: Config) -> System:
    policy = config.policy.model_copy(update={"lora": lora_settings(path)})
    return _of_model(System(name, config.model_copy(update={"policy": policy}), adapter=path))


def _of_model(system: System) -> System:
    """The same. Raises ModelError where its model can only be local and is not there; nothing is loaded yet."""
    if ":" not in system.config.policy.kind:
        resolve(system.config.policy.path)
    return system


def _digest(adapter: Path) -> str:
    """Another for other weights: of a LoRA by its bytes, of a whole transformer by names, sizes and times of files."""
    file = lora_file(adapter)
    if file.is_file():
        return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
    return hashlib.blake2b(fingerprint(str(adapter)).encode(), digest_size=8).hexdigest()
