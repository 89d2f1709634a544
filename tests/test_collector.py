"""The collector is as it was, whatever happens while it is paused."""

import gc

import pytest

from tenfuse.collector import paused


@pytest.mark.parametrize("running", [True, False])
def test_it_is_as_it_was(running):
    (gc.enable if running else gc.disable)()
    try:
        with paused():
            assert not gc.isenabled()
            with paused():
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled() == running
        with pytest.raises(KeyError), paused():
            raise KeyError("inside")
        assert gc.isenabled() == running
    finally:
        gc.enable()
