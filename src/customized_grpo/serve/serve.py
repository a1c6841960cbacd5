"""`cgrpo serve-reward`: rewards built, a port taken, requests answered until it is stopped."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import torch
from rich.console import Console

from customized_grpo.config import ConfigError, RewardConfig
from customized_grpo.protocols import Reward
from customized_grpo.rewards import build_reward
from customized_grpo.rewards.endpoint import read_key
from customized_grpo.rewards.needs import needs_of
from customized_grpo.rewards.wire import TOKEN_VARIABLE, Limits, Offer

_CONNECTIONS = 64  # at a time; more are turned away with status 503


def serve(
    rewards: Sequence[RewardConfig],
    device: torch.device,
    console: Console,
    *,
    host: str = "127.0.0.1",
    port: int = 8600,
    token_variable: str = TOKEN_VARIABLE,
    limits: Limits | None = None,
    keep: int = 2**30,
) -> None:
    """Serve rewards until interrupted.

    Plain HTTP: between machines use a tunnel or a proxy that speaks TLS. Raises ConfigError, RewardError or OSError,
    one line, where the libraries, the token, the port or a reward are wanting.
    """
    try:
        import uvicorn

        from customized_grpo.serve.app import build_app
        from customized_grpo.serve.connection import PunctualProtocol
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"serve-reward needs {error.name}, which is not installed; pip install 'customized-grpo[serve]'"
        ) from error
    token = read_key(token_variable, "serve-reward", required=True)
    listening = _listen(host, port)
    built = [(_offer(one, reward), reward) for one in rewards for reward in [build_reward(one, device)]]
    app = build_app(built, token, limits or Limits(), keep)
    address = f"[{host}]" if ":" in host else host
    names = ", ".join(offer.name for offer, _ in built)
    console.print(
        f"serving {names} on http://{address}:{listening.getsockname()[1]}; stop it by Ctrl-C", soft_wrap=True
    )
    settings = uvicorn.Config(
        app,
        http=PunctualProtocol,
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(settings).run(sockets=[listening])


def _offer(config: RewardConfig, reward: Reward) -> Offer:
    needs = needs_of(reward, reward.name)
    return Offer(name=reward.name, kind=config.kind, role=config.role, needs=None if needs is None else sorted(needs))


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, taken before anything is loaded."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--host {host} --port {port} cannot be listened on ({reason}); give another") from error
