"""Which scores of a configuration mean what: the two axes of each plane, and the guards."""

from __future__ import annotations

from customized_grpo.config import Config
from customized_grpo.trainer.credit import reward_name


def axes_of(config: Config) -> dict[str, tuple[str, str]]:
    """The planes: (identity, prompt) by the rewards themselves, and by judges that are never optimised."""
    planes = {}
    for name, judges in (("rewards", config.rewards), ("independent", config.evaluation.monitors)):
        first = {
            role: next((reward_name(j) for j in judges if j.role == role), None) for role in ("identity", "prompt")
        }
        if first["identity"] is not None and first["prompt"] is not None:
            planes[name] = (first["identity"], first["prompt"])
    return planes


def guards_of(config: Config) -> list[str]:
    """Names of the scores that teach nothing, of which high is bad."""
    return [reward_name(judge) for judge in [*config.rewards, *config.evaluation.monitors] if judge.role == "guard"]
