"""The processes of a run: each one's share of the images, and collective operations by accelerate.

Everything else depends on the seed and on scores that all processes have. The result of training therefore does not
depend on the number of processes, except for rounding.
"""

import functools
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    fsdp2_prepare_model,
    parse_flag_from_env,
    patch_environment,
)
from torch import Tensor, nn
from torch.nn import functional

from customized_grpo.config import Config, ConfigError, RolloutConfig
from customized_grpo.policies.sharding import is_sharded
from customized_grpo.protocols import Policy
from customized_grpo.utils.machine import use_threads

_BUCKET = 2**26  # numbers in one message of gradients: 256 MiB of float32
_GLOO = "gloo/transport"  # in the messages of its errors, which have no class of their own
_DEEPSPEED, _FSDP = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"
_SUPPORTED = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU", "MULTI_MLU", "FSDP")


class LostProcessError(ConnectionError):
    """Another process of the run exited or does not respond; the message is one line."""


@contextmanager
def reports_lost_processes() -> Iterator[None]:
    """Turn the error of a collective that a process did not join into a LostProcessError.

    gloo raises it at once if a process has exited; gloo and NCCL after `train.timeout` if one hangs.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, dist.DistError) and _GLOO not in reason:
            raise
        raise LostProcessError(
            "another process of this run exited or did not respond within train.timeout "
            f"({reason.split('] ', 1)[-1].split('. ')[0]}); check its log, then resume with cgrpo train --resume"
        ) from error


def start_processes(config: Config) -> Accelerator:
    """Return this process's accelerator among those that a launcher started. ConfigError for unsupported ones."""
    use_threads(config.train.threads)
    on_cpu = config.policy.device == "cpu" or torch.accelerator.current_accelerator(check_available=True) is None
    if parse_flag_from_env(_DEEPSPEED):
        _check_zero(config)
        if on_cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would take a GPU that is there
    waiting = InitProcessGroupKwargs(timeout=timedelta(minutes=config.train.timeout))
    # With DeepSpeed accelerate would wrap the model, and not work on a CPU; `ZeroOptimizer` replaces that.
    # Without `cpu`, accelerate does not connect processes on a machine without a GPU.
    with patch_environment(**{_DEEPSPEED: "false"}):
        accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[waiting])
    kind, started = accelerator.distributed_type, int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != started:
        raise ConfigError(
            f"accelerate: {started} processes were started, {accelerator.num_processes} work together; "
            "launch with a file of recipes/accelerate"
        )
    if kind.value not in _SUPPORTED:
        raise ConfigError(f"accelerate: {kind.value} is not supported; launch with a file of recipes/accelerate")
    if kind == DistributedType.FSDP and accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ConfigError("accelerate: FSDP of version 1 is not supported; set fsdp_version: 2")
    if kind != DistributedType.FSDP and parse_flag_from_env(_FSDP):
        raise ConfigError("accelerate: FSDP needs GPUs, and none was found; launch with recipes/accelerate/cpu-2.yaml")
    return accelerator


class Processes:
    """This process among the others, or a single one; they call the methods named collectives in the same order."""

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        self._accelerator = accelerator
        self.index = 0 if accelerator is None else accelerator.process_index
        self.count = 1 if accelerator is None else accelerator.num_processes
        self.is_main = self.index == 0

    @functools.cached_property
    def zero(self) -> dict[str, Any] | None:
        """DeepSpeed's section `zero_optimization` of the launcher's file, if it asks for DeepSpeed."""
        return _zero_of_launcher() if self.count > 1 and parse_flag_from_env(_DEEPSPEED) else None

    @property
    def _sharded(self) -> bool:
        return self._accelerator is not None and self._accelerator.distributed_type == DistributedType.FSDP

    def check(self, config: Config) -> None:
        """Raise ConfigError if a process would have no images, or gradient surgery only shards of gradients."""
        if config.method.surgery != "none" and (self.zero is not None or self._sharded):
            raise ConfigError(
                f"method.surgery: {config.method.surgery} needs whole gradients on each process; set it to none, "
                "or launch without FSDP and DeepSpeed"
            )
        rollout = config.rollout
        groups = rollout.layout == "groups"
        shares, what = (rollout.pairs, "groups") if groups else (rollout.pairs * rollout.group_size, "images")
        if shares < self.count:
            remedy = ", or set rollout.layout=spread" if groups else ""
            raise ConfigError(
                f"rollout.pairs: {shares} {what} for {self.count} processes; give each at least one{remedy}"
            )

    def share_weights(self, policy: Policy) -> None:
        """Shard the policy's weights if the launcher asks for FSDP2; ConfigError if it cannot be. A collective."""
        if not self._sharded:
            return
        shard = getattr(policy, "shard", None)
        if shard is None:
            raise ConfigError(
                f"policy.kind: {type(policy).__name__} has no method `shard`; launch without FSDP, or define it"
            )
        shard(functools.partial(fsdp2_prepare_model, self._accelerator))

    def images(self, rollout: RolloutConfig) -> list[int]:
        """Return the numbers of this process's images in an iteration, in rising order.

        Layout "groups" deals whole groups of G images in turn; "spread" gives each process a contiguous range.
        """
        size = rollout.group_size
        if rollout.layout == "groups":
            return [group * size + number for group in self.groups(rollout.pairs) for number in range(size)]
        total = rollout.pairs * size
        return list(range(self.index * total // self.count, (self.index + 1) * total // self.count))

    def groups(self, count: int) -> range:
        """Return which of `count` groups this process samples, or shows, whole."""
        return range(self.index, count, self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of all processes' tensors, on the device of this one. A collective."""
        if self._accelerator is None or self.count == 1:
            return tensor
        summed: Tensor = self._accelerator.reduce(tensor.to(self._accelerator.device), "sum")
        return summed.to(tensor.device)

    def most(self, number: int) -> int:
        """Return the largest of all processes' numbers. A collective."""
        if self._accelerator is None or self.count == 1:
            return number
        return int(self._accelerator.gather(torch.tensor([number], device=self._accelerator.device)).max())

    def least(self, number: int) -> int:
        """Return the smallest of all processes' numbers. A collective."""
        return -self.most(-number)

    def collect(self, rows: Tensor, places: Sequence[int], total: int) -> Tensor:
        """Return all processes' rows (n, ...), each at its place among `total`. A collective."""
        together = rows.new_zeros(total, *rows.shape[1:])
        together[torch.as_tensor(list(places), dtype=torch.long, device=rows.device)] = rows
        return self.sum(together)  # zeros elsewhere: exact, and NaN is preserved

    def grouped(self, values: Mapping[str, Tensor], images: Sequence[int], rollout: RolloutConfig) -> dict[str, Tensor]:
        """Return all processes' values (n,) of their `images` by name, as (groups, G). A collective."""
        rows = self.collect(torch.stack(list(values.values()), 1), images, rollout.pairs * rollout.group_size)
        return {name: rows[:, i].reshape(rollout.pairs, rollout.group_size) for i, name in enumerate(values)}

    def whole_groups(self, pixels: Sequence[Tensor], images: Sequence[int], rollout: RolloutConfig) -> list[Tensor]:
        """Return the images (G, 3, H, W) of each of this process's `groups`, from those of `images`. A collective."""
        size = rollout.group_size
        if self.count == 1 or rollout.layout == "groups":
            return [torch.stack(list(pixels[i : i + size])) for i in range(0, len(pixels), size)]
        total = rollout.pairs * size
        sides = torch.tensor([image.shape[1:] for image in pixels], device=pixels[0].device)
        sides = self.collect(sides, images, total)  # groups of several sizes travel in the largest frame
        height, width = sides.amax(0).tolist()
        framed = [functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in pixels]
        every = self.collect(torch.stack(framed), images, total)
        own = [range(group * size, (group + 1) * size) for group in self.groups(rollout.pairs)]
        return [every[rows.start : rows.stop, :, : sides[rows.start, 0], : sides[rows.start, 1]] for rows in own]

    def mean(self, record: Mapping[str, float], weight: int) -> dict[str, float]:
        """Return the weighted mean of all processes' numbers; NaN if all weights are 0. A collective."""
        if self.count == 1:
            return {name: value if weight else math.nan for name, value in record.items()}
        values = torch.tensor([*record.values(), 1.0], dtype=torch.float64)
        *totals, weights = self.sum(values * weight).tolist()
        return {name: total / weights if weights else math.nan for name, total in zip(record, totals, strict=True)}

    def sum_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Set every weight's gradient to the sum over processes, zero where there is none. A collective.

        Gradients of sharded weights were summed when they were scattered to the shards.
        """
        for weight in weights:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        gradients = [weight.grad for weight in weights if weight.grad is not None and not is_sharded(weight)]
        if self.count == 1 or not gradients:
            return
        # Few large messages: a LoRA has hundreds of small weights.
        buckets: list[list[Tensor]] = [[]]
        size = 0
        for gradient in gradients:
            size += gradient.numel()
            if size > _BUCKET and buckets[-1]:
                buckets.append([])
                size = gradient.numel()
            buckets[-1].append(gradient)
        for bucket in buckets:
            summed = self.sum(torch.cat([gradient.flatten() for gradient in bucket]))
            for gradient, part in zip(bucket, torch.split(summed, [one.numel() for one in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def text_of_main(self, text: str) -> str:
        """Return the main process's text. A collective."""
        return text if self.count == 1 else str(broadcast_object_list([text])[0])

    def wait(self) -> None:
        """Wait for all processes. A collective.

        Not by torch's barrier, which allocates on the local rank's GPU, and fails if there are fewer GPUs than
        processes.
        """
        self.most(0)


#: A single process.
ALONE = Processes()


def _check_zero(config: Config) -> None:
    """Raise ConfigError if DeepSpeed is not installed, or asked for what is not supported."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError("accelerate: DeepSpeed is not installed; pip install -e '.[deepspeed]'")
    stage = _zero_of_launcher().get("stage")
    if stage not in (1, 2):
        raise ConfigError(
            f"accelerate: ZeRO of stage {stage} is not supported; set zero_stage to 1 or 2, "
            "or launch with recipes/accelerate/fsdp2.yaml, which shards the transformer as well"
        )
    if config.train.batch_size == "auto":
        raise ConfigError("train.batch_size: auto does not go with DeepSpeed; give a number")


def _zero_of_launcher() -> dict[str, Any]:
    section: dict[str, Any] = dict(DeepSpeedPlugin().deepspeed_config["zero_optimization"])
    # Without the keys of stage 3.
    return {key: value for key, value in section.items() if key != "offload_param" and not key.startswith("stage3_")}
