"""Commands that share the results of a run: a report, weights, a demo."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from customized_grpo.cli.app import Overwrite, Settings, command
from customized_grpo.utils.terminal import plain_console


@command
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write. Default: RUN/report.html.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the results of a run as one HTML file that works offline: scores, curves, images, warnings.

    [dim]cgrpo report runs/mine[/dim]
    """
    from customized_grpo.trainer.folder import check_output, open_run

    config = open_run(run)
    if out is not None:
        check_output(out, overwrite=overwrite)
    from customized_grpo.reporting import write_report

    plain_console().print(f"wrote {write_report(config, run, out)}", soft_wrap=True)


@command
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must be empty or new.")],
    form: Annotated[
        Literal["diffusers", "comfyui", "kohya"],
        typer.Option("--format", help="Also write the LoRA with the key names of comfyui or kohya."),
    ] = "diffusers",
) -> None:
    """Write a run's LoRA for publication: the weights, a model card, images before and after training.

    [dim]cgrpo export runs/mine --out my-lora && hf upload me/my-lora my-lora[/dim]

    [dim]cgrpo export runs/mine --out for-comfyui --format comfyui[/dim]
    """
    from customized_grpo.reporting.lora import export_run

    export_run(run, out, form)
    plain_console().print(f"wrote {out}; fill in the TODOs of {out / 'README.md'}, and check its images and prompts")


@command
def merge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must be empty or new.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Data type of the weights. Default: policy.dtype."),
    ] = None,
) -> None:
    """Write the whole pipeline with a run's LoRA merged into its weights.

    [dim]cgrpo merge runs/mine --out my-pipeline --dtype bfloat16[/dim]
    """
    from customized_grpo.reporting.lora import merge_run

    merge_run(run, out, dtype)
    plain_console().print(f"wrote {out}")


@command
def demo(
    settings: Settings,
    run: Annotated[Path | None, typer.Option(help="Folder of a finished run to compare with the base model.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 admits other machines that have the token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
) -> None:
    """Open a web page: drop a photo, write a prompt, compare base and tuned images with their scores.

    [dim]cgrpo demo --run runs/mine[/dim]
    """
    from customized_grpo.serve.demo import serve_demo

    serve_demo(settings.files, settings.overrides, run, host, port, plain_console())
