"""Commands that train a model, and generate images with it."""

import itertools
import os
from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.cli.app import MOST_STEPS, Overwrite, Settings, command
from customized_grpo.utils.terminal import plain_console

_EMBEDDED = (
    "recipe: embedded, a small model on a built-in world; for a real one: cgrpo train "
    "--set policy.path=black-forest-labs/FLUX.1-Kontext-dev --data pairs.jsonl"
)


@command
def train(
    settings: Settings,
    data: Annotated[
        str | None, typer.Option(help="Pairs: a .jsonl file, a SynCD-style .json, a DreamBench folder, or world.")
    ] = None,
    held_out: Annotated[str | None, typer.Option(help="Held-out pairs for evaluations, as --data.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the new run. Default: runs/<time>.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads, as train.threads; 1 on cores that others keep busy.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Resume this run from its newest checkpoint.")] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="With --resume: accept settings or data changed since then.")
    ] = False,
) -> None:
    """Train a model by Customized-GRPO (SARS and TDW). Without options: the embedded model, in minutes.

    [dim]cgrpo train --set policy.path=black-forest-labs/FLUX.1-Kontext-dev --data pairs.jsonl[/dim]

    [dim]cgrpo train --config run.yaml --set train.learning_rate=1e-4[/dim]

    [dim]cgrpo train --data path/to/dreambench[/dim]

    [dim]cgrpo train --resume runs/2026-01-31_12-00-00 --set train.iterations=600[/dim]
    """
    from customized_grpo.config import ConfigError
    from customized_grpo.config.loading import load_config, resolve_config
    from customized_grpo.config.reading import flow_yaml
    from customized_grpo.trainer.folder import CONFIG, check_unused, open_run

    if allow_changes and resume is None:
        raise ConfigError("--allow-changes needs --resume; give both, or omit it")
    overrides = [*settings.overrides, *([] if threads is None else [f"train.threads={threads}"])]

    run: Path | None
    if resume is not None:
        if settings.files or data is not None or held_out is not None or out:
            raise ConfigError(
                "--resume uses the run's own settings; change them by --set, and remove the other options"
            )
        open_run(resume)
        run, config = resume, load_config(resume / CONFIG, overrides)
    else:
        paths = {"data.path": data, "evaluation.data.path": held_out}
        given = [f"{key}={flow_yaml(path)}" for key, path in paths.items() if path is not None]
        found, run = resolve_config(settings.files, [*given, *overrides]), out
        if run is not None:
            check_unused(run)
        config = found.config
        if found.embedded and os.environ.get("RANK", "0") == "0":  # a launcher's number of this process
            plain_console().print(_EMBEDDED, highlight=False)
    from customized_grpo.cli.run import train_run  # takes seconds, which a mistake above need not wait for

    train_run(config, run, plain_console(), resume=resume is not None, allow_changes=allow_changes)


@command
def generate(
    settings: Settings,
    reference: Annotated[list[Path], typer.Option(help="Photo of the subject; may be repeated.")],
    prompt: Annotated[str | None, typer.Option(help="What the image should show.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file with a prompt per line, instead of --prompt.")] = None,
    run: Annotated[Path | None, typer.Option(help="Use the LoRA of this run. Default: the base model.")] = None,
    out: Annotated[
        Path, typer.Option(help="PNG file to write; numbers of prompt and image are added if there are several.")
    ] = Path("generated.png"),
    images: Annotated[int, typer.Option(min=1, max=10_000, help="Number of images per prompt.")] = 1,
    steps: Annotated[int, typer.Option(min=1, max=MOST_STEPS, help="Denoising steps.")] = 20,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same image.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Generate images of a subject from its photo and a prompt.

    [dim]cgrpo generate --reference cat.jpg --prompt "a cat wearing a red hat in the snow" --run runs/mine[/dim]

    [dim]cgrpo generate --reference cat.jpg --prompts prompts.txt --out images/cat.png[/dim]
    """
    from customized_grpo.config import ConfigError
    from customized_grpo.config.loading import load_config
    from customized_grpo.data.image_files import check_suffix, load
    from customized_grpo.trainer.folder import CONFIG, check_output, open_run
    from customized_grpo.utils.prompts import check_prompt, read_prompts

    if (prompt is None) == (prompts is None):
        raise ConfigError("give either --prompt or --prompts, a file with a prompt per line")
    if prompt is not None:
        check_prompt(prompt, "--prompt")
    texts = [prompt] if prompt is not None else read_prompts(prompts) if prompts is not None else []
    check_suffix(out, "--out")
    files = []
    for n in range(1, len(texts) + 1):
        first = f"-{n:0{len(str(len(texts)))}}" if len(texts) > 1 else ""
        seconds = [f"-{i}" for i in range(1, images + 1)] if images > 1 else [""]
        files.append([out.with_stem(f"{out.stem}{first}{second}") for second in seconds])
    inputs = [*reference, *settings.files, *([] if prompts is None else [prompts])]
    for path in itertools.chain(*files):
        check_output(path, overwrite=overwrite, inputs=inputs)
    references = [load(path) for path in reference]
    if run is not None:
        open_run(run)
    config = load_config(settings.files or ([] if run is None else run / CONFIG), settings.overrides)
    from customized_grpo.evaluation.generate import generated
    from customized_grpo.trainer.parts import policy_with_adapter
    from customized_grpo.utils.pixels import save_image

    policy = policy_with_adapter(config, run)
    for text, names in zip(texts, files, strict=True):
        batches = generated(
            policy, text, references, steps=steps, seed=seed, images=images, batch_size=config.rollout.batch_size
        )
        for path, image in zip(names, batches, strict=True):
            save_image(image, path)
            plain_console().print(f"wrote {path}", soft_wrap=True)
