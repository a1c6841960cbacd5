"""MkDocs hook: links out of the documents' folder, titles of code blocks, and the reference of commands.

Links to code and recipes lead to `repo_url`, or become plain text without one. A name after a code block's language
becomes its title; Markdown would otherwise not recognise the block.
"""

import posixpath
import re
from typing import Any

_COMMANDS = "<!-- commands -->"
_MARKED = re.compile(r"^```(\w+) (\S+)$", re.MULTILINE)
_OUTWARD = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]*)(#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Called by MkDocs for each page."""
    repository = (config.repo_url or "").rstrip("/")
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def rewritten(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[2]))
        return f"[{link[1]}]({repository}/blob/main/{path})" if repository else f"{link[1]} (`{path}`)"

    def plain(block: re.Match[str]) -> str:
        return f'```{block[1]} title="{block[2]}"' if "." in block[2] else f"```{block[1]}"

    markdown = markdown.replace(_COMMANDS, commands() if _COMMANDS in markdown else "")
    return _OUTWARD.sub(rewritten, _MARKED.sub(plain, markdown))


def commands() -> str:
    """Return the help of all commands as Markdown."""
    from typer import Context
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from customized_grpo.cli import app

    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=Context(command), name="cgrpo")
    text = text.split("## ", 1)[1]  # without the application's own heading
    text = re.sub(r"\[dim\](.*?)\[/dim\]", r"```bash\n\1\n```", text)
    return "## " + re.sub(r"\[/?b\]", "**", text)
