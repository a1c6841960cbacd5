"""Security guarantees of the documents, checked in the sources: no pickle, no foreign code, bounded dependencies."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from inspect import signature
from pathlib import Path

import pytest
from embedded import embedded

from customized_grpo.cli import rewards, sharing
from customized_grpo.config import Config, EvaluationConfig, PolicyConfig, RewardConfig
from customized_grpo.config.redaction import SECRET
from customized_grpo.policies import build_policy
from customized_grpo.reporting.collect import changes
from customized_grpo.serve.serve import serve
from customized_grpo.utils.hub import EMBEDDED_FOLDER, ModelError

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for name in ("src", "benchmarks", "recipes", ".ci") for path in (ROOT / name).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

#: Modules that unpickle, run or unpack what they read.
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "zipfile", "tarfile"}
FORBIDDEN_CALLS = {"yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "eval",
                   "exec", "shutil.unpack_archive", "tempfile.mktemp"}  # fmt: skip
FORBIDDEN_METHODS = {"extractall", "extract", "read_pickle"}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def offences(tree: ast.AST) -> Iterator[str]:
    """Yield forbidden imports and calls of a source, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            for module in modules:
                if module.split(".")[0] in FORBIDDEN_IMPORTS:
                    yield f"{node.lineno}: imports {module}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
            yield f"{node.lineno}: {called} of pickles"
        if called in FORBIDDEN_CALLS or any(called.endswith(f".{one}") for one in FORBIDDEN_METHODS):
            yield f"{node.lineno}: calls {called}"
        if called in ("torch.load", "torch.hub.load") and given.get("weights_only") != "True":
            yield f"{node.lineno}: {called} without weights_only=True"
        if given.get("trust_remote_code", "False") != "False":
            yield f"{node.lineno}: trust_remote_code={given['trust_remote_code']}"
        if given.get("shell", "False") != "False":
            yield f"{node.lineno}: a shell"


def test_no_source_loads_what_could_execute_code() -> None:
    found = {path.name: list(offences(tree_of(path))) for path in SOURCES}
    assert not {name: lines for name, lines in found.items() if lines}
    assert list(offences(ast.parse("torch.load(path)"))), "the search works"


def test_one_command_alone_reads_a_pickle() -> None:
    readers = [path.name for path in SOURCES if "torch.load(" in path.read_text(encoding="utf-8")]
    assert readers == ["hps_v2.py"]


def loads() -> Iterator[tuple[str, str, dict[str | None, str]]]:
    """Yield the place, the class and the keywords of each call of from_pretrained in the package."""
    for source in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(tree_of(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                yield f"{source.name}:{node.lineno}", ast.unparse(node.func).removesuffix(".from_pretrained"), given


def test_every_model_is_loaded_from_safetensors() -> None:
    for place, loader, given in loads():
        weightless = re.search("Config|Tokenizer|Processor|Scheduler|tokenizer|processor", loader.split(".")[-1])
        in_memory = "state_dict" in given
        assert weightless or in_memory or given.get("use_safetensors") == "True", f"{place}: {loader}"


def test_no_class_that_a_model_names_runs_the_models_code() -> None:
    """Auto classes get trust_remote_code=False; without it transformers asks at the terminal."""
    requested = 0
    for place, loader, given in loads():
        if loader.startswith("Auto") or loader == "architecture" or not loader.isidentifier():
            own = loader == "self._class"  # of diffusers, and of a kind that the policy has loaded
            assert own or given.get("trust_remote_code") == "False", f"{place}: {loader}"
            requested += not own
    assert requested >= 5


def test_no_terminal_is_asked_to_run_a_models_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor would a yes be of use: here it comes of itself."""
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED_FOLDER / "pipeline", model)
    index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    index["tokenizer"] = ["transformers", "AutoTokenizer"]
    (model / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    settings = json.loads((model / "tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"auto_map": {"AutoTokenizer": ["evil.Mine", None]}, "tokenizer_class": "Mine"}
    (model / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    evil = f"import os\n\nos.mkdir({str(tmp_path / 'evil')!r})\n\nclass Mine: ...\n"
    (model / "tokenizer" / "evil.py").write_text(evil, encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ModelError, match=r"policy\.path: cannot load .*model"):
        build_policy(embedded(PolicyConfig, path=str(model)))
    assert not (tmp_path / "evil").exists()


def test_servers_listen_to_this_machine_alone_unless_reported() -> None:
    assert signature(serve).parameters["host"].default == "127.0.0.1"
    for command in (rewards.serve_reward, sharing.demo):
        assert signature(command).parameters["host"].default == "127.0.0.1"


def test_a_report_shows_no_secret() -> None:
    options = {"api_key": "opensesame", "folder": "/home/me/cache", "note": "sk-abcdefghijklmnop",
               "server": "https://me:hushhush@host:8000/v1"}  # fmt: skip
    reward = RewardConfig(kind="mine.py:Judge", role="guard", options=options)
    found = changes(embedded(Config, evaluation=embedded(EvaluationConfig, monitors=[reward])))
    shown = " ".join(value for *_, value in found)
    assert "opensesame" not in shown and "sk-abc" not in shown and "hush" not in shown
    assert SECRET in shown and "/home/me/cache" in shown and "@host:8000/v1" in shown


def test_every_dependency_has_both_bounds() -> None:
    listed = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        listed += extra
    bounded = {re.match(r"[\w.-]+", one)[0] for one in listed if ">=" in one and "<" in one}  # type: ignore[index]
    for one in listed:
        name = re.match(r"[\w.-]+", one)[0]  # type: ignore[index]
        assert name in bounded or name == "customized-grpo", f"{one}: give it a lower and an upper bound"
