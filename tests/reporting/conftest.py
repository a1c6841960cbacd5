"""A short run whose prompts try to break out of the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import cgrpo
from PIL import Image
from test_cli import settings

#: Shown on the page as text.
PROMPTS = (
    "a dog <script>document.title='broken'</script> in the snow",
    'a cat\'s "hat" & <img src=x onerror=alert(1)>',
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of three iterations. Tests must not change it."""
    folder = tmp_path_factory.mktemp("report")
    lines = []
    for i, prompt in enumerate(PROMPTS):
        image = Image.radial_gradient("L") if i else Image.linear_gradient("L")
        Image.merge("RGB", [image, image.rotate(90), image.rotate(180)]).save(folder / f"{i}.jpg")
        lines.append(json.dumps({"prompt": prompt, "references": [f"{i}.jpg"]}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    short = settings("train.iterations=3", "train.updates=2", "train.sample_every=1")
    done = cgrpo("train", "--data", "pairs.jsonl", "--out", "run", *short, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout.replace("\n", "")
    return folder / "run"


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """Copy of the run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "tensor*")))
