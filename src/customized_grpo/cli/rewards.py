"""Commands of rewards by themselves: on files, or served to trainings elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from customized_grpo.cli.app import ConfigOption, SetOption, app, one_line_errors

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
    with one_line_errors():
        from customized_grpo.cli.choice import choose, read_choices
        from customized_grpo.evaluation.files import find_pictures, read_pair, score_files, show, write_csv
        from customized_grpo.utils.devices import device_of
        from customized_grpo.utils.records import check_place

        if out is not None:
            check_place(out, "--out")
        resolved, source = read_choices(config or [], run, set_ or [])
        chosen = choose(reward or [], resolved, source=source, path=path, options=option or [], role=role)
        files = find_pictures(image or [], images)
        pair = read_pair(prompt, reference or [], mask or [], subject)
        scores = score_files(chosen, device_of(resolved.policy.device), files, pair)
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
    with one_line_errors():
        from customized_grpo.cli.choice import choose, read_choices
        from customized_grpo.rewards.wire import Limits
        from customized_grpo.serve.serve import serve
        from customized_grpo.utils.devices import device_of

        resolved, source = read_choices(config or [], run, set_ or [])
        chosen = choose(reward or [], resolved, source=source, path=path, options=option or [], role=role)
        serve(
            chosen,
            device_of(resolved.policy.device),
            Console(),
            host=host,
            port=port,
            token_variable=token_variable,
            limits=Limits(images=max_images, pixels=max_pixels, bytes=max_bytes),
            keep=keep,
        )
