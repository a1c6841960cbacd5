"""What `cgrpo info` tells, and a run notes: versions, the device; the embedded models, the defaults."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch
from rich.console import Console
from rich.table import Table

from customized_grpo.config import Config
from customized_grpo.configuration import as_yaml
from customized_grpo.models import embedded_models

#: The file of a run that holds, a line for each start, what it ran with.
STARTS = "starts.jsonl"

_LIBRARIES = (
    "customized-grpo",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide what a run does."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def hardware(device: torch.device | None = None) -> dict[str, str]:
    """What a run computes on: the device (the one that is there, where none is given), the system, CPU threads."""
    used = device or torch.accelerator.current_accelerator(check_available=True)
    name = torch.cuda.get_device_name(used) if used is not None and used.type == "cuda" else str(used or "cpu")
    return {"device": name, "CPU threads": str(torch.get_num_threads()), "system": platform.platform(terse=True)}


def describe(console: Console) -> None:
    table = Table("installed", "version", title="Libraries")
    for name, installed in versions().items():
        table.add_row(name, installed)
    console.print(table)
    computes = hardware()
    console.print(f"device: {computes['device']}, {computes['CPU threads']} CPU threads")
    models = Table("embedded model", "size in MB")
    for folder, size in embedded_models().items():
        models.add_row(f"embedded/{folder}", f"{size / 1e6:.1f}")
    console.print(models)
    console.print("defaults (a run's YAML names what differs):", style="bold")
    console.print(as_yaml(Config()), markup=False, highlight=False)
