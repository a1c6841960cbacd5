"""The memory of a run as formulas. Nothing here knows of torch or of models: numbers in, bytes out.

What a run holds on its device, in each of its four phases:

    always     weights of the transformer, of the rewards, of text encoders and VAE unless `offload`
               the LoRA, Adam's state of what is trained, conditions kept in memory
    encoding   + text encoders and VAE where `offload`, in place of transformer and LoRA; the VAE's activations on one
                 reference
    sampling   + latents kept of all images, those of one step of a batch, activations of one forward pass
    scoring    + latents kept, VAE where `offload`, all pictures, activations of the VAE on one batch or of the rewards
    training   + latents kept, the transitions of one update, gradients, activations of one forward and backward pass

The peak is the largest of them. Activations are not guessed but counted, see `measure.py`; they grow in proportion to
the batch. On an accelerator the peak is then raised by `OVERHEAD_SHARE` and `OVERHEAD_BYTES`, for what the allocator
cannot reuse and what the driver and the kernels take: a rule of thumb, and the one number here that is.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32 = 4
OVERHEAD_SHARE, OVERHEAD_BYTES = 0.05, 1_000_000_000
#: Bytes of one weight of a quantised linear layer. nf4: 4 bits, and for 64 weights one absolute maximum, itself
#: quantised to a byte, 256 of them sharing a float32 (QLoRA, arXiv 2305.14314, its double quantisation).
QUANTISED = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}


@dataclass(frozen=True)
class Model:
    """Parameters of one model: `linear` of them are weights of linear layers, in `rows` rows, and can be quantised."""

    parameters: int
    linear: int = 0
    rows: int = 0

    def bytes(self, width: int, quantise: str | None = None) -> int:
        """Bytes of its weights, `width` each, with linear layers quantised where asked for (int8: a scale a row)."""
        if quantise is None:
            return self.parameters * width
        scales = self.rows * width if quantise == "int8" else 0
        return (self.parameters - self.linear) * width + int(self.linear * QUANTISED[quantise]) + scales


@dataclass(frozen=True)
class Work:
    """What one process does in one iteration. `stochastic` steps of an image can be trained, `trained` are.

    `latent` is the number of elements of one image's latents, `condition` the bytes of one pair's conditions.
    """

    pairs: int
    images: int
    stochastic: int
    trained: int
    updates: int
    latent: int
    condition: int
    pixels: int
    sampling_batch: int
    training_batch: int
    conditions_kept: int
    means: bool

    @property
    def rollout_bytes(self) -> int:
        """Of the trained steps latents before and after, each once, mean where kept and log-density; clean latents.

        All float32. Steps that are drawn next to each other share latents: this is the most that they take.
        """
        states = min(2 * self.trained, self.stochastic + 1)
        latents = states + self.means * self.trained + 1
        return self.images * FLOAT32 * (latents * self.latent + self.trained)

    @property
    def items_bytes(self) -> int:
        """The transitions of one update: two latents, the mean where kept, four numbers."""
        items = -(-self.images // min(self.updates, self.images)) * self.trained
        return items * FLOAT32 * ((2 + self.means) * self.latent + 4)

    @property
    def conditions_bytes(self) -> int:
        """Those kept of pairs, and at most those of the pairs of each batch, put together, where there are several."""
        batches = -(-self.images // self.sampling_batch)
        together = self.pairs + batches if self.pairs > 1 else 0
        return (self.conditions_kept + together) * self.condition


@dataclass(frozen=True)
class Activations:
    """Bytes that computing takes beyond what it is given: for one image each, but `rewards` for their whole batch.

    `waiting` are those that wait in host memory for their backward pass.
    """

    forward: int
    training: int
    encode: int
    decode: int
    rewards: int
    waiting: int = 0


@dataclass(frozen=True)
class Weights:
    """Bytes of what is loaded, and of what training adds: `trained` weights of `trained_tensors` tensors.

    `trained` is part of `transformer` where all of it is tuned (`full`), and beside it where a LoRA is. `restored`: the
    untuned model is had by putting its weights in the place of the trained ones, as of all of them or of a LoRA that
    started from another; else by switching a LoRA off. `published` is the transformer before it is quantised;
    `dequantised` its largest linear layer, which a quantised model unpacks while it works.
    """

    transformer: int
    published: int
    text_encoders: int
    vae: int
    rewards: int
    trained: int
    trained_tensors: int
    full: bool
    restored: bool
    offload: bool
    forgetful: bool
    dequantised: int = 0
    ema: bool = False


def optimiser_bytes(trained: int, tensors: int) -> int:
    """Adam's state: two moments of each weight in its own precision, a float32 count of steps for each tensor."""
    return 2 * trained + FLOAT32 * tensors


def device_memory(weights: Weights, work: Work, activations: Activations) -> dict[str, dict[str, int]]:
    """Bytes on the device by phase and part."""
    always = {
        "transformer": weights.transformer,
        "LoRA": 0 if weights.full else weights.trained,
        "optimiser state": optimiser_bytes(weights.trained, weights.trained_tensors),
        "moving average": weights.trained if weights.ema else 0,
        "rewards": weights.rewards,
        "text encoders": 0 if weights.offload else weights.text_encoders,
        "VAE": 0 if weights.offload else weights.vae,
        "conditions": work.conditions_bytes,
    }
    batch = min(work.sampling_batch, work.images)
    kept = {"latents of the rollout": work.rollout_bytes}
    # Before and after a step, velocity and mean; and a row of conditions for each.
    drawn = batch * (4 * work.latent * FLOAT32 + work.condition)
    pictures = 2 * work.images * 3 * work.pixels * FLOAT32
    training = {
        "transitions": work.items_bytes,
        "gradients": weights.trained,
        "activations": work.training_batch * (activations.training + work.condition) + weights.dequantised,
    }
    if weights.restored:  # they come for the KL
        training["untuned weights"] = weights.trained
    encoding = {"text encoders": weights.text_encoders, "VAE": weights.vae, "activations": activations.encode}
    scoring = {
        "VAE": weights.vae,
        "pictures": pictures,
        "activations": max(batch * activations.decode, activations.rewards),
    }
    sampling = {"latents being drawn": drawn, "activations": batch * activations.forward + weights.dequantised}
    elsewhere = ("transformer", "LoRA") if weights.offload else ()
    phases = {
        "encoding": {**always, **encoding, **dict.fromkeys(elsewhere, 0)},
        "sampling": {**always, **kept, **sampling},
        "scoring": {**always, **kept, **scoring},
        "training": {**always, **kept, **training},
    }
    return {name: {part: size for part, size in parts.items() if size} for name, parts in phases.items()}


def host_memory(weights: Weights, waiting: int = 0) -> dict[str, int]:
    """Bytes in host memory of one process with an accelerator, by part: what is loaded passes through it.

    `waiting` are those of the activations that wait there for the backward pass.
    """
    kept = {
        "text encoders": weights.text_encoders if weights.offload and not weights.forgetful else 0,
        "VAE": weights.vae if weights.offload else 0,
        "transformer, while encoding": weights.transformer if weights.offload else 0,
        "untuned weights": weights.trained if weights.restored else 0,
        "activations": waiting,
    }
    loading = weights.published + weights.vae + (0 if weights.forgetful else weights.text_encoders)
    return {"while loading": loading, **{part: size for part, size in kept.items() if size}}


def with_overhead(peak: int, accelerator: bool) -> int:
    """What a device must have for that peak."""
    return peak + int(peak * OVERHEAD_SHARE) + OVERHEAD_BYTES if accelerator else peak
