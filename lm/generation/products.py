"""Products of a matrix with some vectors, compiled by numba: the matrix is read from memory once for all of them.

Shape letters: N vectors, R rows, C columns.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

intrinsic: Any = numba_intrinsic  # it changes the parameters, which type checkers cannot follow
MOST = 6  # vectors at most: their sums for four rows fill most of a processor's 32 vector registers
LANES = 16
AHEAD = 2048  # bytes of a row, and of what follows it, that are on their way to the cache while others are used

_INDEX, _INT, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, LANES)


def _dots(rows: int) -> Callable[..., Any]:
    """Dot products of that many rows, `apart` rows from each other, with all vectors: out[n, r] = matrix[r] · x[n].

    Each is a sum in 16 lanes, which are added in halves, then come columns beyond a multiple of 16. So the bits of a
    product do not depend on how many vectors there are, which LLVM's own choice of an order would not promise.
    """

    @intrinsic
    def dots(typing: Any, matrix_RC: Any, first: Any, apart: Any, x_NC: Any, out_NR: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            make = context.make_array
            matrix, x, out = (make(signature.args[i])(context, builder, arguments[i]) for i in (0, 3, 4))
            columns = cgutils.unpack_tuple(builder, matrix.shape, 2)[1]
            vectors = cgutils.unpack_tuple(builder, x.shape, 2)[0]
            width = cgutils.unpack_tuple(builder, out.shape, 2)[1]
            numbers = [builder.add(arguments[1], builder.mul(arguments[2], _INDEX(row))) for row in range(rows)]
            starts = [builder.gep(matrix.data, [builder.mul(number, columns)]) for number in numbers]
            end = builder.append_basic_block("end")
            switch = builder.switch(vectors, end)
            for count in range(1, MOST + 1):
                switch.add_case(vectors.type(count), builder.append_basic_block(f"vectors.{count}"))
                builder.position_at_end(switch.cases[-1][1])
                others = [builder.gep(x.data, [builder.mul(columns, _INDEX(n))]) for n in range(count)]
                for n, sums in enumerate(_sums(builder, starts, others, columns)):
                    for number, value in zip(numbers, sums, strict=True):
                        at = builder.add(builder.mul(width, _INDEX(n)), number)
                        builder.store(value, builder.gep(out.data, [at]))
                builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return types.void(matrix_RC, types.int64, types.int64, x_NC, out_NR), generate

    return dots


def _sums(builder: Any, rows: list[Any], vectors: list[Any], columns: Any) -> list[list[Any]]:
    """Code for the dot products of rows (of any type) and vectors (float32) that begin at these pointers."""
    zeros = ir.Constant(_FLOATS, [0.0] * LANES)
    lanes = [[cgutils.alloca_once(builder, _FLOATS) for _ in rows] for _ in vectors]
    sums = [[cgutils.alloca_once(builder, _FLOAT) for _ in rows] for _ in vectors]
    for lanes_R in lanes:
        for pointer in lanes_R:
            builder.store(zeros, pointer)
    line = LANES if isinstance(rows[0].type.pointee, ir.FloatType) else 4 * LANES
    lines, whole = (builder.and_(columns, _INDEX(-step)) for step in (line, LANES))
    _accumulate(builder, rows, vectors, _INDEX(0), lines, line, lanes)
    _accumulate(builder, rows, vectors, lines, whole, LANES, lanes)
    for lanes_R, sums_R in zip(lanes, sums, strict=True):
        for value, pointer in zip(_add_lanes(builder, [builder.load(p) for p in lanes_R]), sums_R, strict=True):
            builder.store(value, pointer)
    _accumulate(builder, rows, vectors, whole, columns, 1, sums)
    return [[builder.load(pointer) for pointer in sums_R] for sums_R in sums]


def _accumulate(builder: Any, rows: Any, vectors: Any, start: Any, stop: Any, step: int, totals: Any) -> None:
    """Code that adds the products of the columns from `start` to `stop`, `step` at a time, to what is at `totals`."""
    with cgutils.for_range_slice(builder, start, stop, _INDEX(step), _INDEX) as (column, _):
        if step > 1:
            for row in rows:
                _prefetch(builder, builder.gep(row, [column]))
        for part in range(0, step, LANES):
            at = builder.add(column, _INDEX(part))
            xs = [_load(builder, vector, at, step) for vector in vectors]
            for r, row in enumerate(rows):
                weight = _load(builder, row, at, step)
                for x, totals_R in zip(xs, totals, strict=True):
                    product = builder.fmul(weight, x, flags=("contract",))
                    total = builder.fadd(builder.load(totals_R[r]), product, flags=("contract",))
                    builder.store(total, totals_R[r])


def _load(builder: Any, pointer: Any, column: Any, count: int) -> Any:
    """As float32: one element, or a vector of LANES."""
    element = pointer.type.pointee
    at = builder.gep(pointer, [column])
    if count > 1:
        at = builder.bitcast(at, ir.VectorType(element, LANES).as_pointer())
    value = builder.load(at, align=1)
    if isinstance(element, ir.IntType):
        value = builder.sitofp(value, _FLOAT if count == 1 else _FLOATS)
    return value


def _prefetch(builder: Any, pointer: Any) -> None:
    """Ask for what lies AHEAD, into the second-level cache: the processor's own guesses end with a page."""
    byte = ir.IntType(8).as_pointer()
    ahead = builder.gep(builder.bitcast(pointer, byte), [_INDEX(AHEAD)])
    kind = ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(prefetch, [ahead, _INT(0), _INT(2), _INT(1)])


def _add_lanes(builder: Any, vectors: list[Any]) -> list[Any]:
    """Code for the sum of each vector's lanes: halves are added, of two vectors at once where there are two."""
    count, width = len(vectors), LANES
    while width > 1:
        pairs = [vectors[i : i + 2] for i in range(0, len(vectors), 2)]
        vectors = [_add_halves(builder, pair, width) for pair in pairs]
        width //= 2
    return [builder.extract_element(vectors[0], _INT(i)) for i in range(count)]


def _add_halves(builder: Any, vectors: list[Any], width: int) -> Any:
    """Code for one vector: of each `width` lanes of one or two vectors, the first half plus the second."""
    starts = range(0, len(vectors) * vectors[0].type.count, width)
    first = [start + i for start in starts for i in range(width // 2)]
    halves = []
    for lanes in (first, [lane + width // 2 for lane in first]):
        order = ir.Constant(ir.VectorType(_INT, len(lanes)), [_INT(lane) for lane in lanes])
        halves.append(builder.shuffle_vector(vectors[0], vectors[-1], order))
    return builder.fadd(*halves)


_four_rows, _one_row = _dots(4), _dots(1)


@njit(cache=True, fastmath=False, nogil=True)
def multiply(matrix_RC, scales_R, x_NC, out_NR):
    """out_NR = x_NC @ (matrix * scales)ᵀ, for float32 or int8 matrices; no scales are ones.

    Rows are read at four places at once, each in order, which is what processors foresee.
    """
    rows = len(matrix_RC)
    quarter = rows // 4
    for r in range(quarter):
        _four_rows(matrix_RC, r, quarter, x_NC, out_NR)
    for r in range(4 * quarter, rows):
        _one_row(matrix_RC, r, 0, x_NC, out_NR)
    if len(scales_R):
        for n in range(len(x_NC)):
            for r in range(rows):
                out_NR[n, r] *= scales_R[r]
