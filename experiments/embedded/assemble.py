"""Copy a trained generator with a VAE into the package, with weights in half precision.

python experiments/embedded/assemble.py --policy build/policy/pipeline --vae build/vae
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxKontextPipeline

PACKAGE = Path(__file__).parents[2] / "src/customized_grpo/embedded/models/pipeline"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=PACKAGE)
    options = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(options.vae)
    pipeline = FluxKontextPipeline.from_pretrained(options.policy, vae=vae, dtype=torch.float32)
    shutil.rmtree(options.out, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(options.out, safe_serialization=True)
    for file in options.out.rglob("*.json"):  # without the name of the folder that the parts came from
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(line for line in lines if '"_name_or_path"' not in line), encoding="utf-8")
