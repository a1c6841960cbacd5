"""What a terminal shows and what a log file gets."""

import io
import subprocess
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.text import Text

from customized_grpo.utils.terminal import TrainingDisplay, print_error, score_table

RECORD = {
    "iteration": 1,
    "identity/mean": 61.234,
    "prompt/mean": 24.5,
    "share/conflicted": 0.483,
    "kl": 1.23e-05,
    "seconds/total": 30.0,
}


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def log() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def lines(console: Console) -> Iterator[str]:
    return iter(text(console).splitlines())


def test_a_log_gets_one_short_line_for_each_iteration() -> None:
    console, clock = log(), Clock()
    with TrainingDisplay(60, console=console, clock=clock) as display:
        for _ in range(2):
            clock.now += 65
            display.update(RECORD)
    first, second = lines(console)
    assert first == ("1/60  identity 61.23  prompt 24.50  conflicted 48%  KL 1.2e-05  1:03:55 left")
    assert second.startswith("2/60  ") and second.endswith("  1:02:50 left")
    assert len(first) <= 80


def test_images_without_a_score_are_told_of() -> None:
    console = log()
    with TrainingDisplay(60, console=console, clock=Clock()) as display:
        display.update({**RECORD, "share/missing": 0.0, "share/vetoed": 0.0})
        display.update({**RECORD, "share/missing": 1 / 48, "share/vetoed": 1 / 4})
    first, second = lines(console)
    assert "not scored" not in first and "vetoed" not in first
    assert "  not scored 2.1%  vetoed 25.0%  " in second


def test_the_time_left_of_a_resumed_run_counts_its_own_iterations_alone() -> None:
    console, clock = log(), Clock()
    with TrainingDisplay(10, done=8, console=console, clock=clock) as display:
        clock.now += 7
        display.update({})
        clock.now += 7
        display.update({})
    assert list(lines(console)) == ["9/10  0:00:07 left", "10/10  0:00:00 left"]


def test_missing_numbers_are_left_out_and_held_out_scores_have_their_lines() -> None:
    console = log()
    display = TrainingDisplay(3, console=console, clock=Clock())
    display.update({"kl": None, "identity/mean": float("nan"), "prompt/mean": 2, "evaluation/a [b]/mean": 41.0})
    assert list(lines(console)) == ["1/3  prompt 2.00  0:00:00 left", "1/3  evaluation  a [b] 41.00"]


def test_a_terminal_gets_a_bar_with_the_live_numbers_under_it() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with TrainingDisplay(60, done=11, console=console, clock=Clock()) as display:
        display.update(RECORD)
        display.message("checkpoint written")
    shown = text(console)
    assert "12/60" in shown and "━" in shown and "left" in shown
    assert "identity 61.23  prompt 24.50  conflicted 48%  KL 1.2e-05" in shown
    assert "checkpoint written\n" in shown


def test_the_bar_is_taken_down_when_training_fails() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with pytest.raises(RuntimeError), TrainingDisplay(3, console=console):
        raise RuntimeError
    assert text(console).endswith("\x1b[?25h")  # the cursor is back


def test_the_table_shows_the_change_both_ways() -> None:
    console = log()
    console.print(
        score_table(
            [
                ("identity [dino]", 50.0, 52.5),
                ("prompt", 24.0, 23.4),
                ("negative", -2.0, -1.0),
                ("zero", 0.0, 1.0),
                ("new", None, 1.0),
                ("lost", 1.0, float("nan")),
            ]
        )
    )
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines(console) if line.startswith("│")]
    assert cells == [
        ["identity [dino]", "50.000", "52.500", "+2.500", "+5.0"],
        ["prompt", "24.000", "23.400", "-0.600", "-2.5"],
        ["negative", "-2.000", "-1.000", "+1.000", "+50.0"],
        ["zero", "0.000", "1.000", "+1.000", "-"],
        ["new", "-", "1.000", "-", "-"],
        ["lost", "1.000", "-", "-", "-"],
    ]
    heading = next(line for line in lines(console) if "score" in line)
    assert [cell.strip() for cell in heading.strip("┃").split("┃")] == [
        "score",
        "base",
        "tuned",
        "change",
        "change in %",
    ]


def test_a_guards_change_is_neither_good_nor_bad() -> None:
    table = score_table([("identity", 1.0, 2.0), ("prompt", 2.0, 1.0), ("copy-paste", 1.0, 2.0)], guards=["copy-paste"])
    assert [cell.style for cell in table.columns[3].cells if isinstance(cell, Text)] == ["green", "red", ""]


def test_a_score_that_is_warned_of_says_so_in_its_row() -> None:
    console = log()
    rows = [("identity", 1.0, 2.0), ("prompt", 2.0, 1.0)]
    console.print(score_table(rows, notes={"identity": "parted at iteration 20"}))
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines(console) if line.startswith("│")]
    assert [row[-1] for row in cells] == ["parted at iteration 20", ""]


def test_an_error_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("run.yaml: key [bold]x[/bold]\n  is " + "long " * 40)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: run.yaml: key [bold]x[/bold] is " + " ".join(["long"] * 40) + "\n"


def test_no_torch_is_needed_to_talk() -> None:
    program = (
        "import sys, customized_grpo.utils.terminal, customized_grpo.utils.records\n"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
