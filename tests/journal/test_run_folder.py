"""Reading run folders: growing ones, damaged ones, and ones made to harm whoever looks at them."""

import io
import json
import os
import threading
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import events
from learnit_r8.events.codec import to_json
from learnit_r8.journal import Run, UnreadableRun, find_run
from learnit_r8.journal.reader import BLOCK_BYTES, MOST_JSON_BYTES, MOST_LINE_BYTES, Lines, read_json
from learnit_r8.journal.run import runs_in, seconds_text
from learnit_r8.journal.run_info import this_process
from learnit_r8.journal.samples import highest, kept, read_samples, sample_epochs, samples_of
from tests.drive import INF, NAN, FakeClock, make, sample_losses

STARTED = events.RunStarted(0, 0.0, "it", 100, 10, 10, 1000, None, "balanced")


def steps(number, progress=0.5):
    return events.StepsDone(number, number / 10, 5, 0, progress, 1.0, 0.5, 2.0, 1.0, 1.0, 0.1, 50, 0)


def line(event, when=1000.0):
    return to_json(event)[:-1] + f', "time": {when}}}\n'


def folder_with(tmp_path, *happened, when=1000.0, process=None, text=""):
    """A run folder with these events and this text after them."""
    tmp_path.mkdir(exist_ok=True)
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write("".join(line(event, when) for event in happened) + text)
    session = this_process() if process is None else process
    (tmp_path / "run.json").write_text(json.dumps({"name": "it", "sessions": [session]}))
    return tmp_path


def read(run):
    return [record.event.step for record in run.records()]


def test_growing_file_is_followed(tmp_path):
    """Each poll gives what was added since; half a line waits for its other half."""
    folder_with(tmp_path, STARTED)
    run = Run(tmp_path)
    assert read(run) == [0]
    whole = line(steps(5))
    for text, expected in ((whole[:30], []), ("", []), (whole[30:], [5]), (line(steps(6)) * 2, [6, 6])):
        with open(tmp_path / "events.jsonl", "a") as file:
            file.write(text)

        assert read(run) == expected
    assert run.parser.num_damaged == 0


def test_replaced_file_is_read_anew(tmp_path):
    """A journal that was replaced, or cut, is read from its beginning."""
    folder_with(tmp_path, STARTED, steps(5), steps(10))
    run = Run(tmp_path)
    assert read(run) == [0, 5, 10]
    (tmp_path / "events.jsonl").write_text(line(STARTED) + line(steps(3)))

    assert read(run) == [0, 3]
    assert run.lines.num_restarts == 1


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
    assert run.parser.num_damaged == 1


def test_unknown_kinds_are_no_damage(tmp_path):
    """A record of a kind that a later version writes is passed over, and so are unknown fields."""
    later = '{"kind": "ModelSneezed", "step": 1, "seconds": 1, "time": 1}\n'
    run = Run(folder_with(tmp_path, STARTED, text=later + line(steps(5)).replace("{", '{"colour": [], ', 1)))

    assert read(run) == [0, 5]
    assert (run.parser.num_damaged, run.parser.num_unknown) == (0, 1)


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
@pytest.mark.parametrize("name", ["events.jsonl", "run.json", "samples-000000.npz"])
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
            assert (run.about(), run.name, run.state().word) == ({}, tmp_path.name, "empty")
        else:
            with pytest.raises((OSError, ValueError), match=name):
                read_samples(tmp_path, 0)
        seen.append(name)

    seen = []
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(5)

    assert seen == [name]


def test_missing_journal_is_named_in_the_error(tmp_path):
    """A folder without a journal, and none at all, are named in the error."""
    with pytest.raises(UnreadableRun, match="run must hold a journal, got"):
        Run(tmp_path)
    with pytest.raises(UnreadableRun, match="run must be a folder, got"):
        Run(tmp_path / "nothing")
    run = Run(folder_with(tmp_path, STARTED))
    (tmp_path / "events.jsonl").unlink()
    for look in (run.poll, run.glance):
        with pytest.raises(UnreadableRun, match="run must hold a journal, got"):
            look()


DAMAGED = ["", "[]", "3", "{", "[" * 100_000, "\x00", '{"name": 3, "sessions": 7}', '{"sessions": [1]}']


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_description_is_no_obstacle(tmp_path, content):
    """Whatever is in run.json, the events are read and the state is told."""
    folder_with(tmp_path, STARTED, steps(5))
    (tmp_path / "run.json").write_text(content)
    run = Run(tmp_path, wall=lambda: 1010.0)

    assert read(run) == [0, 5]
    assert run.state() == ("running", "")
    assert run.name == tmp_path.name


def test_huge_description_is_refused(tmp_path):
    """A run.json above the limit is not read."""
    (tmp_path / "run.json").write_bytes(b" " * (MOST_JSON_BYTES + 1))
    with pytest.raises(ValueError, match=r"run.json must have at most 4194304 bytes, got more"):
        read_json(tmp_path / "run.json")


@pytest.mark.parametrize(
    ("happened", "now", "expected"),
    [
        ([], 1000, ("empty", "")),
        ([STARTED, steps(5)], 1005, ("running", "")),
        ([STARTED, steps(5)], 1044, ("stalled", "no sign of life for 44 s")),
        ([STARTED, steps(5)], 1000 + 7200, ("stalled", "no sign of life for 2.0 h")),
        ([STARTED, steps(5), events.RunEnded(5, 0.5, False)], 9999, ("stopped", "")),
        ([STARTED, steps(5), events.RunEnded(5, 0.5, True)], 9999, ("finished", "")),
        ([STARTED, steps(5), events.ProcessLeft(5, 0.5, "")], 9999, ("stopped", "")),
        ([STARTED, steps(5, progress=1.0), events.ProcessLeft(5, 0.5, "")], 9999, ("finished", "")),
        ([STARTED, events.RunEnded(5, 0.5, False), events.ProcessLeft(5, 0.5, "E: x")], 9999, ("died", "E: x")),
        ([STARTED, events.RunEnded(5, 0.5, False), STARTED, steps(5)], 1001, ("running", "")),
    ],
)
def test_state_of_a_run(tmp_path, happened, now, expected):
    """The last record and its age give the state."""
    run = Run(folder_with(tmp_path, *happened), wall=lambda: float(now))
    read(run)

    assert run.state() == expected


def test_run_without_steps_is_stalled(tmp_path):
    """A process that lives but has not stepped for a minute, and three times its longest pause, is stalled."""
    clock = FakeClock()
    clock.now = 1000.0
    run = Run(folder_with(tmp_path, STARTED, steps(5)), wall=clock)
    words = []
    for _ in range(8):
        clock.advance(10)
        folder_with(tmp_path, events.Alive(5, 0.5), when=clock.now)
        read(run)
        words.append(run.state())

    assert words[:6] == [("running", "")] * 6
    assert words[6:] == [("stalled", "no step for 70 s"), ("stalled", "no step for 80 s")]
    folder_with(tmp_path, steps(6), when=clock.now)
    clock.advance(100)
    folder_with(tmp_path, events.Alive(6, 0.6), when=clock.now)
    read(run)

    assert run.state() == ("running", "")


@pytest.mark.parametrize(
    ("event", "waited", "expected"),
    [
        (events.RunPaused(5, 0.5, "by a key"), 5000, ("running", "paused")),
        (events.RunResumed(5, 0.5), 55, ("running", "")),
        (events.RunResumed(5, 0.5), 65, ("stalled", "no step for 65 s")),
        (events.EpochDone(5, 0.5, 0, 0.5, 1.0, 0.1, 10, 1.0), 500, ("running", "")),
        (events.EpochDone(5, 0.5, 0, 0.5, 1.0, 0.1, 10, 1.0), 650, ("stalled", "no step for 11 min")),
    ],
)
def test_pauses_and_validations_are_no_stalls(tmp_path, event, waited, expected):
    """A run that was paused is not stalled, and after an epoch a validation has ten minutes."""
    folder_with(tmp_path, STARTED, steps(5), event)
    run = Run(folder_with(tmp_path, events.Alive(5, 0.5), when=1000.0 + waited), wall=lambda: 1000.0 + waited)
    read(run)

    assert run.state() == expected


def test_dead_process_is_told(tmp_path):
    """A run whose process is gone has died, or finished if its budget was used up."""
    gone = {**this_process(), "process_started": 1}
    died = Run(folder_with(tmp_path / "a", STARTED, steps(5), process=gone), wall=lambda: 1001.0)
    done = Run(folder_with(tmp_path / "b", STARTED, steps(5, progress=1.0), process=gone), wall=lambda: 1001.0)
    read(died), read(done)

    assert died.state() == ("died", "the process is gone")
    assert done.state() == ("finished", "")


def test_progress_of_an_earlier_run_in_the_folder_does_not_count(tmp_path):
    """A run that died before its first step has not finished because one before it in the folder had."""
    gone = {**this_process(), "process_started": 1}
    run = Run(folder_with(tmp_path, STARTED, steps(5, progress=1.0), STARTED, process=gone))
    read(run)

    assert run.state() == ("died", "the process is gone")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (200_000, "2.3 days")],
)
def test_durations_are_short(seconds, text):
    """A duration has one unit."""
    assert seconds_text(seconds) == text


def test_preview_shows_the_whole_course(tmp_path):
    """Of a long journal a small part is read at first, in order, from its start to its end."""
    folder_with(tmp_path, STARTED, *(steps(number) for number in range(1, 20_001)))
    run = Run(tmp_path)
    seen = [record.event.step for record in run.glance()]

    assert 500 < len(seen) < 4000
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 20_000)
    assert max(np.diff(seen)) < 20_000 / 40
    assert run.state().word == "stalled"
    assert len(read(Run(tmp_path))) == 20_001


def test_glance_at_a_short_journal_is_all_of_it(tmp_path):
    """A short journal is read at once, and its state is known."""
    run = Run(folder_with(tmp_path, STARTED, steps(5)), wall=lambda: 1001.0)

    assert [record.event.step for record in run.glance()] == [0, 5]
    assert run.lines.is_at_end
    assert run.state() == ("running", "")


def test_run_is_found_by_name(tmp_path):
    """A run is named by its folder, by the folder of runs, by the beginning of its name, or is the newest."""
    for number, name in enumerate(["20260101-a", "20260102-b", "20260103-c"]):
        folder_with(tmp_path / name, STARTED)
        os.utime(tmp_path / name / "events.jsonl", (number, number))
    (tmp_path / "no-run").mkdir()

    assert find_run(None, tmp_path).name == "20260103-c"
    assert find_run(str(tmp_path), "nowhere").name == "20260103-c"
    assert find_run(str(tmp_path / "20260101-a"), "nowhere").name == "20260101-a"
    assert find_run("20260102", tmp_path).name == "20260102-b"
    assert [run.name for run in runs_in(tmp_path)] == ["20260103-c", "20260102-b", "20260101-a"]
    with pytest.raises(UnreadableRun, match=r"or one in .* \(20260103-c, 20260102-b, 20260101-a\), got 'x'"):
        find_run("x", tmp_path)
    with pytest.raises(UnreadableRun, match=r"\(none\), got None"):
        find_run(None, tmp_path / "nowhere")


def trained(tmp_path, **more):
    """A run folder with the samples of one epoch."""
    r8 = make(20, num_epochs=1, run_dir=tmp_path, **more)
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            r8.update_with_loss(sample_losses(indices))
    r8.close()
    return r8


def test_samples_come_back(tmp_path):
    """The samples file holds what the table knew, and names."""
    r8 = trained(tmp_path, sample_ids=[f"img{number}" for number in range(20)])
    samples = read_samples(tmp_path, 0)
    table = r8.table

    assert (samples.epoch, samples.step, samples.source, samples.is_exact) == (0, 5, "exact", True)
    for name in ("loss", "last", "mean", "usage_count"):
        np.testing.assert_array_equal(getattr(samples, name), getattr(table, name))
    assert samples.untrained_loss == table.untrained_loss
    assert [samples.name_of(index) for index in samples.hardest(3)] == [str(one.name) for one in table.hardest(3)]
    assert samples.suspects().reason == table.suspects().reason


def test_samples_of_an_earlier_run_go(tmp_path):
    """A run begun anew in a folder shows its own samples, though an earlier one got further."""
    for num_samples, num_epochs in ((20, 4), (12, 2)):
        with make(num_samples, num_epochs=num_epochs, run_dir=tmp_path) as r8:
            for _ in r8.epoch_iterator():
                for indices, _ in r8.batch_iterator():
                    r8.update_with_loss(sample_losses(indices))

    assert {len(read_samples(tmp_path, epoch).loss) for epoch in sample_epochs(tmp_path)} == {12}


def test_unseen_samples_are_never_hardest(tmp_path):
    """Samples that were never seen have no loss to be ranked by."""
    r8 = make(20, run_dir=tmp_path)
    r8.report(r8.draw(), [1.0, 2.0, 3.0, 4.0])
    samples = samples_of(r8.table, 0, 1)

    assert len(samples.hardest(10)) == 4
    assert samples.loss[samples.hardest(1)[0]] == 4.0
    assert np.isnan(samples.loss).sum() == 16


@given(
    st.lists(st.sampled_from([NAN, 0.0, 1.0, 2.0, INF, -INF]), max_size=12),
    st.integers(0, 15),
)
def test_highest_is_a_stable_sort(values, k):
    """The highest values come highest first, equal ones by position, as sorting all of them would give."""
    array = np.array(values, np.float32)
    known = [index for index in np.argsort(-array, kind="stable") if not np.isnan(array[index])]

    assert highest(array, k).tolist() == known[:k]


@given(st.sets(st.integers(0, 10_000), max_size=60).map(sorted))
def test_kept_epochs_are_few_and_spread(epochs):
    """The first, the last three, and at most seven in between are kept."""
    chosen = kept(epochs)

    assert chosen[-3:] == epochs[-3:]
    assert chosen[:1] == epochs[:1]
    assert len(chosen) == min(len(epochs), 11)
    assert chosen == sorted(set(chosen) & set(epochs))


def npz(path, *, compress=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compress) as file:
        for name, content in members.items():
            if not isinstance(content, bytes):
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, content, allow_pickle=True)
                content = buffer.getvalue()
            file.writestr(name + ".npy", content)


def header(shape, dtype="<f4"):
    """The header of an npy file that claims a shape, without the numbers."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def about(**more):
    text = {"step": 5, "source": "exact", "is_exact": True, "untrained_loss": 2.0, "names": {}, **more}
    return np.frombuffer(json.dumps(text).encode(), np.uint8)


def good():
    four = np.arange(4, dtype="<f4")
    return {"about": about(), "loss": four, "last": four, "mean": four, "usage_count": four.astype("<u2")}


HOSTILE = {
    "claims a terabyte": {"loss": header((2**38,))},
    "claims 2**62": {"loss": header((2**62,))},
    "negative shape": {"loss": header((-4,))},
    "two dimensions": {"loss": np.zeros((2, 2), "<f4")},
    "objects": {"loss": np.array([{}, [], 1, 2], object)},
    "another dtype": {"loss": np.arange(4, dtype="<f8")},
    "another length": {"last": np.arange(3, dtype="<f4")},
    "nothing": {"loss": b""},
    "no array": {"loss": b"\x93NUMPY\x01\x00\xff\xff"},
    "code in the header": {"loss": b"\x93NUMPY\x01\x00\x30\x00" + b"__import__('os').system('touch owned')".ljust(48)},
    "deep about": {"about": np.frombuffer(b"[" * 100_000, np.uint8)},
    "about of text": {"about": np.array(["x"])},
    "about lacks": {"about": np.frombuffer(b"{}", np.uint8)},
    "names are no dict": {
        "about": np.frombuffer(b'{"step":1,"source":"","is_exact":1,"untrained_loss":1,"names":3}', np.uint8)
    },
    "step is infinite": {
        "about": np.frombuffer(b'{"step":1e999,"source":"","is_exact":1,"untrained_loss":1,"names":{}}', np.uint8)
    },
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_samples_are_refused(tmp_path, hostile, monkeypatch):
    """A samples file made to harm is a ValueError: nothing is run, and no more is read than the file is long."""
    monkeypatch.chdir(tmp_path)
    npz(tmp_path / "samples-000000.npz", **{**good(), **HOSTILE[hostile]})
    with pytest.raises(ValueError, match=r"samples-000000\.npz must be a whole samples file, got"):
        read_samples(tmp_path, 0)

    assert [path.name for path in tmp_path.iterdir()] == ["samples-000000.npz"]


def test_zip_bomb_is_refused(tmp_path):
    """Compressed members are refused before one is opened, and so are too many."""
    members = {**good(), "loss": np.zeros(10**6, "<f4")}
    npz(tmp_path / "samples-000000.npz", compress=zipfile.ZIP_DEFLATED, **members)
    npz(tmp_path / "samples-000001.npz", **good(), **{f"m{number}": b"" for number in range(20)})
    for epoch in (0, 1):
        with pytest.raises(ValueError, match="samples file must have at most 16 uncompressed members, got others"):
            read_samples(tmp_path, epoch)


def test_member_that_claims_more_than_the_file_is_refused(tmp_path):
    """Sizes in the zip's directory are held against the size of the file."""
    path = tmp_path / "samples-000000.npz"
    npz(path, **good())
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = (2**31).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(ValueError, match="samples file must hold no more than its"):
        read_samples(tmp_path, 0)


@given(st.data())
def test_damaged_samples_never_escape(tmp_path_factory, data):
    """A samples file cut anywhere, or with any byte changed, is read or refused with a ValueError."""
    folder = tmp_path_factory.mktemp("run")
    path = folder / "samples-000000.npz"
    npz(path, **good())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        samples = read_samples(folder, 0)
    except ValueError:
        return

    assert len(samples.loss) == 4


def test_other_names_are_no_samples(tmp_path):
    """Only files named as the journal names them are looked at."""
    for name in ("samples-000003.npz", "samples-3.npz", "samples-000004.npz.bak", "../samples-000005.npz", "x"):
        (tmp_path / name.replace("../", "dots")).touch()

    assert sample_epochs(tmp_path) == [3]


def test_groups_come_along(tmp_path):
    """Where samples have groups the file holds them, so that rare ones are protected there too."""
    r8 = trained(tmp_path, groups=[number % 2 for number in range(20)])
    found = read_samples(tmp_path, 0)

    np.testing.assert_array_equal(found.group, r8.table.records["group"])
    assert read_samples(trained(tmp_path / "other").run_dir, 0).group is None
