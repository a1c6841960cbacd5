"""What a page needs to be one of the site.

Links that lead out of the documents' folder, to code and recipes, are their text alone, or lead to `repo_url`. A mark
after a code block's language, such as a file's name, is its title or nothing: with it the block would not be one, and
swallow the headings after it.
"""

import posixpath
import re
from typing import Any

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

    return _OUTWARD.sub(rewritten, _MARKED.sub(plain, markdown))
