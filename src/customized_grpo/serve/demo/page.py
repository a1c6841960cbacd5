"""The page itself, by Gradio: asks nothing of other hosts, tells nothing to them, and draws one thing at a time."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported

import gradio as gr
from PIL import Image
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from customized_grpo.config import ConfigError
from customized_grpo.serve.demo.guard import Guard
from customized_grpo.serve.demo.results import EMPTY, error_line, results
from customized_grpo.serve.demo.studio import (
    MOST_REFERENCES,
    MOST_WORDS,
    Ask,
    Studio,
)
from customized_grpo.serve.demo.uploads import MOST_BYTES, read_masks, read_photos, rewrite_photos

_WAITING = 16  # drawings in the queue; more are refused
_KEPT = 3600  # seconds that uploads stay on the disk, at most
_LOCAL = ("127.0.0.1", "localhost")
# Everything from here and inline, nothing from elsewhere: what Gradio or a library of its would fetch, is blocked.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)

Sent = Sequence[tuple[str, str | None]] | None
"""A gallery's files as Gradio hands them over: (path, caption)."""


def serve(studio: Studio, host: str, port: int, token: str, console: Console) -> None:
    """Serve the page until interrupted, to those who have the token. Raises ConfigError where the port is taken."""
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
                enable_monitoring=False,
                mcp_server=False,
                pwa=False,
                footer_links=[],
                theme=gr.themes.Base(
                    primary_hue="blue",
                    neutral_hue="slate",
                    font=["system-ui", "sans-serif"],
                    font_mono=["ui-monospace", "monospace"],
                ).set(body_text_color_subdued="*neutral_600", input_placeholder_color="*neutral_500"),  # contrast
                css_paths=Path(__file__).with_name("page.css"),
                app_kwargs={"middleware": _middleware(host, port, token)},
            )
        except OSError as error:
            raise ConfigError(f"cannot listen at {host}, port {port}; give another --host or --port") from error
        console.print(f"open {url}?token={token}", soft_wrap=True)
        if host not in _LOCAL:
            console.print(f"whoever reaches {host} and has this token can use the page", soft_wrap=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # also then the folder is to be removed
        page.block_thread()


def build_page(studio: Studio) -> gr.Blocks:
    """The page, not served yet."""
    with gr.Blocks(title="Customized-GRPO", analytics_enabled=False, delete_cache=(_KEPT // 6, _KEPT)) as page:
        models = "base and tuned side by side, from the same noise" if studio.tuned else "the base model alone"
        gr.HTML(
            f"<h1>This subject, that prompt</h1><p>{escape(studio.model)}: {models}.</p>",
            elem_id="heading",
            padding=False,
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                photos = _gallery(f"Photos of the subject, up to {MOST_REFERENCES}", "photos", 220)
                prompt = gr.Textbox(
                    label="Prompt", lines=2, max_length=MOST_WORDS, placeholder="a dog wearing a red hat in the snow",
                    elem_id="prompt",
                )  # fmt: skip
                draw = gr.Button("Draw", variant="primary", elem_id="draw")
                message = gr.HTML(elem_id="message", padding=False)
                # Their bounds are those of `Ask`, whose line of error says more than Gradio's.
                with gr.Row():
                    steps = gr.Number(studio.steps, label="Steps", precision=0, min_width=80, elem_id="steps")
                    images = gr.Number(1, label="Pictures", precision=0, min_width=80, elem_id="images")
                    seed = gr.Number(0, label="Seed", precision=0, min_width=80, elem_id="seed")
                with gr.Accordion("Masks", open=False):
                    gr.Markdown("White on the subject, one for each photo, in their order. Only judges look at them.")
                    masks = _gallery("Masks", "masks", 160)
            with gr.Column(scale=6, min_width=320):
                shown = gr.HTML(EMPTY, elem_id="results", padding=False)

        def answer(
            sent: Sent, text: str, seed: int | None, steps: int | None, images: int | None, sent_masks: Sent
        ) -> tuple[str, str]:
            pictures = read_photos(_paths(sent))
            drawn_masks = read_masks(_paths(sent_masks), pictures)
            ask = Ask(text or "", pictures, drawn_masks, seed or 0, steps or 0, images or 0)
            return "", results(studio.draw(ask), studio.guards)

        event: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        inputs = [photos, prompt, seed, steps, images, masks]
        gr.on(
            [draw.click, prompt.submit],
            _told(answer, EMPTY),
            inputs,
            [message, shown],
            show_progress="full",
            show_progress_on=[shown],
            trigger_mode="once",
            **event,
        )
        for gallery in (photos, masks):
            gallery.upload(_told(_reencoded, None), gallery, [message, gallery], **event)
    return page


def _gallery(label: str, name: str, height: int) -> gr.Gallery:
    # By path: Gradio is not to decode what was sent. PNG: what it writes itself is without loss.
    return gr.Gallery(
        label=label, elem_id=name, type="filepath", format="png", file_types=["image"], interactive=True,
        sources=["upload", "clipboard"], columns=3, fit_columns=False, height=height,
        object_fit="contain", buttons=[],
    )  # fmt: skip


def _reencoded(sent: Sent) -> tuple[str, list[Image.Image]]:
    """What was sent, decoded, to be written again as PNG."""
    return "", rewrite_photos(_paths(sent))


def _paths(sent: Sent) -> list[Path]:
    return [Path(path) for path, _ in sent or ()]


def _told(action: Callable[..., tuple[str, Any]], instead: Any) -> Callable[..., tuple[str, Any]]:
    """The action, its errors as the page's one line, with `instead` as its result."""

    def tell(*arguments: Any) -> tuple[str, Any]:
        try:
            return action(*arguments)
        except (ValueError, OSError) as error:
            return error_line(str(error)), instead

    return tell


def _middleware(host: str, port: int, token: str) -> list[Middleware]:
    guards = [Middleware(_Headers)]
    if host in _LOCAL:  # another site's name that leads here (DNS rebinding) is refused
        guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(_LOCAL)))
    return [*guards, Middleware(Guard, token=token, port=port)]


class _Headers:
    """Sends `_POLICY` along with every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, with_headers)
