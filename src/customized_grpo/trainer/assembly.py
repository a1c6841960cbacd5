"""The parts of a training: objects that the caller gives, and those built from settings for the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from customized_grpo.config import BALANCES, Config, ConfigError, DataConfig, PolicyConfig, RewardConfig
from customized_grpo.config.arguments import CustomizedGRPOConfig
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.protocols import PairDataset, Policy
from customized_grpo.rewards import build_reward, describe
from customized_grpo.rewards.terms import RewardTerm, monitors_from, terms_from
from customized_grpo.trainer.callbacks import (
    CheckpointCallback,
    EMACallback,
    MetricsCallback,
    ProgressCallback,
    TrainerCallback,
)
from customized_grpo.trainer.folder import new_folder
from customized_grpo.trainer.processes import Processes, start_processes
from customized_grpo.trainer.prompts import check_prompts
from customized_grpo.trainer.trackers import TrackerCallback


@dataclass(frozen=True)
class Parts:
    """Everything a trainer consists of; `config` describes the other parts as a recipe would."""

    policy: Policy
    terms: list[RewardTerm]
    monitors: list[RewardTerm]
    train_dataset: PairDataset
    eval_dataset: PairDataset | None
    validation_dataset: PairDataset | None  # only for weights that follow the gains
    config: Config
    output_dir: Path
    unnamed: bool  # the folder has a default name, and may take the next one if another run was faster
    callbacks: list[TrainerCallback]
    processes: Processes


def assemble(
    policy: Policy | None,
    rewards: Mapping[str, object] | Sequence[RewardTerm] | None,
    train_dataset: PairDataset | None,
    eval_dataset: PairDataset | None,
    args: Config,
    output_dir: str | Path | None,
    validation_dataset: PairDataset | None,
    monitors: Mapping[str, object] | Sequence[RewardTerm] | None,
    callbacks: Sequence[TrainerCallback],
    accelerator: Accelerator | None,
) -> Parts:
    """Build what is not given as `args` describe it; see `CustomizedGRPOTrainer` for the arguments."""
    terms = terms_from(rewards) if isinstance(rewards, Mapping) else rewards
    watched = monitors_from(monitors) if isinstance(monitors, Mapping) else monitors
    config = _describe(policy, terms, watched, train_dataset, eval_dataset, validation_dataset, args)
    if config.policy.dtype == "float16":
        raise ConfigError(
            "policy.dtype: float16 makes gradients below 6e-8 zero, so nothing is learned; set bfloat16, or float32"
        )
    processes = Processes(accelerator or start_processes(config))
    processes.check(config)
    dataset = open_dataset(config.data) if train_dataset is None else train_dataset
    validation = _validation_dataset(config, validation_dataset, dataset)
    policy = build_policy(config.policy) if policy is None else policy
    if terms is None:
        terms = reward_terms(config.rewards, policy.device)
    if watched is None:
        watched = reward_terms(config.evaluation.monitors, policy.device) if eval_dataset is not None else []
    for term in terms:
        term.check([dataset[0]])  # before anything is sampled
    if eval_dataset is not None:
        for term in (*terms, *watched):
            term.check([eval_dataset[0]])
    check_prompts("data", config.data, dataset, policy, terms, log=processes.is_main)
    if eval_dataset is not None:
        held_out = config.evaluation.data
        # The same file was checked above, except for the monitors.
        readers = (None, watched) if held_out.path == config.data.path else (policy, [*terms, *watched])
        check_prompts("evaluation.data", held_out, eval_dataset, *readers, log=processes.is_main)
    if validation is not None and validation is not dataset:
        for term in terms:
            term.check([validation[0]])
        check_prompts("validation.data", config.validation.data, validation, policy, terms, log=processes.is_main)
    folder = output_dir or getattr(args, "output_dir", None)
    return Parts(
        policy=policy,
        terms=list(terms),
        monitors=list(watched),
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        validation_dataset=validation,
        config=config,
        unnamed=folder is None,
        output_dir=new_folder(Path("runs")) if folder is None else Path(folder),
        callbacks=_with_defaults(config, callbacks),
        processes=processes,
    )


def _validation_dataset(config: Config, given: PairDataset | None, train: PairDataset) -> PairDataset | None:
    """Return the pairs to measure gains on; None if no weights follow them."""
    if config.method.weighting not in BALANCES:
        return None
    if given is not None:
        return given
    return train if config.validation.data == config.data else open_dataset(config.validation.data)


def reward_terms(rewards: Sequence[RewardConfig], device: torch.device) -> list[RewardTerm]:
    """Build configured rewards, with their roles and weights."""
    return [RewardTerm(build_reward(one, device), one.role, one.weight, one.limit) for one in rewards]


def _with_defaults(config: Config, callbacks: Sequence[TrainerCallback]) -> list[TrainerCallback]:
    """Add the default callbacks that none of the given ones replaces; checkpoints are saved after all others."""
    given, train = {type(callback) for callback in callbacks}, config.train
    first: list[TrainerCallback] = [EMACallback(train.ema)] if train.ema > 0 else []
    first += [MetricsCallback(), ProgressCallback(), TrackerCallback(train.trackers)]
    last = [CheckpointCallback(train.checkpoint_every)]
    return [
        *(callback for callback in first if type(callback) not in given),
        *callbacks,
        *(callback for callback in last if type(callback) not in given),
    ]


def _describe(
    policy: Policy | None,
    terms: Sequence[RewardTerm] | None,
    monitors: Sequence[RewardTerm] | None,
    train_dataset: PairDataset | None,
    eval_dataset: PairDataset | None,
    validation_dataset: PairDataset | None,
    args: Config,
) -> Config:
    """Return `args` with a description of every given part in place of theirs."""
    evaluation: dict[str, object] = {}
    own = getattr(policy, "config", None)
    if isinstance(own, PolicyConfig) and isinstance(args, CustomizedGRPOConfig):
        args = args.for_policy(own)
    described: dict[str, object] = {name: getattr(args, name) for name in Config.model_fields}
    if policy is not None:
        kind = f"{type(policy).__module__}:{type(policy).__qualname__}"
        described["policy"] = own if isinstance(own, PolicyConfig) else args.policy.model_copy(update={"kind": kind})
    if terms is not None:
        described["rewards"] = [_reward_config(term) for term in terms]
    if train_dataset is not None:
        described["data"] = _data_config(train_dataset, args.data, given="data" in args.model_fields_set)
    if monitors is not None or terms is not None:  # the default monitors do not belong to given rewards
        evaluation["monitors"] = [_reward_config(term) for term in monitors or []]
    if eval_dataset is not None:
        given = "data" in args.evaluation.model_fields_set
        evaluation["data"] = _data_config(eval_dataset, args.evaluation.data, given=given)
    if validation_dataset is not None:
        data = _data_config(validation_dataset, args.validation.data, given="data" in args.validation.model_fields_set)
        described["validation"] = args.validation.model_copy(update={"data": data})
    return Config.model_validate({**described, "evaluation": args.evaluation.model_copy(update=evaluation)})


def _reward_config(term: RewardTerm) -> RewardConfig:
    return RewardConfig.model_validate(
        {**describe(term.reward), "role": term.role, "name": term.name, "weight": term.weight, "limit": term.limit}
    )


def _data_config(dataset: PairDataset, args: DataConfig, *, given: bool) -> DataConfig:
    """Describe a dataset: by its own `config`, else by the settings if given, else as a Python object."""
    config = getattr(dataset, "config", None)
    if isinstance(config, DataConfig):
        return config
    return args if given else DataConfig(path=f"{type(dataset).__name__} in Python")
