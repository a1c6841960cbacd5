"""Pre-train the embedded FLUX.1-Kontext-shaped generator by flow matching on rendered pairs.

    python experiments/embedded/train_policy.py --data build/pairs --vae build/vae --out build/policy --steps 9000

    python experiments/embedded/train_policy.py --data build/pairs --vae build/vae --out build/policy \
        --start src/customized_grpo/embedded/models/pipeline --steps 4000 --rate 1.5e-3

Latents and token ids are computed once and cached in a file. Transformer, CLIP and T5 text encoders are trained
together; weights are averaged. Started again with the same arguments, the training resumes. The result is a folder that
`FluxKontextPipeline.from_pretrained` loads.

A share of the pairs is learned without prompt, so that classifier-free guidance works (`policy.true_cfg`). The guidance
scale, an input as in FLUX.1-Kontext-dev, is drawn at random: the images do not depend on it.
"""

from __future__ import annotations

import argparse
import copy
import random
from pathlib import Path

import torch
from data import Rendered
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from text import CLIP_LENGTH, DREAMBENCH_CLASSES, T5_LENGTH, clip_tokenizer, load_words, t5_tokenizer
from torch import Tensor, nn
from training import Losses, autocast, load_leading, muon_and_adamw, parser, train
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from customized_grpo.embedded.subjects import Subject, sprites

WIDTH, HEADS, DOUBLE, SINGLE, TEXT = 128, 4, 2, 4, 64
GUIDANCE = (1.0, 4.0)  # range of scales, without an effect
DROPPED = 0.1  # share of pairs without prompt; half of them are without reference, too


class Generator(nn.Module):
    """The three trained parts as one module: velocities of packed latents from token ids."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        clip, t5 = clip_tokenizer(), t5_tokenizer()
        self.transformer = FluxTransformer2DModel(
            patch_size=1, in_channels=channels * 4, num_layers=DOUBLE, num_single_layers=SINGLE,
            attention_head_dim=WIDTH // HEADS, num_attention_heads=HEADS, joint_attention_dim=TEXT,
            pooled_projection_dim=TEXT, guidance_embeds=True, axes_dims_rope=(8, 12, 12),
        )  # fmt: skip
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
        """Load the weights of a pipeline folder of the same words, with as many latent channels or fewer."""
        pipeline = FluxKontextPipeline.from_pretrained(folder, vae=None, dtype=torch.float32)
        load_leading(self.transformer, pipeline.transformer.state_dict())
        for name in ("text_encoder", "text_encoder_2"):
            getattr(self, name).load_state_dict(getattr(pipeline, name).state_dict())
        load_words(self.text_encoder, pipeline.tokenizer)

    def save(self, vae: AutoencoderKL, folder: Path) -> None:
        """Write a pipeline folder."""
        FluxKontextPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, tokenizer=clip_tokenizer(),
            tokenizer_2=t5_tokenizer(), **dict(self.named_children()),
        ).save_pretrained(folder)  # fmt: skip

    def forward(
        self, noisy: Tensor, reference: Tensor, sigma: Tensor, guidance: Tensor, clip_ids: Tensor, t5_ids: Tensor
    ) -> Tensor:
        pooled = self.text_encoder(clip_ids).pooler_output
        words = self.text_encoder_2(t5_ids).last_hidden_state
        side = torch.arange(int(noisy.shape[1] ** 0.5), device=noisy.device)
        grid = torch.cartesian_prod(side, side)
        ids = torch.cat([nn.functional.pad(grid, (1, 0), value=image) for image in (0, 1)]).float()
        output = self.transformer(
            hidden_states=torch.cat([noisy, reference], 1), encoder_hidden_states=words, pooled_projections=pooled,
            timestep=sigma, guidance=guidance, img_ids=ids, txt_ids=ids.new_zeros(words.shape[1], 3), return_dict=False,
        )  # fmt: skip
        return output[0][:, : noisy.shape[1]]


def token_ids(prompts: list[str]) -> dict[str, Tensor]:
    """Return the prompts' token ids (N, length) for both text encoders."""
    return {
        name: tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        for name, tokenizer, length in (
            ("clip_ids", clip_tokenizer(), CLIP_LENGTH),
            ("t5_ids", t5_tokenizer(), T5_LENGTH),
        )
    }


@torch.no_grad()
def prepare(options: argparse.Namespace, vae: AutoencoderKL) -> dict[str, Tensor]:
    """Return packed, normalised latents of references and targets, token ids and loss weights, cached in a file."""
    file = options.out / "prepared.safetensors"
    if file.exists():
        return load_file(file)
    options.out.mkdir(parents=True, exist_ok=True)
    data, made = Rendered(options.data), {}
    parts = torch.arange(len(data)).split(20)
    for name in ("reference", "target"):
        packed = []
        for rows in parts:
            pixels = 2 * data.images(name, rows).to(options.device) - 1
            with autocast(options):
                latents = vae.encode(pixels).latent_dist.mode().float()
            latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
            packed.append(FluxKontextPipeline._pack_latents(latents, *latents.shape).half().cpu())
        made[name] = torch.cat(packed)
        print("encoded", name, flush=True)
    patch = 64 // int(made["target"].shape[1] ** 0.5)
    masks = [nn.functional.avg_pool2d(data.masks("target", rows), patch).flatten(1) for rows in parts]
    made["weight"] = (1 + 4 * torch.cat(masks)).half()
    # Some subjects get a foreign class word, so that the model reads the reference and not the word.
    chance = random.Random(0)
    names = [*DREAMBENCH_CLASSES, *(Subject(i).name for i in sprites(held_out=False)), "subject"]
    prompts = []
    for prompt in data.prompts:
        foreign = chance.random() < 0.25
        word = f" {chance.choice(names).lower()} " if foreign else f" {prompt.word} "
        prompts.append(prompt.text.replace(f" {prompt.word} ", word, 1))
    made |= token_ids(prompts)
    save_file(made, file)
    return made


def main() -> None:
    arguments = parser(__doc__, steps=6000, batch=64, rate=2e-3, seed=0, decay=0.3)
    arguments.add_argument("--vae", type=Path, required=True)
    arguments.add_argument("--start", type=Path, help="pipeline folder with the initial weights; default: random")
    arguments.add_argument(
        "--micro-batch", type=int, help="images at a time, a divisor of the batch; a CPU is faster with 16 than with 64"
    )
    arguments.add_argument("--save-every", type=int, default=250)
    options = arguments.parse_args()
    size = options.micro_batch or options.batch
    torch.manual_seed(options.seed)
    device = options.device
    vae = AutoencoderKL.from_pretrained(options.vae).eval().to(device, memory_format=torch.channels_last)
    data = prepare(options, vae)
    if device.type == "cuda":
        data = {name: values.to(device) for name, values in data.items()}
    model = Generator(vae.config.latent_channels)
    if options.start:
        model.load(options.start)
    nothing = {name: ids.to(device) for name, ids in token_ids([""]).items()}
    average = copy.deepcopy(model.to(device)).requires_grad_(False)
    optimizers = muon_and_adamw(model, lambda name, weight: weight.ndim == 2 and "blocks." in name, decay=0.01)
    parts = {"model": model, "average": average} | optimizers
    compiled = torch.compile(model)

    def losses() -> Losses:
        rows = torch.randint(len(data["target"]), (size,), device=data["target"].device)
        batch = {name: values[rows].to(device) for name, values in data.items()}
        clean, reference = batch["target"].float(), batch["reference"].float()
        ids = {name: batch[name] for name in nothing}
        sigma = torch.sigmoid(0.4 + 1.2 * torch.randn(size, device=device))
        noise = torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        guidance = torch.empty_like(sigma).uniform_(*GUIDANCE)
        chance = torch.rand_like(sigma)
        reference[chance < DROPPED / 2] = 0
        for name, none in nothing.items():
            ids[name][chance < DROPPED] = none
        velocity = compiled(noisy, reference, sigma, guidance, **ids)
        error = (velocity.float() - (noise - clean)).square().mean(-1) * batch["weight"].float()
        return {"loss": error.mean()}

    def schedule(done: float) -> float:
        return min(1.0, done * options.steps / 100, (1 - done + 1 / options.steps) / options.decay)

    def after(done: int) -> None:
        retained = min(0.998, 1 - 1 / done**0.8)
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - retained)
        if done % options.save_every == 0 or done == options.steps:
            average.save(vae, options.out / "pipeline")

    weights = list(model.parameters())
    train(
        weights,
        [*optimizers.values()],
        losses,
        schedule,
        options,
        parts=parts,
        after=after,
        save_every=options.save_every,
        micro_batches=options.batch // size,
    )


if __name__ == "__main__":
    main()
