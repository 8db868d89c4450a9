"""What a run's folder holds as numbers, and the two pictures of it.

    iterations = read_iterations(run_dir)
    draw_growth(iterations, run_dir)    plots/growth.png: words per text
    draw_loss(iterations, run_dir)      plots/loss.png: training loss

Reads phases.jsonl and, below iter_N/, each step's summary.json, the journals of initial_responses
and extended_responses and the trainer logs. A step counts once its summary.json is there. Journals
are streamed: of their texts only the lengths stay in memory.
"""

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from self_lengthen import files
from self_lengthen.errors import UserError
from self_lengthen.runfolder import (
    EXTENDED,
    EXTENDER_SFT,
    FILTERED,
    GENERATOR_SFT,
    INITIAL,
    INSTRUCTIONS,
    SFT,
    RunFolder,
)

log = logging.getLogger(__name__)

STEPS = (INSTRUCTIONS, INITIAL, EXTENDED, FILTERED, SFT)
ROLES = {GENERATOR_SFT: "Generator", EXTENDER_SFT: "Extender"}  # {adapter's folder: role}

KINDS = {  # {kind of text: (who writes it, colour, side of the iteration's tick)}
    "initial": ("initial, by the Generator", "#0072B2", -1),
    "extended": ("extended, by the Extender", "#D55E00", 1),
}
# Okabe and Ito's colours, which colour-blind readers tell apart.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = (".-", ".--", ".:")  # for when the colours come round again

HEIGHT_INCHES, MIN_WIDTH_INCHES, DOTS_PER_INCH = 7.5, 12.0, 100  # 1200 x 750 pixels
INCHES_PER_ITERATION = 3.0  # what two boxes and the numbers beside them need
LARGE_TEXT = rc_context({"font.size": 13})  # points
NOTHING = "Nothing yet."  # in place of a plot or table
BOX_OFFSET, BOX_WIDTH = 0.11, 0.18  # of the distance between two iterations


@dataclass(frozen=True)
class Iteration:
    """What one macro-iteration has written so far."""

    number: int
    run: RunFolder
    summaries: dict[str, dict[str, Any]]  # {finished step: its summary.json}
    seconds: Counter[str]  # {phase: wall-clock seconds of all tries}

    @property
    def complete(self) -> bool:
        """Whether both adapters are trained: their manifests are written last."""
        adapters = (self.run.adapter(self.number, role) for role in ROLES)
        return all(path.with_name(f"{path.name}.manifest.json").exists() for path in adapters)

    @cached_property
    def pairs(self) -> np.ndarray | None:
        """Rows of (words, words of the initial response), one per accepted extension.

        None before step 2 is finished.
        """
        return self._accepted_words(EXTENDED, "words", "initial_words")

    @cached_property
    def words(self) -> dict[str, np.ndarray]:
        """The lengths in words of the accepted texts of each kind of which there are any."""
        kinds = {"initial": self._accepted_words(INITIAL, "words"), "extended": self.pairs}
        return {kind: rows[:, 0] for kind, rows in kinds.items() if rows is not None and rows.size}

    @cached_property
    def losses(self) -> dict[str, dict[int, float]]:
        """{role: {optimisation step: training loss}} of the roles that have logged any."""
        folders = {role: self.run.adapter(self.number, name) for name, role in ROLES.items()}
        logs = {role: read_lines(path / "trainer_log.jsonl") for role, path in folders.items()}
        losses = {role: loss_by_step(lines) for role, lines in logs.items()}
        return {role: curve for role, curve in losses.items() if curve}

    def accepted_rows(self, step: str) -> Iterator[dict[str, Any]]:
        """The rows that passed the response check in `step`, one at a time."""
        lines = read_lines(self.run.step(self.number, step).path / "journal.jsonl")
        return (line["row"] for line in lines if line["kept"])

    def _accepted_words(self, step: str, *fields: str) -> np.ndarray | None:
        if step not in self.summaries:
            return None
        rows = ([row[field] for field in fields] for row in self.accepted_rows(step))
        return np.fromiter(rows, dtype=np.dtype((np.int64, (len(fields),))))


def read_iterations(run_dir: Path) -> list[Iteration]:
    """Every macro-iteration that has begun, in order."""
    run = RunFolder(run_dir)
    seconds: dict[int, Counter[str]] = {}
    for line in read_lines(run_dir / "phases.jsonl"):
        seconds.setdefault(line["iteration"], Counter())[line["phase"]] += line["seconds"]
    begun = {int(path.name[5:]) for path in run_dir.glob("iter_*") if path.name[5:].isdecimal()}
    iterations = []
    for n in sorted(begun | seconds.keys()):
        paths = {step: run.step(n, step).path / "summary.json" for step in STEPS}
        summaries = {step: read_json(path) for step, path in paths.items() if path.is_file()}
        iterations.append(Iteration(n, run, summaries, seconds.get(n, Counter())))
    return iterations


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises UserError when it is no JSON."""
    try:
        return files.read_json(path)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); restore the file") from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, one at a time; none where there is no file.

    A line that is no JSON is left out: the torn last one silently, another with a warning.
    """
    if not path.is_file():
        return
    broken = None
    with path.open("rb") as file:
        for line_number, line in enumerate(file, 1):
            if broken:
                log.warning("%s:%d: not JSON, left out of the report", path, broken)
            try:
                entry, broken = json.loads(line), None
            except ValueError:
                broken = line_number
            else:
                yield entry


def loss_by_step(log_lines: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """{optimisation step: loss} of LLaMA-Factory's trainer log, steps ascending.

    A training that was started again goes on from an earlier step: its lines win.
    """
    losses: dict[int, float] = {}
    last_step = 0
    for line in log_lines:
        if line.get("loss") is not None:
            step = line["current_steps"]
            if step <= last_step:
                losses = {earlier: loss for earlier, loss in losses.items() if earlier < step}
            losses[step], last_step = line["loss"], step
    return losses


def number(value: float) -> str:
    """A number as the report prints it: "1,235", "93.4", "40"."""
    if abs(value) >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.1f}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def times(factor: float) -> str:
    return f"{factor:.2f}x"


@LARGE_TEXT
def draw_growth(iterations: Sequence[Iteration], run_dir: Path) -> str:
    """Boxes of text length in words per kind of text and iteration; returns Markdown."""
    drawn = {it.number: it.words for it in iterations if it.words}
    if not drawn:
        return NOTHING
    figure, (ax,) = _figure(max(MIN_WIDTH_INCHES, INCHES_PER_ITERATION * len(drawn)), 1)
    labels = []
    for tick, (iteration, kinds) in enumerate(drawn.items()):
        for kind, words in kinds.items():
            _draw_box(ax, tick, kind, words)
        counts = "\n".join(f"{words.size:,} {kind}" for kind, words in kinds.items())
        labels.append(f"{iteration}\n{counts}")
    ax.set_xticks(range(len(labels)), labels)
    ax.set_xlim(-0.5, len(labels) - 0.5)
    ax.set_xlabel("macro-iteration, and its number of texts")
    ax.set_title("Words per text from macro-iteration to macro-iteration", pad=14)
    _scale_by_doublings(ax, np.concatenate([n for kinds in drawn.values() for n in kinds.values()]))
    _add_growth_legend(ax)
    return _save(figure, run_dir, "growth")


def _draw_box(ax: Axes, tick: int, kind: str, words: np.ndarray) -> None:
    _, colour, side = KINDS[kind]
    centre, mean, line = tick + side * BOX_OFFSET, words.mean(), {"color": colour, "linewidth": 1.5}
    styles = {"boxprops": _box_style(colour), "whiskerprops": line, "capprops": line}
    styles |= {"medianprops": {"color": "black", "linewidth": 2}, "meanprops": _mean_style(colour)}
    place = {"positions": [centre], "widths": BOX_WIDTH, "manage_ticks": False}
    ax.boxplot(words, whis=(0, 100), showmeans=True, patch_artist=True, **place, **styles)
    beside = {"xytext": (side * 5, 0), "textcoords": "offset points", "va": "center"}
    style = {"ha": "right" if side < 0 else "left", "color": colour, "weight": "bold"}
    ax.annotate(number(mean), (centre + side * BOX_WIDTH / 2, mean), **beside, **style)


def _box_style(colour: str) -> dict[str, Any]:
    return {"facecolor": f"{colour}40", "edgecolor": colour, "linewidth": 1.5}  # 40: see-through


def _mean_style(colour: str) -> dict[str, Any]:
    style = {"marker": "D", "markersize": 8, "linestyle": "none"}
    return style | {"markerfacecolor": "white", "markeredgecolor": colour}


def _scale_by_doublings(ax: Axes, words: np.ndarray) -> None:
    """A log-2 axis of words: equal growth per iteration climbs in equal steps."""
    bottom = math.floor(math.log2(max(1, words.min())))
    top = math.ceil(math.log2(words.max()) + 0.1)
    ax.set_yscale("log", base=2)
    ax.set_ylim(2**bottom, 2**top)
    ax.yaxis.set_major_locator(FixedLocator([2**power for power in range(bottom, top + 1)]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_ylabel("words per text (each line doubles)")


def _add_growth_legend(ax: Axes) -> None:
    handles = [Patch(label=label, **_box_style(colour)) for label, colour, _ in KINDS.values()]
    handles += [
        Line2D([], [], label="mean, with its value", **_mean_style("black")),
        Line2D([], [], color="black", linewidth=2, label="median (box: quartiles)"),
        Line2D([], [], color="gray", linewidth=1.5, label="whiskers: shortest, longest"),
    ]
    ax.figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


@LARGE_TEXT
def draw_loss(iterations: Sequence[Iteration], run_dir: Path) -> str:
    """Training loss by step, a panel per role, a line per iteration; returns Markdown."""
    roles = [role for role in ROLES.values() if any(role in it.losses for it in iterations)]
    if not roles:
        return NOTHING
    figure, axes = _figure(MIN_WIDTH_INCHES, len(roles))
    for ax, role in zip(axes, roles, strict=True):
        for index, it in enumerate(it for it in iterations if role in it.losses):
            steps, losses = zip(*it.losses[role].items(), strict=True)
            again, colour = divmod(index, len(LINE_COLOURS))
            style = LINE_STYLES[again % len(LINE_STYLES)]
            label = f"iteration {it.number}"
            ax.plot(steps, losses, style, color=LINE_COLOURS[colour], label=label)
        ax.set_title(role)
        ax.set_xlabel("optimisation step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(frameon=False)
    axes[0].set_ylabel("training loss (mean cross-entropy, nats)")
    return _save(figure, run_dir, "loss")


def _figure(width_inches: float, panels: int) -> tuple[Figure, list[Axes]]:
    """A figure without pyplot, which keeps every figure in memory."""
    size = (width_inches, HEIGHT_INCHES)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    axes = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#DDDDDD")
    return figure, axes


def _save(figure: Figure, run_dir: Path, name: str) -> str:
    """Write the picture to its place; returns the Markdown that shows it."""
    save_figure(figure, run_dir / "plots" / f"{name}.png")
    return f"![{name}](plots/{name}.png)"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG beside its place and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as file:
        figure.savefig(file, format="png")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
