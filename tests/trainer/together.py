"""Run by `accelerate launch` on every process: the trainings of a list, one after another, for a test.

    accelerate launch --config_file FILE together.py PLAN.json

The plan: {"fail": FILE or null, "runs": [{"config": FILE, "run": FOLDER, "evaluate": bool}, ...]}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from running import run_training

from customized_grpo.config.loading import load_config
from customized_grpo.data import open_dataset
from customized_grpo.evaluation import evaluate
from customized_grpo.policies.sharding import is_sharded, local
from customized_grpo.rewards import build_reward
from customized_grpo.trainer import optimizer, update
from customized_grpo.trainer.processes import Processes, start_processes

COLLECTIVES = ("all_reduce", "all_gather_into_tensor", "all_gather", "broadcast", "reduce_scatter_tensor")
messages: list[int] = []
updates: list[dict[str, Any]] = []
made: list[torch.optim.AdamW] = []


def counted(collective: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())  # torch 2.9 gives some by name
        messages.append(max(x.numel() for x in given if isinstance(x, torch.Tensor)))
        return collective(*args, **kwargs)

    return call


def count_messages() -> None:
    """Note the length of every collective's tensor, and which of them an update makes, by how many micro-batches."""
    for name in COLLECTIVES:
        setattr(dist, name, counted(getattr(dist, name)))
    whole, replay = update.Updater.update, update.replay

    def watched(self: update.Updater, *args: Any) -> dict[str, float]:
        before, replays = len(messages), []
        update.replay = lambda *given: replays.append(1) or replay(*given)
        record = whole(self, *args)
        updates.append({"messages": messages[before:], "micro-batches": len(replays)})
        return record

    update.Updater.update = watched  # type: ignore[method-assign]


def forbid_barriers() -> None:
    """torch's barrier would allocate on the GPU of the local rank, which may not be there; Processes.wait does not."""

    def barrier(*_: Any, **__: Any) -> None:
        raise AssertionError("torch.distributed.barrier was called")

    dist.barrier = barrier


def remember_optimizers() -> None:
    original = optimizer.adamw

    def adamw(*given: Any) -> torch.optim.AdamW:
        made.append(original(*given))
        return made[-1]

    optimizer.adamw = adamw


def main(plan: dict[str, Any]) -> None:
    config = load_config(Path(plan["runs"][0]["config"]))
    asked = os.environ.pop("ACCELERATE_USE_FSDP", "false") == "true"
    accelerator = start_processes(config)
    if asked:
        # accelerate itself offers FSDP to accelerators alone; torch shards on CPUs as well. The rest is the file's.
        AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()
        for state in (AcceleratorState, PartialState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        assert accelerator.state.fsdp_plugin.fsdp_version == 2
    processes = Processes(accelerator)
    count_messages()
    forbid_barriers()
    remember_optimizers()
    for one in plan["runs"]:
        config, run = load_config(Path(one["config"])), Path(one["run"])
        updates.clear()
        policy = run_training(config, run, accelerator=accelerator)
        weights = list(policy.trainable().values())
        found: dict[str, Any] = {
            "updates": updates,
            "weights": sum(weight.numel() for weight in weights),
            "here": sum(local(weight).numel() for weight in weights),
            "averages": sum(x.numel() for state in made[-1].state.values() for n, x in state.items() if "exp_avg" in n),
            "sharded": all(map(is_sharded, weights)),
            "timeout": dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout.total_seconds(),
        }
        (run / f"process-{processes.index}.json").write_text(json.dumps(found))
        if one["evaluate"]:
            rewards = [build_reward(reward, policy.device) for reward in config.rewards]
            held_out = open_dataset(config.evaluation.data)
            evaluate(policy, held_out, rewards, config.evaluation, run / "pictures", batch_size=2, processes=processes)
    if plan["fail"]:
        Path(plan["fail"]).write_text(str(time.time()))
        if processes.index == 1:
            raise RuntimeError("this process fails")
        processes.sum(torch.zeros(1))  # which the other never comes to


if __name__ == "__main__":
    os.environ.setdefault("TORCHELASTIC_ERROR_FILE", os.devnull)
    main(json.loads(Path(sys.argv[1]).read_text()))
