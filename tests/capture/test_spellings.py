"""Every way people write a loop over time: found, with its steps and carries, and right."""

from __future__ import annotations

import torch
from stepwise import check

B, T, D = 2, 7, 3


def inputs(*shapes, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(*s).requires_grad_() for s in shapes]


def x_h(t=T):
    return inputs((B, t, D), (B, D))


def found(harness, *want):
    """``want``: (steps, carries) per loop, in source order."""
    assert [(loop.steps, len(loop.carries)) for loop in harness.loops] == list(want), (
        harness.loops,
        harness.kept,
    )
    assert not harness.kept
    return harness


def test_append_and_stack():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = torch.tanh(h * 0.5 + x[:, t])
            out.append(h)
        return torch.stack(out, dim=1), h

    found(check(f, *x_h()), (T, 1))


def test_append_unsqueezed_and_cat():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h.unsqueeze(1))
        return torch.cat(out, dim=1)

    found(check(f, *x_h()), (T, 1))


def test_stack_on_the_last_dim():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, dim=-1)

    found(check(f, *x_h()), (T, 1))


def test_cat_of_slices_kept_long():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t : t + 1]
            out.append(h)
        return torch.cat(out, 1)

    x, h = inputs((B, T, D), (B, 1, D))
    found(check(f, x, h), (T, 1))


def test_setitem_into_zeros():
    def f(x, h):
        out = torch.zeros_like(x)
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out[:, t] = h
        return out

    found(check(f, *x_h()), (T, 1))


def test_setitem_into_empty_time_first():
    def f(x, h):
        out = torch.empty(x.shape[1], x.shape[0], x.shape[2])
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out[t] = h * 2
        return out

    found(check(f, *x_h()), (T, 1))


def test_two_buffers():
    def f(x, h):
        a, b = torch.empty_like(x), torch.zeros(x.shape[0], x.shape[2], x.shape[1])
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            a[:, t] = h
            b[..., t] = h * h
        return a, b

    found(check(f, *x_h()), (T, 1))


def test_two_writes_to_one_buffer():
    def f(x, h):
        out = torch.zeros(x.shape[0], x.shape[1], 2 * x.shape[2])
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out[:, t, : x.shape[2]] = h
            out[:, t, x.shape[2] :] = h * 2
        return out

    found(check(f, *x_h()), (T, 1))


def test_write_then_add_in_place():
    def f(x, h):
        out = torch.zeros_like(x)
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out[:, t] = h
            out[:, t] += 1
        return out

    found(check(f, *x_h()), (T, 1))


def test_state_read_back_from_the_buffer():
    def f(x, h):
        s = torch.zeros(x.shape[0], x.shape[1] + 1, x.shape[2])
        s[:, 0] = h
        for i in range(1, x.shape[1] + 1):
            s[:, i] = s[:, i - 1] * 0.5 + x[:, i - 1]
        return s[:, 1:]

    found(check(f, *x_h()), (T, 1))


def test_state_read_back_from_a_clone_of_the_input():
    def f(x):
        out = x.clone()
        for t in range(1, x.shape[1]):
            out[:, t] = out[:, t - 1] * 0.9 + x[:, t]
        return out

    found(check(f, *inputs((B, T, D))), (T - 1, 1))


def test_state_read_back_through_a_transposed_slice():
    def f(x, h):
        s = torch.zeros(x.shape[1] + 1, x.shape[0], x.shape[2])
        s[0] = h
        for i in range(x.shape[1]):
            s[i + 1] = s[i].t().t() * 0.5 + x[:, i]
        return s

    found(check(f, *x_h()), (T, 1))


def test_state_read_back_and_detached():
    def f(x, h):
        s = torch.zeros(x.shape[1] + 1, x.shape[0], x.shape[2])
        s[0] = h
        for i in range(x.shape[1]):
            s[i + 1] = s[i].detach() * 0.5 + x[:, i]
        return s

    found(check(f, *x_h()), (T, 1))


def test_reversed_buffer():
    def f(r, v):
        out = torch.zeros_like(r)
        for t in reversed(range(r.shape[0] - 1)):
            out[t] = r[t] + 0.9 * out[t + 1]
        return out + v

    h = found(check(f, *inputs((T, D), (T, D))), (T - 1, 1))
    assert h.loops[0].reverse


def test_reversed_range():
    def f(x, h):
        out = []
        for t in range(x.shape[1] - 1, -1, -1):
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out[::-1], 1)

    assert found(check(f, *x_h()), (T, 1)).loops[0].reverse


def test_reversed_list_left_reversed():
    def f(x, h):
        out = []
        for t in reversed(range(x.shape[1])):
            h = h * 0.5 + x[:, t]
            out.insert(0, h)
        return torch.stack(out, 0)

    found(check(f, *x_h()), (T, 1))


def test_mixed_directions():
    def f(x, y, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t] + y[:, x.shape[1] - 1 - t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (B, T, D), (B, D))), (T, 1))


def test_unbind():
    def f(x, h):
        out = []
        for x_t in x.unbind(1):
            h = h * 0.5 + x_t
            out.append(h)
        return torch.stack(out, 1)

    harness = found(check(f, *x_h()), (T, 1))
    assert isinstance(harness.loops[0].streams[0].source, torch.fx.Node)


def test_split_chunk_zip_enumerate():
    def f(x, y, h):
        out = []
        for i, (a, b) in enumerate(zip(x.split(1, 1), y.chunk(y.shape[1], 1), strict=True)):
            h = h * 0.5 + a.squeeze(1) * b[:, 0] + 0.1 * i
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (B, T, D), (B, D))), (T, 1))


def test_iterate_a_transposed_tensor():
    def f(x, h):
        out = []
        for x_t in x.transpose(0, 1):
            h = h * 0.5 + x_t
            out.append(h)
        return torch.stack(out)

    found(check(f, *x_h()), (T, 1))


def test_select_and_narrow():
    def f(x, y, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x.select(1, t) + y.narrow(1, t, 1).squeeze(1)
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (B, T, D), (B, D))), (T, 1))


def test_ellipsis_and_none_indices():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[..., t, :] + x[:, None, t].sum(1)
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T, 1))


def test_strides_and_shifts():
    def f(x, h):
        out = []
        for t in range(1, x.shape[1] - 1):
            h = h * 0.5 + x[:, t - 1] - x[:, t] + x[:, t + 1]
            out.append(h)
        for t in range(0, x.shape[1], 2):
            h = h * 0.25 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T - 2, 1), ((T + 1) // 2, 1))


def test_chunk_slices():
    def f(x, s):
        out = []
        for i in range(x.shape[1] // 4):
            c = x[:, i * 4 : (i + 1) * 4]
            out.append(c @ s)
            s = s * 0.9 + c.transpose(1, 2) @ c
        return torch.cat(out, 1)

    found(check(f, *inputs((B, 16, D), (B, D, D))), (4, 1))


def test_overlapping_windows():
    def f(x, h):
        out = []
        for i in range(x.shape[1] - 2):
            h = h * 0.5 + x[:, i : i + 3].sum(1)
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T - 2, 1))


def test_first_step_without_state():
    def f(x):
        h, out = None, []
        for t in range(x.shape[1]):
            h = x[:, t] if h is None else h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D))), (T - 1, 1))


def test_state_starts_as_a_number():
    def f(x):
        h, out = 0.0, []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D))), (T - 1, 1))


def test_state_starts_broadcast():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (D,))), (T - 1, 1))


def test_last_step_differs():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            if t == x.shape[1] - 1:
                h = torch.tanh(h)
            out.append(h)
        return torch.stack(out, 1), h

    (loop,) = check(f, *x_h()).loops
    assert loop.steps in (T - 1, T)


def test_unrolled_by_four_with_tail():
    def f(x, h):
        out = []
        t = 0
        while t + 3 < x.shape[1]:
            h = h * 0.5 + x[:, t]
            out.append(h)
            h = h * 0.5 + x[:, t + 1]
            out.append(h)
            h = h * 0.5 + x[:, t + 2]
            out.append(h)
            h = h * 0.5 + x[:, t + 3]
            out.append(h)
            t += 4
        while t < x.shape[1]:
            h = h * 0.5 + x[:, t]
            out.append(h)
            t += 1
        return torch.stack(out, 1)

    found(check(f, *x_h(18)), (18, 1))


def test_chunks_outside_steps_inside():
    def f(x, h):
        out = []
        for c in range(x.shape[1] // 5):
            chunk, inner = x[:, c * 5 : (c + 1) * 5], []
            for t in range(5):
                h = h * 0.5 + chunk[:, t]
                inner.append(h)
            out.append(torch.stack(inner, 1))
        return torch.cat(out, 1)

    harness = check(f, *x_h(20))
    assert sum(loop.steps for loop in harness.loops) in (20, 4)
    assert not harness.kept


def test_heads_inside_steps():
    def f(x, h):
        out = []
        hs = list(h.unbind(1))
        for t in range(x.shape[1]):
            for k in range(3):
                hs[k] = hs[k] * 0.5 + x[:, t, k]
            out.append(torch.stack(hs, 1))
        return torch.stack(out, 1)

    (loop,) = check(f, *inputs((B, T, 3, D), (B, 3, D))).loops
    assert loop.steps == T and len(loop.carries) == 3


def test_heads_around_steps():
    def f(x, h):
        heads = []
        for k in range(3):
            s, out = h[:, k], []
            for t in range(x.shape[1]):
                s = s * 0.5 + x[:, t, k]
                out.append(s)
            heads.append(torch.stack(out, 1))
        return torch.stack(heads, 2)

    found(check(f, *inputs((B, T, 3, D), (B, 3, D))), (T, 1), (T, 1), (T, 1))


def test_both_directions():
    def f(x, h):
        a = b = h
        fwd, bwd = [], []
        for t in range(x.shape[1]):
            a = a * 0.5 + x[:, t]
            fwd.append(a)
        for t in reversed(range(x.shape[1])):
            b = b * 0.5 + x[:, t]
            bwd.append(b)
        return torch.stack(fwd, 1) + torch.stack(bwd[::-1], 1)

    harness = found(check(f, *x_h()), (T, 1), (T, 1))
    assert [loop.reverse for loop in harness.loops] == [False, True]


def test_second_loop_reads_the_first():
    def f(x, h):
        first, out = [], []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            first.append(h)
        g = torch.zeros_like(h)
        for t in range(x.shape[1]):
            g = torch.tanh(g + first[t])
            out.append(g)
        return torch.stack(out, 1)

    harness = found(check(f, *x_h()), (T, 1), (T, 1))
    assert "stack([" not in harness.graphs[0].code


def test_second_loop_reads_a_softmax_of_the_first():
    def f(x, h):
        first, out = [], []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            first.append(h)
        a = torch.stack(first, 1).softmax(1)
        for t in range(x.shape[1]):
            h = h * a[:, t] + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T, 1), (T, 1))


def test_tuple_rebinding_and_two_carries():
    def f(x, h):
        a, b, out = h, torch.zeros_like(h), []
        for t in range(x.shape[1]):
            a, b = a * 0.5 - b * 0.1 + x[:, t], a * 0.1 + b * 0.5
            out.append(a + b)
        return torch.stack(out, 1), b

    found(check(f, *x_h()), (T, 2))


def test_in_place_state():
    def f(x, h):
        h, out = h.clone(), []
        for t in range(x.shape[1]):
            h.mul_(0.5).add_(x[:, t])
            out.append(h.clone())
        return torch.stack(out, 1), h

    found(check(f, *x_h()), (T, 1))


def test_in_place_state_that_the_caller_sees():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h.mul_(0.5).add_(x[:, t])
            out.append(h.clone())
        return torch.stack(out, 1)

    x, h = x_h()
    found(check(f, x, h.detach()), (T, 1))


def test_augmented_assignment():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5
            h += x[:, t]
            out.append(h * 2)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T, 1))


def test_optional_operand():
    def f(x, h, r=None):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            if r is not None:
                h = h @ r
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (B, D), (D, D))), (T, 1))
    found(check(f, *x_h()), (T, 1))


def test_masks():
    def f(x, m, h):
        out = []
        for t in range(x.shape[1]):
            new = torch.tanh(h + x[:, t])
            h = torch.where(m[:, t, None] > 0, new, h)
            out.append(h.masked_fill(m[:, t, None] < -1, 0.0))
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (B, T), (B, D))), (T, 1))


def test_detach_every_step():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h.detach() * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T, 1))


def test_detach_at_chunk_borders():
    def f(x, h):
        out = []
        for c in range(3):
            if c > 0:
                h = h.detach()
            for t in range(5):
                h = h * 0.5 + x[:, c * 5 + t]
                out.append(h)
        return torch.stack(out, 1)

    found(check(f, *x_h(15)), (5, 1), (5, 1), (5, 1))


def test_numbers_that_change():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.9**t + x[:, t] * t
            out.append(h / (t + 1))
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T, 1))


def test_carry_occurs_several_times():
    def f(x, v):
        out = []
        for t in range(x.shape[1]):
            v = v + (x[:, t] - v) / 2.0
            s = (v > 0.5).float()
            v = v * (1 - s)
            out.append(s + v)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T, 1))


def test_state_two_steps_back():
    def f(x, h):
        a, b, out = h, h * 2, []
        for t in range(x.shape[1]):
            new = 0.5 * a - 0.25 * b + x[:, t]
            b, a = a, new
            out.append(new)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T, 2))


def test_no_carry_at_all():
    def f(x, w):
        out = []
        for t in range(x.shape[1]):
            out.append(torch.tanh(x[:, t] @ w))
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (D, D))), (T, 0))


def test_list_element_state():
    def f(x, h):
        states = [h]
        for t in range(x.shape[1]):
            states.append(states[-1] * 0.5 + x[:, t])
        return torch.stack(states, 1)

    found(check(f, *x_h()), (T, 1))


def test_dict_and_attribute_state():
    def f(x, h):
        state, out = {"h": h}, []
        for t in range(x.shape[1]):
            state["h"] = state["h"] * 0.5 + x[:, t]
            out.append(state["h"])
        return torch.stack(out, 1), state["h"]

    found(check(f, *x_h()), (T, 1))


def test_module_with_helpers():
    class Cell(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.rec = torch.nn.Linear(D, D), torch.nn.Linear(D, D)
            self.norm = torch.nn.LayerNorm(D)

        def step(self, x, h):
            return torch.tanh(self.inp(x) + self.rec(h))

        def forward(self, x, h):
            out = []
            for t in range(x.shape[1]):
                h = self.step(x[:, t], h)
                out.append(self.norm(h))
            return torch.stack(out, 1), h

    torch.manual_seed(0)
    found(check(Cell(), *x_h()), (T, 1))


def test_lstm_cell():
    cell = torch.nn.LSTMCell(D, D)

    def f(x, h):
        c, out = torch.zeros_like(h), []
        for t in range(x.shape[1]):
            gates = x[:, t] @ cell.weight_ih.t() + h @ cell.weight_hh.t() + cell.bias_ih + cell.bias_hh
            i, f_, g, o = gates.chunk(4, 1)
            c = torch.sigmoid(f_) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            out.append(h)
        return torch.stack(out, 1), (h, c)

    found(check(f, *x_h()), (T, 2))


def test_casts_inside_the_loop():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t].float()
            out.append(h.to(torch.float64))
        return torch.stack(out, 1)

    x, h = x_h()
    found(check(f, x.detach().double(), h), (T, 1))


def test_output_overwrites_the_input():
    def f(x, h):
        y = x * 1.0
        for t in range(x.shape[1]):
            h = h * 0.5 + y[:, t]
            y[:, t] = h
        return y

    found(check(f, *x_h()), (T, 1))


def test_comprehension():
    def f(x, w):
        return torch.stack([torch.tanh(x[:, t] @ w) for t in range(x.shape[1])], 1)

    found(check(f, *inputs((B, T, D), (D, D))), (T, 0))


def test_two_time_axes():
    def f(x, y, h):
        out = []
        for t in range(x.shape[1]):
            h = h * y[t] + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (T, D), (B, D))), (T, 1))


def test_without_grad():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *x_h(), grad=False), (T, 1))


def test_no_grad_block():
    def f(x, h):
        out = []
        with torch.no_grad():
            for t in range(x.shape[1]):
                h = h * 0.5 + x[:, t]
                out.append(h)
        return torch.stack(out, 1) + x

    found(check(f, *x_h()), (T, 1))


def test_dynamic_batch():
    def f(x, h):
        out = []
        for t in range(7):
            h = h * 0.5 + x[:, t]
            out.append(h.view(x.shape[0], 1, 3))
        return torch.cat(out, 1)

    x, h = x_h()
    torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.mark_dynamic(h, 0)
    found(check(f, x, h, dynamic=None), (T, 1))


def test_autograd_function():
    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            h, out = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                h = h * 0.5 + x[:, t]
                out.append(h)
            return torch.stack(out, 1)

        @staticmethod
        def backward(ctx, grad):
            g, out = torch.zeros_like(grad[:, 0]), []
            for t in reversed(range(grad.shape[1])):
                g = g * 0.5 + grad[:, t]
                out.append(g)
            return torch.stack(out[::-1], 1)

    harness = check(lambda x: Scan.apply(x * 2), *inputs((B, T, D)))
    assert [(loop.steps, len(loop.carries)) for loop in harness.loops] == [(T, 1), (T, 1)]


def test_checkpoint():
    from torch.utils.checkpoint import checkpoint

    def f(x, h):
        def inner(x, h):
            out = []
            for t in range(x.shape[1]):
                h = torch.tanh(h * 0.5 + x[:, t])
                out.append(h)
            return torch.stack(out, 1)

        return checkpoint(inner, x, h, use_reentrant=False)

    found(check(f, *x_h()), (T, 1))
