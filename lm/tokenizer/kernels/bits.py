"""What numba does not offer by itself: 8 bytes and 64 bytes at a time, and a hint to the cache, as LLVM has them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic as numba_intrinsic

intrinsic: Any = numba_intrinsic  # it changes the parameters, which type checkers cannot follow
U = np.uint64
ZERO, ONE, ALL = U(0), U(1), U(0xFFFFFFFFFFFFFFFF)
WINDOW = 64  # bytes that a mask stands for, a bit each

_BYTE, _WORD = ir.IntType(8), ir.IntType(64)
_WINDOW = ir.VectorType(_BYTE, WINDOW)

KERNELS: dict[str, tuple[Callable[..., Any], str]] = {}
OPTIONS = {
    "nogil": True,
    "error_model": "numpy",
    "_nrt": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
inline = njit(**OPTIONS)  # helpers; LLVM puts them into the kernels


def kernel(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Offer a function to Python under its name: arguments are int64 or one-dimensional arrays; returns int64."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        KERNELS[function.__name__] = (function, signature)
        return function

    return register


def _pointer(context: Any, builder: Any, array_type: Any, arguments: Any, target: Any) -> Any:
    """Of an element of an array; `arguments` are the array and the index, and perhaps others."""
    array, index = arguments[:2]
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), target.as_pointer())


@intrinsic
def load8(typing: Any, data: Any, at: Any) -> Any:
    """The 8 bytes from `at` on as one little-endian number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], arguments, _WORD), align=1)

    return types.uint64(data, at), generate


@intrinsic
def store8(typing: Any, data: Any, at: Any, value: Any) -> Any:
    """Write a number as the 8 bytes from `at` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _pointer(context, builder, signature.args[0], arguments, _WORD), align=1)
        return context.get_dummy_value()

    return types.void(data, at, types.uint64), generate


@intrinsic
def store4(typing: Any, data: Any, at: Any, value: Any) -> Any:
    """Write a number's lower half as the 4 bytes from `at` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half = ir.IntType(32)
        target = _pointer(context, builder, signature.args[0], arguments, half)
        builder.store(builder.trunc(arguments[2], half), target, align=1)
        return context.get_dummy_value()

    return types.void(data, at, types.uint64), generate


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Have an element in the cache soon."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments, _BYTE)
        flag = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), flag, flag, flag])
        function = builder.module.globals.get("llvm.prefetch.p0") or ir.Function(
            builder.module, function_type, "llvm.prefetch.p0"
        )
        builder.call(function, [pointer, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


@intrinsic
def trailing_zeros(typing: Any, word: Any) -> Any:
    """Index of the lowest bit that is set; 64 if none is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


def _window_mask(compare: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A function of (data, at) that gives a bit for each of the 64 bytes from `at` on, whether it compares."""

    @intrinsic
    def mask(typing: Any, data: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = _pointer(context, builder, signature.args[0], arguments, _WINDOW)
            return builder.bitcast(compare(builder, builder.load(pointer, align=1)), _WORD)

        return types.uint64(data, at), generate

    return mask


def _every(byte: int) -> Any:
    return ir.Constant(_WINDOW, [byte] * WINDOW)


def _between(builder: Any, window: Any, low: int, high: int) -> Any:
    return builder.icmp_unsigned("<=", builder.sub(window, _every(low)), _every(high - low))


ascii_letters = _window_mask(lambda b, window: _between(b, b.or_(window, _every(0x20)), ord("a"), ord("z")))
ascii_digits = _window_mask(lambda b, window: _between(b, window, ord("0"), ord("9")))
ascii_controls = _window_mask(lambda b, window: _between(b, window, ord("\t"), ord("\r")))
blanks = _window_mask(lambda b, window: b.icmp_unsigned("==", window, _every(ord(" "))))
apostrophes = _window_mask(lambda b, window: b.icmp_unsigned("==", window, _every(ord("'"))))
beyond_ascii = _window_mask(lambda b, window: b.icmp_signed("<", window, _every(0)))


@intrinsic
def equal_bytes(typing: Any, data: Any, at: Any, byte: Any) -> Any:
    """A bit for each of the 64 bytes from `at` on, whether it is `byte`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        window = builder.load(_pointer(context, builder, signature.args[0], arguments, _WINDOW), align=1)
        one = builder.insert_element(ir.Constant(_WINDOW, ir.Undefined), arguments[2], ir.IntType(32)(0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), WINDOW), [0] * WINDOW)
        every = builder.shuffle_vector(one, ir.Constant(_WINDOW, ir.Undefined), lanes)
        return builder.bitcast(builder.icmp_unsigned("==", window, every), _WORD)

    return types.uint64(data, at, types.uint8), generate
