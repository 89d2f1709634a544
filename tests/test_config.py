import threading

import pytest

from tenfuse import config
from tenfuse.config import OptionError, Options


def test_defaults():
    assert Options.of() == Options(False, "inductor", "auto", "off", "auto", True, ())


def test_patch_nests_and_restores():
    with config.patch(strict=True, target="cpp"):
        with config.patch(target="triton"):
            assert (config.current().strict, config.current().target) == (True, "triton")
        assert config.current().target == "cpp"
        assert Options.of({"inner": "eager"}) == Options(strict=True, inner="eager", target="cpp")
    assert config.current() == Options()


def test_patch_restores_after_an_error():
    with pytest.raises(RuntimeError), config.patch(chunk=16):
        raise RuntimeError
    assert config.current().chunk == "auto"


def test_patch_is_per_thread():
    seen = []
    with config.patch(chunk=8):
        thread = threading.Thread(target=lambda: seen.append(config.current().chunk))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_unknown_names_are_rejected_with_the_nearest():
    with pytest.raises(OptionError, match="no option 'stric'; did you mean 'strict'"):
        Options.of({"stric": True})
    with pytest.raises(OptionError, match="did you mean 'target'"), config.patch(taget="cpp"):
        pass
    with pytest.raises(OptionError, match="no option 'inductor'"):
        Options.of({"inductor": ()})


@pytest.mark.parametrize(
    "bad",
    [
        {"strict": 1},
        {"inner": "tvm"},
        {"target": "cuda"},
        {"validate": True},
        {"chunk": 0},
        {"chunk": True},
        {"chunk": "64"},
        {"fast_forward": None},
        {"inductor.": 1},
    ],
)
def test_values_are_checked(bad):
    with pytest.raises(OptionError, match=next(iter(bad))):
        Options.of(bad)


def test_inductor_options_pass_through():
    options = Options.of({"inductor.max_autotune": True, "inductor.triton.cudagraphs": False})
    assert dict(options.inductor) == {"max_autotune": True, "triton.cudagraphs": False}


def test_parse():
    assert config.parse("chunk=64") == ("chunk", 64)
    assert config.parse("strict=True") == ("strict", True)
    assert config.parse("inner=eager") == ("inner", "eager")
    with pytest.raises(OptionError):
        config.parse("strict")
