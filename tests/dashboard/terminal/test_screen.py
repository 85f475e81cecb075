import re
from pathlib import Path

import learnit_r8


def test_no_doupdate_in_the_package():
    """Except on Windows nothing calls a function of curses that holds the GIL while a terminal does not read."""
    package = Path(learnit_r8.__file__).parent
    calls = re.compile(r"\.(doupdate|noutrefresh|endwin|reset_prog_mode|flash|beep|flushinp)\(")
    found = [path.name + call[0] for path in package.rglob("*.py") for call in calls.finditer(path.read_text())]

    assert found == ["screen.py.endwin("]
