"""A compiled model inside what else torch offers: checkpointing, transforms, copies, threads."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import tenfuse

OPTIONS = {"inner": "eager", "strict": True}


class Smooth(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.full((width,), 0.9))
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.decay * h + self.proj(x[:, t])
            out.append(self.norm(h))
        return torch.stack(out, 1)


@pytest.fixture
def model() -> Smooth:
    torch._dynamo.reset()
    torch.manual_seed(0)
    return Smooth()


@pytest.fixture
def x(model: Smooth) -> torch.Tensor:
    return torch.randn(2, 24, 8)


def compiled(model: Callable[..., Any], **options: Any) -> Any:
    return torch.compile(model, backend="tenfuse", options={**OPTIONS, **options})


def results(call: Callable[..., torch.Tensor], model: Smooth, x: torch.Tensor) -> list[torch.Tensor]:
    """The output of ``call``, and the gradients of the input and of the parameters."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = call(x)
    y.sin().sum().backward()
    return [y.detach(), *(leaf.grad for leaf in (x, *model.parameters()) if leaf.grad is not None)]


def alike(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("validate", ["off", "first-call"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_compiled_inside_a_checkpoint(model: Smooth, x: torch.Tensor, reentrant: bool, validate: str) -> None:
    """What is traced while compiling saves tensors, which are none of the checkpoint's."""
    call = compiled(model, validate=validate)
    again = [results(lambda x: checkpoint(call, x, use_reentrant=reentrant), model, x) for _ in range(2)]
    for found in again:
        alike(found, results(model, model, x))
    assert tenfuse.reports()[-1].loops[0].status == "fused"


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_inside(model: Smooth, x: torch.Tensor, reentrant: bool) -> None:
    call = compiled(lambda x: checkpoint(model, x, use_reentrant=reentrant))
    alike(results(call, model, x), results(model, model, x))
    assert tenfuse.reports()[-1].loops[0].status == "fused"


def test_hooks_on_saved_tensors_see_only_the_call(model: Smooth, x: torch.Tensor) -> None:
    seen: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor

    call, counts = compiled(model), []
    for _ in range(2):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call(x)
        counts.append(len(seen))
        seen.clear()
    assert counts[0] == counts[1] > 0


def test_transforms_inside_are_a_reason(model: Smooth, x: torch.Tensor) -> None:
    gradient = torch.func.grad(lambda x: model(x).sin().sum())
    alike([compiled(gradient)(x)], [gradient(x)])
    (loop,) = tenfuse.reports()[-1].loops
    assert (loop.status, loop.code) == ("kept", "TF109")


def test_per_sample_gradients(model: Smooth, x: torch.Tensor) -> None:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, (x[None],)).sin().sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))
    alike(list(compiled(each)(parameters, x).values()), list(each(parameters, x).values()))
    assert {loop.code for loop in tenfuse.reports()[-1].loops} == {"TF109"}


def test_parameters_from_outside(model: Smooth, x: torch.Tensor) -> None:
    halves = {name: p * 0.5 for name, p in model.named_parameters()}

    def call(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, (x,))

    alike([compiled(call)(halves, x)], [call(halves, x)])
    assert tenfuse.reports()[-1].loops[0].status == "fused"


def test_copies_are_independent(model: Smooth, x: torch.Tensor) -> None:
    call = compiled(model)
    want = call(x)
    other = copy.deepcopy(call)
    with torch.no_grad():
        other.decay.fill_(0.5)
    plain = copy.deepcopy(model)
    with torch.no_grad():
        plain.decay.fill_(0.5)
    alike([other(x), call(x)], [plain(x), want])


def test_state_is_saved_and_loaded(model: Smooth, x: torch.Tensor) -> None:
    file = io.BytesIO()
    torch.save(compiled(model).state_dict(), file)
    file.seek(0)
    other = Smooth()
    call = compiled(other)
    call(x)
    call.load_state_dict(torch.load(file))
    alike([call(x)], [model(x)])


def test_parameters_are_replaced(model: Smooth, x: torch.Tensor) -> None:
    call = compiled(model)
    call(x)
    with torch.no_grad():
        for p in model.parameters():
            p.data = torch.randn_like(p) * 0.5
    alike(results(call, model, x), results(model, model, x))
    model.decay = nn.Parameter(torch.full((8,), 0.3))
    alike(results(call, model, x), results(model, model, x))


def test_gradients_are_switched(model: Smooth, x: torch.Tensor) -> None:
    call = compiled(model)
    with torch.inference_mode():
        alike([call(x)], [model(x)])
    alike(results(call, model, x), results(model, model, x))
    model.proj.weight.requires_grad_(False)
    alike(results(call, model, x), results(model, model, x))


def test_one_model_in_several_threads(model: Smooth) -> None:
    call, xs = compiled(model), torch.randn(4, 2, 24, 8)
    call(xs[0])
    faults: list[BaseException] = []

    def both(call: Callable[..., torch.Tensor], n: int) -> list[torch.Tensor]:
        y = call(xs[n])
        return [y.detach(), *torch.autograd.grad(y.sin().sum(), list(model.parameters()))]

    wanted = [both(model, n) for n in range(len(xs))]

    def work(n: int) -> None:
        try:
            for _ in range(10):
                alike(both(call, n), wanted[n])
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_losses_are_those_of_the_eager_model(x: torch.Tensor) -> None:
    curves = []
    for compile_it in (False, True):
        torch.manual_seed(0)
        model = Smooth()
        call = compiled(model) if compile_it else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = (call(x) - x.cumsum(1)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        curves.append(torch.stack(losses))
    torch.testing.assert_close(*curves, rtol=1e-3, atol=0.0)
    assert curves[1][-1] < curves[1][0]
