from learnit_r8.dashboard import choice
from tests.drive import make, train


def test_plain_without_a_terminal(capsys):
    """Under a test runner, a pipe or a batch job there are lines and no reason is given."""
    with make(use_curses=True) as r8:
        train(r8)
    err = capsys.readouterr().err

    assert "no screen" not in err
    assert choice.why_plain({"TERM": "xterm"}) == "standard input or output is no terminal"
