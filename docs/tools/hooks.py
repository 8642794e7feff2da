"""What mkdocs adds while it builds: lines of the source, diffs, and the pages of the API reference.

<!-- source: lm/model/functional.py softmax -->    the function, class or Class.method, without its docstring
<!-- diff: changes/layer.diff -->                  the file
"""

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
REFERENCE = ("model", "optim", "tokenizer", "data", "training", "generation", "accounting", "experiments", "export")


def source(path: str, name: str) -> str:
    """Lines of a definition, without its docstring and with the indentation of the outermost.

    Raises:
        ValueError: the file has no such definition.
    """
    text = (ROOT / path).read_text(encoding="utf-8")
    node: Any = ast.parse(text)
    for part in name.split("."):
        children = [child for child in node.body if getattr(child, "name", None) == part]
        if not children:
            raise ValueError(f"{path} has no {name}")
        node = children[0]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    lines = text.splitlines()[first - 1 : node.end_lineno]
    if ast.get_docstring(node) is not None:
        docstring = node.body[0]
        del lines[docstring.lineno - first : docstring.end_lineno - first + 1]
        while not lines[docstring.lineno - first].strip():
            del lines[docstring.lineno - first]
    return textwrap.dedent("\n".join(lines)).strip("\n")


def expand(markdown: str) -> str:
    """The page with what its comments ask for."""

    def lines(match: re.Match[str]) -> str:
        return f'```python title="{match[1]}: {match[2]}"\n{source(match[1], match[2])}\n```'

    def diff(match: re.Match[str]) -> str:
        text = (ROOT / "docs" / match[1]).read_text(encoding="utf-8")
        return f'```diff title="docs/{match[1]}"\n{text}```'

    markdown = re.sub(r"^<!-- source: (\S+) (\S+) -->$", lines, markdown, flags=re.MULTILINE)
    return re.sub(r"^<!-- diff: (\S+) -->$", diff, markdown, flags=re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    return expand(markdown)


def on_files(files: Files, config: Any, **_: Any) -> Files:
    for package in REFERENCE:
        folder = ROOT / "lm" / package
        modules = sorted(path.relative_to(ROOT).with_suffix("") for path in folder.rglob("*.py"))
        names = [".".join(path.parts) for path in modules if path.name != "__init__"]
        about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        page = "\n\n".join([f"# lm.{package}", about, *(f"::: {name}" for name in names)])
        files.append(File.generated(config, f"api/{package}.md", content=page))
    return files
