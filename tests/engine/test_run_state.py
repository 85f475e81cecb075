"""The run state: each part has a version of its own."""

import copy

import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.engine.run_state import VERSIONS


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
