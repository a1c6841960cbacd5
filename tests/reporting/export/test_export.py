"""The folder for the hub: its weights and its snippet with diffusers' pipeline, its card, and nothing private."""

from __future__ import annotations

import getpass
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from embedded import embedded
from huggingface_hub import ModelCard
from PIL import Image
from reporting.export.conftest import PIPELINES
from safetensors import safe_open

from customized_grpo.config import Config, ConfigError, PolicyConfig
from customized_grpo.config.loading import load_config
from customized_grpo.config.redaction import redact, redact_text
from customized_grpo.evaluation import Evaluation
from customized_grpo.evaluation.generate import generate
from customized_grpo.reporting.card import model_card
from customized_grpo.reporting.lora import export_run
from customized_grpo.trainer.parts import policy_with_adapter
from customized_grpo.utils.pixels import to_tensor


def snippet(card: str) -> str:
    code = re.search(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    assert code is not None
    compile(code[1], "snippet", "exec")
    return code[1]


def run_snippet(card: str, base: Path, lora: Path) -> dict[str, Any]:
    """Run the card's Python with its TODOs filled in, and return its names."""
    code = snippet(card).replace('BASE = "TODO"', f'BASE = "{base}"').replace('LORA = "TODO"', f'LORA = "{lora}"')
    names: dict[str, Any] = {}
    exec(code, names)
    return names


@pytest.mark.parametrize("kind", ["flux-kontext", pytest.param("flux2", marks=pytest.mark.slow), "uno"])
def test_the_cards_snippet_generates_with_the_lora(
    kind: str, make_run: Callable[..., Path], tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = PIPELINES[kind](tmp_path / "base")
    sizes = None if kind == "flux-kontext" else [(32, 24), (96, 64)]  # the photo has the shape of the second
    run, out = make_run(base, kind=kind, sizes=sizes, reference_sizes=[(64, 64)]), tmp_path / "out"
    export_run(run, out)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    photo.save("reference.jpg", quality=100)
    card = (out / "README.md").read_text(encoding="utf-8")
    names = run_snippet(card, base, out)
    with Image.open("image.png") as image:
        assert image.size == ((64, 96) if sizes else (24, 32))
        tuned = to_tensor(image.convert("RGB"))
    if kind == "uno":
        policy = policy_with_adapter(load_config(run / "config.yaml"), run)
        prompt = re.search(r"generate\(policy, ('[^']+')", card)
        assert prompt is not None
        with Image.open("reference.jpg") as reference:
            assert to_tensor(generate(policy, eval(prompt[1]), [reference], steps=2, seed=0, images=1)[0]).equal(tuned)
        return
    names["pipeline"].unload_lora_weights()
    call = re.search(r"^image = pipeline\(.*?^\)\.images\[0\]$", card, re.MULTILINE | re.DOTALL)
    assert call is not None
    exec(call[0], names)
    assert (tuned - to_tensor(names["image"])).abs().max() > 0.01, "the LoRA changes the image"


def test_the_folder_is_complete_valid_and_private(finished: Path, tmp_path: Path) -> None:
    run, folder, out = finished, finished.parent, tmp_path / "out"
    assert str(folder) in (run / "config.yaml").read_text()
    export_run(run, out)
    names = ["README.md", "before-after.png", "pytorch_lora_weights.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == names
    for path in out.iterdir():
        for secret in (str(folder), folder.name, "secret-folder", str(Path.home()) + "/", f"/{getpass.getuser()}/"):
            assert secret.encode() not in path.read_bytes(), (path.name, secret)
    card = ModelCard.load(out / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "image-to-image")
    assert "lora" in card.data.tags and card.data.license == "other" and card.data.base_model is None
    base, tuned = (json.loads((run / f"evaluation/{n}/scores.json").read_text())["means"] for n in ("base", "tuned"))
    change = tuned["identity"] - base["identity"]
    assert f"| identity | reward | {base['identity']:.2f} | {tuned['identity']:.2f} | {change:+.2f} |" in card.text
    assert "| copy-paste | monitor |" in card.text
    assert "](before-after.png)" in card.text and "TODO: choose a license" in card.text
    recipe = re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)
    assert recipe is not None and yaml.safe_load(recipe[1])["method"]["shaping"] == "sars"
    prompts = json.loads((run / "samples/iteration-000003/index.json").read_text())["pairs"]
    assert f"- {prompts[0]['prompt']}" in card.text
    with safe_open(out / "pytorch_lora_weights.safetensors", "pt") as file:
        assert len(list(file.keys())) > 10


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/Jane Doe/my pairs.jsonl", "<local path>"),
        ("~jane/pairs.jsonl", "<local path>"),
        ("data/../../jane/pairs.jsonl", "data/<local path>"),
        ("\\\\server\\jane", "<local path>"),
        ("file:///home/jane/x", "<local path>"),
        ("/home/jane/rewards.py:colourful", "<local path>:colourful"),
        ("https://jane:secret@10.0.0.7:8000/v1?key=1", "<address>"),
        ("my sk-abcdefghijklmnopqrst key", "my <secret> key"),
        ("facebook/dinov2-base", "facebook/dinov2-base"),
        ("a cat and/or a dog", "a cat and/or a dog"),
    ],
)
def test_texts_are_redacted(text: str, shown: str) -> None:
    assert redact_text(text) == shown


def test_values_under_secret_keys_are_removed() -> None:
    options = {"api_key": "abc", "headers": {"X-Auth": "abc"}, "token": ["abc"], "max_tokens": 7, "keyboard": "qwerty"}
    shown = redact({"rewards": [{"options": options}]})["rewards"][0]["options"]
    assert "abc" not in str(shown)
    assert (shown["max_tokens"], shown["keyboard"]) == (7, "qwerty")


def test_a_base_model_of_the_hub_is_named() -> None:
    policy = embedded(PolicyConfig, path="black-forest-labs/FLUX.1-Kontext-dev")
    card = model_card(embedded(Config, policy=policy))
    assert yaml.safe_load(card.content.split("---")[1])["base_model"] == "black-forest-labs/FLUX.1-Kontext-dev"
    assert "https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev" in card.text
    assert 'BASE = "black-forest-labs/FLUX.1-Kontext-dev"' in snippet(card.content)
    assert "before-after.png" not in card.text and "cgrpo evaluate RUN" in card.text


def test_prompts_and_names_cannot_break_the_card() -> None:
    prompt = 'a "dog"\\ that\'s\nred {{ x }}'
    scores = Evaluation({"a | b": [1.0]}, []), Evaluation({"a | b": [math.nan]}, [])
    card = model_card(embedded(Config), scores, [prompt, "a dog\n# in a hat"])
    assert repr(prompt) in snippet(card.content) and 'resolve("embedded/pipeline")' in card.text
    assert "| a b | reward | 1.00 | - | - |" in card.text
    assert "- a dog # in a hat\n" in card.text


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("flux-kontext", ["true_cfg_scale=4.0,", "negative_prompt='a {blur}',"]),
        ("flux2", ["guidance_scale=4.0,"]),
        ("longcat-image-edit", ["guidance_scale=4.0,", "pipeline.transformer.load_lora_adapter(LORA, "]),
        ("joyimage-edit-plus", ["images=[reference],", "guidance_scale=4.0,", "pipeline.transformer.__class__ = "]),
    ],
)
def test_true_guidance_is_in_the_snippet(kind: str, lines: list[str]) -> None:
    policy = embedded(PolicyConfig, kind=kind, path="someone/base", true_cfg=4.0, negative_prompt="a {blur}")
    code = snippet(model_card(embedded(Config, policy=policy)).content)
    assert all(line in code for line in lines), code


@pytest.mark.parametrize(("adapter_as", "needed"), [("fused", True), ("start", False)])
def test_only_a_fused_adapter_is_needed_again(adapter_as: str, needed: bool) -> None:
    settings = {"kind": "uno", "path": "someone/base", "adapter": "dit_lora.safetensors", "adapter_as": adapter_as}
    code = snippet(model_card(embedded(Config, policy=embedded(PolicyConfig, **settings))).content)
    assert ("adapter" in code.lower()) == needed


def test_unfinished_runs_full_tunings_and_full_folders_are_refused(copied: Path, tmp_path: Path) -> None:
    run = copied
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match=r"full: is not empty; give another name"):
        export_run(run, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]
    (run / "lora").rename(run / "moved")
    with pytest.raises(ConfigError, match=r"not finished, 0 of 3 .* cgrpo train --resume"):
        export_run(run, tmp_path / "out")
    (run / "lora").mkdir()
    with pytest.raises(ConfigError, match=r"pytorch_lora_weights\.safetensors: no such file; put it back"):
        export_run(run, tmp_path / "out")
    (run / "lora" / "transformer").mkdir()
    with pytest.raises(ConfigError, match=r"use cgrpo merge"):
        export_run(run, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"holds no config\.yaml"):
        export_run(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
