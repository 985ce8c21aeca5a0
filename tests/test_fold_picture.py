"""The picture of the strides of folds, from synthetic rows."""

import pytest
from matplotlib.image import imread
from test_results import row

from experiments.averages import average_seeds
from experiments.fold_picture import plot_strides_of_folds
from experiments.report import draw_own_picture, fill_page, own_pictures

NAME = "strides-of-folds mel"
MARK = f"<!-- table {NAME}: begin -->\n<!-- table {NAME}: end -->\n"
LAYERS = "blocks.1.0.pooling", "blocks.2.0.pooling"
OPTIONS = {"config": "mel", "pooling": "diffstride", "edge": "stopband", "order": "before"}


def learned(fold, *strides, start=(2, 1, 2, 3), **changes):
    ends = dict(zip(LAYERS, strides, strict=True))
    values = {"strides_start": [*start], "strides_end": ends, "fold": fold}
    return row(**OPTIONS | values | changes)


@pytest.fixture
def rows():
    usual = [learned(fold, [2.5, 4.0 + fold], [2.0, 1.5]) for fold in range(3)]
    poor = learned(1, [1.5, 1.5], [4.0, 8.0], start=(2, 1, [4, 3], 1))
    return [*usual, poor, learned(None, [9.0, 9.0], [9.0, 9.0])]


def test_lines_are_products_of_strides_for_each_start_and_axis(rows, tmp_path):
    folded = [each for each in rows if each["fold"] is not None]
    figure = plot_strides_of_folds(average_seeds(folded), tmp_path / "folds.png")
    lines = {
        panel.get_title("left"): [[*line.get_ydata()] for line in panel.lines]
        for panel in figure.axes
    }
    assert lines == {
        "frequency, from 2,1,2,3": [[2, 6], [2.5, 5], [2.5, 5], [2.5, 5]],
        "time, from 2,1,2,3": [[2, 6], [4, 6], [5, 7.5], [6, 9]],
        "frequency, from 2,1,4x3,1": [[4, 4], [1.5, 6]],
        "time, from 2,1,4x3,1": [[3, 3], [1.5, 12]],
    }
    assert imread(tmp_path / "folds.png").shape[1] == 720


def test_a_fold_has_the_same_colour_in_all_panels(rows, tmp_path):
    folded = [each for each in rows if each["fold"] is not None]
    figure = plot_strides_of_folds(average_seeds(folded), tmp_path / "folds.png")
    usual, poor = figure.axes[0].lines, figure.axes[2].lines
    assert poor[1].get_color() == usual[2].get_color() != usual[1].get_color()
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["fold 0", "fold 1", "fold 2", "at the start"]


def test_sounds_have_one_axis(tmp_path):
    wave = learned(0, [4.0], [2.0], start=(4, 1, 4, 2))
    (panel,) = plot_strides_of_folds(average_seeds([wave]), tmp_path / "folds.png").axes
    assert panel.get_title("left") == "time, from 4,1,4,2"


def test_a_page_links_to_the_picture_of_its_recipe(rows, tmp_path):
    page = fill_page(MARK, rows, pictures="images")
    assert "![Strides learned in each fold](images/strides_of_folds_mel.png)" in page
    assert own_pictures(page) == [NAME]
    other = learned(0, [4.0], [2.0], start=(4, 1, 4, 2), config="wave")
    path = draw_own_picture(NAME, [*rows, other], tmp_path / "images")
    assert path == tmp_path / "images" / "strides_of_folds_mel.png"
    assert path.exists()


def test_a_recipe_without_folds_is_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="no run of these recipes has learned strides in folds"):
        draw_own_picture(NAME, rows[-1:], tmp_path)


def test_recipes_of_one_and_two_axes_do_not_share_a_picture(rows, tmp_path):
    other = learned(0, [4.0], [2.0], start=(4, 1, 4, 2), config="mel")
    with pytest.raises(ValueError, match="have strides on 1 and 2 axes: give each kind a mark"):
        draw_own_picture(NAME, [*rows, other], tmp_path)
