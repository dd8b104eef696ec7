"""The tape: order, accumulation, freeing, hooks, modes, in-place writes, gradients of gradients."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

import rawgrad as rg
from rawgrad import autograd as ag
from rawgrad.autograd import Function, Tensor
from rawgrad.autograd import functional as F
from rawgrad.autograd.graph import current_mode
from rawgrad.kernels._errors import DtypeError, GradientError, ShapeError


def leaf(*values: Any) -> Tensor:
    return Tensor(np.array(values, np.float64), requires_grad=True)


# ---- order and accumulation


def test_a_chain_of_100_000_nodes() -> None:
    x = y = leaf(0.5)
    for _ in range(100_000):
        y = y + 1.0
    y.backward()
    assert x.grad.item() == 1


def test_a_chain_of_100_000_nodes_is_freed_without_recursion() -> None:
    alive = []
    for step in (lambda y: y.sin(), lambda y: y.exp() if y.item() < 0 else -y):  # saves inputs; saves outputs
        y = leaf(0.5)
        for _ in range(50_000):
            y = step(y)
        alive.append(weakref.ref(y.grad_fn))
        del y
    assert [reference() for reference in alive] == [None, None]


def test_each_node_runs_once_however_many_paths_lead_to_it() -> None:
    calls = []

    class Count(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            return x.array * 1

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            calls.append(float(grad))
            return grad

    x = leaf(1.0)
    y = Count.apply(x)
    for _ in range(20):  # 2^20 paths
        y = y + y
    y.backward()
    assert calls == [2.0**20]
    assert x.grad.item() == 2.0**20


def test_gradients_accumulate_over_passes_and_uses() -> None:
    x = leaf(2.0, 3.0)
    (x * x).sum().backward()
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [8, 12])
    x.grad = None
    (x * 3 + x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [4, 4])


def test_several_roots_add_up() -> None:
    x = leaf(2.0)
    ag.backward([x * x, x * 3], [None, Tensor(np.array([10.0]))])
    assert x.grad.item() == 4 + 30


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: (a + b).sum(),
        lambda a, b: (a.reshape(2, 1) + b.reshape(2, 1)).sum(),
        lambda a, b: F.cat([a, b]).sum(),
        lambda a, b: F.stack([a, b]).sum(),
        lambda a, b: (a - (-b)).sum(),
        lambda a, b: (a + b) @ Tensor(np.ones(2)),
    ],
)
def test_no_two_leaves_share_a_gradient_array(make: Any) -> None:
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    make(a, b).backward()
    before = b.grad.array.copy()
    a.grad.array[...] = 77
    np.testing.assert_array_equal(b.grad.array, before)


def test_the_given_gradient_is_not_aliased() -> None:
    given = np.array([1.0, 2.0])
    a, b = leaf(1.0, 2.0), leaf(1.0, 2.0)
    (a + b).backward(given)
    a.backward(given)  # a leaf itself as the root
    b.grad.array[...] = 9
    a.grad.array[...] = 9
    np.testing.assert_array_equal(given, [1, 2])


def test_a_gradient_that_a_function_kept_is_not_aliased() -> None:
    class Keeps(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            ctx.kept = x.array.copy()
            return x.array.sum()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return ctx.kept

    x = leaf(1.0, 2.0)
    y = Keeps.apply(x)
    y.backward()
    x.grad.array[...] = 9
    np.testing.assert_array_equal(y.grad_fn.kept, [1, 2])


def test_returned_gradients_do_not_share_memory() -> None:
    a, b = leaf(1.0, 2.0), leaf(1.0, 2.0)
    ga, gb = ag.grad((a + b) * 2, [a, b], Tensor(np.ones(2)))
    ga.array[...] = 5
    np.testing.assert_array_equal(gb.numpy(), [2, 2])


# ---- asking wrongly


def test_backward_says_what_is_missing() -> None:
    x = leaf(1.0, 2.0)
    with pytest.raises(GradientError, match=r"gradient must be given for a tensor of shape \(2,\)"):
        (x * 2).backward()
    with pytest.raises(ShapeError, match=r"must have the tensor's shape \(2,\); got \(3,\)"):
        (x * 2).backward(Tensor(np.ones(3)))
    with pytest.raises(GradientError, match="does not require gradients"):
        Tensor(np.ones(1)).backward()
    with pytest.raises(GradientError, match="2 tensors but 1 gradients"):
        ag.backward([x, x], [None])
    with pytest.raises(DtypeError, match="only floating"):
        Tensor(np.arange(3), requires_grad=True)


def test_the_second_backward_needs_retain_graph() -> None:
    x = leaf(3.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 12
    with pytest.raises(GradientError, match="Mul: the graph was already used .* retain_graph=True"):
        y.backward()
    with pytest.raises(GradientError, match="already used"):
        ag.grad(y, x)
    with pytest.raises(GradientError, match="already used"):
        _ = y.grad_fn.saved_tensors


def test_part_of_a_freed_graph_is_noticed_and_changes_no_grad() -> None:
    x = leaf(3.0)
    y = x * x
    y.backward()
    x.grad = None
    w = leaf(1.0)
    with pytest.raises(GradientError, match="already used"):
        (w + y).backward()
    assert w.grad is None and x.grad is None


# ---- autograd.grad


def test_grad_of_leaves_and_of_computed_tensors() -> None:
    x = leaf(2.0)
    y = x * x
    z = y * y
    gx, gy, gz = ag.grad(z, [x, y, z], retain_graph=True)
    assert (gx.item(), gy.item(), gz.item()) == (32, 8, 1)
    (only,) = ag.grad(z, y)
    assert only.item() == 8
    assert x.grad is None


def test_grad_goes_no_further_than_it_must() -> None:
    class Forbidden(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            return x.array * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            raise AssertionError("not needed")

    x, w = leaf(2.0), leaf(3.0)
    hidden = Forbidden.apply(x)
    gw, gh = ag.grad(hidden * w, [w, hidden])
    assert (gw.item(), gh.item()) == (4, 3)


def test_grad_of_unused_inputs() -> None:
    x, other = leaf(2.0), leaf(1.0, 1.0)
    y = x * x
    with pytest.raises(GradientError, match=r"input 1 of shape \(2,\); pass allow_unused"):
        ag.grad(y, [x, other], retain_graph=True)
    gx, none = ag.grad(y, [x, other], allow_unused=True)
    assert gx.item() == 4 and none is None
    with pytest.raises(GradientError, match="input 0 does not require"):
        ag.grad(x * 2, Tensor(np.ones(1)))


def test_grad_with_the_same_input_twice_and_several_outputs() -> None:
    x = leaf(2.0)
    a, b = ag.grad([x * 3, x * x], [x, x], [Tensor(np.array([1.0])), Tensor(np.array([10.0]))])
    assert a.item() == b.item() == 43


def test_third_order() -> None:
    x = leaf(2.0)
    y = x**5
    derivatives = []
    for _ in range(4):
        (y,) = ag.grad(y, x, create_graph=True)
        derivatives.append(y.item())
    np.testing.assert_allclose(derivatives, [80, 160, 240, 240])
    x, w = Tensor(np.ones((1, 1, 3, 3)), True), Tensor(np.full((1, 1, 2, 2), 2.0), True)
    energy = (F.conv2d(x, w) ** 2).sum()  # with all alike: 4 outputs, each (4 w)²
    (gw,) = ag.grad(energy, w, create_graph=True)
    (hw,) = ag.grad(gw.sum(), w, create_graph=True)
    # d/dw_k of Σ_l dE/dw_l: 2 Σ_outputs (Σ_l x_l) x_k = 2 · 4 · 4
    np.testing.assert_allclose(hw.detach().numpy(), np.full((1, 1, 2, 2), 32.0))
    (hx,) = ag.grad(hw.sum(), x, allow_unused=True)
    assert hx is not None and float(hx.sum()) > 0


def test_backward_with_create_graph_gives_differentiable_grads() -> None:
    x = leaf(3.0)
    (x**3).backward(create_graph=True)
    assert x.grad.requires_grad
    (second,) = ag.grad(x.grad, x)
    assert second.item() == 18


def test_a_plain_pass_records_nothing() -> None:
    x = leaf(3.0)
    (x * x).backward()
    assert not x.grad.requires_grad and x.grad.is_leaf


# ---- what is kept, and when it goes


class Holder(Function):
    """Saves an array of its own and keeps a weak reference to it."""

    alive: Any = None

    @staticmethod
    def forward(ctx: Any, x: Tensor, fail: bool = False) -> Any:
        kept = Tensor(x.array + 1)
        Holder.alive = weakref.ref(kept)
        ctx.save_for_backward(kept)
        ctx.fail = fail
        return x.array * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        assert ctx.saved_tensors[0] is not None
        if ctx.fail:
            raise ValueError("on purpose")
        return grad, None


def test_saved_arrays_are_freed_by_the_pass() -> None:
    y = Holder.apply(leaf(1.0)) * 2
    assert Holder.alive() is not None
    y.backward(retain_graph=True)
    assert Holder.alive() is not None
    y.backward()
    assert Holder.alive() is None  # though y and its node live on


def test_saved_arrays_are_freed_with_the_graph() -> None:
    gc.disable()
    try:
        y = Holder.apply(leaf(1.0)) * 2
        del y
        assert Holder.alive() is None  # no reference cycles: nothing waits for the collector
        y = F.softmax(Holder.apply(leaf(1.0, 2.0)), 0).exp().sum()  # saves outputs, too
        del y
        assert Holder.alive() is None
        with pytest.raises(ValueError, match="on purpose"):
            Holder.apply(leaf(1.0), True).backward()
    finally:
        gc.enable()
    gc.collect()
    assert Holder.alive() is None


def test_nothing_is_kept_without_a_tape() -> None:
    with rg.no_grad():
        y = Holder.apply(leaf(1.0))
    assert y.grad_fn is None and Holder.alive() is None
    y = Holder.apply(Tensor(np.ones(1)))
    assert y.grad_fn is None and Holder.alive() is None


def test_operations_keep_no_array_behind_the_tapes_back() -> None:
    """After the pass a node may hold options, but no array with the size of the data."""
    from cases import CASES

    for case in CASES:
        inputs = case.tensors()
        result = case.function(*inputs)
        result = result[0] if isinstance(result, tuple) else result
        nodes, stack = [], [result.grad_fn]
        while stack:
            node = stack.pop()
            nodes.append(node)
            stack += [edge[0] for edge in node._edges if isinstance(edge, tuple)]
        ag.backward([result], [Tensor(np.ones(result.shape))])
        for node in nodes:
            assert node._saved is None and node._edges is None
            held = [v for v in vars(node).values() if isinstance(v, Tensor | np.ndarray) and np.size(v) > 1]
            assert not held, f"{case.name}: {node} keeps {held}"


# ---- hooks


def test_a_leaf_hook_runs_once_with_the_whole_gradient() -> None:
    x = leaf(1.0, 2.0)
    seen = []
    remove = x.register_hook(lambda g: seen.append(g.numpy().copy()))
    (x * 2 + x * 3 + x.exp() * 0).sum().backward()
    np.testing.assert_array_equal(seen, [[5, 5]])
    remove()
    remove()
    (x * 2).sum().backward()
    assert len(seen) == 1


def test_hooks_replace_gradients_in_their_order() -> None:
    x = leaf(1.0)
    y = x * 2
    y.register_hook(lambda g: g * 10)
    y.register_hook(lambda g: g + 1)
    x.register_hook(lambda g: g * 3)
    (y + y).backward()  # (2 · 10 + 1) · 2 · 3
    assert x.grad.item() == 126


def test_hooks_run_for_the_inputs_of_grad_too() -> None:
    x = leaf(1.0)
    y = x * 2
    y.register_hook(lambda g: g * 10)
    (gy,) = ag.grad(y * 3, y, retain_graph=True)
    assert gy.item() == 30
    gx, gy = ag.grad(y * 3, [x, y])
    assert (gx.item(), gy.item()) == (60, 30)


def test_what_a_hook_saw_or_gave_is_not_aliased() -> None:
    x = leaf(1.0, 2.0)
    constant = Tensor(np.array([7.0, 7.0]))
    x.register_hook(lambda g: constant)
    (x * 2).sum().backward()
    x.grad.array[...] = 0
    np.testing.assert_array_equal(constant.numpy(), [7, 7])
    x, seen = leaf(1.0, 2.0), []
    y = x + 1
    y.register_hook(lambda g: seen.append(g))
    (y * 2).sum().backward()
    x.grad.array[...] = 0
    np.testing.assert_array_equal(seen[0].numpy(), [2, 2])


def test_hooks_must_fit() -> None:
    x = leaf(1.0, 2.0)
    x.register_hook(lambda g: g.sum())
    with pytest.raises(GradientError, match=r"shape \(2,\); got Tensor of shape \(\)"):
        (x * 2).sum().backward()
    assert x.grad is None
    with pytest.raises(GradientError, match="register_hook: this tensor does not"):
        Tensor(np.ones(1)).register_hook(print)


def test_retain_grad() -> None:
    x = leaf(2.0)
    y = x * x
    y.retain_grad()
    y.retain_grad()
    (y * 3).backward(retain_graph=True)
    (y * 3).backward()
    assert y.grad.item() == 6 and x.grad.item() == 24
    y = x * x
    assert (y * 1).backward() is None and y.grad is None  # not asked for
    with pytest.raises(GradientError, match="retain_grad"):
        Tensor(np.ones(1)).retain_grad()


def test_retain_grad_follows_an_in_place_operation() -> None:
    x = leaf(2.0)
    y = x * 1
    y.retain_grad()
    y *= 3
    (y * 5).backward()
    assert y.grad.item() == 5 and x.grad.item() == 15


# ---- modes


def test_no_grad_in_all_its_forms() -> None:
    x = leaf(1.0)
    with rg.no_grad():
        assert not (x * 2).requires_grad
        with rg.enable_grad():
            assert (x * 2).requires_grad
        assert not ag.is_grad_enabled()
    assert (x * 2).requires_grad

    @rg.no_grad()
    def recursive(depth: int) -> bool:
        return recursive(depth - 1) if depth else ag.is_grad_enabled()

    assert recursive(3) is False
    assert ag.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), rg.no_grad():
        _ = 1 / 0
    assert ag.is_grad_enabled()


def test_modes_belong_to_their_thread() -> None:
    seen: list[Any] = []
    inside, leave = threading.Barrier(2, timeout=10), threading.Barrier(2, timeout=10)

    @rg.no_grad()
    def quiet() -> None:
        inside.wait()  # both threads are in the same decorated function now
        leave.wait()
        seen.append(ag.is_grad_enabled())

    threads = [threading.Thread(target=quiet) for _ in range(2)]
    with rg.no_grad():
        other = threading.Thread(target=lambda: seen.append(ag.is_grad_enabled()))
        other.start()
        other.join()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True, False, False]


def test_the_mode_is_restored_when_forward_or_backward_fails() -> None:
    class Fails(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, at: str) -> Any:
            assert not ag.is_grad_enabled()
            if at == "forward":
                raise ValueError
            return x.array * 1

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            raise ValueError

    for at in ("forward", "backward"):
        before = current_mode()
        with pytest.raises(ValueError):
            Fails.apply(leaf(1.0), at).backward()
        assert current_mode() == before


def test_threads_build_and_use_graphs_at_the_same_time() -> None:
    results: list[float] = []

    def work(value: float) -> None:
        for _ in range(50):
            x = leaf(value)
            y = x
            for _ in range(20):
                y = y * 1.0 + 0.0 * x
            y.backward()
            results.append(x.grad.item())

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [1.0] * 200


# ---- in-place writes


def test_a_saved_tensor_that_was_written_is_refused() -> None:
    x = leaf(1.0, 2.0)
    y = x * 1
    z = y.exp().sum() + (y * y).sum()
    y += 1
    with pytest.raises(GradientError, match=r"Mul: a tensor of shape \(2,\) .* modified in place .* \(1 times\)"):
        z.backward()


def test_a_saved_output_that_was_written_is_refused() -> None:
    x = leaf(1.0, 2.0)
    y = x.exp()
    y += 1
    with pytest.raises(GradientError, match="Exp: .* modified in place"):
        y.sum().backward()


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.detach().add_(1),
        lambda x: x.data.fill_(0),
        lambda x: x.data.__setitem__(0, 5.0),
        lambda x: setattr(x, "data", np.zeros(2)),
        lambda x: x.written(),
        lambda x: x.detach().view(2, 1).zero_(),
    ],
    ids=["detach", "data", "setitem", "data =", "written", "view of detached"],
)
def test_writes_beside_the_tape_are_noticed(write: Any) -> None:
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    write(x)
    with pytest.raises(GradientError, match="modified in place"):
        y.backward()


def test_a_write_through_a_view_is_noticed() -> None:
    buffer = Tensor(np.array([[1.0, 2.0], [3.0, 4.0]]))
    w = leaf(1.0, 1.0)
    y = (buffer[0] * w).sum()
    buffer.T[1, 0] = 7
    with pytest.raises(GradientError, match="modified in place"):
        y.backward()


def test_writes_that_no_gradient_needs_are_fine() -> None:
    x = leaf(1.0, 2.0)
    y = x + 1  # saves nothing
    z = y * 2  # saves a number
    y += 5
    z += y
    z.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [3, 3])


def test_history_of_in_place_operations() -> None:
    x = leaf(2.0, 3.0)
    y = x * 1
    same = y
    y *= x  # x²; saves the old y although it is overwritten
    y -= 1
    y **= 2
    y /= 4.0
    assert y is same and y.array is same.array
    np.testing.assert_array_equal(y.detach().numpy(), [9 / 4, 64 / 4])
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [2 * 3 * 4 / 4, 2 * 8 * 6 / 4])


def test_an_accumulator_in_a_loop() -> None:
    w = leaf(1.0, 2.0)
    total = rg.zeros(2, dtype=np.float64)
    for i in range(5):
        total += w * i
    total.sum().backward()
    np.testing.assert_array_equal(w.grad.numpy(), [10, 10])


def test_in_place_activation_and_clamp() -> None:
    x = leaf(-1.0, 2.0)
    y = x * 2
    y.relu_()
    y.clamp_(max=3.0)
    y.sum().backward()
    np.testing.assert_array_equal(y.detach().numpy(), [0, 3])
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0])


def test_a_leaf_is_written_only_under_no_grad() -> None:
    x = leaf(1.0, 2.0)
    for write in (lambda: x.add_(1), lambda: x.__setitem__(0, 1.0), lambda: x.zero_()):
        with pytest.raises(GradientError, match="leaf .* only under no_grad"):
            write()
    np.testing.assert_array_equal(x.detach().numpy(), [1, 2])
    with rg.no_grad():
        x -= 0.5
    np.testing.assert_array_equal(x.detach().numpy(), [0.5, 1.5])
    assert x.requires_grad and x.is_leaf


def test_views_and_viewed_tensors_are_not_written_on_the_tape() -> None:
    x = leaf(1.0, 2.0)
    y = x * 1
    view = y.reshape(2, 1)
    for target in (view, y):
        with pytest.raises(GradientError, match="shares its memory with a view"):
            target.add_(1)
    del view
    y.add_(1)  # nobody else looks at this memory any more
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [1, 1])


def test_a_view_of_a_constant_does_not_smuggle_gradients_past_it() -> None:
    buffer, w = Tensor(np.zeros((2, 2))), leaf(1.0, 2.0)
    row = buffer[0]
    with pytest.raises(GradientError, match="shares its memory"):
        row += w  # buffer would hold values of w and not know it
    np.testing.assert_array_equal(buffer.numpy(), np.zeros((2, 2)))
    del row
    buffer[0] = w
    buffer[1] = buffer[0] * 2  # the view on the right is gone by the time of the write
    buffer.sum().backward()
    np.testing.assert_array_equal(w.grad.numpy(), [3, 3])


def test_many_views_over_time_cost_no_memory() -> None:
    x = leaf(1.0, 2.0)
    for _ in range(1000):
        _ = x.reshape(2, 1)
    assert len(x._version._sharers) < 50


def test_assignment_with_gradients_on_both_sides() -> None:
    x, v = leaf(1.0, 2.0, 3.0), leaf(10.0)
    y = x * 2
    y[1:] = v
    y[np.array([0])] = v * 3
    y.sum().backward()
    np.testing.assert_array_equal(y.detach().numpy(), [30, 10, 10])
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0, 0])
    np.testing.assert_array_equal(v.grad.numpy(), [5])


def test_overwriting_with_constants_leaves_the_tape() -> None:
    x = leaf(1.0, 2.0)
    y = x * 2
    y.fill_(3.0)
    np.testing.assert_array_equal(y.detach().numpy(), [3, 3])
    assert not y.requires_grad


def test_what_does_not_fit_in_place() -> None:
    x = Tensor(np.arange(3))
    with pytest.raises(DtypeError, match="cannot be kept in a tensor of int64"):
        x += 1.5
    with pytest.raises(DtypeError, match="cannot be kept"):
        x /= 2
    with pytest.raises(ShapeError, match="does not fit"):
        x += Tensor(np.ones((2, 3), np.int64))
    with pytest.raises(DtypeError, match="float cannot be written"):
        x[0] = 1.5
    with pytest.raises(DtypeError, match="float64 cannot be written"):
        x[0] = Tensor(np.array(1.5))
    np.testing.assert_array_equal(x.numpy(), [0, 1, 2])
    y = Tensor(np.ones(3, np.float32))
    y += Tensor(np.ones(3))  # float64 into float32, as in torch
    assert y.dtype == np.float32


def test_requires_grad_can_be_switched_on_leaves_only() -> None:
    x = Tensor(np.ones(2)).requires_grad_()
    y = x * 2
    with pytest.raises(GradientError, match="use detach"):
        y.requires_grad = False
    x.requires_grad = False
    assert not (x * 2).requires_grad


def test_deepcopy_and_copy_keep_to_their_rules() -> None:
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    deep = copy.deepcopy({"a": x, "b": x})
    assert deep["a"] is deep["b"] and deep["a"].requires_grad
    deep["a"].array[...] = 9
    deep["a"].grad.array[...] = 9
    np.testing.assert_array_equal(x.detach().numpy(), [1, 2])
    np.testing.assert_array_equal(x.grad.numpy(), [2, 4])
    shallow = copy.copy(x)
    assert shallow.array is x.array and shallow.requires_grad
    with pytest.raises(GradientError, match="only leaf tensors can be deep-copied"):
        copy.deepcopy(x * 2)
