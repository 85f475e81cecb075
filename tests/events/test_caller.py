"""Warnings that point at the user's own line."""

import inspect
import threading
import warnings

import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.events.caller import warn
from learnit_r8.loops import early_stopping, every, logs, loop


def line_here():
    return inspect.currentframe().f_back.f_lineno


def places(caught):
    return [(warning.filename, warning.lineno) for warning in caught]


def test_a_warning_of_the_scheduler_points_at_the_users_line():
    """What is found out inside of the package is said of the line of the loop that led there."""
    r8 = R8Scheduler(20, batch_size=10, num_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in r8.epoch_iterator():
            batches = r8.batch_iterator()
            next(batches)
            expected = line_here() + 1
            next(batches)
            break

    assert places(caught) == [(__file__, expected)]


def test_frames_of_installed_packages_are_left_out():
    """A framework between the user's code and this package, as torch's loader, is not to blame."""
    torch = pytest.importorskip("torch")

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return 0

    def collate(batch):
        # As a sampler of this package would, in a frame of torch.
        exec(compile("warn('found in the middle')", PACKAGE_FILE, "exec"), {"warn": warn, "__name__": "inside"})
        return batch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in torch.utils.data.DataLoader(Data(), collate_fn=collate):
            pass

    assert [filename for filename, _ in places(caught)] == [__file__]


PACKAGE_FILE = inspect.getsourcefile(R8Scheduler)


def test_a_thread_without_the_users_code_still_warns():
    """On a thread whose frames are all of others the warning points at the innermost one outside this package."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=warn, args=("said anyway",))
        thread.start()
        thread.join()

    assert [filename for filename, _ in places(caught)] == [threading.__file__]


def test_loops_point_at_the_users_line():
    """So do the warnings of the other ways to train."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected = line_here() + 1
        loop(0, range(3), {every(1): [lambda: (logs().add_metric("loss", 1.0), None), early_stopping("los")]})

    assert places(caught) == [(__file__, expected)]
