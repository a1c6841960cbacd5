"""The sections of the benchmark, most important first but for optional ones. Imports nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
"""One measurement as JSON: settings and numbers; a `failed` row has the error in place of numbers."""


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Args:
        name: name in `--sections` and in the JSON.
        title: heading in tables and in docs/gpu.md.
        process: consecutive sections with the same value share a process, and so the model that it has built.
        needs: seconds that it takes on one H100; it is skipped where less is left.
        optional: whether it is also skipped where sections after it would lose their time by it.
        limit: seconds after which it is killed.
        measure: `module:function` of this package, which takes a `Context` and yields rows.
        columns: pairs of a heading and a key of its rows (dotted where nested), for tables.
        notes: what the numbers are, for docs/gpu.md.
    """

    name: str
    title: str
    process: str
    needs: float
    limit: float
    measure: str
    columns: tuple[tuple[str, str], ...] = ()
    notes: str = ""
    optional: bool = False

    def shortage(self, left: float, later: float) -> str | None:
        """Why it is skipped where `left` seconds are left, `later` of them wanted by sections after it; else None."""
        wanted = self.needs + (later if self.optional else 0.0)
        if left >= wanted:
            return None
        more = f" and {later:.0f} s are for sections after it" if wanted > self.needs else ""
        return f"{max(0.0, left):.0f} s were left, it needs {self.needs:.0f} s{more}"


_PAIRED = (
    ("ours, s per image", "ours"),
    ("diffusers + peft, s per image", "libraries"),
    ("speed-up", "speed_up"),
)
_ITERATION = (
    ("way", "way"),
    ("images", "images"),
    ("steps", "steps"),
    ("trained steps", "trained_steps"),
    ("batch sizes", "batch_sizes"),
    ("s per image", "seconds_per_image"),
    ("recipe's iteration, s (extrapolated)", "recipe_seconds"),
    ("speed-up of ours", "speed_up"),
    ("peak GB", "peak_gb"),
    ("planned GB", "planned_gb"),
    ("plan - measured, %", "plan_difference"),
)
_ITERATION_NOTES = (
    "One iteration with the recipe's settings, but fewer images and steps, as the columns show, and no initial noise "
    "shared by a group, so that each image takes all of its steps. Extrapolated to the recipe: "
    "`pairs * encode + images * steps * sample + images * trained steps * update + images * (decode + score)`, each "
    "measured per unit. The released shape computes one image at a time and encodes its prompt and reference again. "
    "Text encoders have one layer here, so encoding costs less than with the real ones. Each way is measured once, "
    "after a short warm-up. The plan is that of `cgrpo plan` for the configuration measured, without its allowance for "
    "the allocator."
)

SECTIONS = (
    Section(
        "attention",
        "Attention calls by backend",
        process="attention",
        needs=40,
        limit=80,
        measure="attention:attention",
        columns=(
            ("backend", "backend"),
            ("queries", "queries"),
            ("keys", "keys"),
            ("layout of q, k, v", "layout"),
            ("layout of the gradient", "gradient"),
            ("result", "status"),
            ("error, forward", "forward_error"),
            ("error, backward", "backward_error"),
            ("forward, TFLOP/s", "forward_tflops"),
            ("forward and backward, TFLOP/s", "both_tflops"),
        ),
        notes="Every call runs in a process of its own, since an illegal access ends the CUDA context. Errors are "
        "relative to attention in float32 by plain products; the backward one is the largest of the three gradients'. "
        "24 heads of 128, batch 1, bfloat16.",
    ),
    Section(
        "peak",
        "Matrix products",
        process="model",
        needs=5,
        limit=30,
        measure="model:peak",
        columns=(("precision", "precision"), ("TFLOP/s", "tflops")),
        notes="The fastest of some square products, which shares of the peak refer to.",
    ),
    Section(
        "velocity",
        "Velocity without gradients",
        process="model",
        needs=35,
        limit=70,
        measure="model:velocity",
        columns=(
            ("batch", "batch"),
            *_PAIRED,
            ("ours, % of peak", "ours_share"),
            ("diffusers + peft, % of peak", "libraries_share"),
        ),
        notes="LoRA of rank 16 on attention. Shares count the operations of diffusers' and peft's own computation for "
        "both: matrix products, convolutions and attention.",
    ),
    Section(
        "training",
        "Forward and backward",
        process="model",
        needs=40,
        limit=110,
        measure="model:training",
        columns=(
            ("rank", "rank"),
            ("layers", "layers"),
            ("checkpointing", "checkpointing"),
            ("batch", "batch"),
            *_PAIRED,
            ("ours, % of peak", "ours_share"),
            ("without recomputation, %", "useful_share"),
            ("ours, peak GB", "ours_gb"),
            ("diffusers + peft, peak GB", "libraries_gb"),
            ("planned GB", "planned_gb"),
            ("plan - measured, %", "plan_difference"),
        ),
        notes="Operations are those of diffusers + peft, with what gradient checkpointing computes again, and in the "
        "next column without. The plan is the sum of the parts of `cgrpo plan` that are there: weights, LoRA, "
        "gradients, activations.",
    ),
    Section(
        "kontext",
        "An iteration of recipes/kontext-dev.yaml",
        process="model",
        needs=35,
        limit=75,
        measure="iteration:kontext",
        columns=_ITERATION,
        notes=_ITERATION_NOTES,
    ),
    Section(
        "adamw",
        "AdamW at rank 512",
        process="model",
        needs=8,
        limit=30,
        measure="small:adamw",
        columns=(
            ("implementation", "implementation"),
            ("million weights", "million_weights"),
            ("s per step", "seconds"),
            ("extra peak GB", "extra_gb"),
        ),
    ),
    Section(
        "paper",
        "An iteration of recipes/paper.yaml",
        process="model",
        needs=35,
        limit=75,
        measure="iteration:paper",
        columns=_ITERATION,
        notes="As above, with UNO's position ids and moving window of stochastic steps; its LoRA, which would be fused "
        "into the weights, is left out.",
    ),
    Section(
        "ratios",
        "Log-ratios before the first optimiser step",
        process="model",
        needs=15,
        limit=45,
        measure="model:ratios",
        columns=(
            ("sampler", "sampler"),
            ("eta", "eta"),
            ("sampled in batches of", "sampled"),
            ("trained in batches of", "trained"),
            ("way", "way"),
            ("max", "largest"),
            ("mean", "mean"),
        ),
        notes="Absolute difference of log-densities of the same transitions, sampled without gradients and replayed "
        "with them, by the policy alone: what a trainer has to correct for.",
    ),
    Section(
        "launch",
        "Launch overhead: rank 128, checkpointing, batch 1",
        process="model",
        needs=18,
        limit=45,
        measure="model:launch",
        columns=(("garbage collector", "collector"), *_PAIRED),
    ),
    Section(
        "decode",
        "VAE decoding",
        process="model",
        needs=6,
        limit=30,
        measure="small:decode",
        columns=(
            ("batch", "batch"),
            ("channels last", "channels_last"),
            ("s per image", "seconds"),
            ("peak GB", "peak_gb"),
        ),
    ),
    Section(
        "scoring",
        "Reward models",
        process="model",
        needs=10,
        limit=40,
        measure="small:scoring",
        columns=(("model", "model"), ("batch", "batch"), ("images per s", "images_per_second")),
        notes="DINOv2-base and CLIP ViT-L/14 with random weights, float32, as the rewards `dino` and `clip` use them: "
        "framing of the images included, features of references and prompts cached.",
    ),
    Section(
        "high-resolution",
        "1024x1024",
        process="model",
        needs=10,
        limit=40,
        measure="model:high_resolution",
        columns=(("what", "what"), ("side", "side"), *_PAIRED),
        notes="One reference of the same size; batch 1.",
    ),
    Section(
        "model-attention",
        "The model by attention backend",
        process="model",
        needs=15,
        limit=60,
        optional=True,
        measure="model:by_attention",
        columns=(
            ("policy.attention", "attention"),
            ("velocity, s per image", "velocity"),
            ("forward and backward, s per image", "training"),
        ),
        notes="LoRA of rank 16 on attention, checkpointing, batch 4.",
    ),
    Section(
        "compile",
        "policy.compile",
        process="model",
        needs=25,
        limit=80,
        optional=True,
        measure="model:compiled",
        columns=(("what", "what"), ("first call, s", "first_seconds"), ("s per image", "seconds")),
        notes="Batch 4, rank 16. The first call compiles the two kinds of blocks.",
    ),
    Section(
        "default",
        "`cgrpo train` with no options",
        process="default",
        needs=75,
        limit=110,
        measure="default:default",
        columns=(
            ("wall time, s", "seconds"),
            ("iterations", "iterations"),
            ("s per iteration", "seconds_per_iteration"),
            ("identity, gain %", "identity_gain"),
            ("prompt, gain %", "prompt_gain"),
        ),
        notes="The embedded model in float32, with base and final evaluation.",
    ),
)

#: For the tests of the parent process: sections that misbehave.
DEBUG = (
    Section("debug-rows", "Debug", "debug", needs=0, limit=60, measure="debug:rows", columns=(("row", "row"),)),
    Section("debug-error", "Debug", "debug", needs=0, limit=60, measure="debug:error"),
    Section("debug-crash", "Debug", "debug", needs=0, limit=60, measure="debug:crash"),
    Section("debug-hang", "Debug", "debug", needs=0, limit=1, measure="debug:hang"),
    Section("debug-long", "Debug", "debug", needs=10_000, limit=1, measure="debug:rows"),
    Section("debug-last", "Debug", "debug", needs=0, limit=60, measure="debug:rows", columns=(("row", "row"),)),
)


def all_sections() -> tuple[Section, ...]:
    """The sections; with those for tests where the environment variable BENCHMARKS_GPU_DEBUG is set."""
    return SECTIONS + (DEBUG if os.environ.get("BENCHMARKS_GPU_DEBUG") else ())


def named(names: list[str] | None) -> list[Section]:
    """The sections of these names in the benchmark's order; all where there are none.

    Raises:
        ValueError: there is no section of a name.
    """
    known = {section.name: section for section in all_sections()}
    for name in names or ():
        if name not in known:
            raise ValueError(f"--sections: there is no {name!r}; give some of {', '.join(known)}")
    return [section for section in known.values() if names is None or section.name in names]
