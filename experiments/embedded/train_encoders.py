"""Train the four embedded encoders: two rewards and, apart from them, two judges never optimised.

    python experiments/embedded/train_encoders.py reward-identity --data build/world --out $MODELS
    python experiments/embedded/train_encoders.py judge-prompt --data build/world2 --out $MODELS

The judges differ from the rewards in architecture, seed and pictures (render.py with another
--seed). Identity: a Dinov2Model whose CLS token tells a subject's reference, cut out or whole, from
others in its batch, and the same shape in another colour from another shape. Prompt: a CLIPModel that
tells a picture's prompt from those with a part swapped, graded by how much of a prompt is so.
`--resume` goes on from the weights in the output folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_data import CHOICES, KINDS, Rendered, cut_out, disturb, nearly
from text import CLIP_LENGTH, clip_tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
)

from customized_grpo.embedded.subjects import Subject, picture

SIDE = 64
GREY = [0.5, 0.5, 0.5]
Losses = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What tells one encoder from another."""

    new: Callable[[], nn.Module]
    seed: int
    steps: int
    rate: float = 1e-3


def new_dino(width: int, depth: int, heads: int) -> Dinov2Model:
    return Dinov2Model(
        Dinov2Config(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, mlp_ratio=4,
            image_size=SIDE, patch_size=8, layerscale_value=0.5,
        )
    )  # fmt: skip


def new_clip(width: int, depth: int, heads: int, text_width: int, shared: int) -> CLIPModel:
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": text_width,
        "intermediate_size": 3 * text_width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CLIP_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "image_size": SIDE,
        "patch_size": 8,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=shared, logit_scale_init_value=2.3)
    return CLIPModel(config)


SPECS = {
    "reward-identity": Spec(lambda: new_dino(128, 5, 4), seed=1, steps=1300),
    "judge-identity": Spec(lambda: new_dino(96, 6, 3), seed=2, steps=1000),
    "reward-prompt": Spec(lambda: new_clip(128, 4, 4, 96, 64), seed=3, steps=2000),
    "judge-prompt": Spec(lambda: new_clip(96, 5, 3, 64, 48), seed=4, steps=1700),
}


class IdentityTask:
    """Which scene shows which reference's subject, where many of a batch are one sprite in other colours.

    Graded besides: the same shape in another colour is worth half, so that the encoder looks at shapes as well as
    at colours, and a subject recoloured by its prompt keeps part of its score. Heads that are thrown away
    afterwards draw the bare subject, name its sprite and find it in the picture: without them a matching loss is
    met by colours alone and shapes stay unseen for long. The last term holds a copied reference nearer than a new
    picture of the subject, as DINO's own training does with crops of one picture.
    """

    sprites, each = 28, 3
    copies, copy_weight = 28, 0.25
    graded_weight, drawn_weight, named_weight, found_weight = 4.0, 20.0, 0.3, 0.5
    drawn_side = 16
    true, same_shape = 0.85, 0.45  # cosines wanted of the true picture, and of its shape in another colour

    def __init__(self, data: Rendered, seed: int, width: int) -> None:
        self.data, self.rng = data, np.random.default_rng(seed)
        self.rows = {k: np.array(v) for k, v in data.rows_by_sprite().items() if len(v) >= self.each}
        self.log_scale = nn.Parameter(torch.tensor(math.log(8.0)))
        self.draw = nn.Sequential(nn.Linear(width, 512), nn.GELU(), nn.Linear(512, 3 * self.drawn_side**2))
        self.name = nn.Linear(width, max(self.rows) + 1)
        self.find = nn.Linear(width, 1)
        self.parameters = [self.log_scale, *self.draw.parameters(), *self.name.parameters(), *self.find.parameters()]
        self._bare: dict[tuple[Subject, str | None], Tensor] = {}

    def bare(self, subject: Subject, colour: str | None) -> Tensor:
        """The subject alone on grey, (3, 16, 16), painted once."""
        key = (subject, colour)
        if key not in self._bare:
            painted = torch.from_numpy(picture(subject, colour)).permute(2, 0, 1)
            on_grey = painted[:3] * painted[3:] + 0.5 * (1 - painted[3:])
            self._bare[key] = functional.adaptive_avg_pool2d(on_grey, self.drawn_side).half()
        return self._bare[key].float()

    def wanted(self, subjects: list[Subject], colours: list[str | None]) -> Tensor:
        """Cosines (references, targets) that the scores should have."""
        sprite = torch.tensor([subject.sprite for subject in subjects])
        hue = torch.tensor([subject.hue for subject in subjects])
        apart = (hue[:, None] - hue[None] + 0.5) % 1 - 0.5
        alike = torch.exp(-((apart / 0.08) ** 2)) * torch.tensor([colour is None for colour in colours])
        wanted = self.same_shape + (0.8 - self.same_shape) * alike
        wanted = wanted * (sprite[:, None] == sprite[None])
        own = torch.tensor([[a == b for b in subjects] for a in subjects]) & (alike > 0)
        return torch.where(own, torch.tensor(self.true), wanted)

    def losses(self, model: nn.Module) -> Losses:
        chosen = self.rng.choice(list(self.rows), self.sprites, replace=False)
        rows = np.concatenate([self.rng.choice(self.rows[int(s)], self.each, replace=False) for s in chosen])
        subjects, n = [self.data.subjects[row] for row in rows], len(rows)
        colours = [self.data.sayings[row].wish.colour for row in rows]
        references, masks = self.data.pictures("reference", rows), self.data.masks("reference", rows)
        targets, target_masks = self.data.pictures("target", rows), self.data.masks("target", rows)
        whole = torch.from_numpy(self.rng.random(n) < 0.5)
        anchors = torch.where(whole[:, None, None, None], references, cut_out(references, masks))
        copied = torch.from_numpy(self.rng.choice(n, self.copies, replace=False))
        pictures = torch.cat([disturb(anchors), disturb(targets), disturb(references[copied])])
        output = model(pixel_values=(pictures - 0.5) / 0.5)
        pooled = output.pooler_output.float()
        anchor, target, copy = functional.normalize(pooled, dim=-1).split([n, n, self.copies])
        cosines = anchor @ target.T
        wanted = self.wanted(subjects, colours)

        scale = self.log_scale.exp().clamp(max=20)  # beyond it cosines lose their spread
        eye = torch.eye(n, dtype=torch.bool)
        logits = (scale * cosines).masked_fill((wanted > 0.7) & ~eye, -1e4)
        labels = torch.arange(n)
        asked = torch.tensor([colour is None for colour in colours])
        match = functional.cross_entropy(logits[asked], labels[asked])
        match = (match + functional.cross_entropy(logits.T[asked], labels[asked])) / 2
        errors = (cosines - wanted).square()
        graded = errors[wanted > 0].mean() + errors[wanted == 0].mean()
        nearer = scale * torch.cat([(anchor[copied] * copy).sum(-1, keepdim=True), anchor[copied] @ target.T], 1)
        copying = functional.cross_entropy(nearer, torch.zeros(self.copies, dtype=torch.long))

        shown = [self.bare(s, None) for s in subjects] + [
            self.bare(s, c) for s, c in zip(subjects, colours, strict=True)
        ]
        shown += [shown[i] for i in copied.tolist()]
        drawn = functional.mse_loss(self.draw(pooled).float(), torch.stack(shown).flatten(1))
        sprite = torch.tensor([subject.sprite for subject in subjects])
        named = functional.cross_entropy(self.name(pooled).float(), torch.cat([sprite, sprite, sprite[copied]]))
        covered = torch.cat([masks, target_masks, masks[copied]])
        covered = functional.avg_pool2d(covered, SIDE // 8).flatten(1)
        patches = self.find(output.last_hidden_state[:, 1:]).float().squeeze(-1)
        found = functional.binary_cross_entropy_with_logits(patches, covered)
        right = (logits.argmax(1) == labels)[asked].float().mean()
        return {
            "loss": match
            + self.graded_weight * graded
            + self.copy_weight * copying
            + self.drawn_weight * drawn
            + self.named_weight * named
            + self.found_weight * found,
            "match": match,
            "graded": graded,
            "copying": copying,
            "drawn": drawn,
            "named": named,
            "found": found,
            "right": right,
        }


class PromptTask:
    """CLIP's loss over true prompts and nearly right ones, and cosines that say how much of a
    prompt is so.

    The second part keeps the score graded: a contrastive loss alone saturates, and a group of
    pictures would then have no spread to learn from. Linear heads, the same for pictures and texts and
    thrown away afterwards, name each part: neither side begins to learn a part that the other does not
    show yet, and without them positions stay unseen for long.
    """

    batch, swaps, graded_weight, named_weight = 80, 3, 6.0, 0.3
    #: How much each part of a prompt counts. A colour or an accessory that is not mentioned is
    #: asked for less.
    weights = torch.tensor([0.5, 1.0, 1.0, 1.0, 1.0])
    unmentioned = torch.tensor([0.5, 1.0, 0.5, 0.5, 0.0])

    def __init__(self, data: Rendered, seed: int, width: int) -> None:
        self.data, self.rng, self.tokenizer = data, np.random.default_rng(seed), clip_tokenizer()
        self.heads = [nn.Linear(width, len(choices)) for choices in CHOICES.values()]
        self.parameters = [weight for head in self.heads for weight in head.parameters()]

    def naming(self, features: Tensor, codes: Tensor) -> Tensor:
        """How badly the heads name the parts of pictures or texts; a position left open is not asked for."""
        total = torch.zeros(())
        for kind, head, truth in zip(KINDS, self.heads, codes.T, strict=True):
            asked = truth > 0 if kind == "position" else torch.ones_like(truth, dtype=torch.bool)
            total = total + functional.cross_entropy(head(10 * features[asked]).float(), truth[asked])
        return total

    def losses(self, model: nn.Module) -> Losses:
        rows = self.rng.choice(len(self.data), self.batch, replace=False)
        true = [self.data.sayings[row] for row in rows]
        positions = [self.data.position(row) for row in rows]
        shown = [s.swapped("position", p) for s, p in zip(true, positions, strict=True)]
        seen = torch.tensor([saying.codes for saying in shown])
        sayings = list(true)
        for _ in range(self.swaps):
            for saying, position in zip(true, positions, strict=True):
                kind = str(self.rng.choice(KINDS, p=[0.1, 0.15, 0.2, 0.25, 0.3]))
                sayings.append(nearly(saying, position, kind, self.rng))
        said = torch.tensor([saying.codes for saying in sayings])
        mentioned = torch.where((said == 0) & (torch.arange(len(KINDS)) >= 2), self.unmentioned, self.weights)
        agree = seen[:, None] == said[None]  # (images, prompts, kinds)
        fulfilled = (agree * mentioned).sum(-1) / mentioned.sum(-1)
        pictures = disturb(self.data.pictures("target", rows))
        images = model.get_image_features(pixel_values=(pictures - 0.5) / 0.5).pooler_output.float()
        images = functional.normalize(images, dim=-1)
        tokens = self.tokenizer([saying.text for saying in sayings], padding=True, return_tensors="pt")
        texts = functional.normalize(model.get_text_features(**tokens).pooler_output.float(), dim=-1)
        cosines = images @ texts.T
        logits = model.logit_scale.float().exp().clamp(max=20) * cosines
        labels = torch.arange(self.batch)
        also_true = (fulfilled > 0.999) & ~functional.one_hot(labels, len(sayings)).bool()
        logits = logits.masked_fill(also_true, -1e4)
        picked = functional.cross_entropy(logits, labels)
        pictured = functional.cross_entropy(logits[:, : self.batch].T, labels)
        own = (torch.arange(len(sayings))[None] % self.batch) == labels[:, None]
        errors = (cosines - fulfilled).square()
        graded = errors[own].mean() + errors[~own].mean()
        right = (logits.argmax(1) == labels).float().mean()
        named_images, named_texts = self.naming(images, seen), self.naming(texts, said)
        return {
            "loss": picked + pictured + self.graded_weight * graded + self.named_weight * (named_images + named_texts),
            "picked": picked,
            "graded": graded,
            "named (images)": named_images,
            "named (texts)": named_texts,
            "right": right,
        }


def save(model: nn.Module, folder: Path) -> None:
    """Write the model's folder as on the hub: float16 weights, image processor, tokenizer."""
    frame: dict[str, Any] = {
        "image_mean": GREY,
        "image_std": GREY,
        "size": {"shortest_edge": SIDE},
        "resample": 3,
    }
    frame["crop_size"] = {"height": SIDE, "width": SIDE}
    half = type(model)(model.config)  # type: ignore[arg-type]
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)  # type: ignore[operator]
    (folder / "model.safetensors").chmod(0o644)
    if isinstance(model, CLIPModel):
        CLIPImageProcessor(**frame).save_pretrained(folder)
        clip_tokenizer().save_pretrained(folder)
    else:
        BitImageProcessor(**frame).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", choices=SPECS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the encoders' folders")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    spec, folder = SPECS[options.encoder], options.out / options.encoder
    steps, rate = options.steps or spec.steps, options.rate or spec.rate
    seed = spec.seed + (1000 if options.resume else 0)
    torch.manual_seed(seed)
    model = spec.new()
    if options.resume:
        model = type(model).from_pretrained(folder, dtype=torch.float32)  # type: ignore[attr-defined]
    model.train()
    data = Rendered(options.data)
    task: IdentityTask | PromptTask
    if isinstance(model, CLIPModel):
        task = PromptTask(data, seed, model.config.projection_dim)
    else:
        task = IdentityTask(data, seed, model.config.hidden_size)
    # A CLIPModel's halves are called one by one, which a compiled module cannot be.
    called = model if isinstance(model, CLIPModel) else torch.compile(model)
    weights = [*model.parameters(), *task.parameters]
    decayed = [w for w in weights if w.ndim > 1]
    groups = [
        {"params": decayed, "weight_decay": 0.05},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    print(
        f"{options.encoder}: {sum(w.numel() for w in model.parameters())} parameters, {steps} steps",
        flush=True,
    )
    start = time.time()
    for step in range(steps):
        # The CPU's flash attention has a slow backward pass at this size.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            losses = task.losses(called)
        optimiser.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            told = " ".join(f"{name} {float(value.detach()):.3f}" for name, value in losses.items())
            print(f"step {step} {told} {time.time() - start:.0f}s", flush=True)
        if step % 100 == 99 or step == steps - 1:
            save(model, folder)


if __name__ == "__main__":
    main()
