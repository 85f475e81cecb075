import pytest

from learnit_r8.dashboard.theme import COLOURS, NAMES, choose_theme


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
    assert theme.name == ("colour" if colours else "mono")


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

    assert [theme.name, theme.next().name, theme.next().next().name] == list(NAMES)
    assert theme.next().next().next() == theme
    assert choose_theme({}).next().name == "mono"


@pytest.mark.parametrize("name", NAMES)
def test_themes_have_every_style(name):
    """Every theme has the same styles."""
    assert choose_theme({"TERM": "xterm"}, name=name).styles.keys() == COLOURS.keys()


def test_mono_theme_has_no_colour():
    """Without colours no style has one."""
    styles = choose_theme({}).styles.values()

    assert all(style.colour is None and style.colour8 is None for style in styles)


def test_colour_blind_theme_needs_no_red_and_green():
    """The theme for colour-blind people tells good, warning and alert apart without red against green."""
    styles = choose_theme({"TERM": "xterm"}, name="clear").styles

    assert not {styles[name].colour8 for name in ("good", "warn", "alert", "q1", "q4")} & {1, 2}


@pytest.mark.parametrize(("how", "text"), [
    ({"name": "pink"}, "theme must be one of .*, got 'pink'"),
    ({"glyphs": "runes"}, "glyphs must be one of .*, got 'runes'"),
])  # fmt: skip
def test_unknown_choice_is_refused(how, text):
    """A forced theme or set of characters that does not exist is a ValueError."""
    with pytest.raises(ValueError, match=text):
        choose_theme({"TERM": "xterm"}, **how)
