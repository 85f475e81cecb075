"""Each test of a run that had an incident is compared with the golden log."""

import pytest

from tests.runs import golden_incidents


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from golden_incidents.met(item))
