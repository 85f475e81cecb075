from learnit_r8.journal.run import is_gone, this_process


def test_process_is_known_again():
    """This process is there; one of another start, boot or number is gone; one elsewhere cannot be told."""
    here = this_process()

    assert is_gone(here) is False
    assert is_gone({**here, "process_started": 1}) is True
    assert is_gone({**here, "boot_id": "another"}) is True
    assert is_gone({**here, "host": "another"}) is None
    assert is_gone({**here, "pid_namespace": "another"}) is None
    assert [is_gone({**here, "pid": pid}) for pid in (-1, 0, "1", 2**40, None)] == [None] * 5
    assert is_gone({}) is None
