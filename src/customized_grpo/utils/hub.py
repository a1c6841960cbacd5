"""Paths of models: embedded in the package, in a local folder, or on the Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath

#: First part of the path of an embedded model.
EMBEDDED = "embedded"

#: The folder that holds the embedded models, one folder each.
EMBEDDED_FOLDER = Path(__file__).parents[1] / "embedded" / "models"


class ModelError(ValueError):
    """A model that cannot be used; the message is one line with the remedy."""


def is_embedded(path: str) -> bool:
    """Report whether a path of the configuration names an embedded model."""
    return PurePosixPath(path).parts[:1] == (EMBEDDED,)


def resolve(path: str) -> str | Path:
    """Return what `from_pretrained` accepts: the folder of "embedded/NAME", an existing folder, or a hub id.

    Raises ModelError if there is no such embedded model, or no such folder and the path cannot be a hub id.
    """
    parts = PurePosixPath(path).parts
    if parts and parts[0] == EMBEDDED:
        folder = EMBEDDED_FOLDER.joinpath(*parts[1:])
        if len(parts) < 2 or ".." in parts or not folder.is_dir():
            known = ", ".join(f"{EMBEDDED}/{name}" for name in embedded_models())
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


def loadable(path: str) -> str | Path:
    """Return `resolve(path)` once its model is in a folder or the Hub's cache, or the Hub answers.

    Raises ModelError at once if it cannot be had, where the Hub's own client would retry for 23 seconds.
    """
    source = resolve(path)
    if isinstance(source, Path):
        return source
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=source, repo_type="model"), "snapshots")
    reason = None
    if not any(folder.glob("*/*")):
        offline = "it is offline by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE"
        reason = offline if constants.HF_HUB_OFFLINE else _unreachable(constants.ENDPOINT)
    if reason is not None:
        raise ModelError(
            f"{path}: is not in the local cache, and the Hub cannot be reached ({reason}); connect once, or give a "
            "local folder"
        )
    return source


@cache
def _unreachable(endpoint: str) -> str | None:
    """Return why a server cannot be reached; None if it answers."""
    import httpx2

    try:
        httpx2.head(endpoint, timeout=5)
    except httpx2.HTTPError as error:
        return first_line(error)
    return None


def local_path(path: str | Path) -> Path:
    """Expand ~ in a path. Raises ModelError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ModelError(f"{str(path)!r}: {first_line(error)}; correct it") from error


def fingerprint(path: str, revision: str | None = None) -> str:
    """Return a text that changes when the files of a model do: names, sizes and times, or the Hub's commit.

    The commit is that of the local copy; without one, the revision stands for it. Raises ModelError, as `resolve`.
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
    """Make transformers refuse models with custom code instead of asking at the terminal.

    diffusers does not pass its `trust_remote_code=False` on to tokenizers and processors.
    """
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def embedded_models() -> dict[str, int]:
    """Return the size in bytes of each embedded model, by name."""
    folders = sorted(path for path in EMBEDDED_FOLDER.glob("*") if path.is_dir())
    return {folder.name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in folders}


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
