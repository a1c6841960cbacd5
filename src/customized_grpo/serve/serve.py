"""`cgrpo serve-reward`: build rewards and answer requests until interrupted."""

import socket
from collections.abc import Sequence

import torch
from rich.console import Console

from customized_grpo.config import ConfigError, RewardConfig
from customized_grpo.protocols import Reward
from customized_grpo.rewards import RewardError, build_reward
from customized_grpo.rewards.base import needs_of
from customized_grpo.rewards.endpoint import read_key
from customized_grpo.rewards.wire import TOKEN_VARIABLE, Limits, Offer

_SHORTEST_TOKEN = 16  # letters


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
    """Serve rewards until interrupted. Plain HTTP: between machines use a tunnel or a proxy with TLS.

    Args:
        rewards: Rewards to build.
        device: Device of rewards whose config names none.
        console: Console for the address.
        host: Address to listen on.
        port: Port to listen on, 0 for any.
        token_variable: Environment variable of the shared token.
        limits: Largest request.
        keep: Bytes of references and masks that are cached.

    Raises:
        ConfigError: A library is missing, or the address cannot be used.
        RewardError: The token is missing or short, or a reward cannot be built.
    """
    try:
        import uvicorn

        from customized_grpo.serve.app import build_app
        from customized_grpo.serve.connections import TimedProtocol
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"serve-reward needs {error.name}, which is not installed; pip install -e '.[serve]'"
        ) from error
    token = read_key(token_variable, "serve-reward", required=True)
    if len(token) < _SHORTEST_TOKEN:
        raise RewardError(
            f"serve-reward: {token_variable} has {len(token)} characters; give {_SHORTEST_TOKEN} or more, such as "
            "those of `openssl rand -hex 16`"
        )
    try:  # before any model is loaded
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port} cannot be used ({error.strerror}); give another") from error
    built = [(_offer(one, reward), reward) for one in rewards for reward in [build_reward(one, device)]]
    app = build_app(built, token, limits or Limits(), keep)
    address = f"[{host}]:{listening.getsockname()[1]}" if ":" in host else f"{host}:{listening.getsockname()[1]}"
    names = ", ".join(offer.name for offer, _ in built)
    console.print(f"serving {names} on http://{address}; stop it by Ctrl-C", soft_wrap=True)
    settings = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=64,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(settings).run(sockets=[listening])


def _offer(config: RewardConfig, reward: Reward) -> Offer:
    needs = needs_of(reward, reward.name)
    return Offer(name=reward.name, kind=config.kind, role=config.role, needs=None if needs is None else sorted(needs))
