"""Draw how answers keep to the demanded length: `.venv/bin/python eval/plot.py FILE...`

    .venv/bin/python eval/plot.py results/eval/base/data.jsonl results/eval/iter3/data.jsonl \\
        --labels=before,after --out=results/eval/plots

FILE holds answers to LonGen's rows, as eval/generate.py writes them. Writes into DIR:

    lengths.png   words written against words demanded: a column per type, a row per FILE
    scores.png    mean LonGen score by range and by type, the FILEs side by side
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib.artist import Artist  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402
from matplotlib.ticker import MaxNLocator, StrMethodFormatter  # noqa: E402

from eval.length_following_eval import Scored, score  # noqa: E402
from self_lengthen.benchmark import read_answers  # noqa: E402
from self_lengthen.cli import Parser  # noqa: E402
from self_lengthen.errors import UserError, main_exit  # noqa: E402
from self_lengthen.plots import DOTS_PER_INCH, LARGE_TEXT, LINE_COLOURS, save_figure  # noqa: E402
from self_lengthen.scoring import DEMAND_TYPES, Demand, band  # noqa: E402

LANGUAGES = {"zh": ("Chinese", LINE_COLOURS[1], "o"), "en": ("English", LINE_COLOURS[0], "^")}
OTHER_LANGUAGE = ("another language", LINE_COLOURS[2], "s")
RUN_COLOURS = (*LINE_COLOURS[2:], *LINE_COLOURS[:2])  # not the languages' in the first runs
TITLES = {
    "about": "about N words",
    "range": "N to M words",
    "above": "more than N words",
    "below": "less than N words",
}
BAND_COLOUR, BAND_POINTS = "#D9D9D9", 9.0
PANEL_INCHES = (3.4, 3.6)
BARS_INCHES = (13.0, 5.5)
GROUP_WIDTH = 0.8  # of a group of bars; the rest keeps groups apart


Chosen = Callable[[Scored], bool]


@dataclass(frozen=True)
class Run:
    """The scored answers of one file."""

    label: str
    scored: Sequence[Scored]

    def of_type(self, kind: str) -> list[Scored]:
        return list(filter(_is_of(kind), self.scored))

    def mean(self, chosen: Chosen) -> float | None:
        scores = [row.longen for row in self.scored if chosen(row)]
        return statistics.fmean(scores) if scores else None


def read_runs(files: Sequence[Path], labels: Sequence[str] | None) -> list[Run]:
    """Raises UserError for a row without LonGen's constraint, and for labels that do not fit."""
    names = list(labels or map(_label, files))
    if len(names) != len(files) or len(set(names)) != len(names):
        raise UserError(f"{len(files)} files need as many different labels: give --labels=A,B,...")
    runs = []
    for label, path in zip(names, files, strict=True):
        scored = [score(answer) for answer in read_answers(path)]
        for number, row in enumerate(scored, 1):
            if row.answer.demand is None:
                raise UserError(f"{path}: answer {number} has no constraint of LonGen's to draw")
        runs.append(Run(label, scored))
    return runs


def _label(path: Path) -> str:
    """The folder of a data.jsonl, which eval/generate.py writes, tells more than its name."""
    return path.resolve().parent.name if path.name == "data.jsonl" else path.stem


@LARGE_TEXT
def draw_lengths(runs: Sequence[Run]) -> Figure:
    """Words written against words demanded."""
    kinds = [kind for kind in DEMAND_TYPES if any(run.of_type(kind) for run in runs)]
    width, height = PANEL_INCHES
    size = (width * max(len(kinds), 2), height * len(runs) + 1.2)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots(len(runs), len(kinds), sharex=True, sharey=True, squeeze=False)
    for panels, run in zip(axes, runs, strict=True):
        for ax, kind in zip(panels, kinds, strict=True):
            _draw_answers(ax, run.of_type(kind))
        panels[0].set_ylabel(f"{run.label}: words written")
    for ax, kind in zip(axes[0], kinds, strict=True):
        ax.set_title(TITLES[kind], fontsize="medium")
        ax.set_ylim(bottom=0)
    figure.supxlabel("words demanded: N, or the middle between N and M", fontsize="medium")
    _add_lengths_legend(figure, runs)
    return figure


def demanded_words(demand: Demand) -> float:
    """Where a demand stands on the axis."""
    return (demand.low + demand.high) / 2


def _draw_answers(ax: Axes, rows: Sequence[Scored]) -> None:
    for demand in {row.answer.demand for row in rows}:
        low, high = band(demand)
        place = demanded_words(demand)
        ax.vlines(place, low, high, color=BAND_COLOUR, linewidth=BAND_POINTS, zorder=1)
    for language in sorted({row.answer.language for row in rows}):
        _, colour, marker = LANGUAGES.get(language, OTHER_LANGUAGE)
        chosen = [row for row in rows if row.answer.language == language]
        demanded = [demanded_words(row.answer.demand) for row in chosen]
        written = [row.words for row in chosen]
        style = {"color": colour, "marker": marker, "alpha": 0.75, "clip_on": False}
        ax.scatter(demanded, written, s=26, zorder=2, **style)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.tick_params(labelsize="small")
    ax.spines[["top", "right"]].set_visible(False)


def _add_lengths_legend(figure: Figure, runs: Sequence[Run]) -> None:
    found = sorted({row.answer.language for run in runs for row in run.scored})
    styles = dict.fromkeys(LANGUAGES.get(language, OTHER_LANGUAGE) for language in found)
    handles: list[Artist] = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", label=f"answer in {name}")
        for name, colour, marker in styles
    ]
    handles.append(Patch(color=BAND_COLOUR, label="lengths that score 100"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)


@LARGE_TEXT
def draw_scores(runs: Sequence[Run]) -> Figure:
    """Mean LonGen scores, a bar per run, in groups by range and by type."""
    figure = Figure(figsize=BARS_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    by_range, by_type = figure.subplots(1, 2, sharey=True)
    ranges = {row.answer.range for run in runs for row in run.scored} - {""}
    in_order = sorted(ranges, key=lambda name: (len(name), name))  # 8000-9000 before 10000-12000
    types = {name: _is_of(name) for name in DEMAND_TYPES if any(run.of_type(name) for run in runs)}
    _draw_bars(
        by_range, runs, {**{name: _is_in(name) for name in in_order}, "all": lambda row: True}
    )
    _draw_bars(by_type, runs, types)
    by_range.set_title("by demanded range of words", fontsize="medium")
    by_type.set_title("by type of demand", fontsize="medium")
    by_range.set_ylabel("mean LonGen score (100 is best)")
    by_range.set_ylim(0, 108)  # room for the numbers on the bars
    if len(runs) > 1:
        handles, _ = by_range.get_legend_handles_labels()
        place = {"loc": "outside upper center", "ncols": len(runs), "frameon": False}
        figure.legend(handles=handles, **place)
    return figure


def _is_of(kind: str) -> Chosen:
    return lambda row: row.answer.demand.kind == kind


def _is_in(name: str) -> Chosen:
    return lambda row: row.answer.range == name


def _draw_bars(ax: Axes, runs: Sequence[Run], groups: dict[str, Chosen]) -> None:
    width = GROUP_WIDTH / len(runs)
    for index, run in enumerate(runs):
        colour = RUN_COLOURS[index % len(RUN_COLOURS)]
        offset = (index - (len(runs) - 1) / 2) * width
        means = [run.mean(chosen) for chosen in groups.values()]
        known = [(place + offset, mean) for place, mean in enumerate(means) if mean is not None]
        places, heights = zip(*known, strict=True)
        bars = ax.bar(places, heights, width * 0.94, color=colour, label=run.label, zorder=2)
        ax.bar_label(bars, fmt="%.0f", padding=2, fontsize="small")
    ax.set_xticks(range(len(groups)), groups)
    ax.set_xlim(-0.6, len(groups) - 0.4)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#DDDDDD", zorder=0)


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="answers")
    parser.add_argument("--out", type=Path, default=Path("results/eval/plots"), metavar="DIR")
    parser.add_argument("--labels", type=lambda text: text.split(","), help="A,B,... of the FILEs")
    args = parser.parse_args()
    runs = read_runs(args.files, args.labels)
    for name, draw in {"lengths": draw_lengths, "scores": draw_scores}.items():
        path = args.out / f"{name}.png"
        save_figure(draw(runs), path)
        print(path)


if __name__ == "__main__":
    main_exit("plot.py", main)
