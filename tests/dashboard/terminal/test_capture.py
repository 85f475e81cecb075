import contextlib
import io
import logging
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.dashboard.terminal.capture import Capture


@contextlib.contextmanager
def captured(tmp_path):
    """A capture that is on, and its file. No fixture: pytest sets the streams anew for each phase of a test."""
    path = tmp_path / "output.log"
    capture = Capture(path)
    capture.start()
    try:
        yield capture, path
    finally:
        capture.stop()


def test_native_writes_and_children_are_in_the_file(tmp_path):
    """What native code and child processes write to stderr, and children to the stdout they are given, is kept."""
    with captured(tmp_path) as (_, path):
        os.write(2, b"native\n")
        subprocess.run([sys.executable, "-c", "import sys; print('err', file=sys.stderr)"], check=True)
        subprocess.run([sys.executable, "-c", "print('out')"], stdout=sys.stdout, check=True)

        assert path.read_text() == "native\nerr\nout\n"


@pytest.mark.parametrize(
    ("pieces", "kept"),
    [
        ([("out", "one\n"), ("err", "two\n"), ("out", "three\n")], "one\ntwo\nthree\n"),
        ([("err", f"\r{percent}%") for percent in range(101)] + [("err", "\n")], "100%\n"),
        ([("out", "kept\r\n"), ("out", "kept too\r"), ("out", "\n")], "kept\nkept too\n"),
    ],
    ids=["whole lines of either stream, in order", "the last state of a bar", "ends of lines of other systems"],
)
def test_what_is_printed_is_in_the_file_at_once(tmp_path, pieces, kept):
    """Line by line; of a line that is overwritten by carriage returns the last state is kept."""
    with captured(tmp_path) as (_, path):
        for stream, text in pieces:
            getattr(sys, f"std{stream}").write(text)

        assert path.read_text() == kept


def test_everything_is_put_back(tmp_path, capfd):
    """After stop() the streams, the descriptor and the logging handlers are those of before."""
    before = sys.stdout, sys.stderr
    handler = logging.StreamHandler(sys.stdout)
    logger = logging.getLogger("test_capture")
    logger.addHandler(handler)
    capture = Capture(tmp_path / "output.log")
    capture.start()
    logger.warning("inside")
    held = sys.stdout
    capture.stop()
    os.write(2, b"native\n")
    print("held", file=held)
    logger.removeHandler(handler)

    assert (sys.stdout, sys.stderr) == before
    assert handler.stream is before[0]
    assert capfd.readouterr() == ("held\n", "native\n")
    assert (tmp_path / "output.log").read_text() == "inside\n"


def test_text_passes_while_paused(tmp_path, capfd):
    """Between pause() and resume() text goes through; a line begun before is finished in the file."""
    with captured(tmp_path) as (capture, path):
        sys.stdout.write("begun")
        capture.pause()
        print("through")
        capture.resume()
        print("inside")

    assert capfd.readouterr().out == "through\n"
    assert path.read_text() == "begun\ninside\n"


def test_stream_says_it_is_no_terminal(tmp_path):
    """Bars and colours are not made for a terminal that is not there; bytes and descriptors work."""
    with captured(tmp_path) as (_, path):
        sys.stdout.buffer.write(b"bytes\n")
        sys.stdout.flush()

        assert not sys.stdout.isatty()
        assert sys.stdout.writable()
        assert os.fstat(sys.stdout.fileno()).st_ino == path.stat().st_ino
        assert sys.stderr.encoding


def test_only_text_can_be_written(tmp_path):
    """write() refuses what is no text, as streams do."""
    with captured(tmp_path), pytest.raises(TypeError, match=r"text must be str, got bytes\."):
        sys.stdout.write(b"bytes")


def test_new_lines_are_given_once(tmp_path):
    """new_lines() gives each line once, and a line without an end when it has one."""
    with captured(tmp_path) as (capture, _):
        print("one")
        first = capture.new_lines()
        os.write(2, b"half")
        second = capture.new_lines()
        os.write(2, b" whole\n")

        assert (first, second, capture.new_lines()) == (["one"], [], ["half whole"])


def test_of_very_much_the_end_is_shown(tmp_path):
    """Millions of lines between two frames cost no more than the end of them; the file has all."""
    with captured(tmp_path) as (capture, path):
        os.write(2, b"".join(b"line %d\n" % number for number in range(20_000)))
        lines = capture.new_lines()

        assert lines[-1] == "line 19999"
        assert len(lines) < 10_000
        assert len(path.read_text().splitlines()) == 20_000


def test_lines_are_of_this_run(tmp_path):
    """What is shown has nothing of an earlier session in the same file."""
    (tmp_path / "output.log").write_text("an earlier session\n")
    with captured(tmp_path) as (capture, path):
        print("this one")

    assert capture.new_lines() == ["this one"]
    assert path.read_text() == "an earlier session\nthis one\n"


def test_without_a_file_the_text_is_kept(capfd):
    """A capture without a path keeps what was printed too."""
    capture = Capture()
    capture.start()
    print("kept")
    capture.stop()

    assert capture.new_lines() == ["kept"]


def test_what_a_full_disk_refuses_is_kept(monkeypatch, tmp_path):
    """Lines that the disk refuses raise nothing, and are shown."""
    with captured(tmp_path) as (capture, _):
        monkeypatch.setattr(capture, "_fd", os.open("/dev/full", os.O_WRONLY))
        print("no room")

    assert capture.new_lines() == ["no room"]


def test_many_threads_print_whole_lines(tmp_path):
    """Lines printed by many threads at once are neither lost nor mixed."""
    with captured(tmp_path) as (_, path):

        def speak(who):
            for number in range(200):
                sys.stdout.write(f"{who} {number} {'x' * 50}\n")

        threads = [threading.Thread(target=speak, args=(who,)) for who in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = path.read_text().splitlines()

        assert sorted(lines) == sorted(f"{who} {number} {'x' * 50}" for who in range(8) for number in range(200))


@given(pieces=st.lists(st.text(alphabet="ab\n", max_size=6), max_size=20))
def test_cutting_of_writes_does_not_matter(tmp_path_factory, pieces):
    """However a text is cut into writes, its lines are in the file when the capture ends."""
    with captured(tmp_path_factory.mktemp("capture")) as (_, path):
        for piece in pieces:
            sys.stdout.write(piece)
    text = "".join(pieces)

    assert path.read_text() == text + ("\n" if text and not text.endswith("\n") else "")


def test_stand_in_outlives_a_stream_put_in_front(tmp_path):
    """Where somebody stands in for the stand-in, it is left in place and still reaches the real stream."""
    capture = Capture(tmp_path / "output.log")
    real = sys.stdout
    capture.start()
    stand_in = sys.stdout
    front = sys.stdout = io.StringIO()
    capture.stop()
    kept = sys.stdout
    sys.stdout = real

    assert kept is front
    assert stand_in.isatty() == real.isatty()
