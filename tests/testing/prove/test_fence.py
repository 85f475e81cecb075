"""What scripts may write: a fence hears Python's audit events, here handed to it."""

import os

import pytest

from learnit_r8.testing.prove.probe import Fence

W = os.O_WRONLY | os.O_CREAT


@pytest.fixture
def places(tmp_path):
    """A fence, the folder inside it, the folder outside, and the file of refusals."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "file").touch()
    return Fence([str(inside)], str(tmp_path / "refused.txt")), inside, outside, tmp_path / "refused.txt"


def outside_events(inside, outside):
    """Events that must not happen, each with the path that is named."""
    file = str(outside / "file")
    return [
        ("open", (file, "w", W), file),
        ("os.remove", (file, -1), file),
        ("os.rename", (str(inside / "a"), file, -1, -1), file),
        ("os.rename", (file, str(inside / "a"), -1, -1), file),
        ("os.mkdir", (str(outside / "new"), 0o777, -1), str(outside / "new")),
        ("os.truncate", (file, 0), file),
        ("sqlite3.connect", (file,), file),
        ("os.system", (f"echo hello > {file}",), file),
        ("subprocess.Popen", ("rm", ["rm", "-f", file], None, None), file),
        ("subprocess.Popen", ("sh", ["sh", "-c", f"cd /; cp a {file}"], None, None), file),
        ("subprocess.Popen", ("sh", ["sh", "-c", f"true && tee {file} < x"], None, None), file),
    ]


@pytest.mark.parametrize("number", range(11))
def test_nothing_outside_is_written(places, number):
    """A write, rename or deletion outside is refused with the path, from Python and from programs it starts."""
    fence, inside, outside, refused = places
    event, args, path = outside_events(inside, outside)[number]

    with pytest.raises(PermissionError, match=r"lets nothing outside its copy be written, got .*; --allow it\."):
        fence.hear(event, args)
    assert path in refused.read_text()


def test_what_is_inside_and_what_is_read_passes(places):
    """Reading is free, and so is what stays in the copy, a device, or a folder that is there."""
    fence, inside, outside, refused = places
    for event, args in (
        ("open", (str(outside / "file"), "r", os.O_RDONLY)),
        ("open", (str(inside / "file"), "w", W)),
        ("open", ("/dev/null", "w", W)),
        ("open", (3, "w", W)),
        ("os.mkdir", (str(outside), 0o777, -1)),
        ("os.rename", (str(inside / "a"), str(inside / "b"), -1, -1)),
        ("subprocess.Popen", ("git", ["git", "status"], None, None)),
        ("subprocess.Popen", ("cat", ["sh", "-c", f"cat {outside / 'file'} > /dev/null"], None, None)),
        ("sqlite3.connect", (":memory:",)),
        ("import", ("torch",)),
    ):
        fence.hear(event, args)

    assert not refused.exists()


def test_a_link_does_not_lead_out(places):
    """A link within the copy that points outside is no way out."""
    fence, inside, outside, _ = places
    (inside / "data").symlink_to(outside)

    with pytest.raises(PermissionError):
        fence.hear("open", (str(inside / "data" / "file"), "w", W))
