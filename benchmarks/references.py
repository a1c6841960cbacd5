"""Measure what cached keys and values of references save: FLUX.2 klein KV against klein, with equal random weights.

The transformer has the proportions of klein 9B, at an eighth of its width and number of blocks. Sequences are an eighth
of those at 512x512 pixels, so that attention has its share of the work.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from customized_grpo.cli.app import quiet
from customized_grpo.config import Config, RolloutConfig, TrainConfig
from customized_grpo.policies.pipelines import REFERENCE, PipelinePolicy
from customized_grpo.protocols import Conditions, Pair
from customized_grpo.trainer.profiling import Clock
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer
from customized_grpo.utils.machine import hardware

_PIPELINES = {"flux2": Flux2KleinPipeline, "flux2-klein-kv": Flux2KleinKVPipeline}


@dataclass(frozen=True)
class Size:
    """Size of the model and of the work.

    Attributes:
        heads: Attention heads of 128 channels.
        blocks: Numbers of double and of single blocks.
        side: Rows and columns of tokens of the image and of each reference.
        words: Text tokens.
        group: Images of the only group, all in one batch.
    """

    heads: int = 4
    blocks: tuple[int, int] = (1, 3)
    side: int = 11
    words: int = 64
    group: int = 4


def make_policies(size: Size) -> dict[str, PipelinePolicy]:
    """Make a policy of each kind, with the same weights."""
    torch.manual_seed(0)
    double, single = size.blocks
    transformer = Flux2Transformer2DModel(
        num_layers=double,
        num_single_layers=single,
        num_attention_heads=size.heads,
        joint_attention_dim=128 * size.heads,
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    policies = {}
    for kind, pipeline in _PIPELINES.items():
        parts: dict[str, Any] = {"transformer": copy.deepcopy(transformer), "vae": copy.deepcopy(vae)}
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        made = pipeline(scheduler=scheduler, text_encoder=None, tokenizer=None, is_distilled=True, **parts)
        policies[kind] = PipelinePolicy.from_pretrained(
            f"random {kind}",
            kind=kind,
            pipeline=made,
            lora_rank=16,
            dtype="float32",
            height=16 * size.side,
            width=16 * size.side,
        )
    return policies


def make_conditions(size: Size, references: int) -> Conditions:
    """Make random conditioning of one pair with that number of references."""
    generator = torch.Generator().manual_seed(0)
    rows = {"prompt_embeds": torch.randn(1, size.words, 128 * size.heads, generator=generator)}
    for k in range(1, references + 1):
        rows[REFERENCE.format(k)] = torch.randn(1, size.side, size.side, 128, generator=generator)
    return Conditions(rows)


class _Prepared(CustomizedGRPOTrainer):
    """Trains on conditioning that was made before, since random pipelines have no text encoder."""

    prepared: Conditions

    def encode(self, pairs: Sequence[Pair]) -> list[Conditions]:
        return [self.prepared for _ in pairs]


def _red(images: Tensor) -> Tensor:
    return images[:, 0].mean((1, 2))


def _upper(images: Tensor) -> Tensor:
    return images[:, :, : images.shape[2] // 2].mean((1, 2, 3))


class _CpuTime(Clock):
    """CPU time of this process, which other programs change less than wall-clock time."""

    def _now(self) -> float:
        return time.process_time()


def seconds(policy: PipelinePolicy, conditions: Conditions, size: Size) -> dict[str, float]:
    """Run one iteration of 4 steps, all 3 stochastic ones trained in one update; return seconds by stage."""
    config = Config(
        policy=policy.config,
        rollout=RolloutConfig(steps=4, group_size=size.group, pairs=1, batch_size=size.group, overlap=False),
        train=TrainConfig(updates=1, trained_fraction=1.0, batch_size=size.group, max_drift=None, trackers=[]),
    )
    pair = Pair("pair", "", (Image.new("RGB", (64, 64)),), (None,))
    trainer = _Prepared(policy, {"identity": [_red], "prompt": [_upper]}, [pair], None, config, Path())
    trainer.prepared = conditions
    clock = _CpuTime() if policy.device.type == "cpu" else Clock(policy.device)
    with trainer.profile(clock):
        trainer.train_step()
    return {**clock.totals, "iteration": sum(clock.totals.values())}


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Timed iterations of each, of which the median is reported.")] = 5,
) -> None:
    """Benchmark FLUX.2 klein with cached keys and values of references against FLUX.2 klein, by turns in one run.

    [dim]python -m benchmarks.references[/dim]
    """
    quiet()
    compare(Size(), repeats, Console())


def compare(size: Size, repeats: int, console: Console) -> dict[int, dict[str, float]]:
    """Print a table of seconds and speed-ups; return the speed-up by number of references and stage."""
    policies = make_policies(size)
    machine = hardware(next(iter(policies.values())).device)
    table = Table("references", "stage", *policies, "speed-up", "least", "most")
    speedups: dict[int, dict[str, float]] = {}
    for references in (1, 2):
        conditions = make_conditions(size, references)
        rounds = [
            {kind: seconds(policy, conditions, size) for kind, policy in policies.items()} for _ in range(1 + repeats)
        ]
        del rounds[0]  # warmed up
        for stage in ("sample", "update", "iteration"):
            plain, cached = ([one[kind][stage] for one in rounds] for kind in policies)
            ratios = [a / b for a, b in zip(plain, cached, strict=True)]
            speedups.setdefault(references, {})[stage] = median(ratios)
            times = (f"{median(plain):.3f} s", f"{median(cached):.3f} s")
            table.add_row(str(references), stage, *times, *(f"{part(ratios):.2f}x" for part in (median, min, max)))
    console.print(table)
    console.print(
        f"{machine['device']}, {machine['CPU threads']} CPU threads; CPU time on a CPU; a group of {size.group} "
        f"images of {size.side**2} tokens, as many of each reference, {size.words} of text; 4 steps, 3 trained",
        highlight=False,
    )
    return speedups


if __name__ == "__main__":
    typer.run(main)
