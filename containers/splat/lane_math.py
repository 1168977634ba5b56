"""exp and log of sixteen lanes, see ``splat.simd``."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from splat.simd import FLOATS, I32, LANES, call_llvm, lane_max, lane_min, lanes_type, select

HALF, ONE, TWO = np.float32(0.5), np.float32(1), np.float32(2)
LN2, SQRT2 = np.float32(np.log(2.0)), np.float32(np.sqrt(2.0))
E1, E2, E3, E4, E5, E6 = (np.float32(1 / f) for f in (1, 2, 6, 24, 120, 720))
L3, L5, L7, L9 = (np.float32(1 / n) for n in (3, 5, 7, 9))
EXP_LIMIT = np.float32(80)

inline = njit(forceinline=True, nogil=True)


@intrinsic
def lane_round(typingctx: Any, value: Any) -> Any:
    """Nearest whole number of each lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call_llvm(builder, "llvm.rint.v16f32", FLOATS, list(args))

    return signature(lanes_type, lanes_type), codegen


I32S = ir.VectorType(I32, LANES)


def _int_lanes(value: int) -> Any:
    return ir.Constant(I32S, [value] * LANES)


@intrinsic
def two_to_the(typingctx: Any, value: Any) -> Any:
    """2 to the power of whole numbers between -126 and 127."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        exponent = builder.add(builder.fptosi(args[0], I32S), _int_lanes(127))
        return builder.bitcast(builder.shl(exponent, _int_lanes(23)), FLOATS)

    return signature(lanes_type, lanes_type), codegen


@intrinsic
def exponent_of(typingctx: Any, value: Any) -> Any:
    """floor(log2(value)) of positive normal numbers."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        biased = builder.lshr(builder.bitcast(args[0], I32S), _int_lanes(23))
        return builder.sitofp(builder.sub(biased, _int_lanes(127)), FLOATS)

    return signature(lanes_type, lanes_type), codegen


@intrinsic
def mantissa_of(typingctx: Any, value: Any) -> Any:
    """value / 2^floor(log2(value)), in 1..2, of positive normal numbers."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        fraction = builder.and_(builder.bitcast(args[0], I32S), _int_lanes(0x7FFFFF))
        return builder.bitcast(builder.or_(fraction, _int_lanes(0x3F800000)), FLOATS)

    return signature(lanes_type, lanes_type), codegen


@inline
def lane_exp(x: Any) -> Any:
    """exp of each lane, limited to -80..80; relative error about 1e-7."""
    x = lane_max(lane_min(x, EXP_LIMIT), -EXP_LIMIT)
    n = lane_round(x * (ONE / LN2))
    r = x - n * LN2
    return (((((E6 * r + E5) * r + E4) * r + E3) * r + E2) * r + E1) * r * two_to_the(n) + two_to_the(n)


@inline
def lane_log(x: Any) -> Any:
    """Natural logarithm of positive normal lanes."""
    n, m = exponent_of(x), mantissa_of(x)
    large = m > SQRT2
    m, n = select(large, m * HALF, m), select(large, n + ONE, n)
    t = (m - ONE) / (m + ONE)
    u = t * t
    return n * LN2 + TWO * t * ((((L9 * u + L7) * u + L5) * u + L3) * u + ONE)
