"""The public Python API: what `import customized_grpo as cg` offers, and how quickly."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import huggingface_hub
import pytest
import torch
from embedded import embedded

import customized_grpo as cg
from customized_grpo.config import KINDS, Config, ConfigError, PolicyConfig, RewardConfig
from customized_grpo.policies import kind_of
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.protocols import PairDataset
from customized_grpo.rewards import RewardError
from customized_grpo.trainer import base
from customized_grpo.utils.hub import ModelError


def test_every_export_is_there_and_documented() -> None:
    assert set(cg.__all__) <= set(dir(cg))
    for name in cg.__all__:
        value = getattr(cg, name)
        assert value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'polcy'"):
        _ = cg.polcy
    assert cg.__version__.count(".") == 2


def test_import_is_quick_and_configurations_and_the_terminal_need_no_torch() -> None:
    program = (
        "import sys, time; began = time.process_time(); import customized_grpo\n"
        "assert time.process_time() - began < 0.3\n"
        "import customized_grpo.utils.terminal, customized_grpo.utils.records\n"
        "from customized_grpo.config.loading import load_config; load_config()\n"
        "assert not {'torch', 'matplotlib'} & sys.modules.keys()"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_settings_are_given_by_section_or_by_name() -> None:
    args = cg.CustomizedGRPOConfig(output_dir="runs/x", learning_rate=3e-5, train={"updates": 5}, gamma=0.1, seed=7)
    assert (args.train.learning_rate, args.train.updates, args.method.gamma, args.seed) == (3e-5, 5, 0.1, 7)
    assert args.output_dir == Path("runs/x") and "output_dir" not in args.model_dump()
    for settings, message in (
        ({"batch_size": 3}, r"batch_size: is a setting of rollout and of train; give rollout=\{'batch_size': 3\} or"),
        ({"nothing": 1}, "nothing: unknown setting"),
        ({"learning_rate": -1.0}, r"train\.learning_rate: input should be greater than 0; given -1"),
        ({"updates": 2, "train": {"updates": 3}}, "updates: given twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            cg.CustomizedGRPOConfig(**settings)
    again = cg.CustomizedGRPOConfig(train=args.train, iterations=9)
    assert (again.train.iterations, again.train.updates) == (9, 5)


def test_a_policy_is_found_by_its_pipeline_and_has_its_presets() -> None:
    assert kind_of("embedded/pipeline") == "flux-kontext"
    with pytest.raises(ModelError, match=r"embedded/nothing: no such embedded model"):
        cg.Policy.from_pretrained("embedded/nothing")
    with pytest.raises(ConfigError, match=r"policy\.heigt: unknown key; did you mean policy\.height\?"):
        cg.Policy.from_pretrained("embedded/pipeline", heigt=64)
    policy = cg.Policy.from_pretrained("embedded/pipeline", lora_rank=2, device="meta")
    assert isinstance(policy, FluxKontextPolicy)
    assert policy.config.guidance == PolicyConfig(path="embedded/pipeline").guidance == 2.5
    assert policy.config.lora is not None and policy.config.lora.rank == 2


def test_a_registered_policy_is_chosen_by_name_and_a_taken_name_is_refused() -> None:
    @cg.register_policy("half-kontext")
    class Half(FluxKontextPolicy):
        lora_targets = ("to_q",)

    try:
        policy = cg.Policy.from_pretrained("embedded/pipeline", kind="half-kontext", lora_rank=2, device="meta")
        assert type(policy) is Half and all("to_q" in name for name in policy.trainable())
        assert Half.from_pretrained("embedded/pipeline", device="meta").config.kind == "half-kontext"
        with pytest.raises(ValueError, match="'flux-kontext' is taken"):
            cg.register_policy("flux-kontext")(Half)
    finally:
        KINDS.pop("half-kontext")


def brightness(images: torch.Tensor) -> torch.Tensor:
    return 100 * images.mean((1, 2, 3))


def arguments(folder: Path, **changes: object) -> cg.CustomizedGRPOConfig:
    return cg.CustomizedGRPOConfig(
        output_dir=folder, updates=1, group_size=2, pairs=1, trackers=[], sampler="flow", eta=1.0,
        rollout={"steps": 3, "batch_size": 2}, train={"batch_size": 4}, evaluation={"steps": 2},
        **{"iterations": 1, **changes},
    )  # fmt: skip


def trainer(folder: Path, **changes: object) -> cg.CustomizedGRPOTrainer:
    settings = {**dict(embedded(Config).policy), "device": "cpu"}
    given: dict[str, object] = {
        "policy": cg.Policy.from_pretrained(**settings),
        "rewards": {"identity": cg.rewards.Dino("embedded/reward-identity"), "prompt": [(brightness, 2.0)]},
        "train_dataset": cg.datasets.world("train", size=8),
        "args": arguments(folder),
    }
    return cg.CustomizedGRPOTrainer(**{**given, **changes})  # type: ignore[arg-type]


class Watch(cg.TrainerCallback):
    """Records the events that it is called for."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __getattribute__(self, name: str) -> object:
        found = super().__getattribute__(name)
        if name.startswith("on_"):
            self.events.append(name)
        return found


def test_a_training_from_objects_fires_its_events_and_describes_itself(tmp_path: Path) -> None:
    watch = Watch()
    made = trainer(tmp_path / "run", callbacks=[watch], eval_dataset=cg.datasets.world("held-out", size=2))
    made.train()
    assert watch.events == [
        "on_init_end", "on_run_begin", "on_evaluate_begin", "on_evaluate_progress", "on_train_begin", "on_step_begin",
        "on_optimizer_step", "on_groups", "on_evaluate_progress", "on_evaluate", "on_step_end", "on_save",
        "on_loop_end", "on_train_end", "on_exit",
    ]  # fmt: skip
    assert made.evaluation is not None and set(made.evaluation.means) == {"dino", "brightness"}
    config = cg.load_config(tmp_path / "run" / "config.yaml")
    assert [(one.role, one.weight) for one in config.rewards] == [("identity", 1.0), ("prompt", 2.0)]
    assert config.rewards[0] == RewardConfig(
        kind="dino", role="identity", name="dino", path="embedded/reward-identity", options={}
    )
    assert config.data.path == "world" and config.data.size == 8
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.usefixtures("quick_figures")
def test_callbacks_stop_a_training_early(tmp_path: Path) -> None:
    stop = cg.EarlyStoppingCallback("brightness", patience=1, threshold=1e9)
    args = arguments(tmp_path / "run", iterations=9, sample_every=1)
    held_out = cg.datasets.world("held-out", size=2)
    made = trainer(tmp_path / "run", args=args, callbacks=[stop], eval_dataset=held_out)
    made.train()
    assert made.iteration == 2, "the first evaluation is the best so far; the second is no better"

    def resumed(patience: int) -> int:
        own = cg.EarlyStoppingCallback("brightness", patience=patience, threshold=1e9)
        one = trainer(tmp_path / "run", args=args, callbacks=[own], eval_dataset=held_out)
        one.train(resume_from_checkpoint=True)
        return one.iteration

    assert resumed(patience=1) == 2, "it has stopped"
    assert resumed(patience=3) == 4, "the second evaluation counts"
    again = trainer(tmp_path / "other", eval_dataset=held_out, callbacks=[cg.EarlyStoppingCallback("dinosaur")])
    with pytest.raises(ValueError, match="there is no reward 'dinosaur'; give one of dino, brightness"):
        again.train()


def test_bad_parts_are_reported_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="no reward has the role prompt"):
        trainer(tmp_path, rewards={"identity": brightness})

    def wants(images: torch.Tensor, difficulty: list[float]) -> list[float]:
        return difficulty

    with pytest.raises(RewardError, match="difficulty"):
        trainer(tmp_path, rewards={"identity": brightness, "prompt": wants})


def test_pairs_of_two_data_sets_with_one_key_are_encoded_apart(tmp_path: Path) -> None:
    made, shown = trainer(tmp_path), cg.datasets.world("train", size=1)[0]
    first, second = (replace(shown, key="row 0", prompt=prompt) for prompt in ("a dog in the snow", "a red cat"))
    third = replace(first, references=(shown.references[0].rotate(90),))
    (one,), (two,), (three,) = (made.encode([pair]) for pair in (first, second, third))
    assert made.encode([first])[0] is one, "from the cache"
    for other in (two, three):
        assert any(not torch.equal(rows, other.rows[name]) for name, rows in one.rows.items())


def test_float16_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    args = cg.CustomizedGRPOConfig(output_dir=tmp_path / "run", policy={"path": "not/there", "dtype": "float16"})
    with pytest.raises(ConfigError, match=r"policy\.dtype: float16 .* set bfloat16"):
        cg.CustomizedGRPOTrainer(args=args)


def test_a_dataset_of_ones_own_is_described_as_an_object(tmp_path: Path) -> None:
    world: PairDataset = cg.datasets.world("train", size=2)
    made = trainer(tmp_path, train_dataset=[world[0], world[1]])
    assert made.config.data.path == "list in Python"


def test_weights_are_uploaded_as_diffusers_loads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = create_autospec(huggingface_hub.HfApi)
    hub.return_value.upload_folder.side_effect = lambda **given: SimpleNamespace(
        commit_url=" ".join(path.name for path in given["folder_path"].iterdir())
    )
    monkeypatch.setattr(base, "HfApi", hub)
    found = trainer(tmp_path).push_to_hub("me/dog", private=True, token="secret")
    assert found == "pytorch_lora_weights.safetensors"
    hub.assert_called_once_with(token="secret")
    hub.return_value.create_repo.assert_called_once_with("me/dog", private=True, exist_ok=True)
