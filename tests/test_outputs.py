"""Files that commands write: never an input, a run's own, a link or a device. Full disks are in tests/faults."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from customized_grpo.cli import app
from customized_grpo.config import ConfigError
from customized_grpo.evaluation.dreambench.comparison import _check_folder
from customized_grpo.trainer.folder import check_output
from customized_grpo.utils.records import RecordError, move_folder, temporary_folder, write_bytes
from customized_grpo.utils.terminal import OutputConsole, TrainingDisplay, describe_os_error


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a photo, a run, a link and a pipe."""
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").convert("RGB").save("photo.png")
    for name in ("checkpoints", "lora"):
        Path("run", name).mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "report.html", "mine.txt"):
        Path("run", name).write_text("seed: 1\n")
    Path("link").symlink_to("photo.png")
    Path("lost").symlink_to("nowhere")
    Path("folder").mkdir()
    os.mkfifo("pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "overwrite", "message"),
    [
        ("new.png", False, None),
        ("photo.png", True, "is an input of this command"),
        ("run/config.yaml", True, "belongs to the run"),
        ("run/checkpoints/new.png", True, "belongs to the run"),
        ("run/mine.txt", False, "exists; give another name, or --overwrite"),
        ("run/mine.txt", True, None),
        ("run/new.png", False, None),
        ("link", True, "is a symbolic link, which is never replaced"),
        ("pipe", True, "is a pipe"),
        ("/dev/null", True, "is a device or socket"),
        ("folder", True, "give a file's name in a folder"),
        ("photo.png/new.png", True, "give a name in a folder"),
    ],
)
def test_an_output_replaces_only_regular_files_that_are_neither_inputs_nor_a_runs_own(
    here: Path, path: str, overwrite: bool, message: str | None
) -> None:
    if message is None:
        check_output(Path(path), overwrite=overwrite, inputs=[Path("photo.png")])
        return
    with pytest.raises((ConfigError, RecordError), match=f"--out .*{message}"):
        check_output(Path(path), overwrite=overwrite, inputs=[Path("photo.png"), Path("not there")])


@pytest.mark.parametrize("path", ["run", "photo.png", "link", "pipe", "lost", "run/lora", "run/checkpoints/x"])
def test_a_folder_to_write_is_empty_and_in_no_run(here: Path, path: str) -> None:
    with pytest.raises(ConfigError, match=r"is not empty|belongs to the run"):
        check_output(Path(path), folder=True)
    check_output(Path("folder"), folder=True)
    check_output(Path("run/exported"), folder=True)


@pytest.mark.parametrize("name", ["link", "lost", "pipe", "folder"])
def test_no_writer_replaces_anything_but_a_regular_file(here: Path, name: str) -> None:
    before = Path(name).lstat()
    with pytest.raises(RecordError, match=f"{name}: is a .*, which is never replaced"):
        write_bytes(Path(name), b"x")
    assert Path(name).lstat() == before and not list(here.glob(".*"))


def test_a_link_to_a_folder_is_not_replaced(here: Path) -> None:
    Path("linked").symlink_to("folder")
    with pytest.raises(RecordError, match="linked: is a symbolic link"):
        move_folder(temporary_folder(Path("linked")), Path("linked"))
    assert Path("linked").readlink() == Path("folder")


ASK = ["--reference", "photo.png", "--prompt", "a cat"]
GUARD = ["--reward", "copy-paste", "--role", "guard", "--image", "photo.png"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["generate", *ASK, "--out", "photo.png", "--overwrite"], "--out photo.png: is an input"),
        (["generate", *ASK, "--images", "2", "--out", "old.png"], "--out old-2.png: exists; give another name, or"),
        (["score", *GUARD, *ASK, "--out", "run/metrics.jsonl", "--overwrite"], "belongs to the run run"),
        (["report", "run", "--out", "run/config.yaml", "--overwrite"], "belongs to the run run"),
        (["report", "run", "--out", "/dev/full", "--overwrite"], "is a device"),
    ],
)
def test_commands_refuse_before_any_work_and_touch_nothing(here: Path, command: list[str], message: str) -> None:
    shutil.copyfile("photo.png", "old-2.png")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file() and not path.is_symlink()}
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and message.split("run ")[0] in done.stderr, done.output
    assert {path: path.read_bytes() for path in before} == before


def test_system_errors_are_a_line_without_their_number(here: Path) -> None:
    for path, message in (
        ("gone", "gone: no such file or directory; correct the path or restore the file"),
        ("folder", "folder: is a directory; give the name of a file"),
        ("photo.png/x", "photo.png/x: not a directory; correct the path"),
    ):
        with pytest.raises(OSError, match="Errno") as raised:
            Path(path).read_bytes()
        assert describe_os_error(raised.value) == message


def test_output_without_a_reader_is_discarded_and_the_work_continues() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        console = OutputConsole(file=file)
        with TrainingDisplay("", 2, console) as display:
            for iteration in (1, 2):
                display.add({"iteration": iteration, "kl": 0.5})
        assert console.quiet
        console.print("more")


def test_a_comparison_is_written_beside_nothing_else(here: Path) -> None:
    for place in ("photo.png", "run", "lost"):
        with pytest.raises(ConfigError, match="contains something other than a comparison"):
            _check_folder(Path(place))
    Path("comparison/base").mkdir(parents=True)
    Path("comparison/base/settings.json").touch()
    for place in ("comparison", "folder", "new"):
        _check_folder(Path(place))
    Path("comparison/notes.txt").touch()
    with pytest.raises(ConfigError, match="contains something other"):
        _check_folder(Path("comparison"))
    Path("comparison/comparison.json").touch()
    _check_folder(Path("comparison"))
