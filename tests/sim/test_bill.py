"""The Bill's lines against hand calculations, and how it shows itself."""

import pytest

from minids3.sim import bill


def test_line_00_is_six_nd_over_the_rate_of_a_dense_run_in_bf16():
    line = bill.line_00()
    by_hand = 6 * 671_026_404_352 * 14.8e12 / 400e12 / 3600
    assert line.gpu_hours == pytest.approx(by_hand, rel=1e-12)
    assert line.dollars == pytest.approx(2 * by_hand, rel=1e-12)
    assert 41e6 < line.value < 42e6
    assert line.saved_hours is None


def test_line_01_is_the_published_token_count():
    line = bill.line_01()
    assert line.value == 14.8e12
    assert line.kind == "published"
    assert "17 bits" in line.formula
    assert "31.45 TB" in line.formula
    assert line.gpu_hours is None


def test_line_02_counts_what_6nd_leaves_out():
    line = bill.line_02()
    n, lookup = 671_026_404_352, 129_280 * 7168
    attention = 61 * 128 * 320 * 2048
    by_hand = 6 * (n - lookup + attention) / 1e9
    # Norms and the rounding of the twin's width are the only differences, parts in a million.
    assert line.value == pytest.approx(by_hand / 1e3, rel=5e-6)
    assert line.gpu_hours == pytest.approx(line.value * 1e12 * 14.8e12 / 400e12 / 3600, rel=1e-12)


def test_published_total():
    assert bill.PUBLISHED.gpu_hours == 2_788_000 == 2_664_000 + 119_000 + 5_000
    assert bill.PUBLISHED.dollars == 2 * bill.PUBLISHED.gpu_hours


def test_show_text_and_html():
    ledger = bill.show(upto="02")
    assert [line.notebook for line in ledger.lines] == ["00", "01", "02"]
    text = repr(ledger)
    assert text.startswith("02  The same dense model")
    assert "The Bill so far: dense in BF16 41.38M GPU-hours ($82.76M)" in " ".join(text.split())
    assert "\n01  Tokens" not in text
    assert max(map(len, text.splitlines())) <= 76
    page = ledger._repr_html_()
    assert page.count("<tr>") == 3  # the head, a line, and how it was got
    assert "<table>" in page
    whole = bill.show(upto="02", all=True)
    assert repr(whole).count("source:") == 3
    assert whole._repr_html_().count("<tr>") == 7
    assert repr(bill.show()) == repr(bill.show(upto=max(bill.ENTRIES), all=True))
    assert [line.notebook for line in bill.show(upto="00").lines] == ["00"]


@pytest.mark.parametrize("wrong", ["99", "2", "", "02_transformer_baseline"])
def test_unknown_notebook(wrong):
    with pytest.raises(ValueError, match="it has 00, 01, 02"):
        bill.show(upto=wrong)


def test_figure_draws_priced_lines_and_the_published_mark():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig = bill.figure(upto="02")
    ax = fig.axes[0]
    assert len(ax.patches) == 4  # a whole run, and the same without the idea, for two lines
    assert ax.get_xscale() == "linear"
    assert ax.get_xlim()[0] == 0
    assert ax.get_xlabel()
    assert any("2.788M" in t.get_text() for t in ax.texts)
    plt.close(fig)


def test_an_entry_is_registered_once():
    with pytest.raises(ValueError, match="already has a line"):
        bill.entry("00")(bill.line_00)


def test_line_kind_is_checked():
    with pytest.raises(ValueError, match="kind='guessed'"):
        bill.Line("00", "t", 1.0, "u", "f", "s", "guessed")


def test_a_saving_is_the_difference_of_two_whole_runs():
    line = bill.Line("99", "t", 1.0, "u", "f", "s", "computed", 3e6, 6e6, without_hours=5e6)
    assert line.saved_hours == 2e6
    text = " ".join(str(line).split())
    assert "whole run: 3M GPU-hours, $6M; without this idea 5M; saved, at most: 2M, $4M" in text
    with pytest.raises(ValueError, match="needs gpu_hours"):
        bill.Line("99", "t", 1.0, "u", "f", "s", "computed", without_hours=5e6)


def test_every_saving_is_positive_and_no_line_mixes_totals_with_savings():
    for line in bill.lines():
        if line.gpu_hours is not None:
            assert 2.6e6 < line.gpu_hours < 42e6, line.notebook  # a whole run, never a difference
            assert line.dollars == pytest.approx(2 * line.gpu_hours)
        if line.saved_hours is not None:
            assert line.saved_hours > 0
    saved = {line.notebook: line.saved_hours for line in bill.lines() if line.saved_hours}
    assert set(saved) >= {"04", "05", "10"}
    assert max(saved, key=saved.get) == "04"
