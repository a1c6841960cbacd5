"""The whole pipeline with a run's changes merged into its weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from customized_grpo.config import ConfigError
from customized_grpo.reporting.lora import finished_run, new_folder
from customized_grpo.trainer.folder import check_output
from customized_grpo.trainer.parts import policy_with_adapter
from customized_grpo.utils.records import write_json

#: All parts on the CPU and as published, whatever the run needed to fit its memory.
_WHOLE = {
    "device": "cpu", "quantise": None, "quantise_text_encoders": None, "conditions": None, "offload": False,
    "compile": False,
}  # fmt: skip
_PLACE = "_name_or_path"  #: key under which diffusers and transformers store the folder that a part was loaded from


def merge_run(run: Path, out: Path, dtype: str | None = None) -> None:
    """Write a run's pipeline with its LoRA or its tuned weights merged in, as safetensors only, to a new folder.

    Weights are merged on the CPU, which needs memory for the whole pipeline. A LoRA that was trained on a quantised
    base is merged into the published weights. Raises ConfigError if the run is not finished, the policy is no pipeline
    of diffusers or `out` is not empty, and ModelError if weights cannot be loaded.
    """
    config = finished_run(run)
    check_output(out, folder=True)
    from customized_grpo.policies.pipelines import PipelinePolicy  # takes seconds, so errors come first

    whole = config.policy.model_copy(update=_WHOLE)
    policy = policy_with_adapter(config.model_copy(update={"policy": whole}), run)
    if not isinstance(policy, PipelinePolicy):
        raise ConfigError(f"policy.kind: {config.policy.kind} is no pipeline of diffusers; only those can be merged")
    with new_folder(out) as folder:
        policy.save_merged(folder, getattr(torch, dtype or config.policy.dtype))
        for path in [folder / "model_index.json", *folder.glob("*/*.json")]:
            values = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(values, dict) and values.pop(_PLACE, None) is not None:  # a path of this machine
                write_json(path, values)
