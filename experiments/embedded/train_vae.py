"""Train the embedded AutoencoderKL (64x64 pixels to 16x16x8 latents) on rendered pictures.

    python experiments/embedded/train_vae.py --data build/world --out build/vae --steps 2500
    python experiments/embedded/train_vae.py --data build/world --out build/vae --steps 2000 --decoder-only

`--decoder-only` goes on from what `--out` holds and leaves the encoder as it is, so that a transformer
trained on its latents stays valid.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

WIDTHS = (24, 48, 64)


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def batches(data: Path, size: int, seed: int) -> object:
    pictures = [np.load(data / f"{name}.npy", mmap_mode="r") for name in ("reference", "target")]
    rng = np.random.default_rng(seed)
    while True:
        rows = np.sort(rng.integers(0, len(pictures[0]), size // 2))
        batch = torch.from_numpy(np.concatenate([array[rows] for array in pictures]))
        yield batch.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decoder-only", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    vae = AutoencoderKL.from_pretrained(options.out) if options.decoder_only else new_vae()
    vae = vae.train()
    vae.encoder.requires_grad_(not options.decoder_only)
    weights = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=options.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.rate, options.steps, pct_start=0.05)
    start = time.time()
    for step, pixels in zip(range(options.steps), batches(options.data, options.batch, options.seed), strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            latents = posterior.sample()
            if options.decoder_only:
                # The decoder will meet a policy's imperfect latents: a little noise makes it forgiving.
                latents = latents + 0.05 * latents.std() * torch.randn_like(latents)
            output = vae.decode(latents).sample.float()
        reconstruction = functional.l1_loss(output, pixels) + functional.mse_loss(output, pixels)
        edges = sum(functional.l1_loss(output.diff(dim=d), pixels.diff(dim=d)) for d in (2, 3))
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        loss = reconstruction + 0.5 * edges + (0 if options.decoder_only else 1e-3) * divergence
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == options.steps - 1:
            spread = float(posterior.mean.float().std())
            print(
                f"step {step} l1 {functional.l1_loss(output, pixels):.4f} kl {divergence:.3f} "
                f"latent std {spread:.3f} noise {float(posterior.std.float().mean()):.3f} {time.time() - start:.0f}s",
                flush=True,
            )
    vae.eval()
    if not options.decoder_only:
        with torch.no_grad():
            sample = torch.cat(
                [vae.encode(next(stream)).latent_dist.mode() for stream in [batches(options.data, 256, 9)]]
            )
        vae.register_to_config(shift_factor=float(sample.mean()), scaling_factor=float(1 / sample.std()))
    vae.save_pretrained(options.out)


if __name__ == "__main__":
    main()
