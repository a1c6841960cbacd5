"""The device, the random 12-billion-parameter model and the policies on it, shared by the sections of one process."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from diffusers import FluxPipeline
from PIL import Image

from benchmarks.gpu.timing import Row, free, synchronise
from benchmarks.gpu.worker import first_line
from benchmarks.iteration.peak import matmul_peak
from customized_grpo.config import PolicyConfig, RewardConfig
from customized_grpo.policies import build_policy
from customized_grpo.policies.hooks import ATTENTION
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.protocols import Conditions, Pair
from customized_grpo.rewards import default_path
from customized_grpo.utils.hub import resolve
from customized_grpo.utils.outlines import config_reader
from customized_grpo.utils.records import move_folder, temporary_folder

ROOT = Path(__file__).parents[2]


class Context:
    """Models of a process, made on first use.

    Args:
        tiny: Use a small model and fewer, smaller cases, to try the code on a CPU.
        folder: Folder for temporary files, which several processes may share.
    """

    def __init__(self, *, tiny: bool, folder: Path) -> None:
        self.tiny, self.folder = tiny, folder
        self.side = 64 if tiny else 512
        found = torch.accelerator.current_accelerator(check_available=True)
        self.device = torch.device("cpu") if found is None else torch.device(found.type, 0)
        self._held: tuple[PolicyConfig, PipelinePolicy] | None = None

    @cached_property
    def peak(self) -> float:
        """Measured floating-point operations per second of matrix products in bfloat16."""
        return matmul_peak(self.device, torch.bfloat16)

    def sizes(self, *full: int) -> tuple[int, ...]:
        """Return batch sizes; for a tiny model the first two, at most 2 each."""
        return tuple(dict.fromkeys(min(size, 2) for size in full)) if self.tiny else full

    @cached_property
    def pipeline(self) -> Any:
        """FLUX.1 Kontext's pipeline with random weights, made on the device."""
        make = runpy.run_path(str(ROOT / "recipes" / "random" / "flux1.py"))["pipeline"]
        return make(tiny=self.tiny, device=self.device)

    def _fresh_pipeline(self, kind: str) -> Any:
        """Return a pipeline for a kind of policy with a new transformer on the same weights, which are not copied."""
        parts = {name: part for name, part in self.pipeline.components.items() if part is not None}
        with torch.device("meta"):
            transformer = type(parts["transformer"]).from_config(parts["transformer"].config)
        transformer.load_state_dict(parts["transformer"].state_dict(), assign=True)
        parts["transformer"] = transformer.requires_grad_(False)
        return {"flux-kontext": type(self.pipeline), "uno": FluxPipeline}[kind](**parts)

    def outline(self, kind: str = "flux-kontext") -> Path:
        """Return a folder with the JSON configs of the random pipeline, which `cgrpo plan` plans from."""

        def write(folder: Path) -> None:
            pipeline = self._fresh_pipeline(kind)
            pipeline.save_config(folder)
            for name, part in pipeline.components.items():
                if hasattr(part, "save_config"):  # a model or scheduler of diffusers
                    part.save_config(folder / name)
                elif hasattr(part, "config"):  # a model of transformers
                    part.config.save_pretrained(folder / name)

        return self._written(kind, write)

    def _written(self, name: str, write: Callable[[Path], None]) -> Path:
        """Return the temporary folder of that name, filled by `write` on first use; complete or absent after a kill."""
        folder = self.folder / name
        if not folder.is_dir():
            unfinished = temporary_folder(folder)
            write(unfinished)
            move_folder(unfinished, folder)
        return folder

    def policy(
        self, rank: int = 16, targets: Sequence[str] | None = ATTENTION, *, kind: str = "flux-kontext", **more: Any
    ) -> PipelinePolicy:
        """Return a policy on the random model; the previous one must not be used any more.

        Args:
            rank: LoRA rank.
            targets: Layers with a LoRA; the kind's default if None.
            kind: Kind of policy.
            more: Further settings of the policy.
        """
        settings = {
            "kind": kind, "path": str(self.outline(kind)), "dtype": "bfloat16", "height": self.side, "width": self.side,
            "reference_sizes": [(self.side, self.side)], "max_sequence_length": 24 if self.tiny else 512,
            "guidance": 3.5, "gradient_checkpointing": True,
            "lora": {"rank": max(1, rank // 32) if self.tiny else rank, "targets": targets and list(targets)},
        }  # fmt: skip
        config = PolicyConfig.model_validate(settings | more)
        if self._held is None or self._held[0] != config:
            self._held = None
            free(self.device)
            self._held = config, self._random_policy(config)
        return self._held[1]

    def _random_policy(self, config: PolicyConfig) -> PipelinePolicy:
        """Build a policy whose LoRA has random numbers in both factors, so that it is not skipped."""

        def skip(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            return tensor

        # A LoRA is initialised on the CPU, which for the two billion weights of rank 512 takes longer than training.
        with mock.patch.multiple(torch.nn.init, kaiming_uniform_=skip, normal_=skip, zeros_=skip):
            policy = build_policy(config, self._fresh_pipeline(config.kind))
        assert isinstance(policy, PipelinePolicy)
        generator = torch.Generator(policy.device).manual_seed(0)
        with torch.no_grad():
            for name, weight in policy.trainable().items():
                scale = 0.02 if ".lora_B" in name else 1.0
                weight.normal_(0.0, scale * weight.shape[1] ** -0.5, generator=generator)
        return policy

    @cached_property
    def pair(self) -> Pair:
        """A prompt and a random reference."""
        pixels = np.random.default_rng(0).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        return Pair("pair-0", "toy number 0 on a red table", (Image.fromarray(pixels),), masks=(None,))

    def inputs(self, policy: PipelinePolicy, batch: int) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
        """Return random latents, noise levels and conditioning of a batch, for `Policy.velocity`."""
        conditions = policy.encode(self.pair.prompt, self.pair.references)
        generator = torch.Generator(self.device).manual_seed(0)
        latents = torch.randn(batch, *policy.latent_shape, device=self.device, generator=generator)
        rows = torch.zeros(batch, dtype=torch.long)
        return latents, torch.full((batch,), 0.7, device=self.device), conditions.select(rows)

    def reward_configs(self, configs: Sequence[RewardConfig]) -> list[RewardConfig]:
        """Return settings of `dino` and `clip` with random weights as paths; for a tiny model the embedded rewards."""
        paths = {"dino": "embedded/reward-identity", "clip": "embedded/reward-prompt"}
        if not self.tiny:
            paths = {kind: str(self._written(kind, partial(self._write_reward, kind))) for kind in paths}
        return [config.model_copy(update={"path": paths[config.kind]}) for config in configs]

    def _write_reward(self, kind: str, folder: Path) -> None:
        """Write the default model of the reward `kind` with random weights."""
        path = default_path(kind)
        assert path is not None
        with self.device:
            config = transformers.AutoConfig.for_model(**config_reader(path, first="config.json")("config.json"))
            model = transformers.AutoModel.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        size = {"shortest_edge": 256 if kind == "dino" else 224}
        transformers.CLIPImageProcessor(size=size).save_pretrained(folder)
        if kind == "clip":
            transformers.CLIPTokenizer.from_pretrained(resolve("embedded/reward-prompt")).save_pretrained(folder)

    def attempt(self, settings: Row, measure: Callable[[], Row]) -> Row:
        """Return the row of `settings` with its measurements, or with the error if the device can still compute."""
        try:
            return settings | measure()
        except Exception as error:
            failed = first_line(error)
        synchronise(self.device)  # raises after an illegal access, which ends the device's context for good
        self.tidy()
        return settings | {"failed": failed}

    def tidy(self) -> None:
        """Free gradients and cached memory."""
        if self._held is not None:
            for weight in self._held[1].trainable().values():
                weight.grad = None
        free(self.device)
