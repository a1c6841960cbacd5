"""Conditioning on disk: the embeddings of a pair are computed once, for all runs and processes.

FOLDER/KEY.safetensors holds the rows of one pair. KEY is a hash of the prompt's bytes, the references' pixels and all
that encoding depends on. Files are never removed (FLUX.1 with 512 text tokens and one reference of 512x512 pixels:
4.4 MB a pair); the folder may be deleted at any time.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from customized_grpo.config import PolicyConfig
from customized_grpo.protocols import Conditions
from customized_grpo.utils.hub import ModelError, fingerprint, local_path
from customized_grpo.utils.records import write_bytes

# Settings that conditioning does not depend on. Another one is part of the key: at worst a file too many.
_OTHER_SETTINGS = {
    "adapter", "adapter_as", "attention", "compile", "conditions", "device", "gradient_checkpointing", "guidance",
    "height", "kernels", "lora", "offload", "offload_activations", "quantise", "sizes",
    "width",
}  # fmt: skip
_ENCODING = 2  # increased when a policy encodes the same pair differently
_LIBRARIES = ("diffusers", "torch", "transformers")


def conditions_folder(config: PolicyConfig) -> Path | None:
    """Return the folder of `config.conditions`, None if it is null. Raises ModelError if it is a file."""
    if config.conditions is None:
        return None
    folder = local_path(config.conditions)
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"policy.conditions: {folder} is a file; give a folder")
    return folder


class ConditionsFolder:
    """Store conditioning by a hash of its inputs. Processes may share a folder: files are replaced in one move.

    A file that is damaged is made again. Another kind of device rounds differently, and has other keys.
    """

    def __init__(self, folder: Path, config: PolicyConfig, device: torch.device) -> None:
        self._folder, self._device = folder, device
        settings = config.model_dump_json(exclude=_OTHER_SETTINGS)
        libraries = [f"{name} {version(name)}" for name in _LIBRARIES]
        self._model = repr((_ENCODING, settings, fingerprint(config.path, config.revision), device.type, libraries))

    def get(self, prompt: str, references: Sequence[Image.Image], encode: Callable[[], Conditions]) -> Conditions:
        """Return the conditioning of one pair, bit for bit as `encode` makes it; it is called if there is no file."""
        path = self._folder / f"{self._key(prompt, references)}.safetensors"
        stored = _read(path)
        if stored is None:
            encoded = encode()
            rows = {name: row.detach().cpu().contiguous() for name, row in encoded.rows.items()}
            write_bytes(path, save(rows, {"sha256": _digest(rows)}))
            return encoded
        return Conditions({name: row.to(self._device) for name, row in stored.items()})

    def _key(self, prompt: str, references: Sequence[Image.Image]) -> str:
        parts = [self._model.encode(), prompt.encode("utf-8", "surrogatepass")]
        for reference in references:
            image = reference.convert("RGB")  # as the policies do
            parts += [repr(image.size).encode(), image.tobytes()]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(len(part).to_bytes(8))
            digest.update(part)
        return digest.hexdigest()


def _read(path: Path) -> dict[str, Tensor] | None:
    """Return the rows of a file, None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            intact = (file.metadata() or {}).get("sha256") == _digest(rows)
    except (OSError, SafetensorError, ValueError):
        return None
    return rows if intact else None


def _digest(rows: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, row in sorted(rows.items()):
        digest.update(repr((name, row.dtype, tuple(row.shape))).encode())
        digest.update(row.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
