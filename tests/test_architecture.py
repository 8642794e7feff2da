"""Who may import whom: the architecture, checked over the syntax tree."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lm"
MAY_IMPORT = {
    "model": {"threads"},
    "optim": {"threads"},
    "tokenizer": set(),
    "accounting": {"model"},
    "data": {"tokenizer"},
    "generation": {"model", "tokenizer"},
    "training": {"model", "optim", "tokenizer", "accounting", "data", "generation", "terminal"},
    "experiments": {"model", "optim", "tokenizer", "accounting", "data", "generation", "training"},
    "export": {"model", "optim", "tokenizer", "accounting", "data", "generation", "training", "loaded"},
    "commands": {
        "experiments",
        "export",
        "model",
        "optim",
        "tokenizer",
        "accounting",
        "data",
        "generation",
        "training",
        "loaded",
        "terminal",
    },
    "loaded": {"generation", "training"},
    "terminal": set(),
    "threads": set(),
    "cli": {"commands", "training", "terminal"},
    "__main__": {"cli"},
    "__init__": {"loaded"},
}
ONLY_IN = {
    "lightning": ("training/", "data/transfer.py"),
    "jsonargparse": ("cli.py",),
    "regex": ("tokenizer/",),
    "numba": (
        "tokenizer/kernels/",
        "tokenizer/native.py",
        "generation/native.py",
        "generation/products.py",
        "model/native.py",
        "optim/native.py",
        "threads.py",
    ),
    "llvmlite": (
        "model/native.py",
        "tokenizer/kernels/",
        "tokenizer/native.py",
        "generation/products.py",
        "training/precision.py",
    ),
    "triton": ("generation/kernels.py", "model/kernels/", "optim/kernels.py"),
    "huggingface_hub": ("data/hub.py",),
    "safetensors": ("export/",),
    "optuna": ("experiments/sweep.py",),
    "matplotlib": ("experiments/figures.py",),
    "PIL": ("experiments/figures.py",),
    "lm_eval": ("export/harness.py", "commands/generation.py"),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Absolute names of everything a file imports, at any depth of its syntax tree."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_packages_depend_in_one_direction(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    children = {p.name.removesuffix(".py") for p in PACKAGE.iterdir()}
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "lm" and len(parts) > 1 and parts[1] in children:
            assert parts[1] == own or parts[1] in MAY_IMPORT[own], f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_third_parties_stay_in_their_place(path: Path) -> None:
    relative = path.relative_to(PACKAGE).as_posix()
    for name in imported_modules(path):
        for library, homes in ONLY_IN.items():
            if name.split(".")[0] == library:
                assert relative.startswith(homes), f"{relative} imports {name}"


def test_tokenizers_is_data_only() -> None:
    assert not list((PACKAGE.parent / "tokenizers").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 330


def test_no_two_operators_have_one_name() -> None:
    """torch.library lets a later one take an earlier one's name, which then no longer runs."""
    names = [name for path in FILES for name in re.findall(r'custom_op\("([^"]+)"', path.read_text(encoding="utf-8"))]
    assert len(names) >= 2
    assert len(names) == len(set(names))
