"""Steps of speculative decoding as a picture: counts, fates, and what is refused."""

import pytest

from minids3.viz.speculation import DraftStep, describe_steps, speculation_steps

RUNS = {
    "one draft": [DraftStep((" red",), 1, " fox"), DraftStep((" ran",), 0, " sat")],
    "plain": [DraftStep((), 0, "\n"), DraftStep((), 0, "x" * 40)],
}


def test_boxes_in_the_order_of_the_text():
    step = DraftStep(("a", "b"), 1, "c")
    assert step.boxes == [("a", "accepted"), ("b", "rejected"), ("c", "own")]
    assert step.made == 2


@pytest.mark.parametrize("accepted", [-1, 2])
def test_more_accepted_than_drafted_is_refused(accepted):
    with pytest.raises(ValueError, match=f"accepted={accepted} of 1"):
        DraftStep(("a",), accepted, "b")


def test_picture_counts_tokens_and_strikes_what_was_rejected():
    fig = speculation_steps(RUNS)
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert titles == ["one draft: 3 tokens in 2 steps", "plain: 2 tokens in 2 steps"]
    texts = [t.get_text() for t in fig.axes[0].texts]
    assert texts == ["1", "·red", "·fox", "2", "·ran", "·sat"]
    assert [len(ax.lines) for ax in fig.axes] == [1, 0]
    assert [len(ax.patches) for ax in fig.axes] == [4, 2]


def test_only_the_first_steps_are_drawn():
    fig = speculation_steps(RUNS, most=1)
    assert fig.axes[0].get_title(loc="left") == "one draft: 2 tokens in 1 steps"


def test_words_say_the_same():
    text = describe_steps(RUNS)
    assert "one draft: 3 tokens in 2 steps, 1 of 2 drafts accepted" in text
    assert "plain: 2 tokens in 2 steps" in text
    assert text.count("drafts accepted") == 1


def test_a_run_without_steps_is_refused():
    with pytest.raises(ValueError, match="'empty' has no steps"):
        speculation_steps({"empty": []})
