"""The run state: each part has a version of its own."""

import copy

import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.engine.run_state import VERSIONS
from tests.package_copy import copy_package, replace_in, run_beside

USED = """
from learnit_r8 import R8Scheduler

def build(**settings):
    return R8Scheduler(8, batch_size=4, num_epochs=9, checkpoint_dir="saved", **settings)

r8 = build()
r8.pace.num_naps = 3
for indices, _ in r8.batch_iterator():
    r8.update_with_loss(indices + 1.0)
r8.save_checkpoint()
other = build()
other.load_state_dict(r8.state_dict())
print(*(each.pace.num_naps for each in (other, build(resume="auto"), R8Scheduler.resume_from_checkpoint("saved"))))
print(R8Scheduler.resume_from_checkpoint(BEFORE).pace.num_naps)
"""


def trained(steps=30):
    r8 = R8Scheduler(320, batch_size=32, num_steps=60)
    for indices, _ in r8.batch_iterator():
        r8.update_with_loss(1.0 + indices / 320)
        if r8.global_step == steps:
            break
    return r8


def test_every_part_has_a_version():
    """Every part of the state has a version, so that parts can change."""
    state = trained(5).state_dict()

    assert state["versions"] == VERSIONS
    assert VERSIONS.keys() <= state.keys()


@pytest.mark.parametrize("name", sorted(VERSIONS))
def test_newer_parts_are_refused_by_name(name):
    """A state that a newer package has saved is refused with the name of the part, and nothing is changed."""
    state = trained(8).state_dict()
    newer = copy.deepcopy(state)
    newer["versions"][name] += 1
    fresh = R8Scheduler(320, batch_size=32, num_steps=60)

    with pytest.raises(ValueError, match=rf"'{name}' of the state must be of .* a newer learnit_r8 has saved it"):
        fresh.load_state_dict(newer)
    assert fresh.global_step == 0


def test_unknown_parts_are_refused_by_name():
    """A state with an unknown part is refused with its name."""
    state = trained(8).state_dict()
    state["versions"]["forecast"] = 1

    with pytest.raises(ValueError, match="'forecast' of the state must be of version 0"):
        R8Scheduler(320, batch_size=32, num_steps=60).load_state_dict(state)


@pytest.mark.parametrize("name", ["versions", "quarantine", "search"])
def test_missing_parts_are_named(name):
    """A state without one of its parts is refused with the name of the part."""
    state = trained(8).state_dict()
    del state[name]

    with pytest.raises(ValueError, match=rf"got format 1 without \['{name}'\]"):
        R8Scheduler(320, batch_size=32, num_steps=60).load_state_dict(state)


def test_a_field_is_added_in_two_files(tmp_path):
    """Its part and the number of that: then files have it, those before it load, and earlier versions refuse them."""
    engine, number = copy_package(tmp_path) / "engine", VERSIONS["pace"]
    pace = engine / "pace.py"
    replace_in(pace, "self.num_out = 0\n        self.passes", "self.num_out = self.num_naps = 0\n        self.passes")
    replace_in(pace, '"step": self.step,', '"step": self.step, "num_naps": self.num_naps,')
    replace_in(
        pace,
        'self.step, self.num_out = state["step"], 0',
        """self.step, self.num_out = state["step"], 0
        self.num_naps = state.get("num_naps", 0)""",
    )
    replace_in(engine / "run_state.py", f'"pace": {number}', f'"pace": {number + 1}')
    before = R8Scheduler(8, batch_size=4, num_epochs=9, checkpoint_dir=tmp_path / "before")
    before.save_checkpoint()
    before.close()

    lines = run_beside(tmp_path, USED.replace("BEFORE", repr((tmp_path / "before").as_posix())))

    assert lines == ["3 3 3", "0"]
    with pytest.raises(ValueError, match=rf"'pace' .* got version {number + 1}: a newer learnit_r8 has saved it"):
        R8Scheduler.resume_from_checkpoint(tmp_path / "saved")
