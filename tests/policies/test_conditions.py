"""Conditions on disk: the same bits without the text encoder, and no others than those asked for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import proofs
import pytest
import torch
import transformers
from PIL import Image
from proofs import PROMPT, noise
from safetensors.torch import load_file, save_file

from customized_grpo.protocols import Conditions

Calls = list[str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The names of text encoders as they are loaded and called."""
    made: Calls = []
    for kind in (transformers.CLIPTextModel, transformers.T5EncoderModel):
        forward, load = kind.forward, kind.from_pretrained

        def called(self: Any, *args: Any, _forward: Any = forward, **options: Any) -> Any:
            made.append(f"call {type(self).__name__}")
            return _forward(self, *args, **options)

        def loaded(*args: Any, _load: Any = load, _name: str = kind.__name__, **options: Any) -> Any:
            made.append(f"load {_name}")
            return _load(*args, **options)

        monkeypatch.setattr(kind, "forward", called)
        monkeypatch.setattr(kind, "from_pretrained", loaded)
    return made


def pixels(seed: int = 0) -> Any:
    return proofs.random_image(16, 24, seed)


def same(one: Conditions, other: Conditions) -> bool:
    return one.signature == other.signature and all(
        torch.equal(row, other.rows[name]) and row.dtype == other.rows[name].dtype for name, row in one.rows.items()
    )


def kept(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_second_run_has_the_same_bits_and_never_loads_a_text_encoder(
    folder: Path, tmp_path: Path, calls: Calls, dtype: str
) -> None:
    plain = proofs.kontext(folder, dtype=dtype).encode(PROMPT, [pixels()])
    first = proofs.kontext(folder, dtype=dtype, conditions=tmp_path / "kept")
    assert same(first.encode(PROMPT, [pixels()]), plain)
    assert any(call.startswith("call") for call in calls)
    calls.clear()
    second = proofs.kontext(folder, dtype=dtype, conditions=tmp_path / "kept")
    again = second.encode(PROMPT, [pixels()])
    assert calls == []
    assert same(again, plain)
    proofs.frozen_row(again)
    assert [path.suffix for path in kept(tmp_path / "kept")] == [".safetensors"]


def test_a_new_pair_loads_the_text_encoders_once(folder: Path, tmp_path: Path, calls: Calls) -> None:
    policy = proofs.kontext(folder, conditions=tmp_path)
    assert calls == []
    for prompt in ("one", "two", "two"):
        policy.encode(prompt, [pixels()])
    assert sorted(calls) == sorted(
        ["load CLIPTextModel", "load T5EncoderModel", *["call CLIPTextModel", "call T5EncoderModel"] * 2]
    )
    assert len(kept(tmp_path)) == 2


def test_whatever_matters_is_another_entry(folder: Path, tmp_path: Path) -> None:
    def encode(prompt: str = PROMPT, seeds: tuple[int, ...] = (0,), path: Path = folder, **changes: Any) -> None:
        proofs.kontext(path, conditions=tmp_path / "kept", **changes).encode(prompt, [pixels(seed) for seed in seeds])

    encode()
    encode(lora=None, guidance=1.0, height=48, gradient_checkpointing=True, offload=True)
    assert len(kept(tmp_path / "kept")) == 1, "no condition depends on these"
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    others: list[dict[str, Any]] = [
        {"prompt": PROMPT + " "},
        {"seeds": (1,)},
        {"seeds": (0, 1)},
        {"seeds": ()},
        {"reference_sizes": [(24, 16)]},
        {"max_sequence_length": 8},
        {"true_cfg": 2.0},
        {"true_cfg": 2.0, "negative_prompt": "blurry"},
        {"dtype": "bfloat16"},
        {"path": copy},
    ]
    for count, changes in enumerate(others, 2):
        encode(**changes)
        assert len(kept(tmp_path / "kept")) == count, changes
    weights = copy / "text_encoder" / "model.safetensors"
    os.utime(weights, ns=(0, 0))
    encode(path=copy)
    assert len(kept(tmp_path / "kept")) == len(others) + 2, "another file of the model"
    wide = proofs.random_image(2, 3, 0)
    for image in (wide, Image.frombytes("RGB", wide.size[::-1], wide.tobytes())):  # other sides, the same bytes
        proofs.kontext(folder, conditions=tmp_path / "kept").encode(PROMPT, [image])
    assert len(kept(tmp_path / "kept")) == len(others) + 4, "images of another shape"
    one = pixels()
    one.putpixel((3, 5), tuple(value ^ 1 for value in one.getpixel((3, 5))))
    proofs.kontext(folder, conditions=tmp_path / "kept").encode(PROMPT, [one])
    assert len(kept(tmp_path / "kept")) == len(others) + 5, "another pixel"


@pytest.mark.parametrize("damage", ["cut", "flipped", "no hash"])
def test_a_damaged_file_is_made_anew(folder: Path, tmp_path: Path, damage: str) -> None:
    plain = proofs.kontext(folder, conditions=tmp_path).encode(PROMPT, [pixels()])
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    if damage == "no hash":
        save_file({name: row + 1 for name, row in load_file(file).items()}, file)
    else:
        file.write_bytes({"cut": whole[:-7], "flipped": whole[:-1] + b"\x7f"}[damage])
    assert same(proofs.kontext(folder, conditions=tmp_path).encode(PROMPT, [pixels()]), plain)
    assert kept(tmp_path) == [file] and file.read_bytes() == whole


def test_the_transformer_is_alone_while_it_works(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices that parts are moved to are known by name, because a CPU is only one."""
    moves: list[tuple[str, str]] = []
    parts = ["CLIPTextModel", "T5EncoderModel", "AutoencoderKL"]
    to = torch.nn.Module.to

    def moved(self: Any, *args: Any, **options: Any) -> Any:
        if args and type(self).__name__ in {*parts, "FluxTransformer2DModel"}:
            moves.append((type(self).__name__, str(args[0])))
        return to(self, *args, **options)

    policy = proofs.kontext(folder, offload=True, device="cpu:0")
    kinds = [type(part) for part in policy._pipeline.components.values() if isinstance(part, torch.nn.Module)]
    for kind in kinds:
        monkeypatch.setattr(kind, "to", moved)
    conditions = policy.encode(PROMPT, [pixels()])
    assert moves == [("FluxTransformer2DModel", "cpu"), *[(part, "cpu:0") for part in parts]]
    moves.clear()
    for _ in range(2):
        velocity = policy.velocity(noise(policy), torch.ones(1), conditions)
    assert moves == [*[(part, "cpu") for part in parts], ("FluxTransformer2DModel", "cpu:0")], "once"
    moves.clear()
    policy.decode(noise(policy))
    assert moves == [("AutoencoderKL", "cpu:0")]
    # Sent there, weights lie elsewhere, and products may round otherwise.
    plain = proofs.kontext(folder, device="cpu:0")
    assert torch.equal(velocity, plain.velocity(noise(plain), torch.ones(1), plain.encode(PROMPT, [pixels()])))

    forgetful = proofs.kontext(folder, offload=True, conditions=tmp_path)
    forgetful.encode(PROMPT, [pixels()])
    assert forgetful._pipeline.text_encoder_2 is not None
    forgetful.velocity(noise(forgetful), torch.ones(1), conditions)
    assert forgetful._pipeline.text_encoder is None and forgetful._pipeline.text_encoder_2 is None
    assert forgetful._pipeline.vae is not None


def test_what_cannot_be_loaded_later_is_one_line(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "text_encoder_2" / "model.safetensors").unlink()
    policy = proofs.kontext(copy, conditions=tmp_path / "kept")
    proofs.refused(lambda: policy.encode(PROMPT, []), "policy.path", "text_encoder_2", "safetensors")
