"""Commands that draw and measure: a run's held-out pairs, a benchmark, systems side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from customized_grpo.cli.app import ConfigOption, SetOption, app, one_line_errors

BenchmarkOption = Annotated[
    str | None,
    typer.Option(help="What to draw and measure: a DreamBench folder; of other data (world, a .jsonl file) each pair."),
]
TwoSubjects = Annotated[bool, typer.Option("--two-subjects", help="DreamBench in combinations of two subjects.")]
Combinations = Annotated[
    Path | None, typer.Option(help="JSON of the combinations, or UNO's file of cases; our own rule without.")
]
SubjectOption = Annotated[list[str] | None, typer.Option(help="Only this subject; may be given again.")]
PromptOption = Annotated[list[int] | None, typer.Option(help="Only prompts of this number, from 0; may be repeated.")]
ProtocolOption = Annotated[str, typer.Option(help="Measures: published, embedded, or a YAML file.")]
ImagesOption = Annotated[int | None, typer.Option(min=1, help="Pictures of each subject and prompt.")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Denoising steps.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Of the noise.")]
PicturesAs = Annotated[
    str | None,
    typer.Option(help="How another system's pictures are named; {subject}/{prompt:02}_{index}.png without."),
]


@app.command()
def evaluate(
    system: Annotated[
        str, typer.Argument(help="Folder of a finished run. With --benchmark anything that cgrpo compare takes.")
    ],
    benchmark: BenchmarkOption = None,
    two_subjects: TwoSubjects = False,
    combinations: Combinations = None,
    subject: SubjectOption = None,
    prompt: PromptOption = None,
    protocol: ProtocolOption = "published",
    images: ImagesOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    pictures_as: PicturesAs = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the evaluation; RUN/benchmark, or evaluations/NAME, without.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Draw and score held-out pairs with a run's LoRA and without; leaves table and pictures in the run.

    With --benchmark: any system by a published protocol, resumed where it was stopped.

    [dim]cgrpo evaluate runs/mine --set evaluation.images=4[/dim]

    [dim]cgrpo evaluate runs/mine --benchmark path/to/dreambench[/dim]

    [dim]cgrpo evaluate folder-of-pictures --benchmark path/to/dreambench[/dim]
    """
    with one_line_errors():
        if benchmark is None:
            from customized_grpo.config import ConfigError
            from customized_grpo.trainer.folder import open_run

            given = (combinations, subject, prompt, images, steps, seed, pictures_as, out, config)
            if two_subjects or protocol != "published" or any(value is not None for value in given):
                raise ConfigError("a run's own evaluation is set by --set evaluation...; or give --benchmark")
            open_run(Path(system))
            from customized_grpo.evaluation.run import evaluate_run
            from customized_grpo.reporting.show import show

            found = evaluate_run(Path(system), Console(), set_ or [])
            show(found.config, Path(system), found.held_out, found.base, found.tuned, Console())
            return
        from customized_grpo.evaluation.dreambench import evaluate_on, open_task

        task = open_task(
            benchmark,
            two_subjects=two_subjects,
            combined=combinations,
            subjects=subject or [],
            prompts=prompt or [],
            protocol=protocol,
            images=images,
            steps=steps,
            seed=seed,
        )
        evaluate_on(system, task, out, Console(), files=config or [], overrides=set_ or [], template=pictures_as)


@app.command()
def compare(
    systems: Annotated[
        list[str],
        typer.Argument(
            help="Two or more, as PATH or NAME=PATH: a run, a LoRA, a YAML configuration or a pipeline (untrained), an "
            "evaluation, a folder of pictures."
        ),
    ],
    benchmark: Annotated[
        str, typer.Option(help="What to draw and measure: a DreamBench folder; of other data each pair.")
    ],
    two_subjects: TwoSubjects = False,
    combinations: Combinations = None,
    subject: SubjectOption = None,
    prompt: PromptOption = None,
    protocol: ProtocolOption = "published",
    images: ImagesOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    pictures_as: PicturesAs = None,
    published: Annotated[bool, typer.Option(help="Published points beside the plane, on DreamBench.")] = True,
    out: Annotated[Path, typer.Option(help="Folder of the comparison; what it holds already is not drawn again.")] = (
        Path("comparison")
    ),
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Put systems side by side: a table with paired differences, the plane, pictures from the same noise.

    [dim]cgrpo compare base=embedded/pipeline runs/mine --benchmark world --protocol embedded[/dim]

    [dim]cgrpo compare runs/mine their-pictures --benchmark path/to/dreambench[/dim]
    """
    with one_line_errors():
        from customized_grpo.evaluation.dreambench import compare as compare_systems
        from customized_grpo.evaluation.dreambench import open_task

        task = open_task(
            benchmark,
            two_subjects=two_subjects,
            combined=combinations,
            subjects=subject or [],
            prompts=prompt or [],
            protocol=protocol,
            images=images,
            steps=steps,
            seed=seed,
        )
        compare_systems(
            systems,
            task,
            out,
            Console(),
            files=config or [],
            overrides=set_ or [],
            template=pictures_as,
            beside=published,
        )
