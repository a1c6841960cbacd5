"""Entry point of `python -m customized_grpo`, the same as `cgrpo`."""

from customized_grpo.cli import main

main()
