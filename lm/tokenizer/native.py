"""Loads the compiled parts of the tokenizer, as machine code, in milliseconds.

numba makes it once a machine; it takes longer to start than many a text to tokenize. The code is kept as an object
file, under a digest of all that it depends on: the sources, the versions of numba and `regex`, and the processor. It
lies in the package's folder, else in the user's cache, else (neither can be written) each process makes it anew.
"""

import ctypes
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from lm.tokenizer.layout import COMPILE_FROM, LOAD_FROM, NUM_CHARACTERS

log = logging.getLogger("lm")

HERE = Path(__file__).parent
SOURCES = [Path(__file__), HERE / "layout.py", *sorted((HERE / "kernels").glob("*.py"))]
DIGEST_SIZE = hashlib.sha256().digest_size
ALLOWED_SYMBOLS = {"memcpy", "memmove", "memset"}  # what machine code may call: the C library's, nothing of numba's


def ready(num_bytes: int) -> bool:
    """Whether the compiled parts should be used for so much text: worth being loaded, or even compiled."""
    return num_bytes >= COMPILE_FROM or (num_bytes >= LOAD_FROM and _cached_file() is not None)


@cache
def kernels() -> Any:
    """The compiled functions by name, and `kinds` (see lm.tokenizer.kernels); compiled first if they were not yet."""
    path = _cached_file()
    made = path.read_bytes() if path else _compile_and_keep()
    if not _is_whole(made):
        made = _compile_and_keep()
    header, rest = made[DIGEST_SIZE:].split(b"\n", 1)
    _initialize()
    target = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(rest[NUM_CHARACTERS:]))
    engine.finalize_object()
    functions = {
        name: _function(engine.get_function_address(symbol), arguments)
        for name, (symbol, arguments) in json.loads(header).items()
    }
    return SimpleNamespace(**functions, kinds=np.frombuffer(rest, np.uint8, NUM_CHARACTERS), engine=engine)


def _function(address: int, arguments: list[str]) -> Callable[..., int]:
    """A function by numba's calling convention: a result, an error (never set), and seven values for an array."""
    types: list[Any] = [ctypes.c_void_p, ctypes.c_void_p]
    for argument in arguments:
        array = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
        types += [*array, ctypes.c_int64, ctypes.c_int64] if argument != "int64" else [ctypes.c_int64]
    native = ctypes.CFUNCTYPE(ctypes.c_int32, *types)(address)
    dtypes = [None if argument == "int64" else np.dtype(argument.removesuffix("[::1]")) for argument in arguments]

    def call(*values: Any) -> int:
        result, error = ctypes.c_int64(), ctypes.c_void_p()
        flat: list[Any] = [ctypes.addressof(result), ctypes.addressof(error)]
        for value, dtype in zip(values, dtypes, strict=True):
            if dtype is None:
                flat.append(int(value))
                continue
            assert (value.dtype, value.ndim, value.flags.c_contiguous) == (dtype, 1, True)
            flat += [None, None, value.size, value.itemsize, value.ctypes.data, value.size, value.itemsize]
        native(*flat)
        return result.value

    return call


@cache
def _name() -> str:
    parts = [*map(version, ("numba", "llvmlite", "regex")), platform.machine(), llvm.get_host_cpu_name()]
    parts.append(llvm.get_host_cpu_features().flatten())
    digest = hashlib.sha256("\n".join(parts).encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    return f"kernels-{digest.hexdigest()[:16]}.o"


def _folders() -> list[Path]:
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return [HERE / "__pycache__", Path(user) / "lm"]


def _cached_file() -> Path | None:
    return next((path for folder in _folders() if (path := folder / _name()).is_file()), None)


def _is_whole(made: bytes) -> bool:
    return hashlib.sha256(made[DIGEST_SIZE:]).digest() == made[:DIGEST_SIZE]


def _compile_and_keep() -> bytes:
    log.warning("compiling the tokenizer for this machine, once: about 10 seconds")
    made = build()
    for folder in _folders():
        temporary = folder / f".{_name()}.{os.getpid()}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(made)
            os.replace(temporary, folder / _name())
            return made
        except OSError:
            continue
    tried = " nor ".join(map(str, _folders()))
    log.warning("neither %s can be written: this will be compiled in every run; set XDG_CACHE_HOME to a folder", tried)
    return made


@cache
def _initialize() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def build() -> bytes:
    """Compile all kernels. What comes out is a digest of the rest, a line of JSON with the kernels' symbols and
    arguments, the kinds of characters, and an object file.

    Raises:
        RuntimeError: a kernel needs something of numba's at run time.
    """
    from numba import njit

    from lm.tokenizer.kernels import counting, encoding, merging, scanner  # noqa: F401  (they register their kernels)
    from lm.tokenizer.kernels.bits import KERNELS, OPTIONS
    from lm.tokenizer.kernels.kinds import character_kinds

    _initialize()
    header: dict[str, tuple[str, list[str]]] = {}
    module = llvm.parse_assembly("")
    for name, (function, signature) in KERNELS.items():
        dispatcher = njit(signature, **OPTIONS)(function)
        (overload,) = dispatcher.overloads.values()
        (assembly,) = dispatcher.inspect_llvm().values()
        module.link_in(llvm.parse_assembly(assembly))
        arguments = signature.removeprefix("int64(").removesuffix(")").split(", ")
        header[name] = (overload.fndesc.llvm_func_name, arguments)
    outside = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    if outside - ALLOWED_SYMBOLS:
        raise RuntimeError(f"compiled code calls {', '.join(sorted(outside - ALLOWED_SYMBOLS))}")
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )
    made = json.dumps(header).encode() + b"\n" + character_kinds().tobytes() + target.emit_object(module)
    return hashlib.sha256(made).digest() + made
