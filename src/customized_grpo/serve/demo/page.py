"""The page, made with Gradio. It loads nothing from other hosts and generates for one request at a time."""

import math
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from customized_grpo.config import ConfigError
from customized_grpo.serve.demo.guard import Guard
from customized_grpo.serve.demo.studio import MOST_BYTES, MOST_LETTERS, MOST_PHOTOS, Column, Studio, read_photos
from customized_grpo.utils.memory import is_out_of_memory
from customized_grpo.utils.tables import markdown_table, markdown_text
from customized_grpo.utils.terminal import ABSENT

_WAITING = 16  # requests in the queue; more are refused
_STORED = 3600  # seconds after which uploads are removed
_LOCAL = ("127.0.0.1", "localhost")

Sent = Sequence[tuple[str, str | None]] | None
"""A gallery's files: (path, caption)."""


def serve(studio: Studio, host: str, port: int, token: str, console: Console) -> None:
    """Serve the page until interrupted, for requests with the token. Raise ConfigError if the port is in use."""
    middleware = [Middleware(Guard, token=token, port=port)]
    if host in _LOCAL:  # refuse other host names that lead here (DNS rebinding)
        middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=list(_LOCAL)))
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    with tempfile.TemporaryDirectory(prefix="cgrpo-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(studio)
        page.queue(max_size=_WAITING, default_concurrency_limit=1)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MOST_BYTES,
                ssr_mode=False,
                footer_links=[],
                # Text with enough contrast.
                theme=theme.set(body_text_color_subdued="*neutral_600", input_placeholder_color="*neutral_500"),
                app_kwargs={"middleware": middleware},
            )
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}, port {port}; give another --host or --port") from error
        console.print(f"open {url}?token={token}", soft_wrap=True)
        if host not in _LOCAL:
            console.print(f"anyone who can reach {host} and has this token can use the page", soft_wrap=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the temporary folder is removed
        page.block_thread()


def build_page(studio: Studio) -> gr.Blocks:
    """Build the page."""
    models = "base and tuned model side by side, from the same noise" if studio.tuned else "the base model only"
    heads = ["score", "base", "tuned", "change"] if studio.tuned else ["score", "base"]
    with gr.Blocks(title="Customized-GRPO", analytics_enabled=False, delete_cache=(_STORED // 6, _STORED)) as page:
        gr.HTML(f"<h1>This subject, that prompt</h1><p>{escape(studio.model)}: {models}.</p>", elem_id="heading")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                # By path, because uploads must not be decoded by Gradio.
                photos = gr.Gallery(
                    label=f"Photos of the subject, up to {MOST_PHOTOS}", elem_id="photos", type="filepath", height=220,
                    file_types=["image"], sources=["upload", "clipboard"], columns=3, fit_columns=False,
                    object_fit="contain", buttons=[], interactive=True,
                )  # fmt: skip
                prompt = gr.Textbox(
                    label="Prompt", lines=2, max_length=MOST_LETTERS, elem_id="prompt",
                    placeholder="a dog wearing a red hat in the snow",
                )  # fmt: skip
                draw = gr.Button("Generate", variant="primary", elem_id="draw")
                steps = gr.Slider(1, max(100, studio.steps), studio.steps, step=1, label="Steps")
                images = gr.Slider(1, 4, 1, step=1, label="Images")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
            with gr.Column(scale=6, min_width=320):
                shown = gr.Gallery(
                    label="Images", columns=len(heads) // 2, object_fit="contain", format="png", interactive=False,
                    elem_id="results",
                )  # fmt: skip
                scores = gr.Markdown(elem_id="scores")

        def answer(sent: Sent, text: str, seed: int | None, steps: float, images: float) -> tuple[list[Any], str]:
            columns = studio.generate_columns(text, _photos(sent), seed=seed or 0, steps=int(steps), images=int(images))
            # A row for each noise, a column for each model.
            captioned = [(column.images[i], column.name) for i in range(int(images)) for column in columns]
            return captioned, markdown_table(heads, _table(columns))

        def check(sent: Sent) -> None:
            _photos(sent)

        event: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        inputs, outputs = [photos, prompt, seed, steps, images], [shown, scores]
        gr.on([draw.click, prompt.submit], _one_line_errors(answer), inputs, outputs, trigger_mode="once", **event)
        photos.upload(_one_line_errors(check), photos, **event).failure(lambda: None, None, photos, **event)
    return page


def _photos(sent: Sent) -> list[Image.Image]:
    return read_photos([Path(path) for path, _ in sent or ()])


def _table(columns: Sequence[Column]) -> list[list[str]]:
    """Return the mean of each score, and its change."""
    rows = []
    for name in columns[0].scores:
        means = []
        for column in columns:
            known = [value for value in column.scores[name] if math.isfinite(value)]
            means.append(sum(known) / len(known) if known else math.nan)
        cells = [f"{mean:.1f}" for mean in means] + [f"{mean - means[0]:+.1f}" for mean in means[1:]]
        rows.append([markdown_text(name), *(ABSENT if cell.endswith("nan") else cell for cell in cells)])
    return rows


def _one_line_errors(action: Callable[..., Any]) -> Callable[..., Any]:
    """Show errors of the action as one line on the page."""

    @wraps(action)
    def shown(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except (ValueError, OSError) as error:
            raise gr.Error(escape(" ".join(str(error).split())), duration=None, print_exception=False) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            message = "out of memory; ask for fewer images"
            raise gr.Error(message, duration=None, print_exception=False) from error

    return shown
