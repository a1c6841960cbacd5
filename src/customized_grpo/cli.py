"""The command `cgrpo`: parses and calls. Bad input ends in one line and exit code 2."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from customized_grpo.command_line import OneLineGroup
from customized_grpo.stopping import Stopped
from customized_grpo.terminal import print_error, told_os_error

app = typer.Typer(
    cls=OneLineGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Tune a subject-driven image generator to keep [b]this[/b] subject and follow [b]that[/b] prompt.\n\n"
    "Start with [b]cgrpo train[/b]: it tunes the small model that comes with the package, in minutes, on a CPU.",
)

ConfigOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--config", "-c", help="YAML file of what differs from the defaults; may be given again, the later over it."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="One setting, as [b]train.learning_rate=1e-4[/b]; may be given again.",
        metavar="KEY=VALUE",
    ),
]


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        print_error(told_os_error(error))
        raise typer.Exit(2) from error
    except ValueError as error:
        for line in getattr(error, "problems", None) or [str(error) or type(error).__name__]:
            print_error(line)
        raise typer.Exit(2) from error
    except Stopped as stopped:
        print_error(str(stopped))
        raise typer.Exit(stopped.code) from None
    except KeyboardInterrupt:
        print_error("interrupted; what was saved is kept")
        raise typer.Exit(130) from None


def _quiet() -> None:
    """Keep the libraries' advice out of the progress; a user's own settings win."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(level=logging.WARNING)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module="PIL")  # of pictures that are refused, or read all the same


@app.command()
def train(
    config: ConfigOption = None,
    set_: SetOption = None,
    data: Annotated[
        str | None,
        typer.Option(help="Pairs: a .jsonl file, a SynCD-style .json, a DreamBench folder, or world."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the new run; runs/<time> where none is given.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run, from its newest checkpoint.")] = None,
) -> None:
    """Tune a model by Customized-GRPO (SARS and TDW). With no options: the embedded model, in minutes.

    [dim]cgrpo train --config run.yaml --set train.learning_rate=1e-4[/dim]

    [dim]cgrpo train --data path/to/dreambench[/dim]

    [dim]cgrpo train --resume runs/2026-01-31_12-00-00[/dim]
    """
    _quiet()
    with _one_line_errors():
        from customized_grpo.config import ConfigError
        from customized_grpo.configuration import load_config
        from customized_grpo.run_folder import check_unused, new_folder, open_run

        if resume is not None:
            if config or set_ or data is not None or out:
                raise ConfigError("--resume goes on with the run's own settings; leave the other options out")
            run, resolved = resume, open_run(resume)
        else:
            quoted = json.dumps(data, ensure_ascii=False)  # a text, whatever YAML would make of it
            given = [] if data is None else [f"data.path={quoted}", f"evaluation.data.path={quoted}"]
            overrides = [*given, *(set_ or [])]
            resolved, run = load_config(config, overrides), out or new_folder(Path("runs"))
            check_unused(run)
        from customized_grpo.runs import train_run  # seconds, which a mistake above need not wait for

        train_run(resolved, run, Console())


@app.command()
def generate(
    reference: Annotated[list[Path], typer.Option(help="Photo of the subject; may be given again.")],
    prompt: Annotated[str, typer.Option(help="What the picture should show.")],
    run: Annotated[Path | None, typer.Option(help="Use the LoRA of this run; the base model without.")] = None,
    out: Annotated[Path, typer.Option(help="PNG file to write; a number is added where --images is above 1.")] = Path(
        "generated.png"
    ),
    images: Annotated[int, typer.Option(min=1, help="How many pictures to draw.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    seed: Annotated[int, typer.Option(help="Same seed, same picture.")] = 0,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Draw a subject from its photo as a prompt says.

    [dim]cgrpo generate --reference cat.jpg --prompt "a cat wearing a red hat in the snow" --run runs/mine[/dim]
    """
    _quiet()
    with _one_line_errors():
        from customized_grpo.configuration import load_config
        from customized_grpo.data.pictures import check_suffix, load
        from customized_grpo.prompts import check_prompt
        from customized_grpo.records import check_place
        from customized_grpo.run_folder import CONFIG, open_run

        check_prompt(prompt, "--prompt")
        check_suffix(out, "--out")
        check_place(out, "--out")
        pictures = [load(path) for path in reference]
        if run is not None:
            open_run(run)
        resolved = load_config(config or ([] if run is None else run / CONFIG), set_ or [])
        from customized_grpo.runs import generate as draw
        from customized_grpo.runs import policy_with_adapter

        policy = policy_with_adapter(resolved, run)
        out.parent.mkdir(parents=True, exist_ok=True)
        drawn = draw(policy, prompt, pictures, steps=steps, seed=seed, images=images)
        for i, picture in enumerate(drawn):
            path = out if images == 1 else out.with_stem(f"{out.stem}-{i + 1}")
            picture.save(path)
            Console().print(f"wrote {path}")


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
    _quiet()
    with _one_line_errors():
        if benchmark is None:
            from customized_grpo.config import ConfigError
            from customized_grpo.run_folder import open_run

            given = (combinations, subject, prompt, images, steps, seed, pictures_as, out, config)
            if two_subjects or protocol != "published" or any(value is not None for value in given):
                raise ConfigError("a run's own evaluation is set by --set evaluation...; or give --benchmark")
            open_run(Path(system))
            from customized_grpo.runs import evaluate_run

            evaluate_run(Path(system), Console(), set_ or [])
            return
        from customized_grpo.benchmark import evaluate_on, open_task

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
    _quiet()
    with _one_line_errors():
        from customized_grpo.benchmark import compare as compare_systems
        from customized_grpo.benchmark import open_task

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


RewardOption = Annotated[
    list[str] | None,
    typer.Option(help="A reward of --run or --config by name, or a kind; may be given again. All of them without."),
]
RunOption = Annotated[Path | None, typer.Option(help="Take the rewards of this run.")]
KindPath = Annotated[str | None, typer.Option(help="Model of a kind: hub id, folder, or name at an endpoint.")]
KindOption = Annotated[
    list[str] | None, typer.Option("--option", help="One option of a kind; may be given again.", metavar="KEY=VALUE")
]
KindRole = Annotated[str | None, typer.Option(help="Role of a kind: identity (without), prompt or guard.")]


@app.command()
def score(
    prompt: Annotated[str, typer.Option(help="What the pictures should show.")],
    image: Annotated[list[Path] | None, typer.Option(help="Picture to score; may be given again.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of pictures to score.")] = None,
    reference: Annotated[list[Path] | None, typer.Option(help="Photo of the subject; may be given again.")] = None,
    mask: Annotated[list[Path] | None, typer.Option(help="Where a reference's subject is; one for each.")] = None,
    subject: Annotated[str | None, typer.Option(help="The subject in a word, for a VLM judge.")] = None,
    reward: RewardOption = None,
    path: KindPath = None,
    option: KindOption = None,
    role: KindRole = None,
    out: Annotated[Path | None, typer.Option(help="CSV file to write; a table is shown without.")] = None,
    run: RunOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Score pictures by rewards, as a training would.

    [dim]cgrpo score --reward dino --image a.png --reference b.jpg --prompt "a dog in the snow"[/dim]

    [dim]cgrpo score --run runs/mine --images pictures --reference b.jpg --prompt "a dog" --out scores.csv[/dim]
    """
    _quiet()
    with _one_line_errors():
        from customized_grpo.choice import choose, read_choices
        from customized_grpo.devices import device_of
        from customized_grpo.records import check_place
        from customized_grpo.scoring import find_pictures, read_pair, score_files, show, write_csv

        if out is not None:
            check_place(out, "--out")
        resolved, source = read_choices(config or [], run, set_ or [])
        chosen = choose(reward or [], resolved, source=source, path=path, options=option or [], role=role)
        files = find_pictures(image or [], images)
        pair = read_pair(prompt, reference or [], mask or [], subject)
        scores = score_files(chosen, device_of(resolved.policy), files, pair)
        if out is None:
            show(Console(), files, scores)
        else:
            write_csv(out, files, scores)
            Console().print(f"wrote {out}")


@app.command("serve-reward")
def serve_reward(
    reward: RewardOption = None,
    path: KindPath = None,
    option: KindOption = None,
    role: KindRole = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's own are open.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8600,
    token_variable: Annotated[
        str, typer.Option(help="Environment variable that holds the token clients must send.")
    ] = "CGRPO_REWARD_TOKEN",  # noqa: S107, a name
    max_images: Annotated[int, typer.Option(min=1, help="Pictures of one request.")] = 64,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of each picture, reference and mask.")] = 2**22,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes of one request.")] = 2**26,
    keep: Annotated[int, typer.Option(min=0, help="Bytes of references that are kept.")] = 2**30,
    run: RunOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Serve rewards to trainings elsewhere, which name them by kind [b]remote[/b].

    [dim]cgrpo serve-reward --reward dino --path facebook/dinov2-base[/dim]

    [dim]cgrpo serve-reward --config run.yaml --reward identity --port 8600[/dim]
    """
    _quiet()
    with _one_line_errors():
        from customized_grpo.choice import choose, read_choices
        from customized_grpo.devices import device_of
        from customized_grpo.rewards.wire import Limits
        from customized_grpo.serving.serve import serve

        resolved, source = read_choices(config or [], run, set_ or [])
        chosen = choose(reward or [], resolved, source=source, path=path, options=option or [], role=role)
        serve(
            chosen,
            device_of(resolved.policy),
            Console(),
            host=host,
            port=port,
            token_variable=token_variable,
            limits=Limits(images=max_images, pixels=max_pixels, bytes=max_bytes),
            keep=keep,
        )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write; RUN/report.html where none is given.")] = None,
) -> None:
    """Write what a run has come to as one HTML file: scores, curves, pictures, warnings. It opens from the disk.

    [dim]cgrpo report runs/mine[/dim]
    """
    _quiet()
    with _one_line_errors():
        from customized_grpo.run_folder import open_run

        config = open_run(run)
        from customized_grpo.report import write_report

        Console().print(f"wrote {write_report(config, run, out)}", soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must be empty or not there.")],
) -> None:
    """Write a run's LoRA for others: diffusers' file, a model card, the picture of before and after.

    [dim]cgrpo export runs/mine --out my-lora && hf upload me/my-lora my-lora[/dim]
    """
    _quiet()
    with _one_line_errors():
        from customized_grpo.export.lora import export_run

        export_run(run, out)
        Console().print(f"wrote {out}; fill in the TODOs of {out / 'README.md'}, and look at its pictures and prompts")


class Precision(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must be empty or not there.")],
    dtype: Annotated[Precision | None, typer.Option(help="Of the weights; policy.dtype where none is given.")] = None,
) -> None:
    """Write the whole pipeline with what a run has learned in its weights.

    [dim]cgrpo merge runs/mine --out my-pipeline --dtype bfloat16[/dim]
    """
    _quiet()
    with _one_line_errors():
        from customized_grpo.export.merge import merge_run

        merge_run(run, out, dtype.value if dtype else None)
        Console().print(f"wrote {out}")


@app.command()
def demo(
    lora: Annotated[Path | None, typer.Option(help="Folder of a finished run to show beside the base model.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets others in who have the token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Open a page: drop a photo, write a prompt, see base and tuned side by side with their scores.

    [dim]cgrpo demo --lora runs/mine[/dim]
    """
    _quiet()
    with _one_line_errors():
        from customized_grpo.demo import serve_demo

        serve_demo(config or [], set_ or [], lora, host, port, Console())


@app.command()
def study(
    plan: Annotated[Path, typer.Argument(help="YAML file of the study: rows of settings, seeds.")],
    out: Annotated[Path, typer.Option(help="Folder of the study; what it holds already is not run again.")] = Path(
        "runs/study"
    ),
    processes: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; one for each GPU where none is given.")
    ] = None,
    report_only: Annotated[bool, typer.Option(help="Run nothing; draw what the folder holds.")] = False,
    gradients_only: Annotated[
        bool, typer.Option(help="Train nothing; measure the two roles' gradients at the base, step by step.")
    ] = False,
) -> None:
    """Compare ways of training over seeds: results as JSON lines, a table and pictures. Run again, it goes on.

    [dim]cgrpo study recipes/studies/embedded.yaml --processes 2[/dim]
    """
    _quiet()
    with _one_line_errors():
        from customized_grpo.config import ConfigError
        from customized_grpo.study import measure_gradients, run_study

        if report_only and gradients_only:
            raise ConfigError("--report-only and --gradients-only exclude each other; give one")
        if gradients_only:
            measure_gradients(plan, out, Console())
        else:
            run_study(plan, out, processes, Console(), report_only=report_only)


@app.command()
def plan(
    config: Annotated[
        list[Path] | None, typer.Argument(help="YAML files of what differs, the later over the earlier.")
    ] = None,
    set_: SetOption = None,
    memory: Annotated[
        str | None, typer.Option(help="What the device has, as 24GB; that of the device found, where none is given.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes, one device each.")] = 1,
    references: Annotated[int, typer.Option(min=0, help="Reference pictures of a pair.")] = 1,
) -> None:
    """Say what a run takes before anything is loaded, and refuse one that cannot fit, with settings that can.

    [dim]cgrpo plan recipes/kontext-dev.yaml recipes/hardware/24gb.yaml --memory 24GB[/dim]
    """
    _quiet()
    with _one_line_errors():
        from customized_grpo.configuration import load_config

        resolved = load_config(config, set_ or [])
        from customized_grpo.planning import plan_run

        plan_run(resolved, Console(), memory=memory, processes=processes, references=references)


@app.command()
def bench(
    config: ConfigOption = None,
    set_: SetOption = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="A setting to compare with, as [b]policy.dtype=bfloat16[/b]; may be given again.", metavar="KEY=VALUE"
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed iterations, of which the median counts.")] = 3,
    growth: Annotated[bool, typer.Option(help="Also measure how time and memory grow with the work.")] = False,
    alone: Annotated[bool, typer.Option("--alone", help="Leave out one image at a time, the slow shape.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for bench.json.")] = Path("runs/bench"),
) -> None:
    """Measure an iteration, stage by stage: against one image at a time, and against the machine's own peak.

    [dim]cgrpo bench --against policy.dtype=bfloat16[/dim]
    """
    _quiet()
    with _one_line_errors():
        from customized_grpo.configuration import load_config

        rival = load_config(config, [*(set_ or []), *against]) if against else None
        resolved = load_config(config, set_ or [])
        from customized_grpo.speed import bench as run_bench

        run_bench(resolved, rival, out, Console(), repeats=repeats, growing=growth, alone=alone)


@app.command()
def info() -> None:
    """What is installed, which device is used, which defaults hold."""
    _quiet()
    with _one_line_errors():
        from customized_grpo.information import describe

        describe(Console())


def main() -> None:
    app()


if __name__ == "__main__":
    main()
