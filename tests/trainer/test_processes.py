"""Several processes learn what one learns, however images are dealt to them, and whole or sharded weights alike."""

from __future__ import annotations

import importlib.util
import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch.distributed as dist
from accelerate.commands.config.config_args import load_config_from_file
from commands import side_by_side
from embedded import embedded
from launching import FILES, alike, begun, free_port, launch, planned, ranks, train_together
from running import evaluated, run_training

from customized_grpo.config import Config, ConfigError, MethodConfig, RolloutConfig, ValidationConfig
from customized_grpo.config.loading import save_config
from customized_grpo.policies import build_policy
from customized_grpo.trainer.processes import LostProcessError, Processes, reports_lost_processes, start_processes
from customized_grpo.utils.hub import ModelError
from customized_grpo.utils.records import read_records

Make = Callable[..., Config]


def standing(index: int, count: int) -> Processes:
    """Process `index` of `count`, which never speaks to another."""
    process = Processes()
    process.index, process.count = index, count
    return process


@pytest.mark.parametrize("layout", ["groups", "spread"])
@pytest.mark.parametrize(("pairs", "size", "count"), [(3, 3, 2), (5, 7, 3), (1, 3, 3)])
def test_every_image_is_generated_by_one_process(layout: str, pairs: int, size: int, count: int) -> None:
    rollout = embedded(RolloutConfig, pairs=pairs, group_size=size, layout=layout)
    if layout == "groups" and pairs < count:
        with pytest.raises(ConfigError, match=r"pairs: \d groups for \d processes.*set rollout\.layout=spread"):
            standing(0, count).check(embedded(Config, rollout=rollout))
        return
    shares = [standing(index, count).images(rollout) for index in range(count)]
    assert sorted(image for share in shares for image in share) == list(range(pairs * size))
    assert all(share == sorted(share) for share in shares)
    if layout == "spread":
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    else:
        groups = [{image // size for image in share} for share in shares]
        assert sum(map(len, groups)) == pairs, "no group is cut"
    with pytest.raises(ConfigError, match="images for 99 processes"):
        standing(0, 99).check(embedded(Config, rollout=rollout.model_copy(update={"layout": "spread"})))


def test_surgery_needs_whole_gradients() -> None:
    config = embedded(Config, method=MethodConfig(surgery="pcgrad"))
    Processes().check(config)
    in_parts = standing(0, 2)
    in_parts.zero = {"stage": 1}
    with pytest.raises(ConfigError, match=r"method\.surgery: pcgrad needs whole gradients .*; set it to none"):
        in_parts.check(config)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP needs GPUs, and none was found"),
        ("WORLD_SIZE", "3", "3 processes were started, 1 work together"),
    ],
)
def test_what_is_not_supported_is_refused(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=message):
        start_processes(make_config())


def test_a_zero_launch_without_deepspeed_names_what_to_install(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find(name))
    with pytest.raises(ConfigError, match=r"DeepSpeed is not installed; pip install -e '\.\[deepspeed\]'"):
        start_processes(make_config())


@pytest.mark.parametrize("file", sorted(FILES.glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_knows_every_key_of_its_files(file: Path) -> None:
    known = load_config_from_file(str(file))
    assert known.num_processes == {"cpu-2.yaml": 2, "two-nodes.yaml": 16}.get(file.name, 8)
    assert known.mixed_precision == "no", "the policy's own precision stands"


def test_a_policy_that_cannot_be_sharded_says_so(make_config: Make) -> None:
    for name in ("offload", "compile"):
        policy = build_policy(make_config().policy.model_copy(update={name: True}))
        with pytest.raises(ModelError, match=rf"policy\.{name}: is not supported with FSDP"):
            policy.shard(lambda module: None)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def configs(make_config: Make, photos_config: Make) -> dict[str, Config]:
    # Three groups of three images, in batches of six, micro-batches of two: little divides evenly.
    short = {"iterations": 2, "checkpoint_every": 1, "schedule": "constant", "batch_size": 2}
    surgery = MethodConfig(spread="batch", surgery="pcgrad", gamma_last=0.0)
    nft = MethodConfig(objective="nft", weighting="constrained", keep={"prompt": 0.0})
    gains = {"method": nft, "validation": ValidationConfig(images=4, per_iteration=3)}
    return {
        "groups": make_config(**short),
        "spread": make_config(layout="spread", ratio="guard", trained_fraction=0.6, method=surgery, **short),
        # A process has other sizes than the other, and groups of two sizes in part.
        "sizes": photos_config(layout="spread", **short),
        "forward": make_config(shared_noise=False, layout="spread", image_fraction=0.6, **gains, **short),
    }


@pytest.fixture(scope="module")
def alone(configs: dict[str, Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A process by itself trains every configuration, and evaluates the first."""
    folder = tmp_path_factory.mktemp("alone")
    for name, config in configs.items():
        policy = run_training(config, folder / name)
        if name == "groups":
            evaluated(policy, config, folder / name / "images")
    return folder


@pytest.fixture(scope="module")
def together(configs: dict[str, Config], alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A process on each of two machines trains every configuration, then the first from a checkpoint of one process."""
    folder = tmp_path_factory.mktemp("together")
    train_together(folder, "two-nodes.yaml", configs, taken_over=alone / "groups", evaluated=True, machines=2)
    return folder


@pytest.mark.parametrize("name", ["groups", "spread", "sizes", "forward"])
def test_two_processes_learn_what_one_learns(alone: Path, together: Path, name: str) -> None:
    alike(alone / name, together / name)


def test_two_processes_continue_where_one_stopped(alone: Path, together: Path) -> None:
    alike(alone / "groups", together / "taken over", evaluated=True)


def test_one_process_continues_where_two_stopped(
    configs: dict[str, Config], alone: Path, together: Path, tmp_path: Path
) -> None:
    begun(together / "groups", tmp_path)
    run_training(configs["groups"], tmp_path)
    alike(alone / "groups", tmp_path)


@dataclass(frozen=True)
class Sharded:
    """What two processes left, how they ended, and how many seconds after one of them had failed."""

    folder: Path
    code: int
    message: str
    seconds: float


@pytest.fixture(scope="module")
def sharded(configs: dict[str, Config], full: Config, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Sharded:
    """Two processes with a transformer in shards; at the end one of them fails."""
    folder = tmp_path_factory.mktemp("sharded")
    runs = [planned(folder, "lora", configs["groups"], evaluated=True), planned(folder, "full", full)]
    runs.insert(1, planned(folder, "forward", configs["forward"]))
    begun(alone / "groups", folder / "lora")
    code, message = launch(folder, "fsdp2.yaml", {"fail": str(folder / "failed"), "runs": runs})
    assert (folder / "failed").exists(), message[-3000:]
    return Sharded(folder, code, message, time.time() - float((folder / "failed").read_text()))


def test_a_lora_on_shards_learns_what_it_learns_on_a_whole_transformer(alone: Path, sharded: Sharded) -> None:
    folder = sharded.folder
    alike(alone / "groups", folder / "lora", evaluated=True)
    alike(alone / "forward", folder / "forward")
    seen = [json.loads((folder / "lora" / f"process-{index}.json").read_text()) for index in (0, 1)]
    assert all(one["sharded"] for one in seen)
    assert seen[0]["here"] + seen[1]["here"] == seen[0]["weights"]


def test_all_weights_in_shards_learn_what_they_learn_whole(full: Config, tmp_path: Path, sharded: Sharded) -> None:
    """With a KL term, for which the untuned weights take the place of the shards and leave it again."""
    run_training(full, tmp_path)
    alike(tmp_path, sharded.folder / "full", kl=True, all_weights=True)
    assert [record["kl"] > 0 for record in read_records(tmp_path / "metrics.jsonl")] == [True, True]


def test_a_process_that_fails_ends_the_others(sharded: Sharded) -> None:
    assert sharded.code != 0
    assert "this process fails" in sharded.message
    assert sharded.seconds < 60, "and not after the half hour that processes wait for each other"


KILLS = """
import os, signal, time

def kills(images, pairs):
    \"\"\"Redness, which does not survive its second time on the main process.\"\"\"
    kills.times += 1
    if os.environ["RANK"] == "0" and kills.times == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return 100 * images[:, 0].mean((1, 2))

kills.times = 0
"""


def test_a_process_that_is_killed_ends_the_others(make_config: Make, tmp_path: Path) -> None:
    """Also without a launcher to see to it: on another machine there is none that would know."""
    (tmp_path / "kills.py").write_text(KILLS)
    config = make_config()
    reward = config.rewards[0].model_copy(update={"kind": f"{tmp_path}/kills.py:kills"})
    (tmp_path / "run").mkdir()
    save_config(config.model_copy(update={"rewards": [reward, config.rewards[1]]}), tmp_path / "run" / "config.yaml")
    began = time.monotonic()
    killed, left = side_by_side(ranks(free_port()), "train", "--resume", "run", folder=tmp_path)
    assert time.monotonic() - began < 60, "and not after the half hour that processes wait for each other"
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    message = left.stderr.splitlines()
    assert left.returncode == 2, message
    assert message[-1].startswith("error: another process of this run exited or did not respond"), message
    assert not any("Traceback" in line for line in message)


def test_an_error_of_a_collective_is_one_line() -> None:
    waited = "[/x/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 5ms for recv to complete"
    words = r"\((Timed out waiting 5ms|NCCL error)"
    for error in (RuntimeError(waited), dist.DistBackendError("NCCL error\nmore")):
        with pytest.raises(LostProcessError, match=words) as lost, reports_lost_processes():
            raise error
        assert len(str(lost.value).splitlines()) == 1
    with pytest.raises(RuntimeError, match="shapes differ"), reports_lost_processes():
        raise RuntimeError("shapes differ")
