"""The report's HTML: one file that loads nothing and is safe to open whatever a prompt contains."""

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.style
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from customized_grpo.config import BALANCES, Config
from customized_grpo.config.reading import dump_yaml
from customized_grpo.config.redaction import hide_secrets
from customized_grpo.evaluation import axes_of, guards_of
from customized_grpo.figures.curves import QUADRANTS, Panel, training_panels
from customized_grpo.figures.plane import draw_journey
from customized_grpo.figures.schedule import draw_schedule
from customized_grpo.figures.style import STYLE
from customized_grpo.method import flow_sigmas
from customized_grpo.protocols import ROLES
from customized_grpo.reporting.collect import Run, collect, in_steps, series
from customized_grpo.reporting.results import outcome
from customized_grpo.reporting.snapshots import Group, thumbnail
from customized_grpo.reporting.warnings import find_warnings
from customized_grpo.trainer.credit import weights_of
from customized_grpo.utils.records import write_bytes

REPORT = "report.html"  #: the file's name in a run's folder

_FRAMES = 24  # most positions of the slider
_ITERATIONS = 8  # most iterations whose groups are shown
_IMAGES = 24  # most images of one group
_HERE = Path(__file__).parent


def write_report(config: Config, run: Path, out: Path | None = None) -> Path:
    """Write the report of a run, and return the file's path.

    Args:
        config: Configuration of the run.
        run: Folder of the run.
        out: HTML file to write. Default: RUN/report.html.

    Raises:
        RecordError: The run's records are damaged.
        OSError: The file cannot be written.
    """
    path = out or run / REPORT
    write_bytes(path, render(collect(run, config)).encode("utf-8"))
    return path


def render(run: Run) -> str:
    """Return the report as HTML."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "signed": signed}
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    panels = training_panels(run.records, guards=guards_of(run.config))
    frames = in_steps(
        [(folder, stored, _label(run, stored.iteration)) for folder, stored in run.samples.items()], _FRAMES
    )
    seconds = sum(value for _, value in series(run.records, "seconds/total"))
    return environment.get_template("report.html").render(
        run=run,
        name=run.folder.resolve().name,
        trained=sum(record["iteration"] > 0 for record in run.records),
        outcome=outcome(run),
        settings=dump_yaml(hide_secrets(run.config.model_dump(mode="json"))),
        findings=find_warnings(run.config, run.records),
        planes=list(_planes(run)),
        charts=[_chart(run, panel) for panel in panels if panel.title != QUADRANTS],
        quadrants=next((_chart(run, panel) for panel in panels if panel.title == QUADRANTS), None),
        weights=_weights(run.config),
        frames=[label for _, _, label in frames],
        strips=list(_strips(frames)),
        groups=list(_groups(run)),
        minutes=f"{seconds / 60:.0f}" if seconds > 600 else f"{seconds / 60:.1f}",
        script=Markup(script),  # noqa: S704 - the package's own file
        digest=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - the package's own file
    )


def number(value: float | None) -> str:
    """Format a score with two decimals, a very small or large number with three significant digits."""
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{value:.2f}" if value == 0 or 0.1 <= abs(value) < 10_000 else f"{value:.3g}"
    return text.replace("-", "\u2212")


def signed(value: float | None, decimals: int = 2) -> str:
    """Format a change with its sign."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{round(value, decimals) + 0.0:+.{decimals}f}".replace("-", "\u2212")  # no -0.00


def svg(draw: Callable[[Axes], None], name: str, description: str, size: tuple[float, float]) -> Markup:
    """Return a figure of a size in inches, plotted by `draw`, as SVG for an HTML page.

    `name`, unique on its page, makes the SVG's ids unique; `description` is its text alternative.
    """
    with matplotlib.style.context([STYLE, {"svg.hashsalt": name, "figure.dpi": 72, "figure.facecolor": "none"}]):
        figure = Figure(figsize=size)
        draw(figure.add_subplot())
        buffer = BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue().decode("utf-8")
    # Ids of groups are the same in all figures and nothing refers to them; fonts and the size are the page's.
    text = re.sub(r'(<(?:g|text)) id="[^"]*"', r"\1", text[text.index("<svg") :])
    text = re.sub(r"<(metadata|style).*?</\1>|font-family: [^;\"]*;?", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    start = Markup('<svg class="drawing" role="img" {} aria-label="{}">').format(Markup(box[0]), description)  # noqa: S704
    return start + Markup(text[text.index(">") + 1 :])  # noqa: S704 - matplotlib escapes text


def _chart(run: Run, panel: Panel) -> tuple[str, Markup]:
    """Return (title, figure)."""
    courses = []
    for key in panel.keys:
        (first, start), *_, (last, end) = [*series(run.records, key)] * 2
        courses.append(f"{key} from {number(start)} at iteration {first} to {number(end)} at {last}")
    description = f"{panel.title} over iterations: {'; '.join(courses)}."
    size = (4.4, 3.3) if panel.title == QUADRANTS else (3.6, 3.2)
    return panel.title, svg(panel.draw, panel.title, description, size)


def _planes(run: Run) -> Iterator[tuple[str, Markup]]:
    titles = {"rewards": "By the rewards", "independent": "By independent monitors"}
    for plane, axes in axes_of(run.config).items():
        xs, ys = (dict(series(run.records, f"evaluation/{name}/mean")) for name in axes)
        points = {_label(run, i): (xs[i], ys[i]) for i in in_steps([i for i in xs if i in ys], _FRAMES)}
        if points:
            stations = "; ".join(f"{name} at {number(x)}, {number(y)}" for name, (x, y) in points.items())
            description = f"The run on the plane of {axes[0]} (x axis) and {axes[1]} (y axis): {stations}."

            def draw(on: Axes, points: Mapping[str, Any] = points, axes: tuple[str, str] = axes) -> None:
                draw_journey(on, points, axes)

            yield titles[plane], svg(draw, titles[plane], description, (4.4, 3.7))


def _label(run: Run, iteration: int) -> str:
    if iteration == 0:
        return "base"
    return "tuned" if run.finished and iteration == run.iterations else f"iteration {iteration}"


def _weights(config: Config) -> tuple[str, Markup] | None:
    """Return the schedule of the weights; None where they follow the gains, as a panel of the curves shows."""
    rollout = config.rollout
    if config.method.weighting in BALANCES:
        return None
    prompt, identity = (weights.tolist() for weights in weights_of(config.method, rollout.steps))
    # Without rollout.shift the noise levels depend on the model, which is not loaded here.
    sigmas = None if rollout.shift is None else flow_sigmas(rollout.steps, rollout.shift)[:-1].tolist()
    steps = (
        f"step {t}: prompt {p:.2f}, identity {i:.2f}" for t, (p, i) in enumerate(zip(prompt, identity, strict=True))
    )
    description = f"Weights of the two rewards at each denoising step, 0 the noisiest. {'; '.join(steps)}."
    title = f"Weights over the denoising steps ({config.method.weighting})"
    return title, svg(lambda axes: draw_schedule(axes, prompt, identity, sigmas), "weights", description, (4.4, 3.3))


def _strips(frames: Sequence[tuple[Path, Any, str]]) -> Iterator[dict[str, Any]]:
    """Yield each held-out pair with its images over the frames; a frame without it has None."""
    for first in frames[0][1].pairs if frames else ():
        shown: list[dict[str, Any] | None] = []
        for folder, stored, _ in frames:
            sample = next((one for one in stored.pairs if one.key == first.key), None)
            source = _source(folder, sample.image) if sample else None
            shown.append({"source": source, "scores": sample.scores} if sample and source else None)
        reference = _source(frames[0][0], first.reference)
        if reference and any(shown):
            yield {"prompt": first.prompt, "reference": reference, "frames": shown, "first": first.scores}


def _groups(run: Run) -> Iterator[tuple[int, int, list[dict[str, Any]]]]:
    """Yield (iteration, number of sampled groups, shown groups), the newest first."""
    for folder, stored in reversed(in_steps(list(run.groups.items()), _ITERATIONS)):
        tables = [table for group in stored.groups if (table := _table(folder, group))]
        if tables:
            yield stored.iteration, stored.sampled, tables


def _table(folder: Path, group: Group) -> dict[str, Any] | None:
    """Return a group with the images of the highest advantage first, or None if an image is missing."""
    order = sorted(range(len(group.images)), key=lambda i: -(group.learned[i] or 0.0))
    rows = []
    for i in in_steps(order, _IMAGES):
        identity, prompt = (group.advantages[role][i] for role in ROLES)
        rows.append(
            {
                "number": i + 1,
                "source": _source(folder, group.images[i]),
                "scores": [values[i] for values in group.scores.values()],
                "advantages": [identity, prompt, group.bonus[i], group.learned[i]],
                "quadrant": _quadrant(identity or 0.0, prompt or 0.0),
            }
        )
    reference = _source(folder, group.reference)
    if not rows or not reference or not all(row["source"] for row in rows):
        return None
    return {"group": group, "reference": reference, "rows": rows}


def _quadrant(identity: float, prompt: float) -> str:
    if identity == 0 or prompt == 0:
        return "no signal"
    if (identity > 0) != (prompt > 0):
        return "conflicted"
    return "both positive" if identity > 0 else "both negative"


def _source(folder: Path, name: str) -> str | None:
    """Return a stored image as a data URI of limited size, or None if it is missing or damaged."""
    file = folder / Path(name).name
    try:
        if not file.is_file():  # a pipe would block
            return None
        with Image.open(file) as image:
            data = thumbnail(image)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
