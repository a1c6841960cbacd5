"""The whole pipeline with a run's change in its weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from customized_grpo.config import ConfigError
from customized_grpo.reporting.export import check_free, finished_run, new_folder_at
from customized_grpo.trainer.parts import policy_with_adapter
from customized_grpo.utils.records import write_json

#: All parts on the CPU and as they were published, whatever room the run had for them.
_WHOLE = {
    "device": "cpu", "quantise": None, "quantise_text_encoders": None, "conditions": None, "offload": False,
    "compile": False,
}  # fmt: skip
_PLACE = "_name_or_path"  #: key under which diffusers and transformers note where a part was loaded from


def merge_run(run: Path, out: Path, dtype: str | None = None) -> None:
    """Write the run's pipeline, its LoRA or its tuned weights merged in, to the folder `out`.

    All weights are safetensors of `dtype` (policy.dtype of the run where it is None). They are merged on the CPU,
    which needs the memory of the whole pipeline; a LoRA that was trained on a quantised base goes into the
    published weights.

    Raises:
        ConfigError: the run is not finished, `out` holds something, or the policy is no pipeline of diffusers.
        ModelError: the model or the LoRA cannot be loaded.
    """
    config = finished_run(run)
    check_free(out)
    from customized_grpo.policies.pipelines import PipelinePolicy  # seconds, which a mistake need not wait for

    whole = config.policy.model_copy(update=_WHOLE)
    policy = policy_with_adapter(config.model_copy(update={"policy": whole}), run)
    if not isinstance(policy, PipelinePolicy):
        raise ConfigError(f"policy.kind: {config.policy.kind} is no pipeline of diffusers, which alone can be merged")
    with new_folder_at(out) as folder:
        policy.save_merged(folder, getattr(torch, dtype or config.policy.dtype))
        _forget_places(folder)


def _forget_places(folder: Path) -> None:
    """Take out where the parts were loaded from: paths of this machine."""
    for path in [folder / "model_index.json", *folder.glob("*/*.json")]:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and _PLACE in values:
            del values[_PLACE]
            write_json(path, values)
