"""Where models come from: the package's own folder of embedded ones, a local folder, or the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

#: A path that begins with this names a folder of the package's embedded models.
EMBEDDED = "embedded"

#: The folder that holds the embedded models, one folder each.
EMBEDDED_FOLDER = Path(__file__).parents[1] / "embedded" / "models"


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
    if not path:
        raise ModelError("'': no such folder; give a model's folder or a hub id")
    try:
        local = local_path(path)
        if local.is_dir():
            return local
        there = local.exists()
    except OSError as error:  # a name too long, a loop of links
        raise ModelError(
            f"{path!r}: cannot be read ({first_line(error)}); give a model's folder or a hub id"
        ) from error
    if there or len(parts) > 2 or path[0] in "/.~":
        raise ModelError(f"{path!r}: no such folder; give a model's folder or a hub id")
    return path


def local_path(path: str | Path) -> Path:
    """The path with ~ as the user's home. Raises ModelError where that is the home of nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ModelError(f"{str(path)!r}: {first_line(error)}; correct it") from error


def fingerprint(path: str, revision: str | None = None) -> str:
    """What changes when the files of a model do: names, sizes and times of a folder's, or the hub's commit.

    The commit is that of the local copy; where there is none yet, the path and the revision stand for it.

    Raises:
        ModelError: as `resolve` does.
    """
    source = resolve(path)
    if isinstance(source, Path):
        files = sorted(file for file in source.rglob("*") if file.is_file())
        return repr([(str(f.relative_to(source)), f.stat().st_size, f.stat().st_mtime_ns) for f in files])
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "model_index.json", revision=revision)
    return f"{source} {Path(found).parent.name if isinstance(found, str) else revision}"


@contextmanager
def no_code_of_its_own() -> Iterator[None]:
    """Inside it transformers refuses a part that brings code of its own, where it would ask at the terminal for leave.

    diffusers does not hand its own `trust_remote_code=False` on to tokenizers and processors, and without it
    transformers asks.
    """
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def embedded_models() -> dict[str, int]:
    """The embedded models by name, and the bytes that each one takes."""
    folders = sorted(path for path in EMBEDDED_FOLDER.glob("*") if path.is_dir())
    return {folder.name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in folders}


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
