"""Pre-train the embedded FLUX.1-Kontext-shaped generator by flow matching on rendered pairs.

    python experiments/embedded/train_policy.py --data build/pairs --vae build/vae --out build/policy --steps 9000

    python experiments/embedded/train_policy.py --data build/pairs --vae build/vae --out build/policy \
        --start src/customized_grpo/embedded/models/pipeline --steps 4000 --rate 1.5e-3

Latents and token ids are made once and kept beside the pictures. Transformer, CLIP and T5 text encoders
train together; weights are averaged. Started again with the same arguments it goes on where it stopped.
The result is a folder that `FluxKontextPipeline.from_pretrained` loads.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from safetensors.torch import load_file, save_file
from text import CLIP_LENGTH, DREAMBENCH_CLASSES, T5_LENGTH, clip_tokenizer, t5_tokenizer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from customized_grpo.embedded.subjects import Subject, sprites

WIDTH, HEADS, DOUBLE, SINGLE, TEXT = 128, 4, 2, 4, 64
GUIDANCE = (1.0, 4.0)  # drawn anew in training, so that the input exists but means nothing here


class Generator(nn.Module):
    """The three trained parts as one module: velocities of packed latents from token ids."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        clip, t5 = clip_tokenizer(), t5_tokenizer()
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=channels * 4,
            num_layers=DOUBLE,
            num_single_layers=SINGLE,
            attention_head_dim=WIDTH // HEADS,
            num_attention_heads=HEADS,
            joint_attention_dim=TEXT,
            pooled_projection_dim=TEXT,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        )
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip), hidden_size=TEXT, intermediate_size=4 * TEXT, projection_dim=TEXT,
                num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=CLIP_LENGTH,
                bos_token_id=clip.bos_token_id, eos_token_id=clip.eos_token_id, pad_token_id=clip.pad_token_id,
            )
        )  # fmt: skip
        self.text_encoder_2 = T5EncoderModel(
            T5Config(
                vocab_size=len(t5), d_model=TEXT, d_kv=32, d_ff=4 * TEXT, num_layers=2, num_heads=2,
                feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=False,
            )
        )  # fmt: skip

    def load(self, folder: Path) -> None:
        """Take over the weights of a pipeline folder of the same shapes."""
        kept = FluxKontextPipeline.from_pretrained(folder, vae=None, dtype=torch.float32)
        for name, part in self.named_children():
            part.load_state_dict(getattr(kept, name).state_dict())

    def forward(self, noisy: Tensor, reference: Tensor, sigma: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        pooled = self.text_encoder(clip_ids).pooler_output
        words = self.text_encoder_2(t5_ids).last_hidden_state
        side = int(noisy.shape[1] ** 0.5)
        grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(-1, 2)
        ids = torch.cat([torch.cat([torch.full((len(grid), 1), k), grid], 1) for k in (0, 1)]).float()
        guidance = torch.empty(len(noisy)).uniform_(*GUIDANCE)
        output = self.transformer(
            hidden_states=torch.cat([noisy, reference], 1), encoder_hidden_states=words, pooled_projections=pooled,
            timestep=sigma, guidance=guidance, img_ids=ids, txt_ids=torch.zeros(words.shape[1], 3), return_dict=False,
        )  # fmt: skip
        return output[0][:, : noisy.shape[1]]


def prepare(data: Path, vae: AutoencoderKL) -> dict[str, Tensor]:
    """Packed, normalised latents of references and targets, token ids and loss weights; made once, then read."""
    file = data / "prepared.safetensors"
    if file.exists():
        return load_file(file)
    made: dict[str, Tensor] = {}
    for name in ("reference", "target"):
        pictures = np.load(data / f"{name}.npy", mmap_mode="r")
        parts = []
        for start in range(0, len(pictures), 50):
            pixels = torch.from_numpy(pictures[start : start + 50].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                latents = vae.encode(pixels).latent_dist.mode().float()
            latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
            n, c, h, w = latents.shape
            packed = FluxKontextPipeline._pack_latents(latents, n, c, h, w)
            parts.append(packed.half())
        made[name] = torch.cat(parts)
        print("encoded", name, flush=True)
    masks = torch.from_numpy(np.load(data / "target_mask.npy")).float()
    patch = 64 // int(made["target"].shape[1] ** 0.5)
    on_subject = torch.nn.functional.avg_pool2d(masks[:, None], patch).flatten(1)
    made["weight"] = (1 + 2 * on_subject).half()
    lines = [json.loads(line) for line in (data / "prompts.jsonl").open(encoding="utf-8")]
    # Some subjects get a foreign class word, so that the model reads the reference and not the word.
    chance = random.Random(0)
    names = [Subject(i).name for i in sprites(held_out=False)]
    prompts = []
    for line in lines:
        word, prompt = Subject(**line["subject"]).word, line["prompt"]
        if chance.random() < 0.25:
            prompt = prompt.replace(
                f" {word} ",
                f" {chance.choice([*DREAMBENCH_CLASSES, *names, 'subject']).lower()} ",
                1,
            )
        prompts.append(prompt)
    made["clip_ids"] = _ids(clip_tokenizer(), prompts, CLIP_LENGTH)
    made["t5_ids"] = _ids(t5_tokenizer(), prompts, T5_LENGTH)
    save_file(made, file)
    return made


def _ids(tokenizer: object, prompts: list[str], length: int) -> Tensor:
    encoded = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return encoded.input_ids.to(torch.int32)


def optimisers(model: Generator, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all else."""
    inside, rest = [], []
    for name, weight in model.named_parameters():
        (inside if weight.ndim == 2 and "blocks." in name else rest).append(weight)
    return [
        torch.optim.Muon(inside, lr=rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.01),
    ]


def save_pipeline(model: Generator, vae: AutoencoderKL, folder: Path) -> None:
    FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=clip_tokenizer(),
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=t5_tokenizer(),
        transformer=model.transformer,
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="pipeline folder whose weights to begin with; at random where none")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument(
        "--decay",
        type=float,
        default=0.3,
        help="last share of the steps, in which the rate falls to 0",
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    vae = AutoencoderKL.from_pretrained(options.vae).eval()
    data = prepare(options.data, vae)
    model = Generator(vae.config.latent_channels)
    if options.start is not None:
        model.load(options.start)
    average = copy.deepcopy(model).requires_grad_(False)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(data['target'])} pairs",
        flush=True,
    )
    parts = optimisers(model, options.rate)
    state, first = options.out / "state.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        for part, old in zip(parts, saved["optimisers"], strict=True):
            part.load_state_dict(old)
        first = saved["step"]
    options.out.mkdir(parents=True, exist_ok=True)
    compiled = torch.compile(model)
    start, running = time.time(), 0.0
    for step in range(first, options.steps):
        torch.manual_seed(options.seed * 1_000_003 + step)
        rate = options.rate * min(1, (step + 1) / 100, (1 - step / options.steps) / options.decay)
        rows = torch.randint(len(data["target"]), (options.batch,))
        clean, reference = data["target"][rows].float(), data["reference"][rows].float()
        sigma = torch.sigmoid(0.4 + 1.2 * torch.randn(options.batch))
        noise = torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        with sdpa_kernel(SDPBackend.MATH):
            with torch.autocast("cpu", torch.bfloat16):
                velocity = compiled(
                    noisy,
                    reference,
                    sigma,
                    data["clip_ids"][rows].long(),
                    data["t5_ids"][rows].long(),
                )
            error = (velocity.float() - (noise - clean)).square().mean(-1) * data["weight"][rows].float()
            loss = error.mean()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad()
        keep = min(0.998, 1 - 1 / (step + 1) ** 0.8)
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        running = loss.item() if not running else 0.98 * running + 0.02 * loss.item()
        if step % 25 == 0:
            pace = (time.time() - start) / (step - first + 1)
            print(f"step {step} loss {running:.4f} {pace:.2f} s/step", flush=True)
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            kept = {
                "model": model.state_dict(), "average": average.state_dict(), "step": step + 1,
                "optimisers": [part.state_dict() for part in parts],
            }  # fmt: skip
            torch.save(kept, state.with_suffix(".tmp"))
            state.with_suffix(".tmp").rename(state)
            save_pipeline(average, vae, options.out / "pipeline")


if __name__ == "__main__":
    main()
