"""Judges of the user's own, from modules and files, and what is said of those that do not work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards import RewardError, build_reward, score
from customized_grpo.utils.hub import ModelError

MakePair = Callable[..., Pair]
SOURCE = '''
"""Judges."""

LEVEL = 3

def brightness(images, pairs, factor=1.0):
    return images.mean(dim=(1, 2, 3)) * factor

def length(images, pairs):
    return [len(pair.prompt) for pair in pairs]

class Constant:
    def __init__(self, value=1.0, path=None, device=None):
        self.value, self.path, self.device = value, path, device

    def __call__(self, images, pairs):
        import torch
        return torch.full((len(images),), float(self.value), device=self.device)

def inside(images, pairs):
    return [0.0] * len(pairs)

inside.needs = ("mask",)

class Lost:
    needs = ("masque",)

    def __call__(self, images, pairs):
        return [0.0] * len(pairs)

class Broken:
    def __init__(self):
        raise RuntimeError("no key\\nin sight")

class Silent:
    pass
'''


@pytest.fixture
def judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_judges.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "torn.py").write_text("def f(:\n", encoding="utf-8")
    (tmp_path / "wanting.py").write_text("import no_such_library_here\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def build(kind: str, **rest: Any) -> Reward:
    return build_reward(RewardConfig(kind=kind, role="prompt", name="mine", **rest), "cpu")


def test_a_function_of_a_file(judges: Path, make_pair: MakePair) -> None:
    reward = build(f"{judges}/own_judges.py:brightness", options={"factor": 10.0})
    assert reward.name == "mine"
    images = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.5)])
    assert reward(images, [make_pair("a")] * 2).tolist() == [0.0, 5.0]


def test_a_function_of_a_module_that_returns_a_list(judges: Path, make_pair: MakePair) -> None:
    pairs = [make_pair("a", 1), make_pair("b", 22)]
    scores = score([build("own_judges:length")], torch.rand(2, 3, 4, 4), pairs)
    assert scores["mine"].tolist() == [7.0, 8.0]
    assert scores["mine"].dtype == torch.float32


def test_a_class_gets_its_options_path_and_device(judges: Path, make_pair: MakePair) -> None:
    reward: Any = build("own_judges:Constant", options={"value": 4}, path="some/model")
    assert reward(torch.rand(3, 3, 4, 4), [make_pair("a")] * 3).tolist() == [4.0] * 3
    assert reward.function.path == "some/model" and reward.function.device == torch.device("cpu")


def test_a_function_says_what_it_needs(judges: Path, make_pair: MakePair) -> None:
    reward = build("own_judges:inside")
    assert score([reward], torch.rand(1, 3, 4, 4), [make_pair("a")])["mine"].tolist() == [0.0]
    with pytest.raises(RewardError, match=r"^reward 'mine' needs a mask, and pair 'a' has none; give one with each"):
        score([reward], torch.rand(1, 3, 4, 4), [make_pair("a", masked=False)])


def test_a_judge_works_where_its_setting_says(judges: Path) -> None:
    config = RewardConfig(kind="own_judges:Constant", role="prompt", name="mine", path="a", device="cpu")
    built: Any = build_reward(config, "meta")
    assert built.function.device == torch.device("cpu")
    for device, message in (("gpu", "is no device; give cpu, cuda or null"), ("cuda:7", "is not there; give another")):
        with pytest.raises(ModelError, match=rf"^reward 'mine': device: .*{message}"):
            build_reward(config.model_copy(update={"device": device}), "cpu")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("judge", {}, "unknown kind 'judge'; give dino, dino-patches, .*, copy-paste, package.module:Class"),
        ("{0}/own_judges.py:", {}, "is not package.module:Class or file.py:function"),
        ("{0}/absent.py:f", {}, "there is no file .*absent.py"),
        ("{0}/torn.py:f", {}, "cannot be imported .SyntaxError"),
        ("{0}/wanting.py:f", {}, "because there is no module 'no_such_library_here'; install it"),
        ("no_such_module_here:f", {}, "because there is no module 'no_such_module_here'"),
        ("own_judges:brightnes", {}, "has no 'brightnes'; did you mean 'brightness'"),
        ("own_judges:LEVEL", {}, "is a int; name a class or function"),
        ("own_judges:brightness", {"faktor": 2}, "has no parameter 'faktor' for that option; did you mean 'factor'"),
        ("own_judges:Constant", {"valeu": 2}, "could not be constructed .TypeError.*valeu"),
        ("own_judges:Broken", {}, "RuntimeError: no key in sight"),
        ("own_judges:Lost", {}, r"needs is .'masque',.; give a tuple of 'prompt', 'reference', 'mask'"),
        ("own_judges:Silent", {}, r"has no __call__\(images, \.\.\.\); define one"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(kind: str, options: dict[str, Any], message: str, judges: Path) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        build(kind.format(judges), options=options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("reward 'mine'")
