"""Run by `accelerate launch` on every process: the trainings of a list, one after another, for a test.

    accelerate launch --config_file FILE together.py PLAN.json

The plan: {"fail": FILE or null, "runs": [{"config": FILE, "run": FOLDER, "evaluate": bool}, ...]}
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from running import evaluated, run_training

from customized_grpo.config.loading import load_config
from customized_grpo.policies.sharding import is_sharded, local
from customized_grpo.trainer.processes import Processes, start_processes


def main(plan: dict[str, Any]) -> None:
    config = load_config(Path(plan["runs"][0]["config"]))
    requested = os.environ.pop("ACCELERATE_USE_FSDP", "false") == "true"
    accelerator = start_processes(config)
    if requested:
        # accelerate itself offers FSDP to accelerators alone; torch shards on CPUs as well. The rest is the file's.
        AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()
        for state in (AcceleratorState, PartialState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        assert accelerator.state.fsdp_plugin.fsdp_version == 2
    processes = Processes(accelerator)
    for one in plan["runs"]:
        config, run = load_config(Path(one["config"])), Path(one["run"])
        policy = run_training(config, run, accelerator=accelerator)
        weights = list(policy.trainable().values())
        found: dict[str, Any] = {
            "weights": sum(weight.numel() for weight in weights),
            "here": sum(local(weight).numel() for weight in weights),
            "sharded": all(map(is_sharded, weights)),
        }
        (run / f"process-{processes.index}.json").write_text(json.dumps(found))
        if one["evaluate"]:
            evaluated(policy, config, run / "images", processes=processes)
    if plan["fail"]:
        Path(plan["fail"]).write_text(str(time.time()))
        if processes.index == 1:
            raise RuntimeError("this process fails")
        processes.sum(torch.zeros(1))  # which the other never comes to


if __name__ == "__main__":
    os.environ.setdefault("TORCHELASTIC_ERROR_FILE", os.devnull)
    main(json.loads(Path(sys.argv[1]).read_text()))
