"""Claims about `eval/plot.py`: what its two pictures show, read from the figures themselves."""

import json
import sys
from pathlib import Path

import pytest
from fakes import hanzi, prose
from matplotlib.figure import Figure
from matplotlib.image import imread

from eval import plot
from self_lengthen.errors import UserError

CONSTRAINTS = {
    "about": "大约100字",
    "range": "50-150 words",
    "above": "more than 100 words",
    "below": "小于100字",
}


def row(kind: str, words: int, **more: object) -> dict[str, object]:
    chinese = "字" in CONSTRAINTS[kind]
    return {
        "query": "写。" if chinese else "Write.",
        "language": "zh" if chinese else "en",
        "range": "50-150",
        "type": kind,
        "constraint": CONSTRAINTS[kind],
        "response": hanzi(words) if chinese else prose(words),
        **more,
    }


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture
def before(tmp_path: Path) -> Path:
    rows = [row(kind, 60) for kind in CONSTRAINTS]
    return written(tmp_path / "base" / "data.jsonl", rows)


@pytest.fixture
def after(tmp_path: Path) -> Path:
    rows = [row(kind, 100) for kind in CONSTRAINTS] + [row("about", 5, range="10-20")]
    return written(tmp_path / "tuned" / "data.jsonl", rows)


def points(figure: Figure) -> list[list[tuple[float, float]]]:
    """The answers drawn in each panel."""
    return [
        [tuple(place) for dots in ax.collections for place in dots.get_offsets() if len(place)]
        for ax in figure.axes
    ]


def bars(figure: Figure) -> list[list[float]]:
    return [[round(bar.get_height(), 6) for bar in ax.patches] for ax in figure.axes]


class TestLengths:
    def test_every_answer_stands_at_its_demanded_and_written_length(self, before, after):
        figure = plot.draw_lengths(plot.read_runs([before, after], None))
        drawn = [[place for place in panel if place != (0.0, 0.0)] for panel in points(figure)]
        assert drawn == [
            *([(100.0, 60.0)] for _ in CONSTRAINTS),
            [(100.0, 100.0), (100.0, 5.0)],
            *([(100.0, 100.0)] for _ in range(3)),
        ]

    def test_the_grey_bands_are_what_scores_100(self, before):
        figure = plot.draw_lengths(plot.read_runs([before], None))
        bands = [ax.collections[0].get_segments()[0][:, 1].tolist() for ax in figure.axes]
        assert bands == [[80, 120], [50, 150], [100, 150], [50, 100]]

    def test_each_file_has_its_row_and_name(self, before, after):
        figure = plot.draw_lengths(plot.read_runs([before, after], ["before", "after"]))
        labels = [ax.get_ylabel() for ax in figure.axes[::4]]
        assert labels == ["before: words written", "after: words written"]

    def test_a_type_that_no_file_has_gets_no_panel(self, tmp_path):
        path = written(tmp_path / "a.jsonl", [row("below", 70)])
        figure = plot.draw_lengths(plot.read_runs([path], None))
        assert [ax.get_title() for ax in figure.axes] == ["less than N words"]


class TestScores:
    def test_the_bars_are_the_mean_scores_of_each_group(self, before, after):
        by_range, by_type = bars(plot.draw_scores(plot.read_runs([before, after], None)))
        # before: about 2 x 60/80 - 1 = 50, range 100, above 2 x 60/100 - 1 = 20, below 100
        # after: about (100 + 0) / 2, since the second one has 5 words, and 100 for the rest
        assert by_type == [50, 100, 20, 100, 50, 100, 100, 100]
        # The ranges 10-20 (after alone), 50-150, all.
        assert by_range == [67.5, 67.5, 0, 100, 80]

    def test_ranges_stand_in_the_order_of_their_numbers(self, tmp_path):
        rows = [row("about", 100, range=name) for name in ("10000-12000", "2000-4000")]
        path = written(tmp_path / "a.jsonl", rows)
        by_range, _ = plot.draw_scores(plot.read_runs([path], None)).axes
        names = [label.get_text() for label in by_range.get_xticklabels()]
        assert names == ["2000-4000", "10000-12000", "all"]


class TestCommand:
    def test_it_writes_two_pictures_and_says_where(
        self, before, after, tmp_path, monkeypatch, capsys
    ):
        out = tmp_path / "new" / "plots"
        monkeypatch.setattr(sys, "argv", ["plot.py", str(before), str(after), f"--out={out}"])
        plot.main()
        paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
        assert sorted(out.iterdir()) == sorted(paths)
        assert all(min(imread(path).shape[:2]) > 400 for path in paths)

    @pytest.mark.parametrize("labels", [["one"], ["same", "same"], ["a", "b", "c"]])
    def test_labels_must_tell_the_files_apart(self, before, after, labels):
        with pytest.raises(UserError, match="2 files need as many different labels"):
            plot.read_runs([before, after], labels)

    def test_files_of_one_name_need_labels(self, before):
        with pytest.raises(UserError, match="different labels"):
            plot.read_runs([before, before], None)

    def test_an_answer_without_a_constraint_is_named(self, tmp_path):
        rows = [row("about", 9), {"prompt": "Write.", "length": 9, "response": "Text."}]
        path = written(tmp_path / "a.jsonl", rows)
        with pytest.raises(UserError, match="answer 2 has no constraint"):
            plot.read_runs([path], None)
