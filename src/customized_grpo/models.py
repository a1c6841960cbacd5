"""Where models come from: the package's own folder of embedded ones, a local folder, or the hub."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from customized_grpo.config import EMBEDDED

#: The folder that holds the embedded models, one folder each.
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"


class ModelError(ValueError):
    """A model that cannot be used; its text is one line that names what is wrong and the remedy."""


def resolve(path: str) -> str | Path:
    """What a library's `from_pretrained` takes for a `path` of the configuration.

    "embedded/NAME" is the folder NAME inside the package, whatever the working directory holds; an
    existing local folder stays; anything else of the form "name" or "owner/name" is a hub id.

    Raises:
        ModelError: no such embedded model, or a path that can only be local and is not there.
    """
    parts = PurePosixPath(path).parts
    if parts and parts[0] == EMBEDDED:
        folder = EMBEDDED_FOLDER.joinpath(*parts[1:])
        if len(parts) < 2 or ".." in parts or not folder.is_dir():
            names = sorted(p.name for p in EMBEDDED_FOLDER.glob("*") if p.is_dir())
            known = ", ".join(f"{EMBEDDED}/{name}" for name in names) or "none"
            raise ModelError(f"{path}: no such embedded model; there are: {known}")
        return folder
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if not path or local.exists() or len(parts) > 2 or path[0] in "/.~":
        raise ModelError(f"{path!r}: no such folder; give a model's folder or a hub id")
    return path


def embedded_models() -> dict[str, int]:
    """The embedded models by name, and the bytes that each one takes."""
    folders = sorted(path for path in EMBEDDED_FOLDER.glob("*") if path.is_dir())
    return {folder.name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in folders}


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
