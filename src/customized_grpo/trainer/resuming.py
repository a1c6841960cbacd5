"""Checks of a run before it is resumed: its folder, and what has changed since its checkpoint. Nothing is written."""

import logging
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.reading import flat, flow_yaml
from customized_grpo.config.redaction import hide_secrets
from customized_grpo.data.fingerprints import Fingerprint, difference, fingerprint
from customized_grpo.protocols import PairDataset
from customized_grpo.trainer.checkpoint import CheckpointError, newest_checkpoint, origin_of
from customized_grpo.trainer.folder import CHECKPOINTS, LORA, METRICS, STARTS, check_run_folder
from customized_grpo.utils.records import read_records

#: Settings that may change between two starts, because no trained number depends on them but by rounding.
_HARMLESS = (
    "evaluation.*", "policy.attention", "policy.compile", "policy.conditions", "policy.device",
    "policy.gradient_checkpointing", "policy.kernels", "policy.offload", "policy.offload_activations",
    "rewards.*.device", "rollout.batch_size", "rollout.layout", "rollout.overlap", "train.batch_size",
    "train.checkpoint_every", "train.iterations", "train.keep_checkpoints", "train.max_drift", "train.max_missing",
    "train.max_skipped", "train.sample_every", "train.timeout", "train.trackers",
)  # fmt: skip
_DATA = ("data.path", "data.root")  # harmless where the data themselves are known to be the same
_LOG = logging.getLogger(__name__)


def origin(
    config: Config, train: PairDataset, evaluation: PairDataset | None, validation: PairDataset | None = None
) -> dict[str, Any]:
    """Return the settings and fingerprints of the data of a training, as its checkpoints store them."""
    datasets = {"data": train, "evaluation.data": evaluation, "validation.data": validation}
    data = {name: fingerprint(dataset) for name, dataset in datasets.items() if dataset is not None}
    return {"settings": hide_secrets(config.model_dump(mode="json")), "data": data}


def check_resumable(
    run: Path, config: Config, now: Mapping[str, Any], *, allow_changes: bool = False, early: bool = False
) -> Path | None:
    """Return the newest intact checkpoint of a run, None if it has not come to one.

    `now` is the `origin` of the present settings and data. An `early` check is repeated later, which then logs
    warnings. Raises CheckpointError if there are records but no intact checkpoint, ConfigError for another folder, or
    changes that affect the training and are not allowed, RecordError for a damaged record.
    """
    check_run_folder(run)
    newest = newest_checkpoint(run / CHECKPOINTS, warns=not early)
    starts, records = ([] if not path.exists() else read_records(path) for path in (run / STARTS, run / METRICS))
    if newest is None:
        resumed = any(start.get("iterations done") for start in starts)
        begun = bool(records) and not (run / CHECKPOINTS).is_dir()
        due = len(records) > config.train.checkpoint_every  # a record is written before its iteration's checkpoint
        if resumed or begun or due or (run / LORA).exists():
            raise CheckpointError(
                f"{run / CHECKPOINTS}: holds no checkpoint, but {run} has records of {len(records)} iterations; put "
                "the checkpoints back, or start a new run in another folder"
            )
        return None
    harmless, others = changes(newest, now)
    if others and not allow_changes:
        raise ConfigError(
            f"{run}: changed since checkpoint {newest.name}: {'; '.join(others)}. Undo it, or accept it with "
            "--allow-changes (allow_changes=True in Python)"
        )
    if (harmless or others) and not early:
        _LOG.warning("%s: changed since checkpoint %s: %s", run, newest.name, "; ".join([*others, *harmless]))
    return newest


def _follows_iterations(settings: Mapping[str, Any]) -> bool:
    """Return whether a value of each iteration depends on how many there will be."""
    return settings.get("train.schedule") != "constant" or settings.get("method.gamma_last") is not None


def changes(checkpoint: Path, now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the differences of `now` to a checkpoint's `origin`, as text: those that are harmless, and the others."""
    before = origin_of(checkpoint)
    data: dict[str, Fingerprint] = before.get("data", {})
    other_data = {
        name: text for name, found in now["data"].items() if name in data and (text := difference(data[name], found))
    }
    same = "data" not in other_data and "content" in data.get("data", {}) and "content" in now["data"]["data"]
    harmless: list[str] = []
    others = [f"{name}: {text}" for name, text in other_data.items()]
    new = flat(now["settings"])
    old = flat(before["settings"]) if "settings" in before else new  # not in those of an earlier version of the package
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            was, is_now = (flow_yaml(values[key]) if key in values else "not there" for values in (old, new))
            passes = any(fnmatch(key, one) for one in _HARMLESS) or (same and key in _DATA)
            passes = passes and not (key == "train.iterations" and _follows_iterations(new))
            (harmless if passes else others).append(f"{key}: {was}, now {is_now}")
    return harmless, others
