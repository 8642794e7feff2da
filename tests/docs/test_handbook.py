"""The handbook: its blocks, its outputs, its pictures, its diffs and its links."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from docs.tools import blocks, picture

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CHANGES = sorted((DOCS / "changes").glob("*.diff"))


@pytest.mark.parametrize("page", blocks.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs_or_says_why_not(page: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks.blocks(page):
        where = f"{page.name}:{block.line}"
        assert block.mark == "run" or not block.mark or block.reason, f"{where}: {block.mark}"
        if block.is_run:
            printed = blocks.run(block, names)
            if block.is_recorded:
                assert printed == block.printed, f"{where} prints something else; see docs/tools/blocks.py"
        for command in block.commands if block.language == "sh" and not block.is_run else []:
            ours = command.startswith(blocks.OURS)
            assert ours or block.reason, f"{where}: {command} is neither run nor marked"
            if ours and not block.is_carried_out:
                blocks.accept(command)


@pytest.mark.parametrize("page", blocks.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_fence_escapes(page: Path) -> None:
    """What can be run is sh or python, at the margin, where the tests find it."""
    fences = re.findall(r"^( *)```(\w*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    languages = [language for indent, language in fences if language not in ("", "text")]
    assert not [language for language in languages if language not in ("sh", "python")]
    assert len(languages) == len(blocks.blocks(page))


@pytest.mark.parametrize("page", blocks.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    """Files of the repository, modules that are run, and commands in the text."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:lm|docs|tests|configs|benchmarks|checks)/[\w./*]+)`", text):
        assert list(ROOT.glob(name)), name
    for module in re.findall(r"python -m ((?:benchmarks|checks|docs)\.[a-z_.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for command in re.findall(rf"`({blocks.OURS}[a-z][^`]*)`", text):
        blocks.accept(command)


def test_accept_knows_mistakes() -> None:
    blocks.accept("python -m lm account gpt2-xl --batch_size 2")
    for command in (
        "python -m lm acount",
        "python -m lm account --bach_size 2",
        "python -m lm fit --config configs/quickstart.yaml --trainer.max_stebs 2",
    ):
        with pytest.raises(ValueError, match=re.escape(command)):
            blocks.accept(command)


def test_what_the_readme_links_to_exists() -> None:
    links = re.findall(r'\]\(([^)#]+)|src="([^"]+)"', (ROOT / "README.md").read_text(encoding="utf-8"))
    paths = [link or src for link, src in links if not (link or src).startswith("http")]
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(listed) == len(set(listed))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert pages == {page for page in listed if not page.startswith("api/")}


def test_every_problem_of_the_write_up_is_answered_in_order() -> None:
    rows = re.findall(
        r"^\| \[.+\]\((.+)\) \| (.+) \|$", (DOCS / "writeup.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(", ".join(problems for _, problems in rows).split(", ")) == 36
    for page, problems in rows:
        headings = re.findall(r"^## (.+)$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert ", ".join(headings) == problems


def test_every_package_is_in_the_reference() -> None:
    listed = re.findall(r"api/(\w+)\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(packages() - {"commands"})


def packages() -> set[str]:
    return {path.parent.name for path in (ROOT / "lm").glob("*/__init__.py")}


def test_the_picture_shows_the_tree() -> None:
    drawn = picture.draw()
    assert (DOCS / "architecture.svg").read_text(encoding="utf-8") == drawn, "run python -m docs.tools.picture"
    assert set(re.findall(r'class="name">(\w+)<', drawn)) == packages()
    names = [name for line in re.findall(r'class="file">([^<]+)<', drawn) for name in re.findall(r"\w+\.py", line)]
    assert len(names) > 15
    for name in names:
        assert list((ROOT / "lm").rglob(name)), name


def test_changes_apply_and_work(tmp_path: Path) -> None:
    """Each diff alone applies to the tree; all together pass the tests that they bring."""
    assert {path.stem for path in CHANGES} == {"layer", "schedule", "source", "ablation"}
    for folder in ("lm", "configs", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    git = ["git", "-c", f"safe.directory={tmp_path}", "apply", "--whitespace=error-all"]
    for path in CHANGES:
        subprocess.run([*git, "--check", path], cwd=tmp_path, check=True)
    subprocess.run([*git, *CHANGES], cwd=tmp_path, check=True)
    added = [str(path.relative_to(tmp_path)) for path in tmp_path.glob("tests/*/test_change_*.py")]
    assert len(added) == len(CHANGES)
    done = subprocess.run([sys.executable, "-m", "pytest", *added], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_site_builds_without_warnings_and_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"NO_MKDOCS_2_WARNING": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "parts" / "model.html").read_text(encoding="utf-8")
    assert "wide.square().mean" in re.sub(r"<[^>]+>", "", page)  # the lines of RMSNorm
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    for path, html in pages.items():
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]+"', html), path
        for target, anchor in re.findall(r'(?:href|src)="(?!https?:|data:|mailto:|/)([^"#?]*)(?:#([^"]*))?"', html):
            file = (path.parent / target).resolve() if target else path
            assert file.exists(), f"{path.name} links to {target}"
            assert not anchor or f'id="{anchor}"' in pages[file], f"{path.name} links to {target}#{anchor}"
