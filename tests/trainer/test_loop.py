"""The loop as a whole: it learns, resumes bit for bit, and is the same on two processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import transformers
from running import run_training
from safetensors.torch import load_file

from customized_grpo.config import Config, MethodConfig, WindowConfig
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.trainer.checkpoint import CheckpointError, newest_checkpoint
from customized_grpo.trainer.conditioning import encode_ahead
from customized_grpo.trainer.processes import ALONE
from customized_grpo.utils.records import read_records

LOGGED = {
    "identity/mean", "identity/std", "prompt/mean", "prompt/std", "reward/redness/mean", "reward/light/mean",
    "share/missing", "share/skipped", "share/conflicted", "share/both_positive", "share/both_negative",
    "share/no_signal_identity", "share/no_signal_prompt", "clip_fraction", "diversity", "kl", "drift", "gradient_norm",
    "loss", "learning_rate", "replay_error",
    "seconds/sampling", "seconds/scoring", "seconds/updating", "seconds/total",
}  # fmt: skip


def without_times(run: Path) -> list[dict[str, float]]:
    records = read_records(run / "metrics.jsonl")
    return [{k: v for k, v in record.items() if not k.startswith("seconds/")} for record in records]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    """All that the newest checkpoint holds: weights, the optimiser, the random generator."""
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    files = sorted(newest.rglob("*.safetensors"))
    assert len(files) == 2
    return {f"{file.name}:{name}": value for file in files for name, value in load_file(file).items()}


def test_every_iteration_logs_what_a_user_needs(make_config: Callable[..., Config], tmp_path: Path) -> None:
    run_training(make_config(iterations=2), tmp_path)
    first, second = read_records(tmp_path / "metrics.jsonl")
    assert set(first) == LOGGED | {"iteration"}
    assert first["kl"] != second["kl"]
    assert [first["iteration"], second["iteration"]] == [1, 2]
    assert first["gradient_norm"] > 0


def test_both_rewards_rise(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(iterations=25, pairs=2, group_size=8, learning_rate=3e-3, updates=1)
    run_training(config, tmp_path)
    records = read_records(tmp_path / "metrics.jsonl")
    for role in ("identity", "prompt"):
        means = torch.tensor([record[f"{role}/mean"] for record in records])
        spread = records[0][f"{role}/std"]
        assert means[-5:].mean() > means[:5].mean() + spread / 2, role


def test_the_rate_falls_linearly_or_stays(make_config: Callable[..., Config], tmp_path: Path) -> None:
    for schedule, factors in (("linear", [1.0, 0.75, 0.5, 0.25]), ("constant", [1.0] * 4)):
        run_training(make_config(schedule=schedule, iterations=4), tmp_path / schedule)
        rates = [record["learning_rate"] for record in read_records(tmp_path / schedule / "metrics.jsonl")]
        assert rates == pytest.approx([1e-3 * factor for factor in factors])


def test_the_shuffled_rival_draws_alike_and_learns_otherwise(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    first = {}
    for weighting in ("tdw", "tdw-shuffled"):
        config = make_config(iterations=1).model_copy(update={"method": MethodConfig(weighting=weighting)})
        run_training(config, tmp_path / weighting)
        (first[weighting],) = read_records(tmp_path / weighting / "metrics.jsonl")
    own, shuffled = first["tdw"], first["tdw-shuffled"]
    assert own["identity/mean"] == shuffled["identity/mean"]
    assert own["gradient_norm"] != pytest.approx(shuffled["gradient_norm"], rel=1e-3)


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(
    make_config: Callable[..., Config], tmp_path: Path, killed_after: int
) -> None:
    config = make_config(iterations=5)
    run_training(config, tmp_path / "whole")

    def kill(record: Mapping[str, float]) -> None:
        if record["iteration"] == killed_after:
            raise Killed

    with pytest.raises(Killed):
        run_training(config, tmp_path / "cut", kill)
    torch.manual_seed(123)  # whatever a new process starts with must not matter
    run_training(config, tmp_path / "cut")
    whole, cut = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "cut")
    names = [name for name in whole if not name.endswith(":rng")]
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in names)
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "cut")


def test_a_damaged_checkpoint_is_passed_over(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(iterations=4, checkpoint_every=2)
    run_training(config, tmp_path)
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.name == "000004"
    file = next(newest.rglob("pytorch_lora_weights.safetensors"))
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    older = newest_checkpoint(tmp_path / "checkpoints")
    assert older is not None
    assert older.name == "000002"
    shutil.rmtree(older)
    with pytest.raises(CheckpointError, match=r"000004: damaged, trainable/.* is not what was written; put back"):
        newest_checkpoint(tmp_path / "checkpoints")


@pytest.mark.parametrize(
    "changed",
    [{"ratio": "guard"}, {"clip_range_high": 1e-8}, {"window": {"size": 1, "order": "random", "stay": 1}}],
    ids=str,
)
def test_options_train_and_resume_alike(
    make_config: Callable[..., Config], tmp_path: Path, changed: dict[str, object]
) -> None:
    """Every option learns something, and its resumed run is its uninterrupted one."""
    window = WindowConfig.model_validate(changed["window"]) if "window" in changed else None
    config = make_config(iterations=4, **({"window": window} if window else changed))
    run_training(config, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(record: Mapping[str, float]) -> None:
        if record["iteration"] == 3:
            raise Killed

    with pytest.raises(Killed):
        run_training(config, tmp_path / "resumed", kill)
    run_training(config, tmp_path / "resumed")
    whole, resumed = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    run_training(make_config(iterations=4), tmp_path / "plain")
    plain = tensors_of(tmp_path / "plain")
    weights = [name for name in whole if "lora_B" in name]
    assert weights and any(not torch.equal(whole[name], plain[name]) for name in weights)


def test_conditions_encoded_ahead_leave_training_as_it_was_without_text_encoders(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(iterations=2)
    run_training(config, tmp_path / "plain")
    policy = config.policy.model_copy(update={"conditions": tmp_path / "kept", "offload": True})
    config = config.model_copy(update={"policy": policy})
    held_out = open_dataset(config.evaluation.data)
    encode_ahead(config, build_policy(policy), open_dataset(config.data), held_out, 0, ALONE)

    def called(*_: object, **__: object) -> None:
        raise AssertionError("a text encoder was asked for")

    for kind in (transformers.CLIPTextModel, transformers.T5EncoderModel):
        monkeypatch.setattr(kind, "from_pretrained", called)
    tuned = run_training(config, tmp_path / "run")
    assert without_times(tmp_path / "run") == without_times(tmp_path / "plain")
    tuned.encode(held_out[3].prompt, held_out[3].references)
    with pytest.raises(ValueError, match="asked for"):
        tuned.encode("a prompt of nobody's", [])
