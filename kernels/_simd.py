"""Vector instructions for Numba's kernels: Python functions that write LLVM code while Numba compiles.

Numba turns scalar loops into machine code, and LLVM finds the vectors in some of them: in a sum it may
not, since that reorders the additions, and of a tile of sums it keeps few in registers.  Plain loops of
a convolution reach a tenth of what the processor can do.  So the innermost loops are written with
vectors in sight, by functions under ``@simd``:

    @simd
    def axpy(s, a, x, y, n):
        "y += a x for n numbers, ``s.lanes(x)`` at a time."
        lanes = s.lanes(x)
        with s.range(0, n, lanes) as i:
            here = s.first(n - i, lanes)                        # masks what lies beyond the end
            of_a = s.splat(a.to(x.dtype), lanes)
            y.store(i, s.fma(of_a, x.load(i, lanes, here), y.load(i, lanes, here)), here)

and called like any function from a Numba kernel: ``axpy(2.0, x, y, x.size)``.

Such a function runs *once per compilation*.  Its arguments stand for what the program will hold:
arrays arrive as :class:`Pointer` (to their first element, C-contiguous), numbers as :class:`Value`, integers
among them in 64 bits with a sign; each operation on them appends an instruction at the place of the call.
Types are never mixed in silence: ``a.to(x.dtype)`` converts.  Integers that Numba knows while it
compiles (literals, and the constants that a kernel's factory closes over) arrive as Python's int, so
Python's own loops and conditions are unrolled into straight code, as C++ templates are.  Sums that must
live in registers are :class:`Variable`; loops of the running program are ``s.range``.

Nothing here reorders arithmetic: no fast-math flag is ever set, and ``fma`` is one rounding by name.

The method is that of staged programming; the vectors are LLVM's (https://llvm.org/docs/LangRef.html,
"Vector Type" and "Masked Vector Load and Store Intrinsics"), reached through ``numba.extending.intrinsic``.
"""

from __future__ import annotations

import functools
import inspect
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeAlias

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._errors import ArgumentError

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)
_BIT = ir.IntType(1)


@cache
def vector_bytes() -> int:
    """How wide vectors are: as wide as the processor's, 64 bytes with AVX-512, 32 with AVX2, else 16 (SSE, NEON).

    ``RAWGRAD_VECTOR_BYTES`` (16, 32 or 64) makes them narrower: to see on one processor what others do.

    Raises:
        ArgumentError: the variable holds anything else, or more than the processor has.
    """
    most = 16
    if platform.machine() in ("x86_64", "AMD64"):
        features = binding.get_host_cpu_features()
        most = 64 if features.get("avx512f") else 32 if features.get("avx2") else 16
    asked = os.environ.get("RAWGRAD_VECTOR_BYTES") or str(most)
    if asked not in ("16", "32", "64") or int(asked) > most:
        raise ArgumentError(f"RAWGRAD_VECTOR_BYTES must be 16, 32 or 64 and at most {most} here; got {asked!r}")
    return int(asked)


def vector_registers() -> int:
    """How many vectors the processor holds at once."""
    return 16 if platform.machine() in ("x86_64", "AMD64") and vector_bytes() < 64 else 32


class Value:
    """A number, or a vector of them, of the program being written.

    A comparison gives a mask, of one bit in each lane.  Where a number meets a vector, it is in every lane.
    ``unsigned``, which what comes from an array of such a dtype is, and what is computed of it, decides what
    comparisons and conversions of integers do.
    """

    def __init__(self, stage: Stage, value: ir.Value, unsigned: bool = False) -> None:
        self.stage, self.ir, self.unsigned = stage, value, unsigned

    @property
    def lanes(self) -> int:
        return self.ir.type.count if isinstance(self.ir.type, ir.VectorType) else 1

    @property
    def element(self) -> ir.Type:
        return self.ir.type.element if isinstance(self.ir.type, ir.VectorType) else self.ir.type

    @property
    def is_float(self) -> bool:
        return isinstance(self.element, ir.FloatType | ir.DoubleType)

    def _binary(self, other: Number, of_floats: str, of_integers: str, swapped: bool = False) -> Value:
        left, right = self._meet(other)
        a, b = (right.ir, left.ir) if swapped else (left.ir, right.ir)
        name = of_floats if self.is_float else of_integers
        if not name:
            raise TypeError(f"{of_floats or of_integers} is not for {self.element}")
        return Value(self.stage, getattr(self.stage.builder, name)(a, b), left.unsigned or right.unsigned)

    def _meet(self, other: Number) -> tuple[Value, Value]:
        """This and the other value with the same number of lanes."""
        right = self.stage.like(other, self)
        return self.stage.like(self, right), right

    def __add__(self, other: Number) -> Value:
        return self._binary(other, "fadd", "add")

    def __radd__(self, other: Number) -> Value:
        return self._binary(other, "fadd", "add", swapped=True)

    def __sub__(self, other: Number) -> Value:
        return self._binary(other, "fsub", "sub")

    def __rsub__(self, other: Number) -> Value:
        return self._binary(other, "fsub", "sub", swapped=True)

    def __mul__(self, other: Number) -> Value:
        return self._binary(other, "fmul", "mul")

    def __rmul__(self, other: Number) -> Value:
        return self._binary(other, "fmul", "mul", swapped=True)

    def __truediv__(self, other: Number) -> Value:
        return self._binary(other, "fdiv", "")

    def __rtruediv__(self, other: Number) -> Value:
        return self._binary(other, "fdiv", "", swapped=True)

    def __floordiv__(self, other: Number) -> Value:
        """Of integers that are not negative."""
        return self._binary(other, "", "udiv")

    def __mod__(self, other: Number) -> Value:
        """Of integers that are not negative."""
        return self._binary(other, "", "urem")

    def __and__(self, other: Number) -> Value:
        return self._binary(other, "", "and_")

    def __or__(self, other: Number) -> Value:
        return self._binary(other, "", "or_")

    def __xor__(self, other: Number) -> Value:
        return self._binary(other, "", "xor")

    def __lshift__(self, other: Number) -> Value:
        return self._binary(other, "", "shl")

    def __rshift__(self, other: Number) -> Value:
        """Shifts zeros in."""
        return self._binary(other, "", "lshr")

    def __neg__(self) -> Value:
        builder = self.stage.builder
        return Value(self.stage, builder.fneg(self.ir) if self.is_float else builder.neg(self.ir), self.unsigned)

    def _compare(self, other: Number, sign: str) -> Value:
        left, right = self._meet(other)
        builder = self.stage.builder
        if self.is_float:  # every comparison with NaN is false, but != is true
            compare = builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered
        else:
            compare = builder.icmp_unsigned if left.unsigned or right.unsigned else builder.icmp_signed
        return Value(self.stage, compare(sign, left.ir, right.ir))

    def __lt__(self, other: Number) -> Value:
        return self._compare(other, "<")

    def __le__(self, other: Number) -> Value:
        return self._compare(other, "<=")

    def __gt__(self, other: Number) -> Value:
        return self._compare(other, ">")

    def __ge__(self, other: Number) -> Value:
        return self._compare(other, ">=")

    def equals(self, other: Number) -> Value:
        return self._compare(other, "==")

    def above(self, other: Number) -> Value:
        """``>`` of integers that have no sign."""
        left, right = self._meet(other)
        return Value(self.stage, self.stage.builder.icmp_unsigned(">", left.ir, right.ir))

    def is_nan(self) -> Value:
        return self._compare(self, "!=")

    def where(self, yes: Number, no: Number) -> Value:
        """``yes`` where this condition holds, else ``no``, of which at least one is a value."""
        if isinstance(yes, Value):
            chosen, other = yes._meet(no)
        else:
            assert isinstance(no, Value)
            other, chosen = no._meet(yes)
        if self.lanes > chosen.lanes:
            chosen, other = self.stage.splat(chosen, self.lanes), self.stage.splat(other, self.lanes)
        return Value(self.stage, self.stage.builder.select(self.ir, chosen.ir, other.ir), chosen.unsigned)

    def bits(self) -> Value:
        """The same bits as an integer; :meth:`as_float` is the way back."""
        size = 32 if isinstance(self.element, ir.FloatType) else 64
        return self._as(ir.IntType(size))

    def as_float(self) -> Value:
        return self._as(ir.FloatType() if self.element.width == 32 else ir.DoubleType())

    def _as(self, element: ir.Type) -> Value:
        return Value(self.stage, self.stage.builder.bitcast(self.ir, _wide(element, self.lanes)))

    def halves(self) -> Value:
        """Each lane of 64 bits as two lanes of 32, the low half first."""
        return Value(self.stage, self.stage.builder.bitcast(self.ir, ir.VectorType(_I32, 2 * self.lanes)))

    def to(self, dtype: Any) -> Value:
        """Converted as NumPy does: to integers towards zero, to bool whether it is not zero.

        A float that the integer type cannot hold gives anything.
        """
        goal, builder = self.stage.type_of(dtype), self.stage.builder
        if str(dtype) == "bool":
            one = self if self.element == _BIT else self._compare(0, "!=")
            return Value(self.stage, builder.zext(one.ir, _wide(goal, self.lanes)), unsigned=True)
        goal_unsigned, unsigned = _is_unsigned(dtype), self.unsigned or self.element == _BIT
        if goal == self.element:
            return Value(self.stage, self.ir, goal_unsigned)
        if isinstance(goal, ir.IntType):
            if self.is_float:
                convert = builder.fptoui if goal_unsigned else builder.fptosi
            elif goal.width < self.element.width:
                convert = builder.trunc
            else:
                convert = builder.zext if unsigned else builder.sext
        elif self.is_float:
            convert = builder.fpext if isinstance(goal, ir.DoubleType) else builder.fptrunc
        else:
            convert = builder.uitofp if unsigned else builder.sitofp
        return Value(self.stage, convert(self.ir, _wide(goal, self.lanes)), goal_unsigned)

    def lane(self, i: int) -> Value:
        assert 0 <= i < self.lanes
        return Value(self.stage, self.stage.builder.extract_element(self.ir, _I32(i)), self.unsigned)

    def shuffle(self, order: list[int], other: Value | None = None) -> Value:
        """The lanes numbered by ``order``; those from ``lanes`` on are ``other``'s."""
        other = other or self
        assert all(0 <= i < 2 * self.lanes for i in order)
        if len(order) == 1:
            return (self if order[0] < self.lanes else other).lane(order[0] % self.lanes)
        mask = ir.Constant(ir.VectorType(_I32, len(order)), order)
        return Value(self.stage, self.stage.builder.shuffle_vector(self.ir, other.ir, mask), self.unsigned)

    def reduce(self, combine: Callable[[Value, Value], Value]) -> Value:
        """All lanes in one, by halves: lane i meets lane i + lanes/2 first.  The lanes are a power of two."""
        assert self.lanes & (self.lanes - 1) == 0
        value = self
        while value.lanes > 1:
            half = value.lanes // 2
            value = combine(value.shuffle(list(range(half))), value.shuffle(list(range(half, 2 * half))))
        return value

    def sum(self) -> Value:
        return self.reduce(lambda a, b: a + b)


Number: TypeAlias = "Value | int | float"


class Pointer:
    """An array's elements; indices count from its first one and are not checked."""

    def __init__(self, stage: Stage, data: ir.Value, dtype: types.Type) -> None:
        self.stage, self.data, self.dtype = stage, data, dtype
        self.element = stage.type_of(dtype)
        self.unsigned = _is_unsigned(dtype)
        self.itemsize = (
            self.element.width // 8
            if isinstance(self.element, ir.IntType)
            else (4 if isinstance(self.element, ir.FloatType) else 8)
        )

    def _at(self, i: Number, lanes: int) -> ir.Value:
        builder = self.stage.builder
        place = builder.gep(self.data, [self.stage.integer(i).ir])
        return builder.bitcast(place, _wide(self.element, lanes).as_pointer())

    def __getitem__(self, i: Number) -> Value:
        """Element ``i``."""
        return Value(self.stage, self.stage.builder.load(self._at(i, 1), align=self.itemsize), self.unsigned)

    def __setitem__(self, i: Number, value: Number) -> None:
        pattern = Value(self.stage, ir.Constant(self.element, ir.Undefined))
        self.stage.builder.store(self.stage.like(value, pattern).ir, self._at(i, 1), align=self.itemsize)

    def __add__(self, i: Number) -> Pointer:
        """The elements from number ``i`` on."""
        return Pointer(self.stage, self.stage.builder.gep(self.data, [self.stage.integer(i).ir]), self.dtype)

    def load(self, i: Number, lanes: int, mask: Value | None = None) -> Value:
        """Elements ``i`` to ``i + lanes - 1``; zero, and not touched, where ``mask`` does not hold."""
        builder = self.stage.builder
        if mask is None:
            return Value(self.stage, builder.load(self._at(i, lanes), align=self.itemsize), self.unsigned)
        vector = ir.VectorType(self.element, lanes)
        place = builder.bitcast(self._at(i, lanes), vector.as_pointer())
        function = self.stage.declare(
            f"llvm.masked.load.v{lanes}{_suffix(self.element)}.p0",
            vector,
            [vector.as_pointer(), _I32, ir.VectorType(_BIT, lanes), vector],
        )
        bits = builder.bitcast(mask.ir, ir.VectorType(_BIT, lanes))
        loaded = builder.call(function, [place, _I32(self.itemsize), bits, ir.Constant(vector, None)])
        return Value(self.stage, builder.bitcast(loaded, _wide(self.element, lanes)), self.unsigned)

    def gather(self, places: Value, mask: Value) -> Value:
        """In each lane the element whose index is there; zero, and none touched, where ``mask`` does not hold."""
        builder, lanes = self.stage.builder, places.lanes
        start = Value(self.stage, builder.ptrtoint(self.data, _I64))
        addresses = places.to("int64") * self.itemsize + start
        pointers, vector = ir.VectorType(self.data.type, lanes), ir.VectorType(self.element, lanes)
        function = self.stage.declare(
            f"llvm.masked.gather.v{lanes}{_suffix(self.element)}.v{lanes}p0",
            vector,
            [pointers, _I32, ir.VectorType(_BIT, lanes), vector],
        )
        arguments = [builder.inttoptr(addresses.ir, pointers), _I32(self.itemsize), mask.ir, ir.Constant(vector, None)]
        return Value(self.stage, builder.call(function, arguments), self.unsigned)

    def store(self, i: Number, value: Value, mask: Value | None = None) -> None:
        """Write ``value`` from element ``i`` on, where ``mask`` holds."""
        builder, lanes = self.stage.builder, value.lanes
        if mask is None:
            builder.store(value.ir, self._at(i, lanes), align=self.itemsize)
            return
        vector = ir.VectorType(value.element, lanes)
        place = builder.bitcast(self._at(i, lanes), ir.VectorType(self.element, lanes).as_pointer())
        function = self.stage.declare(
            f"llvm.masked.store.v{lanes}{_suffix(self.element)}.p0",
            ir.VoidType(),
            [vector, vector.as_pointer(), _I32, ir.VectorType(_BIT, lanes)],
        )
        bits = builder.bitcast(mask.ir, ir.VectorType(_BIT, lanes))
        builder.call(function, [builder.bitcast(value.ir, vector), place, _I32(self.itemsize), bits])

    def prefetch(self, i: Number, to_write: bool = False) -> None:
        """Have the cache line of element ``i``, which need not exist, brought to where it is soon read or written."""
        builder, place = self.stage.builder, ir.IntType(8).as_pointer()
        function = self.stage.declare("llvm.prefetch.p0", ir.VoidType(), [place, _I32, _I32, _I32])
        address = builder.bitcast(self._at(i, 1), place)
        builder.call(function, [address, _I32(int(to_write)), _I32(3), _I32(1)])  # of all caches, for data


class Variable:
    """A place for a value that changes in loops; LLVM keeps it in a register."""

    def __init__(self, initial: Value) -> None:
        self.stage, self._unsigned = initial.stage, initial.unsigned
        self._slot = cgutils.alloca_once(self.stage.builder, initial.ir.type)
        self.value = initial

    @property
    def value(self) -> Value:
        return Value(self.stage, self.stage.builder.load(self._slot), self._unsigned)

    @value.setter
    def value(self, new: Value) -> None:
        self.stage.builder.store(new.ir, self._slot)


class Stage:
    """The program being written: where instructions go."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    # ---- values

    def type_of(self, dtype: Any) -> ir.Type:
        name = str(dtype)
        if name in ("float32", "float64"):
            return ir.FloatType() if name == "float32" else ir.DoubleType()
        return ir.IntType(8 if name == "bool" else int(name.lstrip("uint")))

    def lanes(self, array: Pointer) -> int:
        """How many of the array's elements fill this processor's vector."""
        return vector_bytes() // array.itemsize

    def integer(self, value: Number) -> Value:
        return value.to("int64") if isinstance(value, Value) else Value(self, ir.Constant(_I64, int(value)))

    def like(self, value: Number, pattern: Value) -> Value:
        """``value`` with the type and lanes of ``pattern``."""
        if isinstance(value, Value):
            return self.splat(value, pattern.lanes) if value.lanes < pattern.lanes else value
        assert pattern.is_float or value == int(value), f"{value} is not an integer"
        number = ir.Constant(pattern.element, float(value) if pattern.is_float else int(value))
        return self.splat(Value(self, number, pattern.unsigned), pattern.lanes)

    def splat(self, value: Value, lanes: int) -> Value:
        """``value`` in each of ``lanes`` lanes."""
        if lanes == 1:
            return value
        vector = ir.VectorType(value.element, lanes)
        if isinstance(value.ir, ir.Constant):
            return Value(self, ir.Constant(vector, [value.ir.constant] * lanes), value.unsigned)
        one = self.builder.insert_element(ir.Constant(vector, ir.Undefined), value.ir, _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
        return Value(self, self.builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros), value.unsigned)

    def pointer(self, address: Value, like: Pointer) -> Pointer:
        """The elements, of the dtype of ``like``, that begin at ``address``."""
        return Pointer(self, self.builder.inttoptr(address.ir, like.element.as_pointer()), like.dtype)

    def constant(self, number: float, array: Pointer, lanes: int = 1) -> Value:
        """``number`` in the dtype of ``array``."""
        return self.like(number, Value(self, ir.Constant(_wide(array.element, lanes), ir.Undefined), array.unsigned))

    def zero(self, array: Pointer, lanes: int = 1) -> Value:
        return Value(self, ir.Constant(_wide(array.element, lanes), None if lanes > 1 else 0), array.unsigned)

    def counting(self, lanes: int, bits: int = 64) -> Value:
        """0, 1, 2, … in the lanes."""
        element = ir.IntType(bits)
        return Value(self, ir.Constant(_wide(element, lanes), list(range(lanes)) if lanes > 1 else 0))

    def first(self, count: Number, lanes: int) -> Value:
        """A mask of the first ``count`` lanes."""
        return self.counting(lanes) < self.splat(self.integer(count), lanes)

    def variable(self, initial: Value) -> Variable:
        return Variable(initial)

    # ---- functions

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a b + c with one rounding."""
        return self._intrinsic("fma", a, b, c)

    def sqrt(self, a: Value) -> Value:
        return self._intrinsic("sqrt", a)

    def abs(self, a: Value) -> Value:
        return self._intrinsic("fabs", a)

    def round(self, a: Value) -> Value:
        """To the nearest integer, halves to the even one."""
        return self._intrinsic("rint", a)

    def copysign(self, a: Value, b: Value) -> Value:
        """a with the sign of b."""
        return self._intrinsic("copysign", a, b)

    def _intrinsic(self, name: str, *arguments: Value) -> Value:
        kind = arguments[0].ir.type
        suffix = f"v{arguments[0].lanes}" if arguments[0].lanes > 1 else ""
        function = self.declare(f"llvm.{name}.{suffix}{_suffix(arguments[0].element)}", kind, [kind] * len(arguments))
        return Value(self, self.builder.call(function, [a.ir for a in arguments]))

    def library(self, name: str, a: Value) -> Value:
        """The C library's function (``exp``, ``log``, ``tanh``, ``erf``, …), one lane after the other."""
        kind = a.element
        function = self.declare(name + ("f" if isinstance(kind, ir.FloatType) else ""), kind, [kind])
        if a.lanes == 1:
            return Value(self, self.builder.call(function, [a.ir]))
        result = ir.Constant(a.ir.type, ir.Undefined)
        for i in range(a.lanes):
            result = self.builder.insert_element(result, self.builder.call(function, [a.lane(i).ir]), _I32(i))
        return Value(self, result)

    def declare(self, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
        return cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(result, arguments), name)

    # ---- the program's own loops and conditions

    @contextmanager
    def range(self, start: Number, stop: Number, step: int = 1) -> Iterator[Value]:
        """The body runs for start, start + step, … below ``stop``."""
        builder = self.builder
        index = Variable(self.integer(start))
        end = self.integer(stop)
        test, body, after = (builder.append_basic_block(f"range.{part}") for part in ("test", "body", "after"))
        builder.branch(test)
        builder.position_at_end(test)
        builder.cbranch((index.value < end).ir, body, after)
        builder.position_at_end(body)
        i = index.value
        yield i
        index.value = i + step
        builder.branch(test)
        builder.position_at_end(after)

    def each(self, start: Value, stop: Value, step: int, body: Callable[[Value, Value | None], None]) -> None:
        """``body(i, None)`` for every whole ``step``, then ``body(i, count)`` for the ``count`` that are left."""
        whole = stop - (stop - start) % step
        with self.range(start, whole, step) as i:
            body(i, None)
        with self.when(whole < stop):
            body(whole, stop - whole)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """The body runs if ``condition``, a single bit, holds."""
        with self.builder.if_then(condition.ir):
            yield


def _wide(element: ir.Type, lanes: int) -> ir.Type:
    return element if lanes == 1 else ir.VectorType(element, lanes)


def _is_unsigned(dtype: Any) -> bool:
    return str(dtype).startswith(("uint", "bool"))


def _suffix(element: ir.Type) -> str:
    if isinstance(element, ir.IntType):
        return f"i{element.width}"
    return "f32" if isinstance(element, ir.FloatType) else "f64"


def _staged(stage: Stage, context: Any, kind: types.Type, value: ir.Value) -> Pointer | Value | int | float:
    if isinstance(kind, types.Array):
        if kind.layout != "C":
            raise TypeError(f"@simd functions take C-contiguous arrays; got {kind}")
        return Pointer(stage, context.make_array(kind)(context, stage.builder, value).data, kind.dtype)
    if isinstance(kind, types.Literal):
        return kind.literal_value
    if isinstance(kind, types.Omitted):
        return kind.value
    if isinstance(kind, types.Boolean):
        return Value(stage, stage.builder.trunc(value, _BIT) if value.type.width > 1 else value)
    if isinstance(kind, types.Integer) and value.type.width < 64:
        extend = stage.builder.sext if str(kind).startswith("int") else stage.builder.zext
        return Value(stage, extend(value, _I64))
    if not isinstance(kind, types.Integer | types.Float):
        raise TypeError(f"@simd functions take arrays and numbers; got {kind}")
    return Value(stage, value)


def simd(function: Callable[..., Value | None] | None = None, *, returns: str | None = None) -> Any:
    """Make ``function(s, *arguments)``, which writes instructions, callable from Numba kernels.

    Args:
        function: its first parameter is the :class:`Stage`.
        returns: what it returns, if not nothing: a scalar type of Numba's (``"int64"``), or the name of a
            parameter that takes an array, for one element of it.
    """
    if function is None:
        return functools.partial(simd, returns=returns)
    write = function
    parameters = inspect.signature(write)
    names = list(parameters.parameters)[1:]

    def typed(typing_context: Any, *arguments: Any, **named: Any) -> Any:
        given = parameters.bind(None, *arguments, **named)
        given.apply_defaults()
        kinds: list[Any] = []
        for kind in given.args[1:]:
            if not isinstance(kind, types.Type):
                kind = types.Omitted(kind)  # a default
            kinds.append(kind if isinstance(kind, types.Literal) else types.unliteral(kind))
        if returns in names:
            result = kinds[names.index(returns)].dtype
        else:
            result = getattr(types, returns or "void")

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            stage = Stage(builder)
            pairs = zip(signature.args, values, strict=True)
            answer = write(stage, *(_staged(stage, context, kind, value) for kind, value in pairs))
            return context.get_dummy_value() if answer is None else answer.ir

        return result(*kinds), generate

    functools.update_wrapper(typed, write)  # with its signature, by which Numba takes keywords and defaults
    return intrinsic(prefer_literal=True)(typed)
