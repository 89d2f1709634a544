"""What fails in a process of its own is a line, and the next call is served as if nothing had been."""

import os
import time

import pytest

from benchmarks.apart import Apart, Lost


@pytest.fixture
def apart():
    made = Apart()
    yield made
    made.end()


def test_one_process_serves_all_calls(apart):
    first = apart(os.getpid, patience=120)
    assert first != os.getpid() and apart(os.getpid, patience=120) == first


@pytest.mark.parametrize(
    ("function", "args", "patience", "says"),
    [
        (os._exit, (3,), 120, "its process ended"),
        (time.sleep, (600,), 0.2, "not done after 0 s"),
        (int, ("x",), 120, "ValueError: invalid literal"),
    ],
)
def test_the_next_call_has_a_fresh_one(apart, function, args, patience, says):
    first = apart(os.getpid, patience=120)
    with pytest.raises(Lost, match=says):
        apart(function, *args, patience=patience)
    assert apart(os.getpid, patience=120) != first
