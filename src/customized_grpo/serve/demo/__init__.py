"""A page to try a model on: a photo, a prompt, base and tuned side by side with their scores."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from customized_grpo.config import ConfigError
from customized_grpo.config.loading import load_config
from customized_grpo.trainer.folder import CONFIG, LORA, open_run

__all__ = ["serve_demo"]


def serve_demo(
    config: Sequence[Path], overrides: Sequence[str], run: Path | None, host: str, port: int, console: Console
) -> None:
    """Serve the page until interrupted: the base model, and beside it that of `run` where one is given.

    The run's own configuration holds where no other is given, as in `cgrpo generate`. The address that is printed has
    the token that the page asks for.

    Raises:
        ConfigError: Gradio is missing, the folder is no finished run, the token is no good, or the port is taken.
        ModelError: a model cannot be loaded.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the demo needs Gradio, which is not installed; pip install 'customized-grpo[demo]'")
    if run is not None:
        open_run(run)
    elif finished := sorted(Path("runs").glob(f"*/{LORA}"), key=lambda path: path.stat().st_mtime):
        console.print(f"the base model alone; to see a run beside it: cgrpo demo --lora {finished[-1].parent}")
    resolved = load_config(config or ([run / CONFIG] if run is not None else []), overrides)
    # Not at the top: Gradio takes seconds to import, and reads its environment as it is.
    from customized_grpo.serve.demo.guard import read_token
    from customized_grpo.serve.demo.page import serve
    from customized_grpo.serve.demo.studio import Studio

    token = read_token()
    serve(Studio(resolved, run), host, port, token, console)
