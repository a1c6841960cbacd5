"""What `cgrpo info` tells: versions, the device, the embedded models, the defaults."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch
from rich.console import Console
from rich.table import Table

from customized_grpo.config import Config
from customized_grpo.configuration import as_yaml
from customized_grpo.models import embedded_models

_LIBRARIES = (
    "customized-grpo",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
)


def describe(console: Console) -> None:
    table = Table("installed", "version", title="Libraries")
    table.add_row("python", platform.python_version())
    for name in _LIBRARIES:
        table.add_row(name, version(name))
    console.print(table)
    device = torch.accelerator.current_accelerator(check_available=True)
    name = torch.cuda.get_device_name() if device is not None and device.type == "cuda" else str(device or "cpu")
    console.print(f"device: {name}, {torch.get_num_threads()} CPU threads")
    models = Table("embedded model", "size in MB")
    for folder, size in embedded_models().items():
        models.add_row(f"embedded/{folder}", f"{size / 1e6:.1f}")
    console.print(models)
    console.print("defaults (a run's YAML names what differs):", style="bold")
    console.print(as_yaml(Config()), markup=False, highlight=False)
