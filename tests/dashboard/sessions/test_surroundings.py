"""What else happens in a process while a screen is on: debuggers, questions, children, printing, other handlers."""

import re
import signal
import sys

import pytest

from tests.dashboard.sessions.programs import LOOP, all_ended, ended, program, shown
from tests.terminals import ENTER, LEAVE, SHOW_CURSOR, Terminal

BREAKPOINT = """
def body():
    if at(60):
        hidden = 41
        breakpoint()
        print("hidden is now", hidden)
"""


def saved(folder, body, steps=400):
    """A terminal with a program in a file, whose lines a debugger can show."""
    path = folder / "run.py"
    path.write_text(program(body))
    return Terminal([str(path), str(steps)])


def test_breakpoint_is_usable(tmp_path):
    """breakpoint() stops in the user's own line on the normal screen, echoes, and the screen comes back."""
    with saved(tmp_path, BREAKPOINT) as terminal:
        terminal.wait_for(lambda: b"(Pdb) " in terminal.raw)
        at_prompt = terminal.after
        terminal.press("p hidden + 1\n")
        terminal.wait_for(lambda: "(Pdb) " in terminal.after.partition("\n42\r")[2])
        echoed = terminal.after
        terminal.press("c\n")
        terminal.wait_for(lambda: terminal.raw.count(ENTER) == 2)
        code = terminal.wait_for_end()

        assert '-> print("hidden is now", hidden)' in at_prompt
        assert "p hidden + 1" in echoed
        assert (code, terminal.is_restored) == (0, True)
        assert b"hidden is now 41" in terminal.raw


def test_stepping_over_a_slow_line(tmp_path):
    """Stepping on for longer than the screen takes to come back shows where the debugger is at the next prompt."""
    body = """
def body():
    if at(60):
        breakpoint()
        time.sleep(0.8)
        later = 1
"""
    with saved(tmp_path, body, steps=200) as terminal:
        terminal.wait_for(lambda: b"(Pdb) " in terminal.raw)
        terminal.press("n\n")
        terminal.wait_for(lambda: terminal.raw.count(LEAVE) == 2 and "(Pdb) " in terminal.after)
        shown = terminal.after
        terminal.press("c\n")
        terminal.wait_for_end()

        assert "-> later = 1" in shown
        assert terminal.is_restored


def test_input_is_usable():
    """input() shows its question and what was printed before it on the normal screen, and echoes the answer."""
    body = """
def body():
    if at(60):
        print("think of a number")
        answer = input("which? ")
        print("it was", answer)
"""
    with Terminal(["-c", program(body), "400"]) as terminal:
        terminal.wait_for(lambda: b"which? " in terminal.raw)
        question = terminal.after
        terminal.press("seven\n")
        terminal.wait_for(lambda: terminal.raw.count(ENTER) == 2)
        terminal.wait_for_end()

        assert question.index("think of a number") < question.index("which?")
        assert b"which? seven\r\nit was seven" in terminal.raw


def test_suspended_block_has_the_terminal():
    """In a suspended() block printing goes to the normal screen at once."""
    body = """
from learnit_r8.dashboard import suspended

def body():
    if at(60):
        with suspended():
            print("seen at once", flush=True)
            time.sleep(0.2)
"""
    with Terminal(["-c", program(body), "400"]) as terminal:
        terminal.wait_for(lambda: "seen at once" in terminal.after)
        terminal.wait_for(lambda: terminal.raw.count(ENTER) == 2)
        terminal.wait_for_end()

        assert terminal.is_restored


CHILDREN = {
    "pool": ("""
import multiprocessing
def square(x):
    return x * x

def body():
    if at(60):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(square, range(4)) == [0, 1, 4, 9]
        print("pool ended")
""", "pool ended"),
    "exiting": ("""
def body():
    if at(60):
        pid = os.fork()
        if pid == 0:
            print("child speaks")
            sys.exit(3)
        print("child ended with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""", "child ended with 3"),
}  # fmt: skip


def test_forked_children_leave_the_screen_alone():
    """A forked child, terminated by its pool or not, neither leaves the screen nor changes it, and ends as it would."""
    with all_ended(*((program(code), 200) for code, _ in CHILDREN.values())) as terminals:
        for terminal, (_, said) in zip(terminals, CHILDREN.values(), strict=True):
            assert terminal.code == 0
            assert terminal.is_restored
            assert terminal.raw.count(LEAVE) == 1
            assert said in terminal.after


def test_child_does_not_run_the_parents_cleanup():
    """A forked child that is terminated does not run the parent's finally."""
    body = """
def body():
    if at(60):
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
        time.sleep(0.2)
        os.kill(pid, signal.SIGTERM)
        print("child ended with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    frame = LOOP + "try:\n    train(body)\nfinally:\n    os.write(1, b'cleaned up ')\n    r8.close()\n"
    with ended(program(body, frame), 100) as terminal:
        assert terminal.raw.count(b"cleaned up") == 1
        assert "child ended with -15" in terminal.after


PRINTS = """
import logging, subprocess, warnings
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
warnings.simplefilter("always")

def body():
    step = r8.global_step
    print("printed", step)
    print("half a line", end="\\r")
    logging.info("logged %d", step)
    os.write(2, b"native %d\\n" % step)
    sys.stderr.write(f"bar {step}\\r")
    if step % 50 == 0:
        warnings.warn(f"warned {step}")
        subprocess.run([sys.executable, "-c", f"import sys; sys.stderr.write('child {step}\\\\n')"])
"""


def test_nothing_printed_reaches_the_screen():
    """Whatever is printed in the loop leaves the screen as it is, and the end of it is shown afterwards."""
    with ended(program(PRINTS), 200) as terminal:
        on_screen = terminal.raw[: terminal.raw.rfind(LEAVE)].decode(errors="replace")

        assert not re.search(r"(printed|logged|native|warned|child|bar) \d", on_screen.split("5 output")[0])
        assert "printed 199" in terminal.after
        assert "logged" in terminal.after
        assert "native 199" in terminal.after


@pytest.mark.parametrize("handled", [False, True])
def test_size_is_followed(handled):
    """A new size is shown whether or not somebody else handles SIGWINCH."""
    before = "import signal\nsignal.signal(signal.SIGWINCH, lambda *_: None)\n" if handled else ""
    with shown(before + program()) as terminal:
        for width, height in ((40, 12), (120, 40), (1, 1), (20, 5), (80, 24)):
            terminal.resize(width, height)
            # One cell is painted with few bytes, and not again before the screen is refreshed as a whole.
            enough = len(terminal.raw) + (0 if width == 1 else 8)
            terminal.wait_for(lambda enough=enough: len(terminal.raw) > enough)
        terminal.wait_for("matrix")
        # Where the locale has them, charts are drawn in braille.
        terminal.wait_for(lambda: any("\u2800" < character < "\u2900" for character in terminal.text))
        terminal.signal(signal.SIGTERM)
        terminal.wait_for_end()

        assert terminal.is_restored


@pytest.mark.parametrize("term", [None, "no-such-terminal", "vt100"])
def test_any_term(term):
    """No TERM ends the run or leaves the terminal changed; where there is no screen there are plain lines.

    Without TERM they have no escape code and no carriage return; pauses for old terminals (``$<5>``) are no text.
    """
    has_screen = term == "vt100"
    with ended(program(), 100, term=term) as terminal:
        assert terminal.code == 0
        assert terminal.is_restored
        assert (b"epoch 1/1 step 100/100" in terminal.raw) == (not has_screen)
        assert "code after the loop" in terminal.raw.decode()
        assert b"$<" not in terminal.raw
        assert term or not re.search(rb"\x1b|\r(?!\n)", terminal.raw)


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(tmp_path):
    """Ctrl-Z stops the job with the terminal as it was; after fg the screen is back."""
    path = tmp_path / "run.py"
    path.write_text(program())
    shell = f"set -m; {sys.executable} {path} 1000000; stty -a | grep -o ' echo '; echo stopped; fg"
    with Terminal(["-c", "import os, sys; os.execvp('bash', ['bash', '-c', sys.argv[1]])", shell]) as terminal:
        terminal.wait_for("matrix")
        terminal.press("\x1a")
        terminal.wait_for(lambda: "stopped" in terminal.after)
        # A Ctrl-C before the picture is back would come before the screen is wholly taken again.
        terminal.wait_for(lambda: terminal.raw.count(ENTER) == 2 and b"matrix" in terminal.raw.rsplit(ENTER, 1)[1])
        terminal.press("\x03")
        terminal.wait_for_end()

        assert terminal.raw.count(SHOW_CURSOR) >= 2
        assert terminal.raw.rfind(LEAVE) > terminal.raw.rfind(ENTER)


def test_locale_without_these_characters_gets_ascii():
    """In a locale that is not installed, as over ssh, charts are drawn in ASCII and nothing is blank."""
    with shown(program(), width=60, height=16, LC_ALL="xx_YY.UTF-8", NO_COLOR="1") as terminal:
        terminal.wait_for("epoch 4")
        text = terminal.text

        assert text.isascii()
        assert re.search(r"\|[ :*^]*[*:]", text)
        assert " total -" in text
        terminal.press("?")
        terminal.press("jjjjjjjjjjjjjjjjjjjjjjjjjjjjjjjjjjjjjjjjj")
        terminal.wait_for("little is known")
        terminal.press("?2")
        terminal.wait_for("quartile bounds")


def test_a_screen_without_a_run_folder_knows_the_samples():
    """With run_dir=False the screen is the only listener, and its panels of samples are filled all the same."""
    code = LOOP.replace('use_curses=True, name="matrix"', 'use_curses=True, run_dir=False, name="matrix"')
    code = code.replace("update_with_loss(1.0)", "update_with_loss(1.0 + indices / 1000)")
    with shown(code + "with r8:\n    train(lambda: None)\n", width=120, height=40) as terminal:
        terminal.press("2")
        terminal.wait_for("loss from")

        assert "known once every sample was seen" not in "\n".join(terminal.screen.display)
