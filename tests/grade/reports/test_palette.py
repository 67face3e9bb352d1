"""The colours of the pages: what is read has a contrast of 4.5 to 1, on every ground it is on."""

import re
from importlib import resources

import pytest

from minids3.viz.legible import CONTRAST, contrast

STYLE = (resources.files("minids3.grade.reports") / "templates" / "page.css").read_text("utf-8")
LIGHT, DARK, PRINT = (
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", part))
    for part in re.split(r"@media \((?:prefers-color-scheme: dark)\)|@media print", STYLE)
)
SHADES = {"light": LIGHT, "dark": LIGHT | DARK, "print": LIGHT | PRINT}
STATES = ("ok", "some", "no", "look", "none")
ON = {  # an ink and the grounds it is read on
    "ink": ("paper", "ground", *(f"{s}-bg" for s in STATES), "code"),
    "soft": ("paper", "ground"),
    **{state: ("paper", f"{state}-bg") for state in STATES},
    **{ink: ("code",) for ink in ("k", "s", "c", "n", "some")},
    "some": ("paper", "some-bg", "ground", "code"),
    "look": ("paper", "look-bg", "ground"),  # links, too
}


@pytest.mark.parametrize("shade", SHADES)
def test_words_stand_out_from_what_is_behind_them(shade):
    colors = SHADES[shade]
    for ink, grounds in ON.items():
        for ground in grounds:
            found = contrast(colors[ink], colors[ground])
            assert found >= CONTRAST, f"--{ink} on --{ground}: {found:.2f}"


def test_every_ink_of_the_style_is_looked_at():
    inks = set(re.findall(r"(?:[{;] ?)color: var\(--([\w-]+)\)", STYLE))
    inks |= set(re.findall(r"fill: var\(--([\w-]+)\)", STYLE))
    assert len(inks) >= 10
    assert inks <= set(ON)


def test_the_style_has_no_colour_of_its_own():
    """Colours are named in the three palettes alone, so that each has its three values."""
    rules = re.sub(r":root \{.*?\}", "", STYLE, flags=re.DOTALL)
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b|\brgba?\(", rules) == []
    assert set(DARK) <= set(LIGHT)
    assert set(PRINT) <= set(LIGHT)
