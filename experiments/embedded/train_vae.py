"""Train the embedded AutoencoderKL (64x64 pixels to 16x16x16 latents) on rendered images.

    python experiments/embedded/train_vae.py --data build/pairs --out build/vae --steps 6000
    python experiments/embedded/train_vae.py --data build/pairs --out build/vae --steps 2000 --decoder-only

    python experiments/embedded/train_vae.py --data build/pairs --out build/vae --steps 2500 --batch 16 \
        --start src/customized_grpo/embedded/models/pipeline/vae

Started again with the same arguments, the training resumes. `--start` begins with the weights of another autoencoder, which
may have fewer channels. `--decoder-only` continues from the folder `--out` and leaves the encoder unchanged, so that a
transformer trained on its latents stays valid.
"""

from __future__ import annotations

from pathlib import Path

import torch
from data import Rendered
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from training import Losses, load_leading, muon_and_adamw, one_cycle, parser, train


def new_vae(channels: int) -> AutoencoderKL:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64), layers_per_block=1, latent_channels=channels, norm_num_groups=8, sample_size=64,
        use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False,
    )  # fmt: skip
    with torch.no_grad():  # little noise at first: the decoder would learn to ignore channels that are mostly noise
        vae.encoder.conv_out.bias[channels:] -= 4
    return vae


@torch.no_grad()
def load(vae: AutoencoderKL, folder: Path) -> None:
    """Load weights of an autoencoder with as many channels or fewer."""
    weights = AutoencoderKL.from_pretrained(folder).state_dict()
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):  # means of all channels, then their log variances
        own = vae.state_dict()[name].clone()
        for new, half in zip(own.chunk(2), weights[name].chunk(2), strict=True):
            new[: len(half)] = half
        weights[name] = own
    vae.decoder.conv_in.weight.zero_()  # new channels have no effect at first
    load_leading(vae, weights)


def main() -> None:
    arguments = parser(__doc__, steps=6000, batch=64, rate=2e-3, seed=0, channels=16)
    arguments.add_argument(
        "--start", type=Path, help="folder of an autoencoder with the initial weights; default: random"
    )
    arguments.add_argument("--decoder-only", action="store_true")
    options = arguments.parse_args()
    torch.manual_seed(options.seed)
    vae = AutoencoderKL.from_pretrained(options.out) if options.decoder_only else new_vae(options.channels)
    if options.start is not None:
        load(vae, options.start)
    vae.train().to(options.device)
    vae.encoder.requires_grad_(not options.decoder_only)
    optimizers = muon_and_adamw(
        vae,
        lambda name, weight: weight.ndim == 4 and "conv_in" not in name and name != "decoder.conv_out.weight",
        decay=1e-3,
    )
    data = Rendered(options.data, options.device)

    def batch(size: int) -> Tensor:
        rows = torch.randint(len(data), (size // 2,))
        images = torch.cat([data.images(name, rows) for name in ("reference", "target")])
        return images.to(options.device) * 2 - 1

    def losses() -> Losses:
        pixels = batch(options.batch)
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.sample()
        if options.decoder_only:  # a little noise, because a policy's latents are imperfect
            latents = latents + 0.05 * latents.std() * torch.randn_like(latents)
        output = vae.decode(latents).sample.float()
        l1 = functional.l1_loss(output, pixels)
        mse = functional.mse_loss(output, pixels)
        edges = sum(functional.l1_loss(output.diff(dim=d), pixels.diff(dim=d)) for d in (2, 3))
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = l1 + mse + 0.5 * edges + (0 if options.decoder_only else 1e-3) * kl
        psnr = -10 * (mse / 4).log10()
        return {"loss": loss, "l1": l1, "psnr": psnr, "kl": kl, "latent std": posterior.mean.float().std()}

    parts = None if options.decoder_only else {"vae": vae} | optimizers
    train([*vae.parameters()], [*optimizers.values()], losses, one_cycle(0.05), options, parts=parts)
    vae.eval()
    if not options.decoder_only:
        with torch.no_grad():
            sample = vae.encode(batch(256)).latent_dist.mode()
        vae.register_to_config(shift_factor=float(sample.mean()), scaling_factor=float(1 / sample.std()))
    vae.save_pretrained(options.out)


if __name__ == "__main__":
    main()
