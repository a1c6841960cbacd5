"""A page to try a model on: photos, a prompt, base and tuned model side by side with their scores."""

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
    """Serve the page until interrupted, and print its address with the token that it requires.

    Raises ConfigError if Gradio is missing, the folder is no finished run, the token is invalid, or the port is in use,
    and ModelError if a model cannot be loaded.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the demo needs Gradio, which is not installed; pip install -e '.[demo]'")
    if run is not None:
        open_run(run)
    elif finished := sorted(Path("runs").glob(f"*/{LORA}"), key=lambda path: path.stat().st_mtime):
        console.print(f"the base model only; to compare a run with it: cgrpo demo --run {finished[-1].parent}")
    resolved = load_config(config or ([run / CONFIG] if run is not None else []), overrides)
    # Not at the top: Gradio takes seconds to import, and reads its environment variables then.
    from customized_grpo.serve.demo.guard import read_token
    from customized_grpo.serve.demo.page import serve
    from customized_grpo.serve.demo.studio import Studio

    token = read_token()
    serve(Studio(resolved, run), host, port, token, console)
