"""Any callable as a reward: how its parameters are filled, what it may return, its scores, and errors in one line."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import re
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards import RewardError, as_reward, build_reward, describe, score
from customized_grpo.utils.hub import ModelError

MakePair = Callable[..., Pair]
IMAGES = torch.stack([torch.full((3, 4, 4), level) for level in (0.0, 0.25, 1.0)])
LEVELS = [0.0, 0.25, 1.0]


@pytest.fixture
def pairs(make_pair: MakePair) -> list[Pair]:
    """Three pairs with the columns target and note."""
    return [
        replace(make_pair(key, seed), subject="cat", columns={"target": float(seed), "note": key})
        for seed, key in enumerate("abc")
    ]


def scores_of(function: Any, pairs: Sequence[Pair], **options: Any) -> list[float]:
    return score([as_reward(function, name="mine", **options)], IMAGES, pairs)["mine"].tolist()


def refusal(function: Any, pairs: Sequence[Pair]) -> str:
    with pytest.raises(RewardError) as caught:
        scores_of(function, pairs)
    assert str(caught.value).startswith("reward 'mine'")
    return str(caught.value)


def level(images: Tensor) -> list[float]:
    return images.mean((1, 2, 3)).tolist()


def test_parameters_are_filled_by_name_in_any_order(pairs: list[Pair]) -> None:
    met: dict[str, Any] = {}

    def reward(target, prompts, masks, images, note, references, pairs, subjects, missing="default"):  # type: ignore[no-untyped-def]
        met.update(locals())
        return level(images)

    assert scores_of(reward, pairs) == LEVELS
    assert met["images"] is not None and torch.equal(met["images"], IMAGES)
    assert met["prompts"] == ["a cat 0", "a cat 1", "a cat 2"] and met["subjects"] == ["cat"] * 3
    assert met["references"] == [pair.references for pair in pairs] and met["masks"] == [pair.masks for pair in pairs]
    assert (
        [pair.key for pair in met["pairs"]] == [pair.key for pair in pairs]
        and met["target"] == [0.0, 1.0, 2.0]
        and met["note"] == ["a", "b", "c"]
    )
    assert met["missing"] == "default"


def test_trls_order_with_all_else_in_keywords(pairs: list[Pair]) -> None:
    met: dict[str, Any] = {}

    def reward(prompts: list[str], images: Tensor, **kwargs: Any) -> list[float]:
        met.update(kwargs)
        return [value + len(prompt) for value, prompt in zip(level(images), prompts, strict=True)]

    assert scores_of(reward, pairs) == [7.0, 7.25, 8.0]
    assert sorted(met) == ["masks", "note", "pairs", "references", "subjects", "target"]
    assert met["target"] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "function",
    [
        lambda images, pairs: level(images) if isinstance(pairs[0], Pair) else None,
        lambda x, y, scale=1.0: [value * scale for value in level(x)] if isinstance(y[0], Pair) else None,
        lambda x, prompts: level(x) if prompts[0] == "a cat 0" else None,
        lambda x, target: level(x) if target == [0.0, 1.0, 2.0] else None,
        lambda *args, **kwargs: level(args[0]) if isinstance(args[1][0], Pair) and not kwargs else None,
        lambda prompts, images, /, *, target: level(images) if len(prompts) == len(target) == 3 else None,
    ],
)
def test_images_and_pairs_by_position_and_parameters_of_one_kind_only(function: Any, pairs: list[Pair]) -> None:
    assert scores_of(function, pairs) == LEVELS


class Scorer:
    """An object with a name of its own and a method."""

    name = "brightness"

    def __call__(self, images: Tensor) -> list[float]:
        return level(images)

    def twice(self, images: Tensor) -> list[float]:
        return [2 * value for value in level(images)]


class Model(nn.Module):
    def forward(self, images: Tensor, target: list[float]) -> Tensor:
        return images.mean((1, 2, 3)) + torch.tensor(target)


def test_objects_methods_modules_and_partial_functions(pairs: list[Pair]) -> None:
    reward = Scorer()
    named = as_reward(reward)
    assert as_reward(named) is named and as_reward(named, name="x").name == "x" and named.name == "brightness"
    assert as_reward(reward.twice).name == "twice" and scores_of(reward.twice, pairs) == [0.0, 0.5, 2.0]
    assert as_reward(functools.partial(level)).name == "level" and scores_of(functools.partial(level), pairs) == LEVELS
    assert as_reward(Model()).name == "Model" and scores_of(Model(), pairs) == [0.0, 1.25, 3.0]
    assert as_reward(lambda images: level(images)).name == "lambda"


def test_all_rewards_score_all_images_in_chunks(pairs: list[Pair]) -> None:
    sizes: list[int] = []

    def one(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return images[:, 0, 0, 0].double()

    rewards = [as_reward(one), as_reward(lambda images: -images[:, 0, 0, 0], name="two")]
    scores = score(rewards, IMAGES.clone().requires_grad_(), pairs, batch_size=2)
    assert list(scores) == ["one", "two"] and sizes == [2, 1]
    assert scores["one"].tolist() == LEVELS and torch.equal(scores["two"], -scores["one"])
    assert scores["one"].dtype == torch.float32 and not scores["one"].requires_grad
    assert score(rewards, torch.empty(0, 3, 4, 4), [])["one"].shape == (0,)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_missing_and_names_its_pair(
    value: float, pairs: list[Pair], caplog: pytest.LogCaptureFixture
) -> None:
    scores = scores_of(lambda images: [value, 1.0, value], pairs)
    assert scores == pytest.approx([math.nan, 1.0, math.nan], nan_ok=True)
    assert caplog.messages == [
        f"reward 'mine' returned {value} for images 1, 3 of 3, pairs 'a', 'c'; the score counts as missing"
    ]


@pytest.mark.parametrize(
    ("needs", "changed", "message"),
    [
        (("reference",), {"references": (), "masks": ()}, "needs a reference, and pair 'b' has none; give a photo"),
        (("mask", "reference"), {"masks": (None,)}, "needs a mask, and pair 'b' has none; give one"),
        (("prompt",), {"prompt": " "}, "needs a prompt, and pair 'b' has none"),
        ("mask", {}, "needs is 'mask'; give a tuple"),
    ],
)
def test_pairs_that_lack_what_a_reward_needs_are_refused(
    needs: Any, changed: dict[str, Any], message: str, pairs: list[Pair]
) -> None:
    def reward(images: Tensor) -> list[float]:
        return level(images)

    reward.needs = needs  # type: ignore[attr-defined]
    assert message in refusal(reward, [pairs[0], replace(pairs[1], **changed), pairs[2]])
    if changed:
        assert scores_of(reward, pairs) == LEVELS


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (lambda images: images.mean((1, 2, 3)).double(), LEVELS),
        (lambda images: np.array(level(images)), LEVELS),
        (lambda images: np.array([None, 0.25, True], dtype=object), [math.nan, 0.25, 1.0]),
        (lambda images: [0, np.float32(0.25), torch.tensor(1.0)], LEVELS),
        (lambda images: (image.mean() for image in images), LEVELS),
    ],
)
def test_what_may_be_returned(returned: Any, expected: list[float], pairs: list[Pair]) -> None:
    assert scores_of(returned, pairs) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda images: None, "it returned None, as a function without `return` does; return one number per image"),
        (lambda images: dict.fromkeys("abc", 1.0), "it returned a dict with 'a', 'b', 'c'; return one number"),
        (lambda images: itertools.repeat(1.0), "returned shape (4,) on pairs"),
        (lambda images: (level(images), {}), "score 0 that it returned is [0.0, 0.25, 1.0]"),
        (lambda images: torch.ones(3, dtype=torch.complex64), "a tensor of complex numbers"),
        (lambda images: 1.0, "it returned a float"),
        (lambda images: [1.0, "high", 2.0], "score 1 that it returned is 'high'"),
        (lambda images: torch.zeros(3, 1), "returned shape (3, 1)"),
    ],
)
def test_what_is_no_list_of_scores_is_refused(returned: Any, message: str, pairs: list[Pair]) -> None:
    assert message in refusal(returned, pairs)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images, targets: 0, "its parameter 'targets', which is no option .*; did you mean 'target'"),
        (lambda images, zzz: 0, "there are images, prompts, references, masks, subjects, pairs, target, note"),
        (lambda image, pairs: 0, "its parameter 'image', .*; did you mean 'images'"),
        (lambda x, y, z: 0, "its parameter 'z'"),
        (lambda: 0, "it takes no arguments; give it a parameter `images`"),
    ],
)
def test_a_parameter_that_nothing_fills(function: Any, message: str, pairs: list[Pair]) -> None:
    assert re.search(message, refusal(function, pairs))
    if "takes no" not in message:
        with pytest.raises(RewardError, match="no value for its parameter"):
            as_reward(function).check(pairs)  # type: ignore[attr-defined]


def test_options_come_before_columns_and_are_checked(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "own.py").write_text(
        "def f(images, target, power=1.0): return [t ** power for t in target]\n"
        "def g(images, power, **columns): return [power + one for one in columns['target']]\n"
        "def h(samples, power, batch): return [power + len(batch)] * len(samples)\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)

    def build(name: str, **options: Any) -> list[float]:
        config = RewardConfig(kind=f"own.py:{name}", role="prompt", options=options)
        return build_reward(config, "cpu")(IMAGES, pairs).tolist()

    assert build("f") == [0.0, 1.0, 2.0] and build("f", power=2.0) == [0.0, 1.0, 4.0]
    assert build("f", target=[3, 3, 3]) == [3.0, 3.0, 3.0]
    assert build("g", power=1, other=2) == [1.0, 2.0, 3.0]
    assert build("h", power=1) == [4.0] * 3
    with pytest.raises(RewardError, match=r"^reward 'own\.py:f': it has no parameter 'powr' .* did you mean 'power'"):
        build("f", powr=1)
    with pytest.raises(RewardError, match=r"options\.images has the name of a standard argument"):
        build("g", images=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "^3 is no reward; give a callable that takes images"),
        (Scorer, r"^Scorer is a class; give an object of it as reward: Scorer\(\)"),
    ],
)
def test_what_is_no_reward(given: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        as_reward(given)


def test_asynchronous_rewards_run_together_on_one_loop_which_stays(pairs: list[Pair]) -> None:
    loops: list[asyncio.AbstractEventLoop] = []
    met = asyncio.Event()
    main = threading.current_thread()

    async def waits(images: Tensor) -> list[float]:
        loops.append(asyncio.get_running_loop())
        assert threading.current_thread() is not main and not torch.is_grad_enabled()
        await asyncio.wait_for(met.wait(), 20)
        return level(images)

    class Sets:
        async def __call__(self, prompts: list[str], images: Tensor) -> list[float | None]:
            loops.append(asyncio.get_running_loop())
            met.set()
            return [None] * len(prompts)

    def plain(images: Tensor) -> list[float]:
        return level(images)

    for _ in range(2):
        scores = score([as_reward(plain), as_reward(waits), as_reward(Sets())], IMAGES, pairs)
        assert list(scores) == ["plain", "waits", "Sets"]
        assert scores["waits"].tolist() == LEVELS and scores["Sets"].isnan().all()
        met.clear()
    assert len(loops) == 4 and len(set(map(id, loops))) == 1

    # Alone, and inside a loop that runs, as in a notebook.
    async def inside() -> list[float]:
        return as_reward(lambda images: asyncio.sleep(0, level(images)))(IMAGES, pairs).tolist()

    assert asyncio.run(inside()) == LEVELS


SOURCE = """
def brightness(images, pairs, factor=1.0):
    return images.mean(dim=(1, 2, 3)) * factor

class Constant:
    def __init__(self, value=1.0, path=None, device=None):
        self.value, self.path, self.device = value, path, device

    def __call__(self, images, pairs):
        import torch
        return torch.full((len(images),), float(self.value), device=self.device)

class Lost:
    needs = ("masque",)

    def __call__(self, images, pairs):
        return [0.0] * len(pairs)

class Broken:
    def __init__(self):
        raise RuntimeError("no key\\nin sight")

class Silent:
    pass
"""


@pytest.fixture
def own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "torn.py").write_text("def f(:\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("own")
def test_functions_and_classes_of_files_and_modules(pairs: list[Pair]) -> None:
    config = RewardConfig(kind="own_rewards.py:brightness", role="prompt", name="mine", options={"factor": 10.0})
    assert build_reward(config, "cpu")(IMAGES, pairs).tolist() == [0.0, 2.5, 10.0]
    config = RewardConfig(kind="own_rewards:Constant", role="prompt", path="some/model", options={"value": 4})
    reward: Any = build_reward(config, "cpu")
    assert reward(IMAGES, pairs).tolist() == [4.0] * 3
    assert reward.function.path == "some/model" and reward.function.device == torch.device("cpu")
    elsewhere: Any = build_reward(config.model_copy(update={"device": "cpu"}), "meta")
    assert elsewhere.function.device == torch.device("cpu")
    for device, message in (("gpu", "is no device; give cpu, cuda or null"), ("cuda:7", "is not there; give another")):
        with pytest.raises(ModelError, match=rf"^reward 'own_rewards:Constant': device: .*{message}"):
            build_reward(config.model_copy(update={"device": device}), "cpu")


def test_a_file_may_import_modules_beside_it(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_this.py").write_text("FACTOR = 3.0\n", encoding="utf-8")
    (tmp_path / "torch.py").write_text("raise ImportError\n", encoding="utf-8")
    text = "import torch\nfrom beside_this import FACTOR\ndef f(prompts, images, **rest):\n"
    (tmp_path / "mine.py").write_text(f"{text}    return FACTOR * images.mean((1, 2, 3))\n", encoding="utf-8")
    reward = build_reward(RewardConfig(kind=f"{tmp_path}/mine.py:f", role="prompt"), "cpu")
    assert reward(IMAGES, pairs).tolist() == [0.0, 0.75, 3.0]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("own_rewards.py:", {}, "is not package.module:Class or file.py:function"),
        ("torn.py:f", {}, "cannot be imported .SyntaxError"),
        ("no_such_module_here:f", {}, "no_such_module_here"),
        ("own_rewards:brightnes", {}, "has no 'brightnes'; did you mean 'brightness'"),
        ("own_rewards:brightness", {"faktor": 2}, "has no parameter 'faktor' for that option; did you mean 'factor'"),
        ("own_rewards:Constant", {"valeu": 2}, "could not be constructed .TypeError.*valeu"),
        ("own_rewards:Broken", {}, "RuntimeError: no key in sight"),
        ("own_rewards:Lost", {}, r"needs is .'masque',.; give a tuple of 'prompt', 'reference', 'mask'"),
        ("own_rewards:Silent", {}, r"has no __call__\(images, \.\.\.\); define one"),
    ],
)
def test_own_code_that_cannot_be_used_is_one_line(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=f"^reward 'mine': .*{message}"):
        build_reward(RewardConfig(kind=kind, role="prompt", name="mine", options=options), "cpu")


def test_a_description_builds_the_reward_again(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, pairs: list[Pair]
) -> None:
    assert describe(level) == {
        "kind": f"{__name__}:level", "name": "level", "path": None, "device": None, "options": {}
    }  # fmt: skip
    again = build_reward(RewardConfig(role="prompt", **describe(level)), "cpu")
    assert again(IMAGES, pairs).tolist() == LEVELS and again.name == "level"
    (tmp_path / "own.py").write_text("def f(images, power, api_key=''): return [power] * len(images)\n")
    monkeypatch.chdir(tmp_path)
    options = {"power": 2.0, "api_key": "abc"}
    config = RewardConfig(kind="own.py:f", role="prompt", name="x", device="cpu", options=options)
    described = describe(build_reward(config, "meta"))
    assert described.pop("options") == {"power": 2.0, "api_key": "<secret>"}
    assert described == {"kind": "own.py:f", "name": "x", "path": None, "device": "cpu"}
