"""The report's HTML: one file without any reference to another, safe to open whatever a prompt holds."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from customized_grpo.config import Config
from customized_grpo.data import WORLDS
from customized_grpo.evaluation import axes_of, guards_of
from customized_grpo.figures.canvas import drawing
from customized_grpo.figures.curves import QUADRANTS, Panel, training_panels
from customized_grpo.figures.plane import Point, journey
from customized_grpo.figures.weights import schedule
from customized_grpo.method import flow_sigmas
from customized_grpo.protocols import ROLES
from customized_grpo.reporting.collect import Run, collect, in_steps
from customized_grpo.reporting.drawings import drawn
from customized_grpo.reporting.palette import DARK, LIGHT, declarations
from customized_grpo.reporting.results import outcome
from customized_grpo.reporting.series import series
from customized_grpo.reporting.snapshots import SIDE, Group, thumbnail
from customized_grpo.reporting.warnings import find_warnings
from customized_grpo.trainer.credit import reward_name, weights_of
from customized_grpo.utils.records import write_bytes

REPORT = "report.html"  #: the file's name in a run's folder

_FRAMES = 24  # of the slider, at most
_ITERATIONS = 8  # whose groups are shown, at most
_PICTURES = 24  # of one group, at most
_ROWS = 40  # of the table of all numbers, at most
_BYTES = 24_000  # of one picture, at most; larger ones are made smaller
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Chart:
    title: str
    figure: Markup


@dataclass(frozen=True)
class Frame:
    """A moment of the slider."""

    label: str
    iteration: int


@dataclass(frozen=True)
class Shown:
    """One picture of a pair: its data URI, text alternative and scores with their change since the first."""

    source: str
    alt: str
    scores: list[tuple[str, float | None, float | None]]


@dataclass(frozen=True)
class Strip:
    """A held-out pair over the frames; a frame that lacks it has None."""

    prompt: str
    reference: Shown
    frames: list[Shown | None]


@dataclass(frozen=True)
class Row:
    """One picture of a group."""

    number: int
    picture: Shown
    scores: list[float | None]
    advantages: list[float | None]
    quadrant: str
    """As in words."""
    kind: str
    """As a class of CSS."""


@dataclass(frozen=True)
class GroupTable:
    rank: str
    prompt: str
    reference: Shown
    score_names: list[str]
    rows: list[Row]
    left_out: int


def write_report(config: Config, run: Path, out: Path | None = None) -> Path:
    """Write the report of the run in that folder, to RUN/report.html where no other file is named.

    Returns the file's path. Raises RecordError where the run's records are damaged, and OSError where the file
    cannot be written.
    """
    path = out or run / REPORT
    write_bytes(path, render(collect(run, config)).encode("utf-8"))
    return path


def render(run: Run) -> str:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "signed": signed, "clock": clock}
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    guards, panels = guards_of(run.config), training_panels(run.records, guards=guards_of(run.config))
    frames = _frames(run)
    return environment.get_template("report.html").render(
        run=run,
        name=run.folder.resolve().name,
        trained=[record for record in run.records if record["iteration"] > 0],
        outcome=outcome(run),
        about=list(_about(run.config)),
        findings=find_warnings(run.config, run.records),
        guards=guards,
        planes=list(_planes(run)),
        charts=[_chart(panel, run) for panel in panels if panel.title != QUADRANTS],
        quadrants=next((_chart(panel, run, (4.4, 3.3)) for panel in panels if panel.title == QUADRANTS), None),
        weights=_weights(run.config),
        frames=frames,
        strips=_strips(run, frames),
        groups=list(_groups(run)),
        seconds=sum(value for _, value in series(run.records, "seconds/total")),
        numbers=_numbers(run),
        script=Markup(script),  # noqa: S704 - the package's own file
        digest=digest,
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - the package's own file
        light=Markup(declarations(LIGHT)),  # noqa: S704 - constants
        dark=Markup(declarations(DARK)),  # noqa: S704 - constants
    )


def number(value: float | None) -> str:
    """Two decimals for a score, significant digits for what is small or large."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0 or 0.1 <= abs(value) < 10_000:
        return f"{value:.2f}".replace("-", "\u2212")
    return f"{value:.3g}".replace("-", "\u2212")


def signed(value: float | None, decimals: int = 2) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{round(value, decimals) + 0.0:+.{decimals}f}".replace("-", "\u2212")  # no -0.00


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _chart(panel: Panel, run: Run, size: tuple[float, float] = (3.6, 3.2)) -> Chart:
    def draw(path: Path) -> None:
        with drawing(path, *size) as figure:
            panel.draw(figure.add_subplot())

    courses = []
    for key in panel.keys:
        values = series(run.records, key)
        (first, start), (last, end) = values[0], values[-1]
        courses.append(f"{key} from {number(start)} at iteration {first} to {number(end)} at {last}")
    return Chart(panel.title, drawn(draw, _slug(panel.title), f"{panel.title} over iterations: {'; '.join(courses)}."))


def _planes(run: Run) -> Iterator[Chart]:
    titles = {"rewards": "By the rewards", "independent": "By independent judges"}
    for plane, (identity, prompt) in axes_of(run.config).items():
        ys = dict(series(run.records, f"evaluation/{prompt}/mean"))
        at = [(i, x, ys[i]) for i, x in series(run.records, f"evaluation/{identity}/mean") if i in ys]
        if not at:
            continue
        points: dict[str, Point] = {_label(run, i): (x, y) for i, x, y in in_steps(at, _FRAMES)}

        def draw(path: Path, points: Mapping[str, Point] = points, axes: tuple[str, str] = (identity, prompt)) -> None:
            journey(path, points, axes)

        stations = "; ".join(f"{name} at {number(x)}, {number(y)}" for name, (x, y) in points.items())
        told = f"The run on the plane of {identity} (across) and {prompt} (up): {stations}."
        yield Chart(titles.get(plane, plane), drawn(draw, f"plane-{_slug(plane)}", told))


def _label(run: Run, iteration: int) -> str:
    if iteration == 0:
        return "base"
    return "tuned" if run.finished and iteration == run.iterations else f"iteration {iteration}"


def _weights(config: Config) -> Chart:
    method, rollout = config.method, config.rollout
    prompt, identity = weights_of(method, rollout.steps)
    # A model's own noise levels are known to the model alone.
    sigmas = None if rollout.shift is None else flow_sigmas(rollout.steps, rollout.shift)[:-1].tolist()
    told = "; ".join(
        f"step {t}: prompt {p:.2f}, identity {i:.2f}"
        for t, (p, i) in enumerate(zip(prompt.tolist(), identity.tolist(), strict=True))
    )
    figure = drawn(
        lambda path: schedule(path, prompt, identity, sigmas=sigmas, size=(4.4, 3.3)),
        "weights",
        f"Weights of the two rewards at each denoising step, 0 the noisiest. {told}.",
    )
    return Chart(f"Weights over the denoising steps ({method.weighting})", figure)


def _frames(run: Run) -> list[Frame]:
    kept = in_steps(list(run.samples.values()), _FRAMES)
    return [Frame(_label(run, samples.iteration), samples.iteration) for samples in kept]


def _strips(run: Run, frames: Sequence[Frame]) -> list[Strip]:
    shown = {frame.iteration for frame in frames}
    kept = [(folder, samples) for folder, samples in run.samples.items() if samples.iteration in shown]
    if not kept:
        return []
    strips = []
    for first in kept[0][1].pairs:
        pictures: list[Shown | None] = []
        for (folder, samples), frame in zip(kept, frames, strict=True):
            sample = next((one for one in samples.pairs if one.key == first.key), None)
            source = _source(folder, sample.picture) if sample else None
            if sample is None or source is None:
                pictures.append(None)
                continue
            scores = [(name, value, _change(value, first.scores.get(name))) for name, value in sample.scores.items()]
            pictures.append(Shown(source, f"{frame.label}: {sample.prompt}", scores))
        reference = _source(kept[0][0], first.reference)
        if reference is not None and any(pictures):
            strips.append(Strip(first.prompt, Shown(reference, f"reference for: {first.prompt}", []), pictures))
    return strips


def _change(value: float | None, first: float | None) -> float | None:
    return None if value is None or first is None else value - first


def _groups(run: Run) -> Iterator[tuple[int, int, list[GroupTable]]]:
    """(iteration, groups drawn, tables) of the iterations whose groups are shown, the newest first."""
    for folder, kept in reversed(in_steps(list(run.groups.items()), _ITERATIONS)):
        tables = [table for group in kept.groups if (table := _table(folder, group)) is not None]
        if tables:
            yield kept.iteration, kept.drawn, tables


def _table(folder: Path, group: Group) -> GroupTable | None:
    """The pictures that were learnt towards first."""
    reference = _source(folder, group.reference)
    order = sorted(range(len(group.pictures)), key=lambda i: -(group.learned[i] or 0.0))
    rows = []
    for i in in_steps(order, _PICTURES):
        source = _source(folder, group.pictures[i])
        if source is None:
            return None
        identity, prompt = (group.advantages[role][i] for role in ROLES)
        rows.append(
            Row(
                i + 1,
                Shown(source, f"picture {i + 1} of the group for: {group.prompt}", []),
                [values[i] for values in group.scores.values()],
                [identity, prompt, group.bonus[i], group.learned[i]],
                *_quadrant(identity or 0.0, prompt or 0.0),
            )
        )
    if reference is None or not rows:
        return None
    shown = Shown(reference, f"reference for: {group.prompt}", [])
    return GroupTable(group.rank, group.prompt, shown, list(group.scores), rows, len(order) - len(rows))


def _quadrant(identity: float, prompt: float) -> tuple[str, str]:
    if identity == 0 or prompt == 0:
        return "silent", "silent"
    if (identity > 0) != (prompt > 0):
        return "conflict", "conflicted"
    return ("both +", "both-positive") if identity > 0 else ("both \u2212", "both-negative")


def _about(config: Config) -> Iterator[tuple[str, str]]:
    """The run in a few lines: what, and with which settings."""
    policy, data, method, rollout, train = config.policy, config.data, config.method, config.rollout, config.train
    yield "model", f"{policy.path} ({policy.kind}), {policy.height} x {policy.width}, {policy.dtype}"
    yield "trained", "all weights" if policy.lora is None else f"LoRA of rank {policy.lora.rank}"
    yield "data", f"{data.path}, {data.split}" if data.path in WORLDS else data.path or "none"
    for kind, judges in (("reward", config.rewards), ("only watched", config.evaluation.monitors)):
        for judge in judges:
            part = f", weight {judge.weight:g}" if kind == "reward" else ""
            if judge.limit is not None:
                part = f", vetoes above {judge.limit:g}"
            yield kind, f"{reward_name(judge)}: {judge.kind}, {judge.role}{part}"
    to = "" if method.gamma_last is None else f" to {method.gamma_last:g}"
    surgery = "" if method.surgery == "none" else f", surgery {method.surgery}"
    yield "method", f"shaping {method.shaping} (gamma {method.gamma:g}{to}), weighting {method.weighting}{surgery}"
    yield "rollout", f"{rollout.sampler}, {rollout.steps} steps, eta {rollout.eta:g}"
    yield "groups", f"{rollout.pairs} of {rollout.group_size} pictures in each of {train.iterations} iterations"
    yield "updates", f"{train.updates} an iteration, learning rate {train.learning_rate:g}, {train.schedule}"
    yield "clipping", f"ratios {train.clip_range:g}, gradient norm {train.max_gradient_norm:g}"
    yield "seed", str(config.seed)


def _numbers(run: Run) -> tuple[list[str], list[tuple[int, list[float | None]]]]:
    """Names of all metrics, and (iteration, values) of some iterations, evenly spread."""
    keys = list(dict.fromkeys(key for record in run.records for key in record if key != "iteration"))
    return keys, [(record["iteration"], [record.get(key) for key in keys]) for record in in_steps(run.records, _ROWS)]


def _source(folder: Path, name: str) -> str | None:
    """A kept picture as a data URI of bounded size; None where it is not there or no picture."""
    try:
        with Image.open(folder / Path(name).name) as image:
            data = thumbnail(image)
            if len(data) > _BYTES:
                data = thumbnail(Image.open(BytesIO(data)), SIDE * 2 // 3)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower())
