"""Train the four embedded encoders: two for rewards and two for monitors, which are never trained on.

    python experiments/embedded/train_encoders.py reward-identity --data build/world --out $MODELS
    python experiments/embedded/train_encoders.py monitor-prompt --data build/world2 --out $MODELS

The monitors' differ from the rewards' in architecture, seed and images (render.py with another --seed). Identity: a
Dinov2Model whose CLS token tells a subject's reference, cut out or whole, from others in its batch, and the same shape in
another colour from another shape. Prompt: a CLIPModel that tells an image's prompt from those with a part swapped, graded
by how much of a prompt is right.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from data import CHOICES, KINDS, Rendered, cut_out, disturb
from text import CLIP_LENGTH, clip_tokenizer
from torch import Tensor, nn
from torch.nn import functional
from training import Losses, one_cycle, parser, train
from transformers import BitImageProcessor, CLIPConfig, CLIPImageProcessor, CLIPModel, Dinov2Config, Dinov2Model

from customized_grpo.embedded.subjects import Subject, sprite_image

SIDE = 64


@dataclass(frozen=True)
class Spec:
    """Architecture, seed and defaults of an encoder."""

    new: Callable[[], nn.Module]
    seed: int
    steps: int


def new_dino(width: int, depth: int, heads: int) -> Dinov2Model:
    return Dinov2Model(
        Dinov2Config(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, mlp_ratio=4, image_size=SIDE,
            patch_size=8, layerscale_value=0.5,
        )
    )  # fmt: skip


def new_clip(width: int, depth: int, heads: int, text_width: int, shared: int) -> CLIPModel:
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": text_width, "intermediate_size": 3 * text_width,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CLIP_LENGTH,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth, "num_attention_heads": heads,
        "image_size": SIDE, "patch_size": 8,
    }  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=shared, logit_scale_init_value=2.3)
    return CLIPModel(config)


SPECS = {
    "reward-identity": Spec(lambda: new_dino(128, 5, 4), seed=1, steps=1300),
    "monitor-identity": Spec(lambda: new_dino(96, 6, 3), seed=2, steps=1000),
    "reward-prompt": Spec(lambda: new_clip(128, 4, 4, 96, 64), seed=3, steps=2000),
    "monitor-prompt": Spec(lambda: new_clip(96, 5, 3, 64, 48), seed=4, steps=1700),
}


class IdentityTask(nn.Module):
    """Match references with scenes of the same subject, where many of a batch are one sprite in other colours.

    The match is graded: the same shape in another colour is worth half, so that the encoder sees shapes as well as
    colours, and a subject recoloured by its prompt keeps part of its score. Auxiliary heads draw the bare subject, name
    its sprite and find it in the image: without them colours alone satisfy the matching loss for a long time. The last
    term holds a copied reference nearer than a new image of the subject, as DINO's own training does with crops.
    """

    sprites, each, copies, crop_side = 28, 3, 28, 16
    right, same_shape = 0.85, 0.45  # target cosines of the true image, and of its shape in another colour

    def __init__(self, data: Rendered, seed: int, width: int) -> None:
        super().__init__()
        self.data, self.rng = data, np.random.default_rng(seed)
        self.rows = {k: np.array(v) for k, v in data.rows_by_sprite().items() if len(v) >= self.each}
        self.log_scale = nn.Parameter(torch.tensor(math.log(8.0)))
        self.draw = nn.Sequential(nn.Linear(width, 512), nn.GELU(), nn.Linear(512, 3 * self.crop_side**2))
        self.name = nn.Linear(width, max(self.rows) + 1)
        self.find = nn.Linear(width, 1)
        self._bare: dict[tuple[Subject, str | None], Tensor] = {}

    def bare(self, subject: Subject, colour: str | None) -> Tensor:
        """Return the subject alone on grey, (3, 16, 16)."""
        if (subject, colour) not in self._bare:
            painted = torch.from_numpy(sprite_image(subject, colour)).permute(2, 0, 1)
            on_grey = painted[:3] * painted[3:] + 0.5 * (1 - painted[3:])
            self._bare[subject, colour] = functional.adaptive_avg_pool2d(on_grey, self.crop_side).half()
        return self._bare[subject, colour].float()

    def wanted(self, subjects: list[Subject], colours: list[str | None]) -> Tensor:
        """Return target cosines (references, targets)."""
        sprite = torch.tensor([subject.sprite for subject in subjects])
        hue = torch.tensor([subject.hue for subject in subjects])
        apart = (hue[:, None] - hue[None] + 0.5) % 1 - 0.5
        alike = torch.exp(-((apart / 0.08) ** 2)) * torch.tensor([colour is None for colour in colours])
        wanted = (self.same_shape + (0.8 - self.same_shape) * alike) * (sprite[:, None] == sprite[None])
        own = torch.tensor([[a == b for b in subjects] for a in subjects]) & (alike > 0)
        return torch.where(own, torch.tensor(self.right), wanted)

    def forward(self, model: nn.Module, device: torch.device) -> Losses:
        chosen = self.rng.choice(list(self.rows), self.sprites, replace=False)
        rows = np.concatenate([self.rng.choice(self.rows[int(s)], self.each, replace=False) for s in chosen])
        subjects, n = [self.data.subjects[row] for row in rows], len(rows)
        colours = [self.data.prompts[row].attributes.colour for row in rows]
        references, masks = self.data.images("reference", rows), self.data.masks("reference", rows)
        targets, target_masks = self.data.images("target", rows), self.data.masks("target", rows)
        whole = torch.from_numpy(self.rng.random(n) < 0.5)
        anchors = torch.where(whole[:, None, None, None], references, cut_out(references, masks))
        copied = torch.from_numpy(self.rng.choice(n, self.copies, replace=False))
        images = torch.cat([disturb(anchors), disturb(targets), disturb(references[copied])])
        output = model(pixel_values=(2 * images - 1).to(device))
        pooled = output.pooler_output.float().cpu()
        anchor, target, copy = functional.normalize(pooled, dim=-1).split([n, n, self.copies])
        cosines, wanted = anchor @ target.T, self.wanted(subjects, colours)

        scale = self.log_scale.exp().clamp(max=20)  # beyond it cosines lose their spread
        logits = (scale * cosines).masked_fill((wanted > 0.7) & ~torch.eye(n, dtype=torch.bool), -1e4)
        labels, selected = torch.arange(n), torch.tensor([colour is None for colour in colours])
        match = functional.cross_entropy(logits[selected], labels[selected])
        match = (match + functional.cross_entropy(logits.T[selected], labels[selected])) / 2
        errors = (cosines - wanted).square()
        graded = errors[wanted > 0].mean() + errors[wanted == 0].mean()
        nearer = scale * torch.cat([(anchor[copied] * copy).sum(-1, keepdim=True), anchor[copied] @ target.T], 1)
        copying = functional.cross_entropy(nearer, torch.zeros(self.copies, dtype=torch.long))
        shown = [self.bare(s, None) for s in subjects]
        shown += [self.bare(s, c) for s, c in zip(subjects, colours, strict=True)]
        shown += [shown[i] for i in copied.tolist()]
        drawn = functional.mse_loss(self.draw(pooled).float(), torch.stack(shown).flatten(1))
        sprite = torch.tensor([subject.sprite for subject in subjects])
        named = functional.cross_entropy(self.name(pooled).float(), torch.cat([sprite, sprite, sprite[copied]]))
        covered = functional.avg_pool2d(torch.cat([masks, target_masks, masks[copied]]), SIDE // 8).flatten(1)
        patches = self.find(output.last_hidden_state[:, 1:].float().cpu()).float().squeeze(-1)
        found = functional.binary_cross_entropy_with_logits(patches, covered)
        return {
            "loss": match + 4 * graded + 0.25 * copying + 20 * drawn + 0.3 * named + 0.5 * found, "match": match,
            "graded": graded, "copying": copying, "drawn": drawn, "named": named, "found": found,
            "right": (logits.argmax(1) == labels)[selected].float().mean(),
        }  # fmt: skip


class PromptTask(nn.Module):
    """Match images with prompts against nearly right prompts, with cosines graded by how much of a prompt is right.

    The grading keeps spread in the score: a contrastive loss alone saturates. Auxiliary linear heads, the same for images
    and texts, name each part: without them neither side begins to learn a part that the other does not show yet.
    """

    batch, swaps = 80, 3
    #: Weight of each part of a prompt. A colour or an accessory that is not mentioned counts less.
    weights = torch.tensor([0.5, 1.0, 1.0, 1.0, 1.0])
    unmentioned = torch.tensor([0.5, 1.0, 0.5, 0.5, 0.0])

    def __init__(self, data: Rendered, seed: int, width: int) -> None:
        super().__init__()
        self.data, self.rng, self.tokenizer = data, np.random.default_rng(seed), clip_tokenizer()
        self.heads = nn.ModuleList(nn.Linear(width, len(choices)) for choices in CHOICES.values())

    def naming(self, features: Tensor, codes: Tensor) -> Tensor:
        """Return the heads' loss on images or texts; a position left open is skipped."""
        total = torch.zeros(())
        for kind, head, truth in zip(KINDS, self.heads, codes.T, strict=True):
            selected = truth > 0 if kind == "position" else torch.ones_like(truth, dtype=torch.bool)
            total = total + functional.cross_entropy(head(10 * features[selected]).float(), truth[selected])
        return total

    def forward(self, model: nn.Module, device: torch.device) -> Losses:
        rows = self.rng.choice(len(self.data), self.batch, replace=False)
        true, positions = [self.data.prompts[row] for row in rows], [self.data.position(row) for row in rows]
        seen = torch.tensor([p.swapped("position", at).codes for p, at in zip(true, positions, strict=True)])
        prompts = list(true)
        for _ in range(self.swaps):
            for prompt, position in zip(true, positions, strict=True):
                kind = str(self.rng.choice(KINDS, p=[0.1, 0.15, 0.2, 0.25, 0.3]))
                prompts.append(prompt.nearly(position, kind, self.rng))
        text = torch.tensor([prompt.codes for prompt in prompts])
        mentioned = torch.where((text == 0) & (torch.arange(len(KINDS)) >= 2), self.unmentioned, self.weights)
        fulfilled = ((seen[:, None] == text[None]) * mentioned).sum(-1) / mentioned.sum(-1)  # (images, prompts)
        pixels = (2 * disturb(self.data.images("target", rows)) - 1).to(device)
        tokens = self.tokenizer([prompt.text for prompt in prompts], padding=True, return_tensors="pt").to(device)
        images, texts = (
            functional.normalize(found.pooler_output.float().cpu(), dim=-1)
            for found in (model.get_image_features(pixel_values=pixels), model.get_text_features(**tokens))
        )
        cosines = images @ texts.T
        logits = model.logit_scale.float().cpu().exp().clamp(max=20) * cosines
        labels = torch.arange(self.batch)
        also_true = (fulfilled > 0.999) & ~functional.one_hot(labels, len(prompts)).bool()
        logits = logits.masked_fill(also_true, -1e4)
        picked = functional.cross_entropy(logits, labels)
        by_image = functional.cross_entropy(logits[:, : self.batch].T, labels)
        own = (torch.arange(len(prompts))[None] % self.batch) == labels[:, None]
        errors = (cosines - fulfilled).square()
        graded = errors[own].mean() + errors[~own].mean()
        named = self.naming(images, seen) + self.naming(texts, text)
        return {
            "loss": picked + by_image + 6 * graded + 0.3 * named, "picked": picked, "graded": graded, "named": named,
            "right": (logits.argmax(1) == labels).float().mean(),
        }  # fmt: skip


def save(model: nn.Module, folder: Path) -> None:
    """Write a folder as on the Hub: float16 weights, image processor, tokenizer."""
    copy.deepcopy(model).half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    clip, grey = isinstance(model, CLIPModel), [0.5, 0.5, 0.5]
    processor = CLIPImageProcessor if clip else BitImageProcessor
    crop = {"height": SIDE, "width": SIDE}
    processor(
        image_mean=grey, image_std=grey, size={"shortest_edge": SIDE}, resample=3, crop_size=crop
    ).save_pretrained(folder)
    if clip:
        clip_tokenizer().save_pretrained(folder)


def main() -> None:
    arguments = parser(__doc__, rate=1e-3)
    arguments.add_argument("encoder", choices=SPECS)
    arguments.add_argument("--steps", type=int)
    options = arguments.parse_args()
    spec, folder = SPECS[options.encoder], options.out / options.encoder
    options.steps = options.steps or spec.steps
    options.seed = spec.seed
    torch.manual_seed(options.seed)
    model = spec.new().train().to(options.device)
    data, clip = Rendered(options.data), isinstance(model, CLIPModel)
    width = model.config.projection_dim if clip else model.config.hidden_size
    task = (PromptTask if clip else IdentityTask)(data, options.seed, width)
    # A CLIPModel's halves are called one by one, which a compiled module cannot be.
    called = model if clip else torch.compile(model)
    weights = [*model.parameters(), *task.parameters()]
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": 0.05},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))

    def after(done: int) -> None:
        if done % 100 == 0 or done == options.steps:
            save(model, folder)

    train(weights, [optimizer], lambda: task(called, options.device), one_cycle(0.1), options, after=after)


if __name__ == "__main__":
    main()
