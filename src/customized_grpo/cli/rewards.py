"""Commands of rewards by themselves: score files, or serve rewards to other machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.cli.app import Overwrite, Settings, command
from customized_grpo.utils.terminal import plain_console

if TYPE_CHECKING:
    import torch

    from customized_grpo.config import RewardConfig

#: A setting that accepts any one reward.
_PLACE = "evaluation.monitors"


@dataclass(frozen=True)
class Rewards:
    """Options that choose rewards: by name from a configuration or run, or a kind with its options."""

    reward: Annotated[
        list[str] | None,
        typer.Option(help="Name of a reward of --run or --config, or a kind; may be repeated. Default: all of them."),
    ] = None
    path: Annotated[str | None, typer.Option(help="Model of a kind: hub id, folder, or name at an endpoint.")] = None
    option: Annotated[
        list[str] | None, typer.Option("--option", help="One option of a kind; may be repeated.", metavar="KEY=VALUE")
    ] = None
    role: Annotated[str | None, typer.Option(help="Role of a kind: identity (default), prompt or guard.")] = None
    run: Annotated[Path | None, typer.Option(help="Use the rewards of this run.")] = None

    def choose(self, settings: Settings) -> tuple[list[RewardConfig], torch.device]:
        """Return the chosen rewards and the device for them. Raises ConfigError."""
        from customized_grpo.config import ConfigError
        from customized_grpo.config.loading import load_config
        from customized_grpo.trainer.folder import CONFIG, open_run
        from customized_grpo.utils.devices import device_of

        names, files, run = self.reward or [], settings.files, self.run
        if files and run is not None:
            raise ConfigError("--config and --run are both given; keep one")
        if run is not None:
            open_run(run)
        config = load_config(files if run is None else run / CONFIG, settings.overrides)
        source = str(run) if run is not None else " and ".join(map(str, files))
        is_kind = self.path is not None or bool(self.option) or self.role is not None
        if source and is_kind:
            raise ConfigError(f"--path, --option and --role describe a kind; change a reward of {source} by --set")
        if is_kind and len(names) != 1:
            raise ConfigError("--path, --option and --role describe one kind; give one --reward")
        if not names and not source:
            raise ConfigError("no --reward; give a kind such as dino, or --config or --run to use all of its rewards")
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"--reward {repeated!r} is given twice; give it once")
        known = {one.name or one.kind: one for one in (*config.rewards, *config.evaluation.monitors)}
        unknown = [name for name in names if name not in known]
        if source and unknown:
            raise ConfigError(f"--reward {unknown[0]!r}: {source} has no such reward; it has {', '.join(known)}")
        chosen = [known[name] if name in known and not is_kind else self._of_kind(name) for name in names or known]
        return chosen, device_of(config.policy.device)

    def _of_kind(self, kind: str) -> RewardConfig:
        """Read the options of a kind in the same way as `--set`."""
        from customized_grpo.config import ConfigError
        from customized_grpo.config.loading import load_config
        from customized_grpo.config.reading import flow_yaml

        described = flow_yaml([{"kind": kind, "role": self.role or "identity", "path": self.path}])
        options = [f"{_PLACE}.0.options.{option}" for option in self.option or []]
        try:
            return load_config(None, [f"{_PLACE}={described}", *options]).evaluation.monitors[0]
        except ConfigError as error:
            raise ConfigError(
                *(line.replace(f"--set {_PLACE}.0.options.", "--option ") for line in error.problems)
            ) from error


@command
def score(
    rewards: Rewards,
    settings: Settings,
    prompt: Annotated[str, typer.Option(help="What the images should show.")],
    image: Annotated[list[Path] | None, typer.Option(help="Image to score; may be repeated.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images to score.")] = None,
    reference: Annotated[list[Path] | None, typer.Option(help="Photo of the subject; may be repeated.")] = None,
    mask: Annotated[list[Path] | None, typer.Option(help="Mask of the subject; one per reference.")] = None,
    subject: Annotated[str | None, typer.Option(help="The subject in a word, to find it and for VLM rewards.")] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file to write. Default: show a table.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Score images by rewards, as a training would.

    [dim]cgrpo score --reward dino --image a.png --reference b.jpg --prompt "a dog in the snow"[/dim]

    [dim]cgrpo score --run runs/mine --images folder --reference b.jpg --prompt "a dog" --out scores.csv[/dim]
    """
    from customized_grpo.evaluation.files import find_images, read_pair, score_files, show, write_csv
    from customized_grpo.trainer.folder import check_output

    chosen, device = rewards.choose(settings)
    files = find_images(image or [], images)
    if out is not None:
        given = [*files, *(reference or []), *(mask or []), *settings.files]
        check_output(out, overwrite=overwrite, inputs=given)
    pair = read_pair(prompt, reference or [], mask or [], subject)
    scores = score_files(chosen, device, files, pair)
    if out is None:
        show(plain_console(), files, scores)
    else:
        write_csv(out, files, scores)
        plain_console().print(f"wrote {out}")


@command
def serve_reward(
    rewards: Rewards,
    settings: Settings,
    host: Annotated[str, typer.Option(help="Address to listen on; any but this machine's own is open to others.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8600,
    token_variable: Annotated[
        str, typer.Option(help="Environment variable with the token that clients must send.")
    ] = "CGRPO_REWARD_TOKEN",  # noqa: S107, a name
    max_images: Annotated[int, typer.Option(min=1, help="Maximum number of images per request.")] = 64,
    max_pixels: Annotated[int, typer.Option(min=1, help="Maximum pixels of an image, reference or mask.")] = 2**22,
    max_bytes: Annotated[int, typer.Option(min=1, help="Maximum bytes of a request.")] = 2**26,
    keep: Annotated[int, typer.Option(min=0, help="Bytes of references to cache.")] = 2**30,
) -> None:
    """Serve rewards to trainings on other machines, which use them by kind [b]remote[/b].

    [dim]cgrpo serve-reward --reward dino --path facebook/dinov2-base[/dim]

    [dim]cgrpo serve-reward --config run.yaml --reward identity --port 8600[/dim]
    """
    from customized_grpo.rewards.wire import Limits
    from customized_grpo.serve.serve import serve

    chosen, device = rewards.choose(settings)
    limits = Limits(images=max_images, pixels=max_pixels, bytes=max_bytes)
    serve(
        chosen, device, plain_console(), host=host, port=port, token_variable=token_variable, limits=limits, keep=keep
    )


@command
def convert_hps(
    file: Annotated[Path, typer.Argument(help="HPS_v2.1_compressed.pt or HPS_v2_compressed.pt of xswu/HPSv2.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must be empty or new.")],
    tokenizer: Annotated[
        str, typer.Option(help="Hub id or folder of the tokenizer.")
    ] = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
) -> None:
    """Convert the published weights of HPS v2.1 to safetensors, for the reward kind [b]hps-v2[/b].

    This is the only command that reads a pickle. It refuses a file with anything but tensors and runs no code of it.

    [dim]cgrpo convert-hps HPS_v2.1_compressed.pt --out models/hps-v2.1[/dim]
    """
    from customized_grpo.rewards.hps_v2 import convert_hps_v2

    convert_hps_v2(file, out, tokenizer)
    plain_console().print(f"wrote {out}; use it as {{kind: hps-v2, role: prompt, path: {out}}}")
