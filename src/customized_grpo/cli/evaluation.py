"""Commands that generate and score images: a run's held-out pairs, a benchmark, several systems."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.cli.app import MOST_STEPS, Settings, command
from customized_grpo.utils.terminal import plain_console

if TYPE_CHECKING:
    from customized_grpo.evaluation.dreambench.evaluation import Task


@dataclass(frozen=True)
class Benchmark:
    """Options of a benchmark's protocol."""

    two_subjects: Annotated[
        bool, typer.Option("--two-subjects", help="DreamBench in combinations of two subjects.")
    ] = False
    combinations: Annotated[
        Path | None, typer.Option(help="JSON file of the combinations, or UNO's file of cases. Default: a fixed rule.")
    ] = None
    subject: Annotated[list[str] | None, typer.Option(help="Use only this subject; may be repeated.")] = None
    prompt: Annotated[
        list[int] | None, typer.Option(help="Use only the prompt of this number, from 0; may be repeated.")
    ] = None
    protocol: Annotated[str, typer.Option(help="Scorers: published, embedded, or a YAML file.")] = "published"
    images: Annotated[int | None, typer.Option(min=1, max=10_000, help="Images per subject and prompt.")] = None
    steps: Annotated[int | None, typer.Option(min=1, max=MOST_STEPS, help="Denoising steps.")] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed of the noise.")] = None
    image_pattern: Annotated[
        str | None,
        typer.Option(help="File names of another system's images. Default: {subject}/{prompt:02}_{index}.png."),
    ] = None

    def open(self, path: str) -> Task:
        """Read the benchmark at `path` and its protocol."""
        from customized_grpo.evaluation.dreambench import open_task

        return open_task(path, **{name: value for name, value in vars(self).items() if name != "image_pattern"})


@command
def evaluate(
    system: Annotated[
        str, typer.Argument(help="Folder of a finished run. With --benchmark anything that cgrpo compare accepts.")
    ],
    options: Benchmark,
    settings: Settings,
    benchmark: Annotated[
        str | None,
        typer.Option(help="DreamBench folder, or other data (world, a .jsonl file), each pair of it."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the evaluation. Default: RUN/benchmark, or evaluations/NAME.")
    ] = None,
) -> None:
    """Generate and score held-out pairs with a run's LoRA and without; table and images are written to the run.

    With --benchmark: evaluate any system by a published protocol; an interrupted evaluation is resumed.

    [dim]cgrpo evaluate runs/mine --set evaluation.images=4[/dim]

    [dim]cgrpo evaluate runs/mine --benchmark path/to/dreambench[/dim]

    [dim]cgrpo evaluate folder-of-images --benchmark path/to/dreambench[/dim]
    """
    if benchmark is not None:
        from customized_grpo.evaluation.dreambench import evaluate_on

        evaluate_on(
            system,
            options.open(benchmark),
            out,
            plain_console(),
            files=settings.files,
            overrides=settings.overrides,
            template=options.image_pattern,
        )
        return
    from customized_grpo.config import ConfigError
    from customized_grpo.trainer.folder import open_run

    if options != Benchmark() or out is not None or settings.files:
        raise ConfigError("a run's own evaluation is set by --set evaluation...; or give --benchmark")
    open_run(Path(system))
    from customized_grpo.evaluation.held_out import evaluate_run
    from customized_grpo.reporting.callbacks import show

    config, held_out, base, tuned = evaluate_run(Path(system), plain_console(), settings.overrides)
    show(config, Path(system), held_out, base, tuned, plain_console())


@command
def compare(
    systems: Annotated[
        list[str],
        typer.Argument(
            help="Two or more, as PATH or NAME=PATH: a run, a LoRA, a YAML configuration or a pipeline (untrained), an "
            "evaluation, a folder of images."
        ),
    ],
    benchmark: Annotated[str, typer.Option(help="DreamBench folder, or other data, each pair of it.")],
    options: Benchmark,
    settings: Settings,
    published: Annotated[bool, typer.Option(help="Show published points beside the plane, on DreamBench.")] = True,
    out: Annotated[Path, typer.Option(help="Folder of the comparison; existing images are reused.")] = (
        Path("comparison")
    ),
) -> None:
    """Compare systems: a table with paired differences, the plane, images from the same noise.

    [dim]cgrpo compare base=embedded/pipeline runs/mine --benchmark world --protocol embedded[/dim]

    [dim]cgrpo compare runs/mine their-images --benchmark path/to/dreambench[/dim]
    """
    from customized_grpo.evaluation.dreambench import compare as compare_systems

    compare_systems(
        systems,
        options.open(benchmark),
        out,
        plain_console(),
        files=settings.files,
        overrides=settings.overrides,
        template=options.image_pattern,
        beside=published,
    )
