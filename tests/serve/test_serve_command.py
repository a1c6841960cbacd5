"""`cgrpo serve-reward` as a user starts it, and a reward that is far from it."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from customized_grpo.cli import app
from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards import build_reward
from customized_grpo.rewards.wire import TOKEN_VARIABLE

TOKEN = "token-of-the-command-9876"
COMMAND = [sys.executable, "-m", "customized_grpo", "serve-reward"]


def test_a_reward_of_a_file_is_served_until_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    (tmp_path / "run.yaml").write_text(
        "evaluation: {monitors: [{kind: 'mine.py:brightness', role: guard, name: bright, options: {factor: 3.0}}]}\n"
    )
    (tmp_path / "mine.py").write_text(
        "def brightness(images, pairs, factor):\n    return factor * images.mean((1, 2, 3))\n"
        "brightness.needs = ('prompt',)\n"
    )
    arguments = ["--config", "run.yaml", "--reward", "bright", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        [*COMMAND, *arguments], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.stdout is not None and server.stderr is not None
    try:
        assert select.select([server.stdout], [], [], 120)[0]
        line = server.stdout.readline()
        found = re.fullmatch(r"serving bright on (http://127\.0\.0\.1:\d+); stop it by Ctrl-C\n", line)
        assert found, line + (server.stderr.read() if server.poll() is not None else "")
        options = {"url": found[1], "reward": "bright"}
        for _ in range(100):
            try:
                reward = build_reward(RewardConfig(kind="remote", role="prompt", options=options), "cpu")
                break
            except ValueError:
                time.sleep(0.05)
        assert reward.needs == ["prompt"]
        images = torch.full((2, 3, 4, 4), 51 / 255)
        assert reward(images, [Pair("a", "a cat", (), ())] * 2).tolist() == pytest.approx([0.6, 0.6])
        server.send_signal(signal.SIGINT)
        out, message = server.communicate(timeout=120)
    finally:
        server.kill()
    assert server.returncode in (0, 130) and "Traceback" not in message
    assert TOKEN not in line + out + message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "copy-paste", "--token-variable", "NOT_SET"], "NOT_SET is not set"),
        (["--reward", "copy-paste", "--port", "{port}"], "cannot be used"),
        (["--reward", "copy-paste", "--host", "no such host"], "--host no such host --port 8600 cannot be used"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = [part.replace("{port}", str(taken.getsockname()[1])) for part in arguments]
        done = CliRunner().invoke(app, ["serve-reward", *given])
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("error:") and message in line and TOKEN not in done.output


def test_a_token_that_could_be_guessed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "fifteen-letters")
    done = CliRunner().invoke(app, ["serve-reward", "--reward", "copy-paste", "--role", "guard", "--port", "0"])
    assert done.exit_code == 2
    assert f"{TOKEN_VARIABLE} has 15 characters; give 16 or more" in done.stderr


def test_a_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    monkeypatch.delitem(sys.modules, "customized_grpo.serve.app", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = CliRunner().invoke(app, ["serve-reward", "--reward", "copy-paste", "--port", "0"])
    assert done.exit_code == 2
    assert "serve-reward needs fastapi, which is not installed; pip install -e '.[serve]'" in done.stderr
