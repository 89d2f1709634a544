"""Loops whose steps are no copies of one: every step is traced, and nothing else changes."""

import dataclasses

import pytest
import torch
from copied import T, same, x


@dataclasses.dataclass
class Memory:
    value: torch.Tensor


def odd_steps(xs, h):
    for t in range(T):
        h = h + xs[t]
        if t % 8 == 7:
            h = h.detach()
    return h


def a_special_step(xs, h):
    for t in range(T):
        h = h * 2 if t == 30 else h + xs[t]
    return h


def by_length(xs, h):
    out = []
    for t in range(T):
        h = h + xs[t]
        out.append(h)
        if len(out) == 20:
            h = h * 2
    return torch.stack(out)


def by_counter(xs, h):
    n = 0
    for t in range(T):
        n = n + 1
        h = h * 2 if n == 25 else h + xs[t]
    return h


def by_iterator(xs, h):
    rows = iter(xs.unbind(0))
    for _ in range(T):
        h = h + next(rows)
    return h


def by_table(xs, h):
    table = [1.0] * 20 + [2.0] * (T - 20)
    for t in range(T):
        h = h * table[t] + xs[t]
    return h


def by_an_object_each(xs, h):
    out = []
    for t in range(T):
        h = h + xs[t]
        out.append(Memory(h))
    return torch.stack([m.value for m in out])


def by_an_object_replaced(xs, h):
    memory = Memory(h)
    for t in range(T):
        memory = Memory(memory.value + xs[t])
    return memory.value


def by_an_attribute_that_counts(xs, h):
    memory = Memory(h)
    memory.count = 0
    for t in range(T):
        memory.count = memory.count + 1
        memory.value = memory.value * memory.count + xs[t]
    return memory.value


def by_a_key_each(xs, h):
    memory = {"h": h}
    for t in range(T):
        memory[f"{t}"] = memory["h"] = memory["h"] + xs[t]
    return memory["h"], memory["7"]


def by_a_key_that_goes(xs, h):
    memory = {"h": h, "last": h}
    for t in range(T):
        last = memory.pop("last")
        memory["h"] = memory["h"] + xs[t] * last
        if t < T - 1:
            memory["last"] = last
    return memory["h"]


def by_a_list_that_shrinks(xs, h):
    waiting = [h * k for k in range(T)]
    for t in range(T):
        if waiting:
            h = h + waiting.pop() * xs[t]
    return h


def by_window(xs, h):
    window = [h, h]
    for t in range(T):
        window.append(window[0] + xs[t])
        window.pop(0)
    return window[1]


def by_a_tuple_handed_on(xs, h):
    state = (h, h * 2)
    for t in range(T):
        state = (state[1], state[t % 2] + xs[t])
    return state[0], state[1]


def by_a_row_replaced(xs, h):
    rows = list(xs.unbind(0))
    for t in range(T):
        rows[t] = h = h + rows[t]
    return torch.stack(rows)


def by_a_row_written_before(xs, h):
    rows = [h] * T
    for t in range(T):
        rows[t] = rows[0] + xs[t]
    return torch.stack(rows)


def by_the_last_row(xs, h):
    rows = [h] * T
    for t in range(T - 1):
        rows[t] = rows[-1] + xs[t]
        if t == 30:
            rows[-1] = h * 2
    return torch.stack(rows)


def by_rows_of_two_shapes(xs, h):
    rows = [*xs[:9].unbind(0), xs[0, :1], *xs[10:].unbind(0)]
    for t in range(T):
        h = h + rows[t]
    return h


def by_growth(xs, h):
    for t in range(T):
        h = torch.cat([h, xs[t]])
    return h


def by_shape(xs, h):
    for t in range(T):
        h = h + xs[: t + 1].sum(0)
    return h


def by_first_entry(xs, h):
    out = [h]
    for t in range(T):
        out.append(out[0] + out[len(out) // 2] + xs[t])
    return torch.stack(out)


def by_type(xs, h):
    for t in range(T):
        h = (h + xs[t]).double() if t > 29 else h + xs[t]
    return h


def by_attribute(xs, h):
    xs.seen = 0
    for t in range(T):
        xs.seen = xs.seen + 1
        h = h + xs[t] * xs.seen
    return h


def by_closure(xs, h):
    n = 0

    def count():
        nonlocal n
        n += 1
        return n

    for t in range(T):
        h = h + xs[t] * count()
    return h


def by_dictionary(xs, h):
    seen = {}
    for t in range(T):
        seen[t] = h
        h = h + xs[t] + len(seen)
    return h


def by_a_list_changed_and_replaced(xs, h):
    layers = [h, h]
    for t in range(T):
        layers[0] = layers[0] + xs[t]
        layers = [v * 0.5 for v in layers]
    return layers[0]


def by_the_end_of_a_long_list(xs, h):
    out = list(xs.repeat(3, 1).unbind(0))
    for t in range(T):
        out.append(out[-1] + xs[t] + h)
    return torch.stack(out)


def by_a_shape_turned_in_place(xs, h):
    table = xs.repeat(1, 2).clone()
    for t in range(T):
        table.t_()
        h = h + xs[t] * table[0, 0]
    return h, table


def by_place_in_memory(xs, h):
    v = xs[0]
    for t in range(T):
        h = h + v if v.storage_offset() < 60 else h * v
        v = xs[t]
    return h


def by_break(xs, h):
    for t in range(T):
        if t == 33:
            break
        h = h + xs[t]
    return h


@pytest.mark.parametrize(
    "model", [f for n, f in sorted(globals().items()) if n.startswith("by_")] + [odd_steps, a_special_step]
)
def test_steps_that_are_no_copies(model):
    # Of the list that shrinks, the loop that makes it is copied, in both attempts.
    copied = {by_window: T - 3, by_a_key_that_goes: T - 3, by_a_list_that_shrinks: 2 * (T - 3)}.get(model, 0)
    same(model, x(T, 3), x(3), copied=copied)


def test_graph_breaks():
    def model(xs, h):
        for t in range(T):
            h = h + xs[t]
            torch._dynamo.graph_break()
        return h

    same(model, x(T, 3), x(3), copied=0)
