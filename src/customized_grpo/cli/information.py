"""What `cgrpo info` and `cgrpo settings` tell, and a run notes: versions, the device, embedded models, settings."""

from __future__ import annotations

import json
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from customized_grpo.config import ConfigError
from customized_grpo.config.loading import Resolved, as_yaml, nearest
from customized_grpo.config.presets import DEFAULT, presets
from customized_grpo.config.reference import Setting, settings
from customized_grpo.utils.hub import embedded_models
from customized_grpo.utils.machine import hardware, versions
from customized_grpo.utils.tables import markdown_table

_HEADINGS = ("setting", "values", "default", "meaning")


def describe(console: Console, resolved: Resolved) -> None:
    table = Table("installed", "version", title="Libraries")
    for name, installed in versions().items():
        table.add_row(name, installed)
    console.print(table)
    computes = hardware()
    console.print(f"device: {computes['device']}, {computes['CPU threads']} CPU threads")
    models = Table("embedded model", "size in MB")
    for folder, size in embedded_models().items():
        models.add_row(f"embedded/{folder}", f"{size / 1e6:.1f}")
    console.print(models)
    console.print("settings, and where each value comes from:", style="bold")
    console.print(as_yaml(resolved.config, resolved.origins), markup=False, highlight=False, soft_wrap=True)


def describe_settings(console: Console, part: str | None) -> None:
    """A table of all settings, or of those whose key is `part` or stands under it.

    Raises ConfigError where there is none.
    """
    chosen = [one for one in settings() if part is None or f"{one.key}.".startswith(f"{part}.")]
    if not chosen and part is not None:
        known = {one.key.rsplit(".", depth)[0] for one in settings() for depth in range(3)}
        near = nearest(part, sorted(known))
        raise ConfigError(f"{part}: no such setting; " + (f"did you mean {near}?" if near else "leave it out for all"))
    table = Table(Column(_HEADINGS[0], no_wrap=True), *_HEADINGS[1:])
    for one in chosen:
        table.add_row(*map(escape, _cells(one)))
    console.print(table)


def settings_page() -> str:
    """All settings as the document docs/settings.md."""
    found = settings()
    with_parts = {one.key.split(".")[0] for one in found if "." in one.key}
    sections: dict[str, list[Setting]] = {}
    for one in found:
        first = one.key.split(".")[0]
        sections.setdefault(first if first in with_parts else "The run", []).append(one)
    lines = [
        "# Every setting",
        "",
        "A YAML file given by `--config` names what differs from these defaults, `--set KEY=VALUE` what differs from",
        "the file; a run's own `config.yaml` has all of them. What is not known here is refused, with the nearest key.",
        "`N` is the number of an entry of a list, from 0. Without `--config` the recipe of the embedded model is used,",
        "[`recipes/embedded.yaml`](../recipes/embedded.yaml).",
        "",
        "```bash",
        "cgrpo settings train",
        "```",
        "",
        "shows a part of it; this page is what `cgrpo settings --markdown` prints.",
    ]
    for name, part in sections.items():
        lines += ["", f"## {name}", "", markdown_table(_HEADINGS, map(_code, part))]
    lines += [
        "",
        "## Presets",
        "",
        "Settings whose default depends on the model, which `policy.kind` and `policy.path` name. `cgrpo info --config",
        "FILE` shows where each value of a configuration comes from.",
        "",
        markdown_table(("setting", *(one.model for one in presets())), _preset_rows()),
    ]
    return "\n".join(lines) + "\n"


def _preset_rows() -> Iterator[list[str]]:
    found = [one.values for one in presets()]
    for key in found[0]:
        yield [f"`{key}`", *(f"`{json.dumps(values[key])}`" for values in found)]


def _cells(one: Setting) -> tuple[str, str, str, str]:
    return one.key, one.values, (one.default or "needed") + _preset(one), one.meaning


def _code(one: Setting) -> tuple[str, str, str, str]:
    key, values, _, meaning = _cells(one)
    return f"`{key}`", values, (f"`{one.default}`" if one.default else "needed") + _preset(one), meaning


def _preset(one: Setting) -> str:
    return " (preset)" if one.key in DEFAULT else ""
