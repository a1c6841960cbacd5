"""Output to a terminal and to a log file."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from customized_grpo.utils.tables import csv_cell, markdown_text
from customized_grpo.utils.terminal import (
    MOST_ERRORS,
    TrainingDisplay,
    WorkDisplay,
    plain_console,
    print_error,
    print_errors,
    print_notice,
    score_table,
)

RECORD = {
    "iteration": 1,
    "identity/mean": 61.234,
    "prompt/mean": 24.5,
    "share/conflicted": 0.483,
    "kl": 1.23e-05,
    "seconds/total": 30.0,
}


def clock(*seconds: float) -> Callable[[], float]:
    """Return a function that returns one of the seconds at each call."""
    return iter(seconds).__next__


@pytest.fixture
def log() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_file_gets_one_line_per_iteration_with_the_time_left(log: Console) -> None:
    with TrainingDisplay("", 60, log, clock=clock(0, 65, 130)) as display:
        display.add({**RECORD, "share/missing": 0.0, "share/vetoed": 0.0})
        display.add({**RECORD, "share/missing": 1 / 48, "share/vetoed": 1 / 4})
    first, second = text(log).splitlines()
    assert first == "1/60  identity 61.23  prompt 24.50  conflicted 48%  KL 1.2e-05  1:03:55 left"
    assert "  not scored 2.1%  vetoed 25.0%  1:02:50 left" in second


def test_a_resumed_run_estimates_by_its_own_iterations_and_skips_missing_numbers(log: Console) -> None:
    with TrainingDisplay("", 10, log, done=8, clock=clock(0, 7, 14)) as display:
        display.add({"kl": None, "identity/mean": float("nan"), "prompt/mean": 2, "evaluation/a [b]/mean": 41.0})
        display.add({})
    assert text(log).splitlines() == [
        "9/10  prompt 2.00  0:00:07 left", "9/10  evaluation  a [b] 41.00", "10/10  0:00:00 left",
    ]  # fmt: skip


def test_a_terminal_gets_a_bar_with_the_metrics_and_returns_the_cursor() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with TrainingDisplay("", 60, console, done=11, clock=clock(0, 0)) as display:
        display.add({**RECORD, "evaluation/dino/mean": 41.0})
    shown = text(console)
    assert "12/60" in shown and "━" in shown and "left" in shown
    assert "identity 61.23  prompt 24.50  conflicted 48%  KL 1.2e-05" in shown
    assert "12/60  evaluation  dino 41.00\n" in shown
    assert shown.endswith("\x1b[?25h")  # shows the cursor


def test_the_table_shows_absolute_and_relative_changes_and_warnings(log: Console) -> None:
    rows = [
        ("identity [dino]", 50.0, 52.5),
        ("prompt", 24.0, 23.4),
        ("negative", -2.0, -1.0),
        ("zero", 0.0, 1.0),
        ("near zero", 0.3, 4.7),
        ("new", None, 1.0),
        ("lost", 1.0, float("nan")),
    ]
    log.print(score_table(rows, notes={"prompt": "warned"}))
    lines = [line.strip("│").split("│") for line in text(log).splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["identity [dino]", "50.000", "52.500", "+2.500", "+5.0", ""],
        ["prompt", "24.000", "23.400", "-0.600", "-2.5", "warned"],
        ["negative", "-2.000", "-1.000", "+1.000", "+50.0", ""],
        ["zero", "0.000", "1.000", "+1.000", "-", ""],
        ["near zero", "0.300", "4.700", "+4.400", "-", ""],
        ["new", "-", "1.000", "-", "-", ""],
        ["lost", "1.000", "-", "-", "-", ""],
    ]
    table = score_table([("identity", 1.0, 2.0), ("prompt", 2.0, 1.0), ("copy-paste", 1.0, 2.0)], guards=["copy-paste"])
    assert [cell.style for cell in table.columns[3].cells if isinstance(cell, Text)] == ["green", "red", ""]


def test_an_error_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("run.yaml: key [bold]x[/bold]\n  is " + "long " * 40)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: run.yaml: key [bold]x[/bold] is " + " ".join(["long"] * 40) + "\n"


def test_text_is_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    plain_console().print("wrote runs/[lr=1e-3]/[/b] :smile:", soft_wrap=True)
    console = plain_console()
    table = Table("[b]name", title="[/x]")
    table.add_row("a[/b]")
    console.print(table)
    found = capsys.readouterr().out
    assert "wrote runs/[lr=1e-3]/[/b] :smile:" in found and "[/x]" in found and "a[/b]" in found and "[b]name" in found


def test_of_many_errors_the_first_are_shown_and_the_rest_counted(capsys: pytest.CaptureFixture[str]) -> None:
    print_errors([f"line {i}" for i in range(3000)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == MOST_ERRORS + 1 and lines[0] == "error: line 0"
    assert lines[-1] == "error: and 2980 more of 3000 problems; correct these first"
    print_notice("run: saved and stopped by SIGINT")
    assert capsys.readouterr().err == "run: saved and stopped by SIGINT\n"


def test_work_shows_now_and_then_how_much_is_left(log: Console) -> None:
    with WorkDisplay("evaluation", 100, log, clock=clock(*range(0, 24, 4))) as display:
        assert [display.update(done) for done in (10, 20, 30, 40, 100)] == [False, False, False, False, True]
    assert text(log) == "evaluation  30/100  0:00:28 left\n"


def test_text_in_markdown_and_csv_is_shown_as_it_is() -> None:
    assert markdown_text("a [link](x) <img src=x> *b* `c`\n| d") == r"a \[link\](x) \<img src=x\> \*b\* \`c\` | d"
    assert markdown_text("backpack_dog _x_") == r"backpack_dog \_x\_"
    assert [markdown_text(text) for text in ("# a", "- a", "1. a", "1) a", "a # b")] == [
        r"\# a", r"\- a", r"1\. a", r"1\) a", "a # b",
    ]  # fmt: skip
    assert [csv_cell(text) for text in ("=1+1", "+1", "-1", "@a", "a=1")] == ["'=1+1", "'+1", "'-1", "'@a", "a=1"]
