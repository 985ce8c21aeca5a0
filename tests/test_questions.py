"""The pictures of questions, from synthetic rows."""

from pathlib import Path

import pytest
from matplotlib.image import imread
from test_results import row

from experiments.averages import average_seeds
from experiments.questions import QUESTIONS, Question, plot_question, select
from experiments.report import fill_page
from experiments.results import read_rows

RESULTS = Path(__file__).parents[1] / "results" / "holdout"
ENDS = {"strides_end": {"blocks.1.0.pooling": [1.5, 1.7]}}
LEARNED = {"pooling": "diffstride", "edge": "stopband", "order": "before"}
MARK = "<!-- table question window: begin -->\n<!-- table question window: end -->\n"


@pytest.fixture
def entries():
    fixed = row(pooling="spectral", order="before", test_accuracy=80.0)
    seeds = [row(**LEARNED, **ENDS, seed=i, test_accuracy=82.0 + i) for i in range(2)]
    return average_seeds([fixed, *seeds])


def test_a_question_shows_the_trials_that_it_selects(entries, tmp_path):
    question = Question("A title", {"a": {"pooling": "spectral"}, "b": {"pooling": "diffstride"}})
    figure = plot_question(question, entries, tmp_path / "question.png")
    (panel,) = figure.axes
    assert [dots[0].get_xdata()[0] for dots in panel.containers] == [80.0, 82.5]
    bars = [dots[2] for dots in panel.containers]
    assert not bars[0]
    ends = bars[1][0].get_segments()[0][:, 0]
    assert ends == pytest.approx([82.5 - 0.5**0.5, 82.5 + 0.5**0.5])
    assert [label.get_text() for label in panel.get_yticklabels()] == ["a", "b"]
    assert imread(tmp_path / "question.png").shape[1] == 720


@pytest.mark.parametrize("values", [{"pooling": "blur"}, {}])
def test_a_trial_that_is_missing_or_not_the_only_one_is_refused(entries, values):
    with pytest.raises(ValueError, match=r"[02] trials are 'a', with .* expected one"):
        select(Question("", {"a": values}), entries)


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_question_has_its_trials(name):
    entries = average_seeds(read_rows(RESULTS))
    chosen = list(select(QUESTIONS[name], entries).values())
    assert all(entry not in chosen[:number] for number, entry in enumerate(chosen))


def test_a_page_links_to_the_picture():
    page = fill_page(MARK, read_rows(RESULTS), pictures="images")
    assert "![CIFAR-10, under the strided cost](images/question_window.png)" in page


def test_an_unknown_question_is_refused():
    with pytest.raises(ValueError, match="there is no question 'why': expected one of window, "):
        fill_page(MARK.replace("window", "why"), read_rows(RESULTS))
