"""Commands that tune a model, and draw with what was tuned."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from customized_grpo.cli.app import ConfigOption, SetOption, app, one_line_errors

_EMBEDDED = (
    "recipe: embedded, a small model on a built-in world; for a real one: cgrpo train "
    "--set policy.path=black-forest-labs/FLUX.1-Kontext-dev --data pairs.jsonl"
)


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

    [dim]cgrpo train --set policy.path=black-forest-labs/FLUX.1-Kontext-dev --data pairs.jsonl[/dim]

    [dim]cgrpo train --config run.yaml --set train.learning_rate=1e-4[/dim]

    [dim]cgrpo train --data path/to/dreambench[/dim]

    [dim]cgrpo train --resume runs/2026-01-31_12-00-00[/dim]
    """
    with one_line_errors():
        from customized_grpo.config import ConfigError
        from customized_grpo.config.loading import resolve_config
        from customized_grpo.trainer.folder import check_unused, new_folder, open_run

        if resume is not None:
            if config or set_ or data is not None or out:
                raise ConfigError("--resume goes on with the run's own settings; leave the other options out")
            run, resolved = resume, open_run(resume)
        else:
            quoted = json.dumps(data, ensure_ascii=False)  # a text, whatever YAML would make of it
            given = [] if data is None else [f"data.path={quoted}"]
            overrides = [*given, *(set_ or [])]
            found, run = resolve_config(config, overrides), out or new_folder(Path("runs"))
            check_unused(run)
            resolved = found.config
            if found.embedded and os.environ.get("RANK", "0") == "0":  # a launcher's number of this process
                Console().print(_EMBEDDED, highlight=False)
        from customized_grpo.cli.run import train_run  # seconds, which a mistake above need not wait for

        train_run(resolved, run, Console(), resume=resume is not None)


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
    with one_line_errors():
        from customized_grpo.config.loading import load_config
        from customized_grpo.data.pictures import check_suffix, load
        from customized_grpo.trainer.folder import CONFIG, open_run
        from customized_grpo.utils.prompts import check_prompt
        from customized_grpo.utils.records import check_place

        check_prompt(prompt, "--prompt")
        check_suffix(out, "--out")
        check_place(out, "--out")
        pictures = [load(path) for path in reference]
        if run is not None:
            open_run(run)
        resolved = load_config(config or ([] if run is None else run / CONFIG), set_ or [])
        from customized_grpo.evaluation.generate import generate as draw
        from customized_grpo.trainer.parts import policy_with_adapter

        policy = policy_with_adapter(resolved, run)
        out.parent.mkdir(parents=True, exist_ok=True)
        drawn = draw(policy, prompt, pictures, steps=steps, seed=seed, images=images)
        for i, picture in enumerate(drawn):
            path = out if images == 1 else out.with_stem(f"{out.stem}-{i + 1}")
            picture.save(path)
            Console().print(f"wrote {path}")
