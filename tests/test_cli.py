"""The command line, as far as it does not depend on what the compiler finds."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from tenfuse.cli import main
from tenfuse.tools.target import UsageError, resolve, tensor

MODEL = """\
import torch
from torch import nn


class Ema(nn.Module):
    def __init__(self, decay=0.5):
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(decay))

    def forward(self, x):
        h = torch.zeros_like(x[:, 0])
        out = []
        for t in range(x.shape[1]):
            h = self.decay * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


class Needy(nn.Module):
    def __init__(self, width):
        super().__init__()


instance = Ema(0.25)


def breaks(x):
    h = x[:, 0]
    for t in range(x.shape[1]):
        h = h * x[:, t].sum().item()
    return h


def matrix(x):
    h = torch.zeros(x.shape[0], 3)
    for t in range(x.shape[1]):
        h = h + x[:, t] @ torch.ones(3, 3)
    return h


def noisy(x):
    h = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = nn.functional.dropout(0.5 * h + x[:, t], 0.5)
    return h


def raises(x):
    raise ValueError("of the model")


def example_inputs():
    return (torch.ones(2, 6, 3),)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some_model.py"
    path.write_text(MODEL)
    return str(path)


def failure(capsys, *arguments):
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("tenfuse: ")
    return err


def test_targets(file, tmp_path, monkeypatch):
    target = resolve(f"{file}:Ema")
    assert target.model.decay.item() == 0.5 and target.args[0].shape == (2, 6, 3)
    assert resolve(f"{file}:instance").model.decay.item() == 0.25
    assert resolve(f"{file}:instance.forward").model(*target.args).shape == (2, 6, 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("some_model:breaks", ["f32[1,4,2]"]).args[0].shape == (1, 4, 2)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("Ema", "write module:name or path.py:name"),
        ("nowhere.py:Ema", "there is no file nowhere.py"),
        ("no_such_module:Ema", "importing no_such_module failed: ModuleNotFoundError"),
        ("{file}:Emma", "has no 'Emma'; did you mean 'Ema'?"),
        ("{file}:Needy", "cannot be built without arguments"),
        ("{file}:torch", "neither an nn.Module nor a function, but a 'module'"),
    ],
)
def test_bad_targets_are_one_clear_line(file, capsys, target, message):
    assert message in failure(capsys, "explain", target.format(file=file))


def test_bad_options_and_inputs(file, capsys):
    assert "did you mean 'target'" in failure(capsys, "explain", f"{file}:Ema", "--option", "taget=cpp")
    assert "f32[2,64,16]" in failure(capsys, "check", f"{file}:Ema", "--input", "float[2]")


def test_inputs_that_do_not_fit_are_one_clear_line(file, capfd):
    for command in ("explain", "check"):
        assert main([command, f"{file}:matrix", "--input", "f32[2,4,5]"]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.count("\n") == 1, err
        assert "cannot be multiplied (2x5 and 3x3) at " in err and "some_model.py:" in err


def test_rounds_are_counted(file, capsys):
    for wrong in ("0", "-1", "x"):
        with pytest.raises(SystemExit) as error:
            main(["bench", f"{file}:Ema", "--rounds", wrong])
        assert error.value.code == 2
        assert f"'{wrong}' is not a whole number above 0" in capsys.readouterr().err
    for wrong in ("0", "-1", "nan", "x"):
        with pytest.raises(SystemExit):
            main(["bench", f"{file}:Ema", "--seconds", wrong])
        assert f"'{wrong}' is not a number of seconds above 0" in capsys.readouterr().err


def test_inputs():
    x = tensor("bf16[2, 3]")
    assert (x.dtype, tuple(x.shape)) == (torch.bfloat16, (2, 3))
    n = tensor("i64[1000]<5")
    assert n.dtype == torch.int64 and (int(n.min()), int(n.max())) == (0, 4)
    assert tensor("f64[]").dim() == 0 and tensor("c128[2]").dtype == torch.complex128
    assert tensor("bool[4]").dtype == torch.bool
    for bad in ("f32", "f32[a]", "f99[2]", "f32[2]<3", "f32[2]; x"):
        with pytest.raises(UsageError):
            tensor(bad)


def test_doctor_tries_things(capsys):
    main(["doctor", "--format", "json"])
    checks = {c["name"]: c for c in json.loads(capsys.readouterr().out)}
    assert checks["python"]["ok"] and checks["torch"]["ok"] and checks["compiler"]["ok"]
    assert str(torch.__version__) in checks["torch"]["detail"]


def test_doctor_names_a_missing_compiler(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["doctor"]) == 1
    assert "install g++ or clang++" in capsys.readouterr().out


def test_a_missing_package_is_named(monkeypatch, capsys, file):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rich" else found(name))
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["doctor"]) == 1
    assert "NO  packages  not installed: pip install rich" in capsys.readouterr().out
    assert main(["explain", f"{file}:Ema"]) == 2
    assert "rich is not installed: pip install rich" in capsys.readouterr().err


def test_help_and_version_do_not_import_torch():
    lines = [
        "import sys, tenfuse.cli as cli",
        "try: cli.main(['--help'])",
        "except SystemExit: pass",
        "assert 'torch' not in sys.modules and 'rich' not in sys.modules",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True)


def test_explain(file, capsys):
    assert main(["explain", f"{file}:Ema", "--require-fused", "--kernels"]) == 0
    out, err = capsys.readouterr()
    assert "1 fused" in out and "self.decay * h + x[:, t]" in out and "extern" in out and err == ""
    assert "\x1b" not in out
    assert main(["explain", f"{file}:breaks", "--require-fused"]) == 1
    assert "TF120" in capsys.readouterr().out
    assert main(["explain", f"{file}:breaks"]) == 0


def test_explain_json_and_html(file, capsys):
    assert main(["explain", f"{file}:Ema", "--format", "json", "--graph", "--option", "strict=true"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["loops"][0]["status"] == "fused" and report["graphs"][0]["before"]
    assert main(["explain", f"{file}:Ema", "--format", "html"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")


def test_check_and_bench(file, capsys):
    options = ["--option", "inner=eager"]
    assert main(["check", f"{file}:Ema", *options]) == 0
    assert "grad of decay" in capsys.readouterr().out
    assert main(["check", f"{file}:Ema", "--format", "json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert main(["bench", f"{file}:Ema", "--rounds", "2", "--format", "json", *options]) == 0
    body = json.loads(capsys.readouterr().out)
    assert [t["what"] for t in body["timings"]] == ["forward", "forward + backward"]
    assert all(t["eager"] > 0 and t["compiled"] > 0 for t in body["timings"])


def test_random_numbers_are_those_of_eager(file, capsys):
    assert main(["check", f"{file}:noisy"]) == 0
    assert "kept TF201" in capsys.readouterr().out


def test_doctor_names_a_cache_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("TENFUSE_CACHE_DIR", str(tmp_path / "taken"))
    assert main(["doctor"]) == 1
    assert "set TENFUSE_CACHE_DIR to a folder" in capsys.readouterr().out


def test_a_model_that_raises_is_one_clear_line(file, capsys):
    message = failure(capsys, "check", f"{file}:raises")
    assert "ValueError: of the model at " in message and "some_model.py" in message
