"""Commands and Python examples of the documents work, with settings that shorten them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import cgrpo
from embedded import save_random_run
from PIL import Image
from test_cli import settings

from customized_grpo.config import KINDS
from customized_grpo.config.loading import load_config
from customized_grpo.utils.hub import resolve

ROOT = Path(__file__).parents[1]
SHORTER = settings(
    "train.iterations=1", "rollout.group_size=2", "rollout.pairs=1", "evaluation.data.size=2", "evaluation.images=2",
    "evaluation.steps=2",
)  # fmt: skip
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """Return (text after the language, lines) of each block of commands."""
    found = re.findall(r"^```(?:bash|sh|shell|console)([^\n]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(mark.strip(), [line for line in block.splitlines() if line.strip()]) for mark, block in found]


def commands(text: str, program: tuple[str, ...] = ("cgrpo ", "python -m ")) -> list[list[str]]:
    """Return the arguments of programs in blocks that are marked bash and nothing more."""
    lines = [line for mark, block in blocks(text) if not mark for line in block if line.startswith(program)]
    return [shlex.split(line)[1:] for line in lines]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with the files that the documents mention."""
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "photo.jpg")
    line = '{"prompt": "a dog in the snow", "references": ["photo.jpg"]}\n'
    (tmp_path / "pairs.jsonl").write_text(line + line.replace("snow", "jungle"), encoding="utf-8")
    for subject in ("dog", "vase", "clock"):
        (tmp_path / "dreambench" / subject).mkdir(parents=True)
        Image.radial_gradient("L").convert("RGB").save(tmp_path / "dreambench" / subject / "00.jpg")
    prompts = "'a {0} {1} in the jungle'.format(unique_token, class_token)"
    listed = "Classes\n\nsubject_name,class\ndog,dog\nvase,vase\nclock,clock\n"
    listed += f"\nPrompts\n\nObject Prompts\n\nprompt_list = [\n{prompts}\n]\n"
    listed += f"\nLive Subject Prompts\n\nprompt_list = [\n{prompts}\n]\n"
    (tmp_path / "dreambench" / "prompts_and_classes.txt").write_text(listed, encoding="utf-8")
    (tmp_path / "photos").mkdir()
    shutil.copy(tmp_path / "photo.jpg", tmp_path / "photos")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    return tmp_path


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str], Path], None]:
    """Run `cgrpo train --out` in a folder, or copy the run of another document that ran the same command."""
    done: dict[tuple[str, ...], Path] = {}

    def train(command: list[str], folder: Path) -> None:
        out = command[command.index("--out") + 1]
        if tuple(command) in done:
            shutil.copytree(done[tuple(command)], folder / out)
            return
        run(command, folder, SHORTER)
        copy = tmp_path_factory.mktemp("trained") / "run"
        shutil.copytree(folder / out, copy)  # later commands of the document change the run itself
        done[tuple(command)] = copy

    return train


@pytest.fixture(scope="module")
def done() -> set[str]:
    """Commands that a document has run on the run that it trained."""
    return set()


def run(command: list[str], folder: Path, short: list[str]) -> None:
    done = cgrpo(*command, *short, folder=folder)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_run(
    document: Path, folder: Path, trainings: Callable[[list[str], Path], None], done: set[str]
) -> None:
    for name, block in re.findall(r"^```yaml\n# (\S+\.yaml)\n(.*?)^```", document.read_text("utf-8"), re.M | re.S):
        (folder / name).write_text(block, encoding="utf-8")
    for command in commands(document.read_text(encoding="utf-8")):
        if command[0] == "train" and "--out" in command and "--config" not in command:
            trainings(command, folder)
        elif (line := " ".join(command)) not in done:
            if "--out" not in command:  # of what several documents do to the same run, once is enough
                done.add(line)
            train, benchmark = command[0] == "train" and "--resume" not in command, "--benchmark" in command
            run(command, folder, SHORTER if train else ["--images", "1", "--steps", "2"] if benchmark else [])


LAUNCHES = [
    command for document in DOCUMENTS for command in commands(document.read_text(encoding="utf-8"), ("accelerate ",))
]


@pytest.mark.slow
@pytest.mark.parametrize("command", LAUNCHES, ids=" ".join)
def test_launches_run(command: list[str], folder: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *command, *settings()]
    launched = subprocess.run(launch, cwd=folder, capture_output=True, text=True, timeout=600)
    assert launched.returncode == 0, f"{' '.join(command)}: {launched.stderr}"
    started = (folder / command[command.index("--out") + 1] / "starts.jsonl").read_text(encoding="utf-8")
    assert '"processes":"2"' in started


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_not_run_say_what_they_need(document: Path) -> None:
    for mark, block in blocks(document.read_text(encoding="utf-8")):
        if not mark:
            run_above = ("cgrpo ", "python -m ", "accelerate ")
            assert all(line.startswith(run_above) for line in block)
        elif mark != "fresh-clone":
            assert block[0].startswith("# needs "), (mark, block[0])


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_examples_hold(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for kind in ("my-kontext",):  # which docs/python.md registers
        monkeypatch.setitem(KINDS, kind, KINDS["flux-kontext"])
        KINDS.pop(kind)
    if "assert" in "".join(blocks):
        exec(compile("\n".join(blocks), document.name, "exec"), {})


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "site").glob("*.html")}
    assert pages.keys() - {"404"} == {path.stem for path in (ROOT / "docs").glob("*.md")}, "every document is a page"
    for name, page in pages.items():
        if (document := ROOT / "docs" / f"{name}.md").exists():
            text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
            assert len(re.findall("<h2", page)) >= len(re.findall("^## ", text, re.MULTILINE)), f"headings of {name}"
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://[^"]*"', page), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_the_snippet_that_loads_a_lora_runs_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the embedded model: its name, size, number of steps and the device are replaced."""
    save_random_run(tmp_path / "run", load_config(), 0.1)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^   ```python\n(.*?)^   ```", readme, re.MULTILINE | re.DOTALL)
    code = textwrap.dedent(block)
    for old, new in (
        ('"black-forest-labs/FLUX.1-Kontext-dev"', repr(str(resolve("embedded/pipeline")))),
        ('"cuda"', '"cpu"'), ("torch.bfloat16", "torch.float32"), ("steps=25", "steps=2"),
        ("guidance_scale=2.5", "height=64, width=64, max_area=64 * 64, _auto_resize=False, guidance_scale=2.5"),
        ('"runs/mine/lora"', repr(str(tmp_path / "run" / "lora"))),
    ):  # fmt: skip
        assert old in code, old
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    Image.radial_gradient("L").convert("RGB").save("corgi.jpg")
    exec(compile(code, "README.md", "exec"), {})
    with Image.open("corgi-hat.png") as image:
        assert image.size == (64, 64)
