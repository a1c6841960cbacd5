"""The processes of a run: which images each of them draws and trains, and what they tell each other.

All else is a function of the seed, and of scores that every process knows after they are collected. So what is learned
does not depend on the number of processes, but for rounding.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType, InitProcessGroupKwargs, fsdp2_prepare_model
from torch import Tensor, nn

from customized_grpo.config import Config, ConfigError, RolloutConfig
from customized_grpo.policies.sharding import is_sharded
from customized_grpo.protocols import Policy

_BUCKET = 2**26  # numbers of one message: 256 MiB of float32
_GLOO = "gloo/transport"  # in the errors of its connections, which have no class of their own
_DEEPSPEED, _FSDP = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"
_WHOLE = (
    DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_NPU,
    DistributedType.MULTI_XPU, DistributedType.MULTI_MLU,
)  # fmt: skip


class LostProcessError(ConnectionError):
    """Another process of the run ended, or does not answer; its text is one line."""


@contextmanager
def lost_processes_told() -> Iterator[None]:
    """Inside it the error of a collective that another process did not come to is a LostProcessError.

    gloo raises at once where a process has ended, and both gloo and NCCL after `train.timeout` where it hangs.
    """
    try:
        yield
    except RuntimeError as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, dist.DistError) and _GLOO not in told:
            raise
        what = told.split("] ", 1)[-1].split(". ")[0]
        raise LostProcessError(
            f"another process of this run ended, or does not answer within train.timeout ({what}): "
            "see its own last lines; go on by cgrpo train --resume"
        ) from error


def start_processes(config: Config) -> Accelerator:
    """This process among those that a launcher has started, if any.

    Raises ConfigError where the launcher asks for a way of sharing that there is none of here.
    """
    if _asks(_DEEPSPEED):
        _check_zero(config)
    waiting = InitProcessGroupKwargs(timeout=timedelta(minutes=config.train.timeout))
    # Without being told so, accelerate takes the processes of a machine without a GPU for so many single ones.
    on_cpu = config.policy.device == "cpu" or torch.accelerator.current_accelerator(check_available=True) is None
    with _without_deepspeed():
        accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[waiting])
    if on_cpu and _asks(_DEEPSPEED):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would take a GPU that is there
    kind, started = accelerator.distributed_type, int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != started:
        raise ConfigError(
            f"accelerate: {started} processes were started, {accelerator.num_processes} work together; "
            "launch with a file of recipes/accelerate"
        )
    if kind == DistributedType.FSDP:
        if accelerator.state.fsdp_plugin.fsdp_version != 2:
            raise ConfigError("accelerate: FSDP of version 1 is not supported; set fsdp_version: 2")
    elif _asks(_FSDP):
        raise ConfigError("accelerate: FSDP needs GPUs, and none was found; launch with recipes/accelerate/cpu-2.yaml")
    elif kind not in _WHOLE:
        raise ConfigError(f"accelerate: {kind.value} is not supported; launch with a file of recipes/accelerate")
    return accelerator


class Processes:
    """This process among the others; the only one where no accelerator is given.

    Every method that says so is a collective: all processes call it, in the same order.
    """

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        self._accelerator = accelerator
        self.index = 0 if accelerator is None else accelerator.process_index
        self.count = 1 if accelerator is None else accelerator.num_processes
        self.is_main = self.index == 0

    @functools.cached_property
    def zero(self) -> dict[str, Any] | None:
        """DeepSpeed's section `zero_optimization` of the launcher's file; None where it asks for none."""
        return _zero_of_launcher() if self.count > 1 and _asks(_DEEPSPEED) else None

    def check(self, config: Config) -> None:
        """Raises ConfigError where a process would have nothing to draw, or only parts of what surgery needs whole."""
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

    @property
    def _sharded(self) -> bool:
        return self._accelerator is not None and self._accelerator.distributed_type == DistributedType.FSDP

    def share_weights(self, policy: Policy) -> None:
        """Shard the policy's weights over the processes where the launcher asks for it (FSDP2). A collective.

        Raises ConfigError where the policy cannot be sharded.
        """
        if not self._sharded:
            return
        shard = getattr(policy, "shard", None)
        if shard is None:
            raise ConfigError(
                f"policy.kind: {type(policy).__name__} has no method `shard`; launch without FSDP, or define it"
            )
        shard(functools.partial(fsdp2_prepare_model, self._accelerator))

    def images(self, rollout: RolloutConfig) -> list[int]:
        """This process's images, by their numbers in the iteration, in rising order.

        Image i is number i % G of group i // G. "groups" deals whole groups in turn; "spread" gives every process the
        same share of all images, to within one, in a row, so that few groups are cut.
        """
        size = rollout.group_size
        if rollout.layout == "groups":
            return [group * size + number for group in self.groups(rollout.pairs) for number in range(size)]
        total = rollout.pairs * size
        return list(range(self.index * total // self.count, (self.index + 1) * total // self.count))

    def groups(self, count: int) -> range:
        """Those of `count` groups that are this process's to draw, or to show, whole."""
        return range(self.index, count, self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors of this shape, where it came from. A collective."""
        if self._accelerator is None or self.count == 1:
            return tensor
        # NCCL knows no tensors of the CPU.
        summed: Tensor = self._accelerator.reduce(tensor.to(self._accelerator.device), "sum")
        return summed.to(tensor.device)

    def most(self, number: int) -> int:
        """The greatest of all processes' numbers. A collective."""
        every = torch.zeros(self.count, dtype=torch.long)
        every[self.index] = number
        return int(self.sum(every).max())

    def least(self, number: int) -> int:
        """The least of all processes' numbers. A collective."""
        return -self.most(-number)

    def collect(self, rows: Tensor, places: Sequence[int], total: int) -> Tensor:
        """All processes' rows (n, ...), each at its place among `total`, the same on all of them. A collective."""
        if self.count == 1 and list(places) == list(range(total)):
            return rows
        together = rows.new_zeros(total, *rows.shape[1:])
        together[torch.as_tensor(list(places), dtype=torch.long, device=rows.device)] = rows
        return self.sum(together)  # zeros elsewhere: exact, and a NaN stays one

    def grouped(self, values: Mapping[str, Tensor], images: Sequence[int], rollout: RolloutConfig) -> dict[str, Tensor]:
        """All processes' values (n,) of their `images`, by groups: (groups, G) of each name. A collective."""
        rows = self.collect(torch.stack(list(values.values()), 1), images, rollout.pairs * rollout.group_size)
        return {name: rows[:, i].reshape(rollout.pairs, rollout.group_size) for i, name in enumerate(values)}

    def whole_groups(self, pictures: Tensor, images: Sequence[int], rollout: RolloutConfig) -> Tensor:
        """The pictures (groups * G, 3, H, W) of the groups of `groups`, of this process's `images`. A collective."""
        if self.count == 1 or rollout.layout == "groups":
            return pictures
        size, mine = rollout.group_size, []
        for group in range(rollout.pairs):
            rows = [row for row, image in enumerate(images) if image // size == group]
            together = self.collect(pictures[rows], [images[row] % size for row in rows], size)
            if group in self.groups(rollout.pairs):
                mine.append(together)
        return torch.cat([pictures[:0], *mine])

    def mean(self, record: Mapping[str, float], weight: int) -> dict[str, float]:
        """The mean of all processes' numbers, each process counting by its weight; NaN of no weight. A collective."""
        if self.count == 1:
            return {name: value if weight else math.nan for name, value in record.items()}
        values = torch.tensor([*record.values(), 1.0], dtype=torch.float64)
        *totals, weights = self.sum(values * weight).tolist()
        return {name: total / weights if weights else math.nan for name, total in zip(record, totals, strict=True)}

    def sum_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Have the sum of all processes' gradients in every weight, zero where it has none. A collective.

        Few messages, however many weights. Those of sharded weights were summed on their way to the shards.
        """
        for weight in weights:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        if self.count == 1:
            return
        for bucket in _buckets([weight for weight in weights if not is_sharded(weight)]):
            gradients = [weight.grad for weight in bucket if weight.grad is not None]
            summed = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            parts = torch.split(summed, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def text_of_main(self, text: str) -> str:
        """The main process's text. A collective."""
        own = torch.tensor(list(text.encode()) if self.is_main else [], dtype=torch.long)
        length = self.most(len(own))
        return bytes(self.collect(own, range(len(own)), length).tolist()).decode()

    def wait(self) -> None:
        """Continue when all processes are here. A collective.

        torch's barrier, which accelerate calls, allocates on the GPU of the local rank even where all work is on CPUs.
        It fails where a machine has fewer GPUs than processes.
        """
        self.most(0)


#: The only process of its run.
ALONE = Processes()


def _asks(variable: str) -> bool:
    return os.environ.get(variable, "").lower() == "true"


def _check_zero(config: Config) -> None:
    """Raises ConfigError where DeepSpeed is not there, or is asked for what it does not do here."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError("accelerate: DeepSpeed is not installed; pip install 'customized-grpo[deepspeed]'")
    stage = _zero_of_launcher().get("stage")
    if stage not in (1, 2):
        raise ConfigError(
            f"accelerate: ZeRO of stage {stage} is not supported; set zero_stage to 1 or 2, "
            "or launch with recipes/accelerate/fsdp2.yaml, which shares out the transformer as well"
        )
    if config.train.batch_size == "auto":
        raise ConfigError("train.batch_size: auto does not go with DeepSpeed; give a number")


def _zero_of_launcher() -> dict[str, Any]:
    section: dict[str, Any] = dict(DeepSpeedPlugin().deepspeed_config["zero_optimization"])
    # What is said of stage 3 alone.
    return {key: value for key, value in section.items() if key != "offload_param" and not key.startswith("stage3_")}


@contextmanager
def _without_deepspeed() -> Iterator[None]:
    """Inside it accelerate does not see that DeepSpeed is asked for: it would wrap the model, and not on a CPU."""
    asked = os.environ.pop(_DEEPSPEED, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[_DEEPSPEED] = asked


def _buckets(weights: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The weights in order, so many together that their numbers, of one type, make one message."""
    for _, alike in itertools.groupby(sorted(weights, key=lambda w: str(w.dtype)), key=lambda w: w.dtype):
        bucket: list[nn.Parameter] = []
        for weight in alike:
            if bucket and sum(w.numel() for w in bucket) + weight.numel() > _BUCKET:
                yield bucket
                bucket = []
            bucket.append(weight)
        yield bucket
