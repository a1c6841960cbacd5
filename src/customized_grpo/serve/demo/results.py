"""What the page shows of an answer, as HTML: pictures side by side, their scores, or one line of error."""

from __future__ import annotations

import base64
import math
from collections.abc import Collection, Sequence
from html import escape
from io import BytesIO

from PIL import Image

from customized_grpo.serve.demo.studio import Column
from customized_grpo.utils.terminal import ABSENT

EMPTY = '<div class="empty">Pictures and their scores appear here.</div>'


def error_line(text: str) -> str:
    """One line of error, whatever the text holds."""
    return f'<p class="problem" role="alert">{escape(" ".join(text.split()))}</p>'


def results(columns: Sequence[Column], guards: Collection[str] = ()) -> str:
    """Pictures, a row for each noise and a column for each model, and below them the means of the scores.

    `guards` are scores whose change is neither good nor bad.
    """
    count = len(columns[0].pictures)
    heads = "".join(f'<div class="head">{escape(column.name)}</div>' for column in columns)
    cells = "".join(_figure(column, i, alone=count == 1) for i in range(count) for column in columns)
    return f'<div class="pictures" style="--columns: {len(columns)}">{heads}{cells}</div>{_table(columns, guards)}'


def _figure(column: Column, i: int, *, alone: bool) -> str:
    picture = column.pictures[i]
    small = ' class="small"' if max(picture.size) <= 128 else ""
    scores = {} if alone else {name: _number(values[i]) for name, values in column.scores.items()}
    told = "".join(f"<dt>{escape(score)}</dt><dd>{value}</dd>" for score, value in scores.items())
    caption = f"<figcaption><dl>{told}</dl></figcaption>" if told else ""
    name = escape(f"{column.name}, picture {i + 1}")
    return f'<figure><img{small} alt="{name}" src="{_source(picture)}">{caption}</figure>'


def _source(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _table(columns: Sequence[Column], guards: Collection[str]) -> str:
    compared = len(columns) == 2
    names = [*(column.name for column in columns), *(["change"] if compared else [])]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("score", *names))
    rows = []
    for name in columns[0].scores:
        means = [_mean(column.scores[name]) for column in columns]
        cells = [f"<td>{_number(mean)}</td>" for mean in means]
        if compared:
            change = means[1] - means[0]
            kind = "" if name in guards or not math.isfinite(change) else "up" if change > 0 else "down"
            cells.append(f'<td class="{kind}">{_number(change, "+")}</td>')
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    return f'<table class="scores"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.1f}" if math.isfinite(value) else ABSENT
