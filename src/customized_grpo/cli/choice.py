"""Which rewards a command means: by name out of a run's configuration, or a kind with its options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from customized_grpo.config import Config, ConfigError, RewardConfig
from customized_grpo.config.loading import load_config
from customized_grpo.trainer.folder import CONFIG, open_run

#: A place of the configuration that takes any one reward.
_PLACE = "evaluation.monitors"


def read_choices(files: Sequence[Path], run: Path | None, overrides: Sequence[str]) -> tuple[Config, str | None]:
    """The configuration of files, or of a run, and which it is; None where there is neither. Raises ConfigError."""
    if files and run is not None:
        raise ConfigError("--config and --run are both given; keep one")
    if run is not None:
        open_run(run)
        return load_config(run / CONFIG, overrides), str(run)
    return load_config(files, overrides), " and ".join(map(str, files)) or None


def choose(
    names: Sequence[str],
    config: Config,
    *,
    source: str | None = None,
    path: str | None = None,
    options: Sequence[str] = (),
    role: str | None = None,
) -> list[RewardConfig]:
    """The rewards that `names` stand for.

    A name is that of a reward or monitor of `config`; where `config` holds but defaults (no `source`, which says
    where it was read from), a kind as well, which `path`, `options` (KEY=VALUE, the value YAML) and `role`
    belong to. No name at all: every reward and monitor of the source. Raises ConfigError.
    """
    known = {one.name or one.kind: one for one in [*config.rewards, *config.evaluation.monitors]}
    described = path is not None or bool(options) or role is not None
    if source is not None and described:
        raise ConfigError(f"--path, --option and --role describe a kind; {source} has its own: change it by --set")
    if described and len(names) != 1:
        raise ConfigError("--path, --option and --role describe one kind; give one --reward")
    if not names and source is None:
        raise ConfigError("no --reward; give a kind such as dino, or --config or --run to take all of its rewards")
    if repeated := next((name for name in names if list(names).count(name) > 1), None):
        raise ConfigError(f"--reward {repeated!r} is given twice; give it once")
    chosen = []
    for name in names or known:
        if name in known and not described:
            chosen.append(known[name])
        elif source is not None:
            raise ConfigError(f"--reward {name!r}: {source} has no such reward; it has {', '.join(known)}")
        else:
            chosen.append(_of_kind(name, path, options, role))
    return chosen


def _of_kind(kind: str, path: str | None, options: Sequence[str], role: str | None) -> RewardConfig:
    """One reward by the same reading of values, and complaints, as `--set`."""
    described = json.dumps([{"kind": kind, "role": role or "identity", "path": path}])
    try:
        read = load_config(None, [f"{_PLACE}={described}", *(f"{_PLACE}.0.options.{option}" for option in options)])
    except ConfigError as error:
        told = (line.replace(f"--set {_PLACE}.0.options.", "--option ") for line in error.problems)
        raise ConfigError(*told) from error
    return read.evaluation.monitors[0]
