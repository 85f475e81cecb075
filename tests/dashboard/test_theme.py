import re
from pathlib import Path

import pytest

from learnit_r8 import report
from learnit_r8.dashboard.notebook import _COLOURS, html_of
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.theme import COLOURS, NAMES, choose_theme
from tests.screen_common import fake_events, fold_all


@pytest.mark.parametrize(("environ", "colours"), [
    ({"TERM": "xterm-256color"}, 256),
    ({"TERM": "xterm"}, 8),
    ({"TERM": "xterm", "COLORTERM": "truecolor"}, 256),
    ({"TERM": "xterm-256color", "NO_COLOR": "1"}, 0),
    ({"TERM": "xterm-256color", "NO_COLOR": ""}, 256),
    ({"TERM": "xterm-256color", "NO_COLOR": "1", "FORCE_COLOR": "1"}, 256),
    ({"TERM": "xterm", "FORCE_COLOR": "3"}, 256),
    ({"TERM": "xterm-256color", "FORCE_COLOR": "0"}, 0),
    ({"TERM": "dumb"}, 0),
    ({"TERM": "dumb", "FORCE_COLOR": "1"}, 8),
    ({"TERM": "vt100"}, 0),
    ({"TERM": "xterm-m"}, 0),
    ({}, 0),
    ({"WT_SESSION": "x"}, 256),
])  # fmt: skip
def test_number_of_colours(environ, colours):
    """TERM, COLORTERM, NO_COLOR and FORCE_COLOR decide how many colours there are; NO_COLOR is not no screen."""
    theme = choose_theme(environ)

    assert theme.num_colours == colours
    assert theme.name == ("dark" if colours else "none")


@pytest.mark.parametrize(("environ", "encoding", "glyphs"), [
    ({"TERM": "xterm"}, "UTF-8", "braille"),
    ({"TERM": "xterm"}, "utf_8", "braille"),
    ({"TERM": "linux"}, "UTF-8", "blocks"),
    ({"TERM": "xterm"}, "ANSI_X3.4-1968", "ascii"),
    ({"TERM": "xterm"}, "latin-1", "ascii"),
    ({"TERM": "xterm", "R8_GLYPHS": "blocks"}, "ascii", "blocks"),
])  # fmt: skip
def test_characters(environ, encoding, glyphs):
    """Braille needs UTF-8, the Linux console gets blocks, everything else ASCII; R8_GLYPHS forces a choice."""
    assert choose_theme(environ, encoding=encoding).glyphs.name == glyphs


def test_key_goes_through_the_themes():
    """The key for colours goes through all themes and comes back; without colours there is one only."""
    theme = choose_theme({"TERM": "xterm"})

    themes = [theme]
    while len(themes) <= len(NAMES):
        themes.append(themes[-1].next())
    assert [each.name for each in themes[:-1]] == list(NAMES)
    assert themes[-1] == theme
    assert choose_theme({}).next().name == "none"


@pytest.mark.parametrize("name", NAMES)
def test_themes_have_every_style(name):
    """Every theme has the same styles."""
    assert choose_theme({"TERM": "xterm", "R8_THEME": name}).styles.keys() == COLOURS.keys()


def test_theme_none_has_no_colour():
    """Without colours no style has one."""
    styles = choose_theme({}).styles.values()

    assert all(style.colour is None and style.colour8 is None for style in styles)


@pytest.mark.parametrize(("how", "text"), [
    ({"R8_THEME": "pink"}, "theme must be one of .*, got 'pink'"),
    ({"R8_GLYPHS": "runes"}, "glyphs must be one of .*, got 'runes'"),
])  # fmt: skip
def test_unknown_choice_is_refused(how, text):
    """A forced theme or set of characters that does not exist is a ValueError."""
    with pytest.raises(ValueError, match=text):
        choose_theme({"TERM": "xterm", **how})


EIGHT = [
    (0, 0, 0), (205, 0, 0), (0, 205, 0), (205, 205, 0), (0, 0, 238), (205, 0, 205), (0, 205, 205), (229, 229, 229),
    (127, 127, 127), (255, 0, 0), (0, 255, 0), (255, 255, 0), (92, 92, 255), (255, 0, 255), (0, 255, 255),
    (255, 255, 255),
]  # fmt: skip
"""The first sixteen colours as xterm has them; the last eight are the bright ones."""
DARK, LIGHT = [(0, 0, 0), (30, 30, 30)], [(255, 255, 255), (253, 246, 227)]
"""Grounds: black and the dark grey of many editors; white, and a warm one."""
MARKS = {"rest", "range", "plan"}
"""Styles of lines and areas; all others are of texts, too."""


def rgb(number):
    """A colour of the palette of 256."""
    if number < 16:
        return EIGHT[number]
    if number >= 232:
        return (8 + 10 * (number - 232),) * 3
    levels = (0, 95, 135, 175, 215, 255)
    return levels[(number - 16) // 36], levels[(number - 16) // 6 % 6], levels[(number - 16) % 6]


def luminance(colour):
    parts = [part / 255 for part in colour]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    """The contrast of two colours, as WCAG 2 defines it."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("term", ["xterm-256color", "xterm"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_every_colour_can_be_read_on_its_ground(name, term):
    """Texts have a contrast of 4.5 to 1 at least, marks of 3 to 1, on each ground that the theme is for."""
    theme = choose_theme({"TERM": term, "R8_THEME": name})
    grounds = LIGHT if name.endswith("light") else DARK
    # With eight colours only black and white: what a terminal calls red goes with its own ground.
    for ground in grounds if theme.num_colours == 256 else grounds[:1]:
        for kind, style in theme.styles.items():
            if theme.num_colours == 256:
                colour = None if style.colour is None else rgb(style.colour)
            else:
                colour = None if style.colour8 is None else EIGHT[style.colour8]
                if colour is not None and style.bold:
                    # Many terminals show bold as bright, others do not: where both differ, the worse counts on light.
                    bright = EIGHT[style.colour8 + 8]
                    colour = bright if ground == (0, 0, 0) else min(colour, bright, key=lambda c: contrast(c, ground))
            if colour is not None:
                assert contrast(colour, ground) >= (3.0 if kind in MARKS else 4.5), (kind, ground)
            # Dimmed, the terminal's own colour is about half as far from the ground.
            assert not (style.dim and kind not in MARKS)


@pytest.mark.parametrize(
    ("environ", "ground", "name"),
    [
        ({"COLORFGBG": "0;15"}, "", "light"),
        ({"COLORFGBG": "15;0"}, "", "dark"),
        ({"COLORFGBG": "12;8"}, "", "dark"),
        ({"COLORFGBG": "default"}, "", "dark"),
        ({}, "light", "light"),
        ({"R8_THEME": "dark"}, "light", "dark"),
        ({"NO_COLOR": "1"}, "light", "none"),
    ],
)
def test_the_ground_decides_between_light_and_dark(environ, ground, name):
    """As COLORFGBG or the terminal says; whoever forces a theme gets that one."""
    assert choose_theme({"TERM": "xterm-256color", **environ}, ground=ground).name == name


def hexed(text):
    digits = text.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    return tuple(int(digits[place : place + 2], 16) for place in (0, 2, 4))


def blended(colour, ground, share):
    return tuple(share * one + (1 - share) * other for one, other in zip(colour, ground, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_the_report_can_be_read_on_its_ground(scheme):
    """As those of the screen: texts on paper and cards, curves, whose names have their colour, and bands."""
    style = (Path(report.__file__).parent / "page.html").read_text(encoding="utf-8")
    given = re.findall(r":root\{(color-scheme.*?|--.*?)\}", style, re.DOTALL)
    listed = re.findall(r"--([a-z0-9]+):(#\w{6}|#\w{3})(?=;|$)", given[scheme == "dark"], re.MULTILINE)
    found = {name: hexed(colour) for name, colour in listed}
    area = float(re.search(r"\.band\.q\{opacity:([.\d]+)", style)[1])

    assert "@media screen and (prefers-color-scheme:dark)" in style
    for name in ("ink", "quiet", "faint", "alert", "warn", "good", "c0", "c1", "c2", "c3", "c4", "c5"):
        for ground in (found["paper"], found["card"]):
            assert contrast(found[name], ground) >= 4.5, name
        if name in ("c0", "alert", "warn", "good"):
            assert contrast(found[name], blended(found[name], found["card"], 0.18)) >= 4.5, name
    for name in ("q1", "q2", "q3", "q4"):
        assert contrast(blended(found[name], found["card"], area), found["card"]) >= 2.5, name


def test_marks_of_the_notebook_can_be_read():
    """Texts of the notebook's view have the notebook's own colour; its marks are seen on white and on black."""
    view = fold_all(View(), fake_events(50))

    assert not re.search(r"color:#\w{6}[^>]*>[^&]", html_of(view, 20.0))
    for colour in _COLOURS.values():
        assert min(contrast(hexed(colour), ground) for ground in ((255, 255, 255), (17, 17, 17))) >= 3.0
