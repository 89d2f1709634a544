"""Steps that are copied: the graph is the one that tracing every step makes."""

import dataclasses
import math

import pytest
import torch
from copied import T, same, traced, x
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from tenfuse.backend import explain_backend


def test_states_and_outputs():
    def model(xs, a, h):
        out = []
        for t in range(xs.shape[1]):
            h = a * h + xs[:, t]
            out.append(h.tanh())
        return torch.stack(out, 1), h

    same(model, x(2, T, 3), x(3), x(2, 3))
    same(model, x(2, T, 3).requires_grad_(), x(3), x(2, 3))


NUMBERS = {
    "tensor of one": lambda h, x, t: h + x + torch.tensor([t / T]),
    "tensor of several": lambda h, x, t: h + x * torch.tensor([t / T, 1.0, t]),
    "tensor of a tensor": lambda h, x, t: h * torch.tensor([x.sum(), t, 1.0]),
    "as tensor": lambda h, x, t: h + x * torch.as_tensor(t * 0.5),
    "scalar tensor": lambda h, x, t: h + x * torch.scalar_tensor(t),
    "full": lambda h, x, t: h + x * torch.full((3,), t / T),
    "full like": lambda h, x, t: h + torch.full_like(x, t),
    "new": lambda h, x, t: h * x.new_tensor(0.5) + x.new_full((3,), t),
    "new tensor": lambda h, x, t: h + x.new_tensor([t, 1, 2]),
    "fill": lambda h, x, t: h + x.clone().fill_(t),
    "arange": lambda h, x, t: h + torch.arange(t, t + 3),
    "linspace": lambda h, x, t: h + torch.linspace(0, t, 3),
    "math": lambda h, x, t: h * math.exp(-t / T) + x * math.sqrt(t + 1) + math.cos(t),
    "alpha": lambda h, x, t: torch.add(h, x, alpha=t / T),
    "alpha, whole": lambda h, x, t: torch.add(h, x, alpha=t),
    "lerp": lambda h, x, t: torch.lerp(h, x, t / T),
    "clamp": lambda h, x, t: (h + x).clamp(-1 - t, 0.1 * t),
    "where": lambda h, x, t: torch.where(h > 0, h, t) + x,
    "masked fill": lambda h, x, t: (h + x).masked_fill(h > 0, t / 2),
    "addcmul": lambda h, x, t: torch.addcmul(h, x, x, value=t / T),
    "power of a tensor": lambda h, x, t: torch.tanh(h) ** t + x,
    "power of a number": lambda h, x, t: torch.pow(t + 1.0, torch.tanh(h)) + x,
    "modulo": lambda h, x, t: h + x * (t % 5) + torch.remainder(x, t + 1),
    "roll": lambda h, x, t: torch.roll(h, t, 0) + x,
    "embedding": lambda h, x, t: h + torch.nn.functional.embedding(torch.full((), t), torch.eye(T, 3)),
    "one hot": lambda h, x, t: h + x * (torch.arange(3) == t % 3),
    "bool": lambda h, x, t: h + x * float(t > 5),
    "min and max": lambda h, x, t: h + x * min(t, 7) / max(t, 3),
    "rounded": lambda h, x, t: h + x * round(t / 3) + int(t / 7) + abs(t - 9),
    "float": lambda h, x, t: h + x * float(t) + t**2,
}


@pytest.mark.parametrize("spelling", NUMBERS)
def test_numbers(spelling):
    """Where the number cannot be left open, every step is traced; the graph is the same either way."""

    def model(xs, h):
        for t in range(T):
            h = NUMBERS[spelling](h, xs[t], t)
        return h

    slow, _, wanted = traced(model, (x(T, 3), x(3)), False)
    fast, _, found = traced(model, (x(T, 3), x(3)), True)
    assert fast == slow
    torch.testing.assert_close(found, wanted)


INDICES = {
    "last but t": lambda xs, t: xs[:, T - 1 - t],
    "slice": lambda xs, t: xs[:, t : t + 1].squeeze(1),
    "select": lambda xs, t: xs.select(1, t),
    "narrow": lambda xs, t: xs.narrow(1, t, 1)[:, 0],
    "before": lambda xs, t: xs[:, t - 1],
    "negative": lambda xs, t: xs[:, -1 - t],
    "twice": lambda xs, t: xs[:, t] + xs[:, t // 2],
    "number": lambda xs, t: xs[:, t] * t + 1 / (t + 1),
    "power": lambda xs, t: xs[:, t] * 0.5**t,
    "modulo": lambda xs, t: xs[:, t] * (t % 3),
    "chunk": lambda xs, t: xs.repeat(1, 2, 1)[:, 2 * t : 2 * t + 2].sum(1),
}


@pytest.mark.parametrize("spelling", INDICES)
def test_indices(spelling):
    def model(xs, h):
        out = []
        for t in range(T):
            h = torch.tanh(h + INDICES[spelling](xs, t))
            out.append(h)
        return torch.stack(out, 1)

    same(model, x(2, T, 3), x(2, 3))


def test_backwards_and_strides():
    def model(xs, h):
        out = []
        for t in range(T - 1, -1, -1):
            h = 0.5 * h + xs[t]
            out.insert(0, h) if t < 0 else out.append(h)
        for t in range(1, T, 2):
            h = h + xs[t]
        return torch.stack(out), h

    same(model, x(T, 3), x(3), copied=T - 3 + T // 2 - 3)


def test_buffers_and_writes():
    def model(xs, h):
        out = torch.zeros(2, T, 3)
        for t in range(T):
            h = h.clone()
            h.mul_(0.5).add_(xs[:, t])
            out[:, t] = h
        return out, h

    same(model, x(2, T, 3), x(2, 3))
    same(model, x(2, T, 3).requires_grad_(), x(2, 3))


def test_the_state_in_the_list_and_in_the_buffer():
    def model(xs):
        out, table = [xs[0]], torch.zeros(T, 3)
        for t in range(1, T):
            out.append(0.5 * out[-1] + xs[t])
            table[t] = table[t - 1] * 0.5 + out[-2]
        return torch.stack(out), table

    same(model, x(T, 3), copied=T - 4)


def test_tuples_and_lists_of_states():
    def model(xs, h, c):
        state, layers, fresh, out = (h, c), [h, c], [c, h], []
        for t in range(T):
            a, b = state
            state = (a + b * xs[t], a - b)
            for i in range(2):
                layers[i] = torch.tanh(layers[i] + state[i])
            fresh = [v * 0.5 for v in fresh]
            out.append((layers[1], state[0]))
        return torch.stack([a + b for a, b in out]), state, fresh[0]

    same(model, x(T, 3), x(3), x(3), copied=2 * (T - 3))


def test_the_token_before():
    def model(xs, h):
        before, out = torch.zeros_like(xs[:, 0]), []
        for t in range(T):
            now = xs[:, t]
            h = torch.tanh(h + 0.5 * now + 0.5 * before)
            before = now
            out.append(before[:, :2] + h[:, 1:])
        return torch.stack(out), before

    same(model, x(2, T, 3), x(2, 3))


def test_previous_and_first():
    def model(xs, h):
        previous, first, out = h, None, []
        for t in range(T):
            if first is None:
                first = h
            previous, h = h, 0.5 * h + previous * xs[t] + first
            out.append(h)
        return torch.stack(out), previous

    same(model, x(T, 3), x(3))


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(3, 3)
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

    def step(self, v, h):
        for layer in self.layers:
            v = layer(v)
        return self.cell(v, h)

    def forward(self, xs, h):
        out = []
        for t in range(xs.shape[1]):
            h = self.step(xs[:, t], h)
            out.append(h)
        return torch.stack(out, 1)


def test_modules():
    same(Cell(), x(2, T, 3), x(2, 3))


@dataclasses.dataclass
class Memory:
    value: torch.Tensor


class Neuron(nn.Module):
    def __init__(self):
        super().__init__()
        self.potential = None

    def forward(self, v):
        if self.potential is None:
            self.potential = torch.zeros_like(v)
        self.potential = 0.9 * self.potential + v
        spike = torch.sigmoid(self.potential - 1)
        self.potential = self.potential - spike
        return spike


def test_states_in_objects():
    neuron = Neuron()

    def model(xs, h):
        neuron.potential, memory, out = None, Memory(h), []
        for t in range(T):
            memory.value = 0.5 * memory.value + neuron(xs[:, t])
            out.append(memory.value)
        return torch.stack(out), neuron.potential * 2

    same(model, x(2, T, 3), x(2, 3))
    assert neuron.potential.shape == (2, 3), "the attribute is written behind the graph"


def test_states_in_dictionaries():
    def model(xs, h):
        state, fresh, out = {"h": h, "c": h * 2}, {"h": h, "c": h * 2}, []
        for t in range(T):
            state["h"] = torch.tanh(state["h"] + xs[:, t])
            state["c"] = state["c"] + state["h"]
            now = torch.tanh(fresh["h"] + state["c"])
            fresh = {"h": now, "c": fresh["c"] + now}
            out.append(state["c"] * fresh["c"])
        return torch.stack(out), state["h"], fresh["h"]

    same(model, x(2, T, 3), x(2, 3))


def test_ways_to_add_to_a_list():
    def model(xs, h):
        more, most, held, out = [], [], [], []
        for t in range(T):
            h = torch.tanh(h + xs[:, t] + (out[-1] if out else 0))
            more += [h, h * 2]
            most.extend((h,))
            held.append([])
            if more:
                out.append(h)
        held[3].append(h)
        return torch.stack(more), torch.stack(most), len(held[4]) * torch.stack(out)

    same(model, x(2, T, 3), x(2, 3))


def test_lists_read_and_written_by_number():
    def model(xs, h):
        rows, columns, out, other = xs.unbind(1), list(xs.unbind(1)), [None] * T, [h] * (2 * T)
        order = [3, *range(1, T)]
        for t in range(T):
            h = torch.tanh(h + rows[t] * columns[T - 1 - t] + xs[:, order[t]] * order[-1 - t])
            out[t] = h
            other[2 * t + 1] = h * t
        return torch.stack(out), torch.stack(other)

    same(model, x(2, T, 3), x(2, 3))
    same(model, x(2, T, 3).requires_grad_(), x(2, 3).requires_grad_())


def test_dynamic_batch():
    def model(xs, h):
        out = []
        for t in range(T):
            h = 0.5 * h + xs[:, t].reshape(xs.shape[0], -1)
            out.append(h)
        return torch.stack(out, 1)

    xs, h = x(5, T, 3), x(5, 3)
    torch._dynamo.mark_dynamic(xs, 0)
    torch._dynamo.mark_dynamic(h, 0)
    same(model, xs, h)


def test_what_is_left_of_the_step():
    def model(xs, h):
        for t in range(T):
            late = xs[t] * 2
            h = h + late
        return h * t + late

    same(model, x(T, 3), x(3))


def test_a_helper_with_the_loop():
    def run(xs, h, out):
        for t in range(T):
            h = h + xs[t]
            out.append(h)
        return h

    def model(xs, h):
        out = []
        h = run(xs, h, out)
        return torch.stack(out), run(xs, h * 2, out), torch.stack(out)

    same(model, x(T, 3), x(3), copied=2 * (T - 3))


def test_variables_that_a_comprehension_uses():
    def model(xs, ys, h):
        out, kept = [], [h, h]
        for t in range(T):
            u, v = tuple([s[:, t] for s in (xs, ys)])
            h = torch.stack([u, h, v]).sum(0)
            kept = [k + h for k in kept]
            out.append(h * t)
        return torch.stack([o + t for o in out]), kept

    same(model, x(2, T, 3), x(2, T, 3), x(2, 3), copied=2 * (T - 3))


def test_a_last_step_that_differs():
    def model(xs, h):
        for t in range(T):
            h = h + xs[t] + (xs[t + 1] if t + 1 < T else 0)
        return h

    same(model, x(T, 3), x(3))


def test_gradients_are_cut_in_some_steps_only():
    def model(xs, h, keep: bool):
        for t in range(T):
            with torch.set_grad_enabled(keep):
                h = h + xs[t]
            h = torch.tanh(h)
        return h

    same(model, x(T, 3).requires_grad_(), x(3), False)
    same(model, x(T, 3).requires_grad_(), x(3), True)


class Decayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, xs, h):
        out = []
        for t in range(T):
            h = 0.5 * h + xs[:, t]
            out.append(h)
        return torch.stack(out, 1)

    @staticmethod
    def backward(ctx, grad):
        a, out = torch.zeros_like(grad[:, 0]), []
        for t in range(T - 1, -1, -1):
            a = 0.5 * a + grad[:, t]
            out.append(a)
        return torch.stack(out[::-1], 1), a


def test_graphs_in_graphs():
    def tanhs(xs, h):
        out = []
        for t in range(T):
            h = torch.tanh(h + xs[:, t])
            out.append(h)
        return torch.stack(out, 1)

    def again(xs, h):
        return checkpoint(tanhs, xs, h, use_reentrant=False)

    inputs = x(2, T, 3).requires_grad_(), x(2, 3).requires_grad_()
    same(lambda xs, h: Decayed.apply(xs * 2, h).sin(), *inputs, copied=2 * (T - 3))
    same(again, *inputs)


def test_dropout_draws_as_often():
    def model(xs, h):
        for t in range(T):
            h = nn.functional.dropout(h + xs[t], 0.5)
        return h

    torch.manual_seed(0)
    slow, _, _ = traced(model, (x(T, 3), x(3)), False)
    fast, copied, _ = traced(model, (x(T, 3), x(3)), True)
    assert fast == slow
    assert copied == T - 3


def test_other_backends_are_left_alone():
    torch._dynamo.reset()
    counters["tenfuse"].clear()

    def model(xs, h):
        for t in range(T):
            h = h + xs[t]
        return h

    torch.compile(model, backend="eager")(x(T, 3), x(3))
    assert counters["tenfuse"]["forwarded"] == 0


def test_explain_goes_ahead_too():
    torch._dynamo.reset()
    counters["tenfuse"].clear()

    def model(xs, h):
        for t in range(T):
            h = math.exp(-1) * h + xs[t]
        return h

    loops = []
    torch.compile(model, backend=explain_backend(loops))(x(T, 3), x(3))
    assert counters["tenfuse"]["forwarded"] == T - 3
    assert [loop.steps for loop in loops] == [T]
