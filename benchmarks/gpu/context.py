"""What sections of one process share: the device, the random model with the policy that is on it, the reward models.

Everything is made when it is first asked for, and heavy imports are inside, so that a section pays for what it uses.
"""

from __future__ import annotations

import runpy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.sections import Row
from customized_grpo.utils.records import aside, move_folder

if TYPE_CHECKING:
    import torch

    from customized_grpo.config import PolicyConfig, RewardConfig
    from customized_grpo.policies.pipelines import PipelinePolicy
    from customized_grpo.protocols import Conditions, Pair, Reward

ROOT = Path(__file__).parents[2]
SIDE, TINY_SIDE = 512, 64
#: Layers that a LoRA adapts: attention, or the default of the policies (those of MLPs too).
LAYERS = ("attention", "default")


class Context:
    """Shared by the sections of one process.

    Args:
        tiny: a small model, fewer and smaller cases: to try everything out on a CPU.
        folder: for temporary files, which processes may share; one of its own where none is given.
    """

    def __init__(self, *, tiny: bool, folder: Path | None = None) -> None:
        self.tiny = tiny
        if folder is None:
            self._own_folder = tempfile.TemporaryDirectory(prefix="benchmarks-gpu-")  # until this object is gone
            folder = Path(self._own_folder.name)
        self.folder = folder
        self._held: tuple[PolicyConfig, PipelinePolicy] | None = None

    @cached_property
    def device(self) -> torch.device:
        import torch

        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else torch.device(found.type, 0)

    @cached_property
    def peak(self) -> float:
        """Measured floating-point operations a second of matrix products in bfloat16."""
        import torch

        from benchmarks.iteration.peak import matmul_peak

        return matmul_peak(self.device, torch.bfloat16)

    @property
    def side(self) -> int:
        """Pixels of an image's side."""
        return TINY_SIDE if self.tiny else SIDE

    def sizes(self, *full: int) -> tuple[int, ...]:
        """Batch sizes or the like; with `tiny` the first two, none above 2."""
        return tuple(dict.fromkeys(min(size, 2) for size in full)) if self.tiny else full

    @cached_property
    def pipeline(self) -> Any:
        """FLUX.1 Kontext's pipeline with 12 billion random weights, made on the device."""
        make = runpy.run_path(str(ROOT / "recipes" / "random" / "flux1.py"))["pipeline"]
        return make(tiny=self.tiny, device=self.device)

    @cached_property
    def _pipelines(self) -> dict[str, Any]:
        """A pipeline for each kind of policy, of the same models."""
        from diffusers import FluxPipeline

        parts = {name: part for name, part in self.pipeline.components.items() if part is not None}
        return {"flux-kontext": self.pipeline, "uno": FluxPipeline(**parts)}

    def outline(self, kind: str = "flux-kontext") -> Path:
        """A folder with the JSON configs of the random pipeline, of which `cgrpo plan` makes its plan."""

        def write(folder: Path) -> None:
            pipeline = self._pipelines[kind]
            pipeline.save_config(folder)
            for name, part in pipeline.components.items():
                if hasattr(part, "save_config"):  # a model or scheduler of diffusers
                    part.save_config(folder / name)
                elif hasattr(part, "config"):  # a model of transformers
                    part.config.save_pretrained(folder / name)

        return self.written(kind, write)

    def written(self, name: str, write: Callable[[Path], None]) -> Path:
        """The temporary folder of that name, as `write` fills it; whole, whenever a process was killed."""
        folder = self.folder / name
        if not folder.is_dir():
            unfinished = aside(folder)
            write(unfinished)
            move_folder(unfinished, folder)
        return folder

    def policy_config(
        self, *, rank: int, layers: str = "attention", kind: str = "flux-kontext", side: int | None = None, **more: Any
    ) -> PolicyConfig:
        """Settings of a policy on the random model, with a LoRA of this rank on these `LAYERS`."""
        from customized_grpo.config import PolicyConfig
        from customized_grpo.policies.pipelines import ATTENTION

        side = side or self.side
        return PolicyConfig.model_validate(
            {
                "kind": kind,
                "path": str(self.outline(kind)),
                "dtype": "bfloat16",
                "height": side,
                "width": side,
                "reference_sizes": [(side, side)],
                "max_sequence_length": 24 if self.tiny else 512,
                "guidance": 3.5,
                "lora": {
                    "rank": max(1, rank // 32) if self.tiny else rank,
                    "targets": list(ATTENTION) if layers == "attention" else None,
                },
                **more,
            }
        )

    def policy(self, config: PolicyConfig) -> PipelinePolicy:
        """A policy of these settings on the random model. The one before it is of no use any more."""
        if self._held is None or self._held[0] != config:
            from benchmarks.gpu.random_policy import random_policy, restore

            self._held = None
            restore(self.pipeline.transformer)
            self._free()
            self._held = config, random_policy(config, self._pipelines[config.kind])
        return self._held[1]

    def pairs(self, count: int) -> list[Pair]:
        """Pairs with a prompt and a random reference each."""
        import numpy as np
        from PIL import Image

        from customized_grpo.protocols import Pair

        made = []
        for k in range(count):
            pixels = np.random.default_rng(k).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
            prompt = f"toy number {k} on a red table"
            made.append(Pair(key=f"pair-{k}", prompt=prompt, references=(Image.fromarray(pixels),), masks=(None,)))
        return made

    def inputs(self, policy: PipelinePolicy, batch: int) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
        """Random latents, noise levels and conditioning of so many images, for `Policy.velocity`."""
        import torch

        pair = self.pairs(1)[0]
        conditions = policy.encode(pair.prompt, pair.references).select(torch.zeros(batch, dtype=torch.long))
        draws = torch.Generator(self.device).manual_seed(0)
        latents = torch.randn(batch, *policy.latent_shape, device=self.device, generator=draws)
        return latents, torch.full((batch,), 0.7, device=self.device), conditions

    def rewards(self, configs: Sequence[RewardConfig]) -> list[Reward]:
        """The rewards `dino` and `clip` with random weights, under the names of these settings."""
        from customized_grpo.rewards import build_reward

        return [build_reward(config, self.device) for config in self.reward_configs(configs)]

    def reward_configs(self, configs: Sequence[RewardConfig]) -> list[RewardConfig]:
        """The settings with the folders of random weights as paths; with `tiny` the embedded reward models'."""
        from benchmarks.gpu.random_rewards import write_reward

        paths = {"dino": "embedded/reward-identity", "clip": "embedded/reward-prompt"}
        if not self.tiny:
            paths = {kind: str(self.written(kind, partial(write_reward, kind, self.device))) for kind in paths}
        return [config.model_copy(update={"path": paths[config.kind]}) for config in configs]

    def attempt(self, settings: Row, measure: Callable[[], Row]) -> Row:
        """The row of `settings` with what `measure` finds; of what fails, the error instead, with memory freed."""
        try:
            return settings | measure()
        except Exception as error:
            if not self.usable():
                raise
            text = f"{type(error).__name__}: {error}"
        self.tidy()
        return settings | {"failed": text.splitlines()[0]}

    def usable(self) -> bool:
        """Whether the device still computes: an illegal access ends its context for good."""
        from benchmarks.gpu.timing import synchronise

        try:
            synchronise(self.device)
        except RuntimeError:
            return False
        return True

    def tidy(self) -> None:
        """Free gradients and cached memory."""
        if self._held is not None:
            for weight in self._held[1].trainable().values():
                weight.grad = None
        self._free()

    def _free(self) -> None:
        from benchmarks.gpu.timing import free

        free(self.device)

    @contextmanager
    def stance(self) -> Iterator[None]:
        """Inside it, with `tiny`, compiled code runs as it was written: a CPU would compile for minutes."""
        import torch

        if not self.tiny:
            yield
            return
        with torch.compiler.set_stance("force_eager"):
            yield
