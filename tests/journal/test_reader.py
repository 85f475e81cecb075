"""Reading the files of a run: growing ones, damaged ones, and ones made to harm whoever looks at them."""

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.journal.run import BLOCK_BYTES, MOST_JSON_BYTES, MOST_LINE_BYTES, Lines, Run, UnreadableRun
from learnit_r8.journal.samples import read_samples
from learnit_r8.state.durable_io import read_json
from tests.journal.run_folders import STARTED, folder_with, line, read, state_at, steps


@given(st.lists(st.binary(max_size=40).map(lambda part: part.replace(b"\n", b"")), max_size=20), st.integers(1, 9))
def test_lines_come_out_whole(tmp_path_factory, parts, block):
    """However the file is cut into blocks, its lines come out as they are."""
    path = tmp_path_factory.mktemp("lines") / "file"
    path.write_bytes(b"".join(part + b"\n" for part in parts) + b"rest")
    lines, found = Lines(path), []
    while True:
        found += lines.read(block)
        if lines.is_at_end:
            break

    assert found == parts


@pytest.mark.parametrize(
    "garbage",
    [
        "not JSON", '{"kind": "StepsDone"', "[" * 50_000, '{"kind": "RolledBack", "step": "x"}', "{}", "null", "1e999",
        '{"kind": 3, "time": 1}', '{"kind": "BackupTaken", "step": 1, "seconds": 1, "time": "nan"}',
        '{"kind": "BackupTaken", "step": -1, "seconds": 1, "time": 1}',
        '{"kind": "BackupTaken", "step": 1, "seconds": "nan", "time": 1}',
        '{"kind": "BackupTaken", "step": 1, "seconds": 1e300, "time": 1}',
        '{"kind": "BackupTaken", "step": ' + "9" * 5000 + ', "seconds": 1, "time": 1}',
        '{"kind": "BackupTaken", "step": 9007199254740992, "seconds": 1, "time": 1}',
        line(steps(5)).replace('"num_steps": 5', '"num_steps": 0').strip(),
        line(STARTED).replace('"steps_per_epoch": 10', '"steps_per_epoch": 0').strip(),
        line(STARTED).replace('"total_steps": 1000', '"total_steps": 0').strip(),
        "\x00\x00\x00", "\x1b[2J\x1b]0;owned\x07", '"' + "\\u0000" * 100 + '"',
    ],
)  # fmt: skip
def test_damaged_line_harms_only_itself(tmp_path, garbage):
    """A line that is no record is counted and passed over; those around it are read."""
    run = Run(folder_with(tmp_path, STARTED, text=garbage + "\n" + line(steps(5))))

    assert read(run) == [0, 5]
    assert run.num_damaged == 1


def test_unknown_kinds_are_no_damage(tmp_path):
    """A record of a kind that a later version writes is passed over, and so are unknown fields."""
    later = '{"kind": "ModelSneezed", "step": 1, "seconds": 1, "time": 1}\n'
    run = Run(folder_with(tmp_path, STARTED, text=later + line(steps(5)).replace("{", '{"colour": [], ', 1)))

    assert read(run) == [0, 5]
    assert run.num_damaged == 0


def test_endless_line_is_passed_over(tmp_path):
    """A line longer than any record is skipped without being held in memory."""
    folder_with(tmp_path, STARTED, text="x" * (3 * MOST_LINE_BYTES + 17) + "\n" + line(steps(5)))
    lines = Lines(tmp_path / "events.jsonl")
    longest = 0
    while not lines.size or not lines.is_at_end:
        lines.read()
        longest = max(longest, len(lines._part))

    assert longest <= MOST_LINE_BYTES
    assert BLOCK_BYTES <= MOST_LINE_BYTES
    assert read(Run(tmp_path)) == [0, 5]


def make_pipe(path):
    os.mkfifo(path)


def make_link(path):
    path.symlink_to("/etc/passwd")


def make_device(path):
    path.symlink_to("/dev/zero")


def make_folder(path):
    path.mkdir()


@pytest.mark.skipif(os.name != "posix", reason="pipes and links")
@pytest.mark.parametrize("plant", [make_pipe, make_link, make_device, make_folder])
@pytest.mark.parametrize("name", ["events.jsonl", "run.json", "samples-000000.safetensors"])
def test_nothing_but_plain_files_is_opened(tmp_path, plant, name):
    """A pipe, link, device or folder in place of a file is refused at once, and never waited for."""
    folder_with(tmp_path, STARTED)
    (tmp_path / name).unlink(missing_ok=True)
    plant(tmp_path / name)

    def look():
        if name == "events.jsonl":
            with pytest.raises(UnreadableRun, match="run must hold a journal, got"):
                Run(tmp_path)
        elif name == "run.json":
            run = Run(tmp_path)
            assert (run.about(), run.name, state_at(tmp_path, 1000.0)[0]) == ({}, tmp_path.name, "running")
        else:
            with pytest.raises((OSError, ValueError), match=name):
                read_samples(tmp_path, 0)
        seen.append(name)

    seen = []
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(5)

    assert seen == [name]


def test_huge_description_is_refused(tmp_path):
    """A run.json above the limit is not read."""
    (tmp_path / "run.json").write_bytes(b" " * (MOST_JSON_BYTES + 1))
    with pytest.raises(ValueError, match=r"run.json must have at most 4,194,304 bytes, got more"):
        read_json(tmp_path / "run.json", MOST_JSON_BYTES)
