"""Tables of `cgrpo info` and `cgrpo settings`."""

import json

from rich.console import Console
from rich.table import Column, Table

from customized_grpo.config import ConfigError
from customized_grpo.config.loading import Resolved
from customized_grpo.config.presets import DEFAULT, presets
from customized_grpo.config.reading import nearest
from customized_grpo.config.reference import Setting, settings
from customized_grpo.utils.hub import embedded_models
from customized_grpo.utils.tables import markdown_table

_HEADINGS = ("setting", "values", "default", "meaning")
_INTRODUCTION = """\
# Every setting

A YAML file given by `--config` contains what differs from these defaults, `--set KEY=VALUE` what differs from the file;
a run's own `config.yaml` contains all of them. Unknown keys are refused, with the nearest known one. `N` is the number
of an entry of a list, from 0. Without `--config` the recipe of the embedded model is used,
[`recipes/embedded.yaml`](../recipes/embedded.yaml).

```bash
cgrpo settings train
```

shows one section; this page is what `cgrpo settings --markdown` prints.
"""
_PRESETS = """\
## Presets

Settings whose default depends on the model, which `policy.kind` and `policy.path` name. `cgrpo info --config FILE`
shows the origin of each value of a configuration.
"""


def describe(console: Console, resolved: Resolved) -> None:
    """Show versions, the device, embedded models, and each value of a configuration with its origin."""
    from customized_grpo.utils.machine import hardware, versions  # imports torch, which takes seconds

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
    console.print("settings, and the origin of each value:", style="bold")
    for key, value, origin in resolved.rows():
        console.print(f"{key}: {value}  # {origin}", highlight=False, soft_wrap=True)


def describe_settings(console: Console, part: str | None) -> None:
    """Show all settings, or those at or below the key `part`. Raises ConfigError if there are none."""
    chosen = [one for one in settings() if part is None or f"{one.key}.".startswith(f"{part}.")]
    if not chosen and part is not None:
        known = {one.key.rsplit(".", depth)[0] for one in settings() for depth in range(3)}
        near = nearest(part, sorted(known))
        raise ConfigError(f"{part}: no such setting; " + (f"did you mean {near}?" if near else "omit it to list all"))
    table = Table(Column(_HEADINGS[0], no_wrap=True), *_HEADINGS[1:])
    for one in chosen:
        table.add_row(one.key, one.values, _default(one, one.default), one.meaning)
    console.print(table)


def settings_page() -> str:
    """Return all settings as the document docs/settings.md."""
    found = settings()
    with_parts = {one.key.split(".")[0] for one in found if "." in one.key}
    sections: dict[str, list[Setting]] = {}
    for one in found:
        first = one.key.split(".")[0]
        sections.setdefault(first if first in with_parts else "The run", []).append(one)
    pages = [_INTRODUCTION]
    for name, part in sections.items():
        rows = ((f"`{one.key}`", one.values, _default(one, f"`{one.default}`"), one.meaning) for one in part)
        pages.append(f"## {name}\n\n{markdown_table(_HEADINGS, rows)}\n")
    models = list(presets())
    rows_of_presets = (
        (f"`{key}`", *(f"`{json.dumps(one.values[key])}`" for one in models)) for key in models[0].values
    )
    table = markdown_table(("setting", *(one.model for one in models)), rows_of_presets)
    return "\n".join([*pages, _PRESETS, f"{table}\n"])


def _default(one: Setting, shown: str) -> str:
    return (shown if one.default else "required") + (" (preset)" if one.key in DEFAULT else "")
