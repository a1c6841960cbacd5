"""Links that lead out of the documents' folder, to code and recipes: on the site their text alone, or to `repo_url`."""

import posixpath
import re
from typing import Any

_OUTWARD = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]*)(#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Called by MkDocs for each page."""
    repository = (config.repo_url or "").rstrip("/")
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def rewritten(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[2]))
        return f"[{link[1]}]({repository}/blob/main/{path})" if repository else f"{link[1]} (`{path}`)"

    return _OUTWARD.sub(rewritten, markdown)
