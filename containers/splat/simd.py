"""Sixteen float32 lanes as one value inside numba kernels.

Numba vectorises a loop only when it can prove that its arrays do not overlap, which it seldom can. These types map
straight to LLVM's ``<16 x float>`` and ``<16 x i1>``: one register with AVX-512, two with AVX, four with NEON.
Outside a kernel nothing here can be called.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from splat import processor

processor.prepare()
LANES = 16
FLOAT = ir.FloatType()
FLOATS = ir.VectorType(FLOAT, LANES)
BITS = ir.VectorType(ir.IntType(1), LANES)
BYTES = ir.VectorType(ir.IntType(8), LANES)
I32 = ir.IntType(32)
FUSE = ("contract",)  # a * b + c may become one fused instruction
DIVIDE = ("contract", "arcp", "afn")  # a division may become a reciprocal estimate and a Newton step


class LanesType(types.Type):
    """Sixteen float32."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


class MaskType(types.Type):
    """Sixteen truth values."""

    def __init__(self) -> None:
        super().__init__(name="mask16")


lanes_type, mask_type = LanesType(), MaskType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, FLOATS)


@register_model(MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, BITS)


def _broadcast(builder: Any, value: Any) -> Any:
    """A scalar (float or double) in every lane; lanes unchanged."""
    if isinstance(value.type, ir.VectorType):
        return value
    if isinstance(value.type, ir.DoubleType):
        value = builder.fptrunc(value, FLOAT)
    first = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(
        first, ir.Constant(FLOATS, ir.Undefined), ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
    )


def _define_operator(function: Callable, result: types.Type, emit: Callable) -> None:
    """Let ``function`` (from the module operator) take lanes with lanes or with a scalar on either side."""
    operands: list[tuple] = [(lanes_type, lanes_type)]
    for scalar in (types.float32, types.float64):
        operands += [(lanes_type, scalar), (scalar, lanes_type)]

    @infer_global(function)
    class _Template(ConcreteTemplate):
        cases = [signature(result, *pair) for pair in operands]  # noqa: RUF012

    for pair in operands:

        @lower_builtin(function, *pair)
        def lower(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return emit(builder, _broadcast(builder, args[0]), _broadcast(builder, args[1]))


for _add in (operator.add, operator.iadd):
    _define_operator(_add, lanes_type, lambda b, x, y: b.fadd(x, y, flags=FUSE))
for _subtract in (operator.sub, operator.isub):
    _define_operator(_subtract, lanes_type, lambda b, x, y: b.fsub(x, y, flags=FUSE))
_define_operator(operator.mul, lanes_type, lambda b, x, y: b.fmul(x, y, flags=FUSE))
_define_operator(operator.truediv, lanes_type, lambda b, x, y: b.fdiv(x, y, flags=DIVIDE))
_define_operator(operator.le, mask_type, lambda b, x, y: b.fcmp_ordered("<=", x, y))
_define_operator(operator.gt, mask_type, lambda b, x, y: b.fcmp_ordered(">", x, y))


@infer_global(operator.and_)
class _And(ConcreteTemplate):
    cases = [signature(mask_type, mask_type, mask_type)]  # noqa: RUF012


@lower_builtin(operator.and_, mask_type, mask_type)
def _lower_and(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.and_(*args)


def _element_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, vector: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """Lanes ``array[index : index + 16]`` of a flat float32 array."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_element_pointer(context, builder, sig.args[0], args[0], args[1], FLOATS), align=4)

    return signature(lanes_type, array, types.intp), codegen


@intrinsic
def load_bytes(typingctx: Any, array: Any, index: Any) -> Any:
    """Lanes ``float32(array[index : index + 16])`` of a flat uint8 array."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _element_pointer(context, builder, sig.args[0], args[0], args[1], BYTES)
        return builder.uitofp(builder.load(pointer, align=1), FLOATS)

    return signature(lanes_type, array, types.intp), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """``array[index : index + 16] = value`` in a flat float32 array."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _element_pointer(context, builder, sig.args[0], args[0], args[1], FLOATS), align=4)
        return context.get_dummy_value()

    return signature(types.void, array, types.intp, lanes_type), codegen


@intrinsic
def lanes(typingctx: Any, value: Any) -> Any:
    """``value`` in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _broadcast(builder, args[0])

    return signature(lanes_type, types.float32), codegen


@intrinsic
def lane_numbers(typingctx: Any) -> Any:
    """0, 1, …, 15."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(FLOATS, [ir.Constant(FLOAT, float(i)) for i in range(LANES)])

    return signature(lanes_type), codegen


def _constant_lanes(values: list[int]) -> Callable:
    def typing(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return ir.Constant(FLOATS, [ir.Constant(FLOAT, float(v)) for v in values])

        return signature(lanes_type), codegen

    return intrinsic(typing)


# Place of each lane in a 4x4 block.
lane_column = _constant_lanes([i % 4 for i in range(LANES)])
lane_row = _constant_lanes([i // 4 for i in range(LANES)])


@intrinsic
def select(typingctx: Any, mask: Any, yes: Any, no: Any) -> Any:
    """``yes`` where ``mask`` holds, else ``no``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(*args)

    return signature(lanes_type, mask_type, lanes_type, lanes_type), codegen


def _quad(which: int) -> Callable:
    def typing(typingctx: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            start = 4 * which
            pair = ir.Constant(
                ir.VectorType(I32, LANES),
                [*range(start, start + 4), *range(LANES + start, LANES + start + 4)] * 2,
            )
            ends = ir.Constant(ir.VectorType(I32, LANES), [*range(8), *range(LANES, LANES + 8)])
            first, last = builder.shuffle_vector(args[0], args[1], pair), builder.shuffle_vector(args[2], args[3], pair)
            return builder.shuffle_vector(first, last, ends)

        return signature(lanes_type, *[lanes_type] * 4), codegen

    return intrinsic(typing)


# Lanes 4k to 4k + 3 of each of four vectors. Four rows of sixteen pixels become four blocks of 4x4 pixels, and back.
quads = tuple(_quad(k) for k in range(4))


@intrinsic
def mask_bits(typingctx: Any, mask: Any) -> Any:
    """The mask as an integer, lane 0 in the lowest bit."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.zext(builder.bitcast(args[0], ir.IntType(LANES)), ir.IntType(64))

    return signature(types.uint64, mask_type), codegen


def call_llvm(builder: Any, name: str, result: Any, args: list) -> Any:
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(function, args)


def _smaller_or_larger(order: str) -> Callable:
    def typing(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            first, second = _broadcast(builder, args[0]), _broadcast(builder, args[1])
            return builder.select(builder.fcmp_ordered(order, first, second), first, second)

        return signature(lanes_type, a, b), codegen

    return intrinsic(typing)


# The second argument where one of the two is not a number: so it is one instruction.
lane_min = _smaller_or_larger("<")
lane_max = _smaller_or_larger(">")


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Bring the cache line of ``array[index]`` near; any index is allowed."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        numbers = [ir.Constant(I32, value) for value in (0, 3, 1)]  # to read, often, data
        call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, *numbers])
        return context.get_dummy_value()

    return signature(types.void, array, types.intp), codegen


@intrinsic
def lane_sqrt(typingctx: Any, value: Any) -> Any:
    """Square root of each lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call_llvm(builder, "llvm.sqrt.v16f32", FLOATS, list(args))

    return signature(lanes_type, lanes_type), codegen


@intrinsic
def lane_abs(typingctx: Any, value: Any) -> Any:
    """Absolute value of each lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call_llvm(builder, "llvm.fabs.v16f32", FLOATS, list(args))

    return signature(lanes_type, lanes_type), codegen


@intrinsic
def lane_sum(typingctx: Any, value: Any) -> Any:
    """The sum of the sixteen lanes, always added in the same order."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        total = _transpose_sum(builder, [args[0]])
        return builder.extract_element(total, ir.Constant(I32, 0))

    return signature(types.float32, lanes_type), codegen


@intrinsic
def sums_of_nine(typingctx: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any, i: Any) -> Any:
    """Lanes 0 to 8 of the result are the sums over the lanes of the nine arguments; the other lanes are 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _transpose_sum(builder, list(args))

    return signature(lanes_type, *[lanes_type] * 9), codegen


def _transpose_sum(builder: Any, rows: list) -> Any:
    """Sum up to sixteen vectors at once: halve the partial sums of two vectors into one, four times."""
    zero = ir.Constant(FLOATS, [ir.Constant(FLOAT, 0.0)] * LANES)
    half = LANES // 2
    while half >= 1:
        if len(rows) % 2:
            rows = [*rows, zero]
        groups = range(0, 2 * LANES, 2 * half)
        low = ir.Constant(ir.VectorType(I32, LANES), [g + i for g in groups for i in range(half)])
        high = ir.Constant(ir.VectorType(I32, LANES), [g + half + i for g in groups for i in range(half)])
        rows = [
            builder.fadd(builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high))
            for a, b in zip(rows[::2], rows[1::2], strict=True)
        ]
        half //= 2
    return rows[0]


@intrinsic
def lowest_bit(typingctx: Any, bits: Any) -> Any:
    """Index of the lowest set bit; ``bits`` must not be 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return signature(types.uint64, types.uint64), codegen


@intrinsic
def take_next(typingctx: Any, counter: Any) -> Any:
    """``counter[0]``, which is then one larger, atomically: deals the numbers 0, 1, … to the threads that ask."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return signature(types.int64, counter), codegen


@intrinsic
def load_strided(typingctx: Any, array: Any, index: Any, stride: Any) -> Any:
    """Lanes ``array[index + stride * (0, 1, …, 15)]`` of a flat float32 array."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        value, at = ir.Constant(FLOATS, ir.Undefined), args[1]
        for lane in range(LANES):
            value = builder.insert_element(value, builder.load(builder.gep(data, [at])), ir.Constant(I32, lane))
            at = builder.add(at, args[2])
        return value

    return signature(lanes_type, array, types.intp, types.intp), codegen


@intrinsic
def store_strided(typingctx: Any, array: Any, index: Any, stride: Any, value: Any) -> Any:
    """``array[index + stride * (0, 1, …, 15)] = value`` in a flat float32 array."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data, at = context.make_array(sig.args[0])(context, builder, args[0]).data, args[1]
        for lane in range(LANES):
            builder.store(builder.extract_element(args[3], ir.Constant(I32, lane)), builder.gep(data, [at]))
            at = builder.add(at, args[2])
        return context.get_dummy_value()

    return signature(types.void, array, types.intp, types.intp, lanes_type), codegen
