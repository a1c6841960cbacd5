"""The folder for the hub: its weights and its snippet in the stock pipeline, its card, and what it must not tell."""

from __future__ import annotations

import getpass
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_flux2
import torch
import yaml
from embedded import embedded
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open

from customized_grpo.config import Config, ConfigError, PolicyConfig
from customized_grpo.config.loading import load_config
from customized_grpo.config.redaction import redact, redact_text
from customized_grpo.evaluation.generate import generate
from customized_grpo.reporting.card import Scores, model_card, snippet
from customized_grpo.reporting.lora import export_run
from customized_grpo.trainer.parts import policy_with_adapter

KINDS = {
    "flux-kontext": lambda folder: tiny.save_flux_kontext(folder),
    "flux2": lambda folder: tiny_flux2.save(tiny_flux2.klein(), folder),
    "uno": lambda folder: tiny.save_flux(folder),
}


def run_snippet(readme: str, base: Path, lora: Path) -> dict[str, Any]:
    """The card's own Python, with what it says to fill in filled in; the names it leaves."""
    code = re.search(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert code is not None
    filled = re.sub(r'^BASE = "TODO"', f'BASE = "{base}"', code[1], flags=re.MULTILINE)
    filled = re.sub(r'^LORA = "TODO\S*"', f'LORA = "{lora}"', filled, flags=re.MULTILINE)
    assert str(base) in filled and str(lora) in filled
    names: dict[str, Any] = {}
    exec(compile(filled, "README.md", "exec"), names)
    return names


@pytest.mark.parametrize("kind", KINDS)
def test_the_cards_snippet_draws_with_the_lora(
    kind: str,
    make_run: Callable[..., Path],
    tmp_path: Path,
    photo: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = KINDS[kind](tmp_path / "base")
    run, out = make_run(base, kind=kind, reference_sizes=[(64, 64)]), tmp_path / "out"
    export_run(run, out)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    photo.save("reference.jpg", quality=100)
    readme = (out / "README.md").read_text(encoding="utf-8")
    names = run_snippet(readme, base, out)
    with Image.open("picture.png") as drawn:
        assert drawn.size == (24, 32)
        tuned = torch.frombuffer(bytearray(drawn.convert("RGB").tobytes()), dtype=torch.uint8).float()
    config = load_config(run / "config.yaml")
    if kind == "uno":
        policy = policy_with_adapter(config, run)
        with Image.open("reference.jpg") as reference:
            prompt = names["picture"] and re.search(r"generate\(policy, ('[^']+')", readme)
            assert prompt is not None
            same = generate(policy, eval(prompt[1]), [reference], steps=2, seed=0, images=1)[0]
        assert torch.frombuffer(bytearray(same.tobytes()), dtype=torch.uint8).float().equal(tuned)
        return
    names["pipeline"].unload_lora_weights()
    untuned = run_again(names, readme)
    assert (tuned - untuned).abs().max() > 3, "the LoRA changes the picture"


def run_again(names: dict[str, Any], readme: str) -> torch.Tensor:
    call = re.search(r"^picture = pipeline\(.*?^\)\.images\[0\]$", readme, re.MULTILINE | re.DOTALL)
    assert call is not None
    exec(call[0], names)
    return torch.frombuffer(bytearray(names["picture"].tobytes()), dtype=torch.uint8).float()


def test_the_folder_is_complete_and_its_card_valid(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run, out = make_run(tiny.save_flux_kontext(tmp_path / "base")), tmp_path / "out"
    export_run(run, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "before-after.png", "pytorch_lora_weights.safetensors",
    ]  # fmt: skip
    card = ModelCard.load(out / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "image-to-image")
    assert "lora" in card.data.tags and card.data.license == "other" and card.data.base_model is None
    scores = {name: json.loads((run / "evaluation" / name / "scores.json").read_text()) for name in ("base", "tuned")}
    base, tuned = (scores[name]["means"]["identity"] for name in ("base", "tuned"))
    row = f"| identity | reward | {base:.2f} | {tuned:.2f} | {tuned - base:+.2f} |"
    assert row in card.text
    assert "| copy-paste | watched |" in card.text
    assert "](before-after.png)" in card.text and "TODO: choose a licence" in card.text
    recipe = re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)
    assert recipe is not None
    assert yaml.safe_load(recipe[1])["method"]["shaping"] == "sars"
    prompts = json.loads((run / "samples" / "iteration-000003" / "index.json").read_text())["pairs"]
    assert f"- {prompts[0]['prompt']}" in card.text
    with safe_open(out / "pytorch_lora_weights.safetensors", "pt") as file:
        assert len(list(file.keys())) > 10


def test_nothing_of_this_machine_gets_in(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run, out = make_run(tiny.save_flux_kontext(tmp_path / "base")), tmp_path / "out"
    config = (run / "config.yaml").read_text()
    assert str(tmp_path) in config
    export_run(run, out)
    for path in out.iterdir():
        content = path.read_bytes()
        for secret in (str(tmp_path), tmp_path.name, "secret-folder", str(Path.home()) + "/", f"/{getpass.getuser()}/"):
            assert secret.encode() not in content, (path.name, secret)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("/home/jane/pairs.jsonl", "<local path>"),
        ("/home/Jane Doe/my pairs.jsonl", "<local path>"),
        ("~/pairs.jsonl", "<local path>"),
        ("~jane/pairs.jsonl", "<local path>"),
        ("../jane/pairs.jsonl", "<local path>"),
        ("data/../../jane/pairs.jsonl", "data/<local path>"),
        ("C:\\Users\\jane\\pairs.jsonl", "<local path>"),
        ("\\\\server\\jane", "<local path>"),
        ("file:///home/jane/x", "<local path>"),
        ("/home/jane/rewards.py:colourful", "<local path>:colourful"),
        ("--root=/home/jane/x", "--root=<local path>"),
        ("https://jane:secret@10.0.0.7:8000/v1?key=1", "<address>"),
        ("see http://10.0.0.7/v1 there", "see <address> there"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "<secret>"),
        ("my sk-abcdefghijklmnopqrst key", "my <secret> key"),
        ("facebook/dinov2-base", "facebook/dinov2-base"),
        ("embedded/pipeline", "embedded/pipeline"),
        ("rewards.py:colourful", "rewards.py:colourful"),
        ("a cat and/or a dog", "a cat and/or a dog"),
        ("pairs.jsonl", "pairs.jsonl"),
    ],
)
def test_texts_are_redacted(text: str, seen: str) -> None:
    assert redact_text(text) == seen


def test_values_under_secret_keys_are_left_out_wherever_they_stand() -> None:
    options = {"api_key": "abc", "headers": {"X-Auth": "abc"}, "token": ["abc"], "max_tokens": 7, "keyboard": "qwerty"}
    seen = redact({"rewards": [{"options": options}]})["rewards"][0]["options"]
    assert "abc" not in str(seen)
    assert (seen["max_tokens"], seen["keyboard"]) == (7, "qwerty")


def test_a_base_model_of_the_hub_is_named_with_its_licence() -> None:
    policy = embedded(PolicyConfig, path="black-forest-labs/FLUX.1-Kontext-dev")
    card = model_card(embedded(Config, policy=policy), None, [], None)
    data = yaml.safe_load(card.content.split("---")[1])
    assert data["base_model"] == "black-forest-labs/FLUX.1-Kontext-dev"
    assert "FLUX.1 [dev] Non-Commercial License" in card.text
    assert "before-after.png" not in card.text
    assert 'BASE = "black-forest-labs/FLUX.1-Kontext-dev"' in card.text


def test_prompts_and_names_cannot_break_the_card() -> None:
    prompt = 'a "dog"\\ that\'s\nred'
    code = snippet(embedded(Config), prompt)
    compile(code, "snippet", "exec")
    assert repr(prompt) in code
    card = model_card(embedded(Config), Scores([("a | b", True, 1.0, math.nan)], 2), ["a dog\n# in a hat"], None)
    assert "| a   b | watched | 1.00 | - | - |" in card.text
    assert "- a dog # in a hat\n" in card.text


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("flux-kontext", ["true_cfg_scale=4.0,", "negative_prompt='a {blur}',"]),
        ("qwen-image-edit", ["true_cfg_scale=4.0,", "negative_prompt='a {blur}',"]),
        ("flux2", ["guidance_scale=4.0,"]),
    ],
)
def test_true_guidance_is_in_the_snippet(kind: str, lines: list[str]) -> None:
    policy = embedded(PolicyConfig, kind=kind, path="someone/base", true_cfg=4.0, negative_prompt="a {blur}")
    code = snippet(embedded(Config, policy=policy), "a dog")
    compile(code, "snippet", "exec")
    assert all(line in code for line in lines), code


def test_a_lora_that_started_from_unos_needs_no_adapter() -> None:
    def code(way: str) -> str:
        settings = {"kind": "uno", "path": "someone/base", "adapter": "dit_lora.safetensors", "adapter_as": way}
        return snippet(embedded(Config, policy=embedded(PolicyConfig, **settings)), "a dog")

    assert "ADAPTER" in code("fused") and "adapter" not in code("start").lower()


def test_the_embedded_models_snippet_names_it() -> None:
    code = snippet(embedded(Config), "a dog")
    assert 'resolve("embedded/pipeline")' in code
    compile(code, "snippet", "exec")


def test_unfinished_runs_full_tunings_and_taken_folders_are_refused(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(tiny.save_flux_kontext(tmp_path / "base"))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    with pytest.raises(ConfigError, match=r"taken: holds something already; give another --out"):
        export_run(run, taken)
    assert [path.name for path in taken.iterdir()] == ["file"]
    (run / "lora").rename(run / "kept")
    with pytest.raises(ConfigError, match=r"not finished, 0 of 3 .* cgrpo train --resume"):
        export_run(run, tmp_path / "out")
    (run / "lora" / "transformer").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"use cgrpo merge"):
        export_run(run, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"holds no config\.yaml"):
        export_run(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
