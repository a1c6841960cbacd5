"""Weights: LoRAs of other models or none at all, damaged pipelines and rewards, pickles, checkpoints."""

from __future__ import annotations

import atexit
import json
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from bad_cases import EMBEDDED, Case, Command, photo, training
from embedded import embedded
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from customized_grpo.config import Config
from customized_grpo.config.loading import save_config
from customized_grpo.policies import build_policy
from customized_grpo.utils.hub import resolve

LORA = "run-before/lora/pytorch_lora_weights.safetensors"


@cache
def whole_run() -> Path:
    """A folder with the configuration and the LoRA of a run, made once."""
    run = Path(tempfile.mkdtemp(prefix="cgrpo-run-"))
    atexit.register(shutil.rmtree, run)
    build_policy(embedded(Config).policy).save(run / "lora")
    save_config(embedded(Config), run / "config.yaml")
    return run


class Evil:
    """What makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, ("evil",)


def _run(folder: Path, change: Callable[[Path], None]) -> list[Command]:
    """A run with a whole LoRA, `change` then done to its file, and the commands that read it."""
    run = folder / "run-before"
    shutil.copytree(whole_run(), run)
    change(folder / LORA)
    return [["generate", "--reference", photo(folder), "--prompt", "a cat", "--run", "run-before", "--steps", "1"]]


def _content(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        save_file(change(load_file(path)), path, metadata)

    return edit


def _folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _first(weights: dict[str, torch.Tensor]) -> str:
    return min(weights)


def loras() -> Iterator[Case]:
    def case(name: str, change: Callable[[Path], None], message: str) -> Case:
        return Case("LoRA", name, lambda folder: _run(folder, change), ((LORA, message),))

    damaged = "not a LoRA in safetensors"
    yield case("a text", _content(b"no weights"), damaged)
    yield case("cut", _cut, damaged)
    yield case("a pickle", _content(pickle.dumps(Evil())), damaged)
    yield case("no weights", _weights(lambda weights: {}), "belongs to another model, the file lacks ")
    yield case("a weight too few", _weights(lambda w: {k: v for k, v in w.items() if k != _first(w)}), "the file lacks")
    yield case("a weight too many", _weights(lambda w: {**w, "transformer.mine": torch.zeros(1)}), "the policy lacks")
    yield case("a weight of another shape", _weights(lambda w: {**w, _first(w): torch.zeros(3, 3)}), "(3, 3) there")
    yield case("NaN", _weights(lambda w: {**w, _first(w): torch.full_like(w[_first(w)], torch.nan)}), "not finite")
    yield case("whole numbers", _weights(lambda w: {k: v.int() for k, v in w.items()}), "int32")
    yield case("another alpha", lambda path: save_file(
        load_file(path), path, {"lora_adapter_metadata": '{"transformer.lora_alpha": 99}'}), "its alpha is 99")  # fmt: skip
    yield case("a folder in its place", _folder_instead, "no such file")
    yield case("not there", Path.unlink, "no such file")


def _without_a_shard(path: Path) -> None:
    """The weights of a file in two, by an index, of which the second is not there."""
    weights = load_file(path)
    path.unlink()
    names = sorted(weights)
    first, second = (f"{path.stem}-0000{i}-of-00002.safetensors" for i in (1, 2))
    half = len(names) // 2
    save_file({name: weights[name] for name in names[:half]}, path.with_name(first), {"format": "pt"})
    place = {name: first if i < half else second for i, name in enumerate(names)}
    size = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": place}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index), encoding="utf-8")


def _pipeline(change: Callable[[Path], object]) -> Callable[[Path], list[Command]]:
    def make(folder: Path) -> list[Command]:
        shutil.copytree(resolve("embedded/pipeline"), folder / "model")
        change(folder / "model")
        return [["generate", "--reference", photo(folder), "--prompt", "a cat", "--set", "policy.path=./model"]]

    return make


WEIGHTS = "diffusion_pytorch_model.safetensors"


def pipelines() -> Iterator[Case]:
    def case(name: str, change: Callable[[Path], object], message: str = "policy.path: cannot load ./model") -> Case:
        return Case("pipeline", name, _pipeline(change), ((message,),))

    yield case("without model_index.json", lambda model: (model / "model_index.json").unlink())
    yield case("model_index.json of another pipeline", lambda model: (model / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline"}'), "policy.path: ./model is a StableDiffusionPipeline")  # fmt: skip
    yield case("without a transformer", lambda model: shutil.rmtree(model / "transformer"))
    yield case("transformer's weights cut", lambda model: _cut(model / "transformer" / WEIGHTS))
    for part, file in (("text_encoder_2", "model.safetensors"), ("vae", WEIGHTS)):
        yield case(f"{part} without one of its weights", lambda model, place=f"{part}/{file}": _weights(
            lambda w: {k: v for k, v in w.items() if k != max(w)})(model / place),
            f"policy.path: {part} of ./model lacks the weight")  # fmt: skip
    yield case("transformer without one of its shards", lambda model: _without_a_shard(
        model / "transformer" / WEIGHTS), "-00002-of-00002.safetensors")  # fmt: skip
    yield case("weights as a hostile pickle", lambda model: _replace_by_pickle(model / "transformer" / WEIGHTS))
    for name, path, message in (
        ("a file", "./good.png", "policy.path: './good.png': no such folder"),
        ("no such embedded model", "embedded/gone", "policy.path: embedded/gone: no such embedded model"),
        ("a way out of the embedded models", "embedded/../world", "policy.path: embedded/../world: no such embedded model"),
        ("nothing", "''", "policy.path: '': no such folder"),
        ("a name of 5,000 letters", "a" * 5000, "policy.path: "),
    ):  # fmt: skip
        yield Case("pipeline", name, lambda folder, path=path: [
            ["generate", "--reference", photo(folder), "--prompt", "a", "--set", f"policy.path={path}"]], ((message,),))  # fmt: skip
    for device in ("banana", "cuda:99"):
        yield Case("pipeline", f"the device {device}", lambda folder, device=device: [
            training("--set", f"policy.device={device}")], (("policy.device: ",),))  # fmt: skip
    yield Case("pipeline", "conditions in a file", lambda folder: [
        training("--set", f"policy.conditions={photo(folder)}")], (("policy.conditions: good.png is a file",),))  # fmt: skip
    yield Case("pipeline", "no such layers", lambda folder: [training("--set", "policy.lora.targets=[to_z]")],
               (("policy.lora.targets: the model has no linear layer 'to_z'",),))  # fmt: skip
    for kind, message in (("gone.py:Mine", "there is no file gone.py"), ("no.such.module:Mine", "cannot be imported"),
                       ("os:getcwd", "could not be constructed"), ("os:nothing", "os has no 'nothing'"),
                       (":Mine", "is not package.module:Class")):  # fmt: skip
        yield Case("pipeline", f"the kind {kind}", lambda folder, kind=kind: [
            training(*EMBEDDED, "--set", f"policy.kind={kind}")], (("policy.kind: ", message),))  # fmt: skip
    yield Case("pipeline", "an adapter that is not there", lambda folder: [
        training(*EMBEDDED, "--set", "policy.kind=uno", "--set", "policy.adapter=gone.safetensors")],
        (("policy.adapter: gone.safetensors: no such file",),))  # fmt: skip


def _replace_by_pickle(path: Path) -> None:
    path.unlink()
    path.with_suffix(".bin").write_bytes(pickle.dumps(Evil()))


def _reward(change: Callable[[Path], object]) -> Callable[[Path], list[Command]]:
    def make(folder: Path) -> list[Command]:
        shutil.copytree(resolve("embedded/monitor-identity"), folder / "judge")
        change(folder / "judge")
        good = photo(folder)
        return [
            ["score", "--reward", "dino", "--path", "./judge", "--image", good, "--reference", good, "--prompt", "a"]
        ]

    return make


def rewards() -> Iterator[Case]:
    def case(name: str, change: Callable[[Path], object], message: str = "reward 'dino': ") -> Case:
        return Case("judge", name, _reward(change), ((message,),))

    def config(text: str) -> Callable[[Path], object]:
        return lambda reward: (reward / "config.json").write_text(text, encoding="utf-8")

    yield case("without a config", lambda reward: (reward / "config.json").unlink())
    yield case("config a list", config("[]"))
    yield case("config of another type", config('{"model_type": "bert"}'), "is a bert model")
    yield case(
        "code of its own",
        config('{"model_type": "mine", "auto_map": {"AutoModel": "evil.Model"}}'),
        "needs code of its own",
    )
    yield case("weights cut", lambda reward: _cut(reward / "model.safetensors"))
    yield case(
        "without one of its shards",
        lambda reward: _without_a_shard(reward / "model.safetensors"),
        "model-00002-of-00002.safetensors",
    )
    yield case("weights a hostile pickle", lambda reward: _replace_by_pickle(reward / "model.safetensors"))
    yield case("without a preprocessor", lambda reward: (reward / "preprocessor_config.json").unlink())
    yield case("a weight too few", lambda reward: _weights(
        lambda w: {k: v for k, v in w.items() if "layer.0" not in k})(reward / "model.safetensors"), "lacks the weights")  # fmt: skip
    for option, message in {
        "batch_size=0": "options.batch_size is 0; input should be greater than or equal to 1",
        "segmenter=5": "options.segmenter is 5",
        "bach_size=1": "unknown option 'bach_size'; did you mean 'batch_size'?", "=1": "--option =1: not an override",
        "batch_size": "--option batch_size: not an override", "batch_size=[": "not valid YAML",
    }.items():  # fmt: skip
        yield Case("judge", f"the option {option}", lambda folder, option=option: [
            ["score", "--reward", "dino", "--path", "embedded/monitor-identity", "--option", option, "--image",
             photo(folder), "--prompt", "a"]], ((message,),))  # fmt: skip


CASES = [*loras(), *pipelines(), *rewards()]
