"""Conversion of HPS v2's published file: features of open_clip's own layers, refusal of anything but tensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_rewards
import torch
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

from customized_grpo.cli import app
from customized_grpo.protocols import Pair
from customized_grpo.rewards import HpsV2, RewardError, hps_v2
from customized_grpo.rewards.hps_v2 import convert_hps_v2

WIDTH, HEADS, SIDE, PATCH, CONTEXT = 32, 16, 32, 8, 24


class Block(nn.Module):
    """A layer of open_clip's transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 48), "c_proj": nn.Linear(48, WIDTH)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class OpenClip(nn.Module):
    """open_clip's ViT, small, with the names of its weights."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(words, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, WIDTH))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList([Block(), Block()])})
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, 20))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        visual = nn.Module()
        visual.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        visual.class_embedding = nn.Parameter(torch.randn(WIDTH))
        visual.positional_embedding = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, WIDTH))
        visual.ln_pre, visual.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        visual.transformer = nn.ModuleDict({"resblocks": nn.ModuleList([Block()])})
        visual.proj = nn.Parameter(torch.randn(WIDTH, 20))
        self.visual = visual
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, 0, 0.5)

    def image(self, pixels: Tensor) -> Tensor:
        seen = self.visual
        x = seen.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([seen.class_embedding.expand(len(x), 1, -1), x], 1) + seen.positional_embedding
        x = seen.ln_pre(x)
        for block in seen.transformer["resblocks"]:
            x = block(x, None)
        return seen.ln_post(x[:, 0]) @ seen.proj

    def text(self, tokens: Tensor, end: int) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding
        mask = torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1)
        for block in self.transformer["resblocks"]:
            x = block(x, mask)
        return self.ln_final(x)[range(len(x)), (tokens == end).int().argmax(1)] @ self.text_projection


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_rewards.processor(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model() -> OpenClip:
    torch.manual_seed(0)
    return OpenClip(len(tiny.clip_tokenizer())).eval()


@pytest.fixture
def published(model: OpenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file as the authors save it, of a model that is smaller than theirs."""
    small = {"hidden_size": WIDTH, "intermediate_size": 48, "projection_dim": 20}
    text = {"num_hidden_layers": 2, "vocab_size": len(model.token_embedding.weight), "max_position_embeddings": CONTEXT}
    vision = {"num_hidden_layers": 1, "patch_size": PATCH, "image_size": SIDE}
    for name, sizes in (("text_config", text), ("vision_config", vision)):
        monkeypatch.setitem(hps_v2.CONFIG, name, {**hps_v2.CONFIG[name], **small, **sizes})
    monkeypatch.setitem(hps_v2.CONFIG, "projection_dim", 20)
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / "HPS_v2.1_compressed.pt")
    return tmp_path / "HPS_v2.1_compressed.pt"


def test_the_command_converts_to_the_same_scores(
    model: OpenClip, published: Path, tokenizer: Path, tmp_path: Path, make_pair: Callable[..., Pair]
) -> None:
    out = tmp_path / "converted"
    done = CliRunner().invoke(app, ["convert-hps", str(published), "--out", str(out), "--tokenizer", str(tokenizer)])
    assert done.exit_code == 0 and "kind: hps-v2" in done.stdout, done.output
    assert {file.suffix for file in out.iterdir()} <= {".json", ".safetensors", ".txt"}
    reward, pair = HpsV2(out), make_pair("a")
    images = torch.rand(2, 3, SIDE, SIDE)
    tokens = reward._tokenizer(
        [pair.prompt], padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        seen, read = model.image(reward.frame(images)), model.text(tokens, reward._tokenizer.eos_token_id)
    expected = 100 * functional.cosine_similarity(seen, read)
    torch.testing.assert_close(reward(images, [pair] * 2), expected, atol=1e-3, rtol=0)
    # The authors' preprocessing: the longer side, and black borders.
    black = (0 - torch.tensor(reward.frame.mean)) / torch.tensor(reward.frame.std)
    wide = reward.frame(torch.ones(1, 3, 20, 40))[0]
    assert wide.shape == (3, SIDE, SIDE)
    torch.testing.assert_close(wide[:, [0, 7, 24, 31], 5], black[:, None].expand(3, 4))
    assert (wide[:, 8:24] > 0).all()


class Malicious:
    """Unpickled without restrictions it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


def test_a_file_with_code_is_refused_and_none_of_it_runs(model: OpenClip, tokenizer: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil.pt"
    torch.save({"state_dict": {**model.state_dict(), "logit_scale": Malicious(tmp_path / "ran")}}, evil)
    with pytest.raises(RewardError, match=r"evil\.pt: holds more than tensors, which is never loaded"):
        convert_hps_v2(evil, tmp_path / "out", str(tokenizer))
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
    torch.load(evil, weights_only=False)
    assert (tmp_path / "ran").is_dir(), "or the test proved nothing"


def test_other_files_are_refused_in_one_line(published: Path, tokenizer: Path, tmp_path: Path) -> None:
    def refused(file: Path, message: str, out: str = "out") -> None:
        with pytest.raises(RewardError, match=message):
            convert_hps_v2(file, tmp_path / out, str(tokenizer))

    refused(tmp_path / "gone.pt", "no such file; download")
    (tmp_path / "cut.pt").write_bytes(published.read_bytes()[:2000])
    refused(tmp_path / "cut.pt", "is damaged")
    torch.save({"state_dict": {"weight": torch.ones(3)}}, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", "is not HPS v2")
    torch.save([torch.ones(3)], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "it has no weights by name")
    weights = torch.load(published, weights_only=True)["state_dict"]
    del weights["visual.ln_post.bias"]
    torch.save(weights, tmp_path / "less.pt")
    refused(tmp_path / "less.pt", r"vision_model\.post_layernorm\.bias has shape None instead of \(32,\)")
    refused(published, "is not an empty folder", out=".")
