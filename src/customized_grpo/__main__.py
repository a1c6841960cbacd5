"""Entry point of `cgrpo` and `python -m customized_grpo`."""

from customized_grpo.utils.interrupts import note_interrupts


def main() -> None:
    """Run the `cgrpo` command. Ctrl-C is one line from here on, also while the command is imported."""
    note_interrupts()
    from customized_grpo.cli import main as run

    run()


if __name__ == "__main__":
    main()
