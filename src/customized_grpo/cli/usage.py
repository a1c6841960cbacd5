"""Options and arguments that do not fit: one line of error, as for all other bad input, not a page of usage."""

from __future__ import annotations

import sys
from typing import Any

from typer.core import TyperGroup

from customized_grpo.utils.terminal import print_error


class OneLineGroup(TyperGroup):
    """Commands whose errors of usage are one line, which names the command, and exit code 2."""

    def main(self, *arguments: Any, **further: Any) -> Any:
        if not further.get("standalone_mode", True):
            return super().main(*arguments, **further)
        try:
            code = super().main(*arguments, **{**further, "standalone_mode": False})
        except Exception as error:
            # Not by type: some releases of Typer bring their own copy of Click, whose errors are others.
            say = getattr(error, "format_message", None)
            if say is None:
                raise
            if type(error).__name__ != "NoArgsIsHelpError":  # which has shown the help
                context = getattr(error, "ctx", None)
                command = f"{context.command_path}: " if context is not None else ""
                print_error(f"{command}{say().rstrip('.')}; see --help")
            sys.exit(getattr(error, "exit_code", 2))
        sys.exit(code if isinstance(code, int) else 0)
