"""Entry point of `cgrpo` and `python -m customized_grpo`."""

from customized_grpo.utils.interrupts import leave_at_once, note_interrupts


def main() -> None:
    """Run the `cgrpo` command. Ctrl-C is one line from here on, also while the command is imported."""
    note_interrupts()
    try:
        from customized_grpo.cli import main as run

        run()
    except KeyboardInterrupt:  # which a command handles itself: outside of it
        leave_at_once()


if __name__ == "__main__":
    main()
