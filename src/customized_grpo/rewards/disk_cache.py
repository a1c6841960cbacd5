"""Scores that were dear to get, kept on the disk under what they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from pathlib import Path

from customized_grpo.utils.records import write_json

_log = logging.getLogger(__name__)


def default_folder(kind: str) -> Path:
    """That of a kind of reward, inside the user's own cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "customized-grpo" / kind


class ScoreCache:
    """One small JSON file for each score, in `folder`; nothing is kept where that is None.

    Several processes may share a folder: files are replaced in one move. One that cannot be read counts as
    absent and is written anew. The folder has no bound of its own; it may be deleted at any time.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._complained = False

    @staticmethod
    def key(content: bytes) -> str:
        """The name of what a score depends on."""
        return hashlib.sha256(content).hexdigest()

    def get(self, key: str) -> float | None:
        """The score kept under a key; None where there is none."""
        if self._folder is None:
            return None
        try:
            score = json.loads(self._file(key).read_bytes())["score"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        fits = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        return float(score) if fits else None

    def put(self, key: str, score: float) -> None:
        """Keep a finite score. A disk that takes nothing is complained of once."""
        if self._folder is None:
            return
        try:
            write_json(self._file(key), {"score": score})
        except OSError as error:
            if not self._complained:
                _log.warning("%s: scores cannot be kept (%s); free or correct it", self._folder, error.strerror)
            self._complained = True

    def _file(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / key[:2] / f"{key}.json"
