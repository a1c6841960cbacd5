"""The user's own code by path: `package.module:Name` or `file.py:Name`. The module is executed."""

import difflib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

#: Folders of code that is not the user's own: Python's, installed packages', this package's.
_NOT_OWN = (
    str(Path(__file__).parents[1]),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)


class NamedError(ValueError):
    """A path without a class or function; the message is one line with the remedy."""


def find(path: str) -> Any:
    """Import the class or function at `package.module:Name` or `file.py:Name`. Raises NamedError."""
    place, _, name = path.rpartition(":")
    if not place or not name:
        raise NamedError(f"{path!r} is not package.module:Class or file.py:function; give either")
    module = _load(place)
    found = getattr(module, name, None)
    if found is None:
        near = difflib.get_close_matches(name, dir(module), 1)
        hint = f"; did you mean {near[0]!r}?" if near else "; name a class or function that it defines"
        raise NamedError(f"{place} has no {name!r}{hint}")
    if not callable(found):
        raise NamedError(f"{path} is a {type(found).__name__}; name a class or function")
    return found


def error_text(error: BaseException) -> str:
    """Return an exception's type and message as one line of at most 300 letters, and where the user's code failed."""
    try:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    except Exception:  # of a type that cannot be shown
        text = type(error).__name__
    place = own_place(error)
    return f"{text}, at {place}" if place else text


def own_place(error: BaseException) -> str | None:
    """Return FILE:LINE of the last frame of an exception, or of its cause, that is in a file of the user's own."""
    cause: BaseException | None = error
    while cause is not None:
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            path = os.path.abspath(frame.filename)
            if os.path.isfile(path) and not any(Path(path).is_relative_to(folder) for folder in _NOT_OWN):
                near = os.path.relpath(path)
                return f"{path if near.startswith(os.pardir) else near}:{frame.lineno} in {frame.name}"
        cause = cause.__cause__
    return None


def _load(place: str) -> ModuleType:
    """Import a module by name, or from a .py file."""
    from customized_grpo.utils.isolation import isolated  # imports torch, which command lines need not wait for

    try:
        if not place.endswith(".py"):
            with isolated("import", place):
                return importlib.import_module(place)
        path = Path(place).expanduser()
        if not path.is_file():
            raise NamedError(f"there is no file {place}; paths start from the working directory")
        spec = importlib.util.spec_from_file_location(f"customized_grpo_own_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise NamedError(f"{place} is not a Python file")
        beside = str(path.resolve().parent)
        if beside not in sys.path:
            sys.path.append(beside)  # its own modules; last, so that none hides a library's
        module = importlib.util.module_from_spec(spec)
        with isolated("import", path.stem):
            spec.loader.exec_module(module)
        return module
    except (NamedError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        raise NamedError(
            f"{place} cannot be imported, because there is no module {error.name!r}; install it or correct the name"
        ) from error
    except BaseException as error:  # sys.exit(0) would pass for success
        raise NamedError(f"{place} cannot be imported ({error_text(error)}); correct it") from error
