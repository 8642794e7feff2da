"""Draws docs/architecture.svg: `python -m docs.tools.picture`."""

from pathlib import Path
from xml.sax.saxutils import escape

OUT = Path(__file__).parents[1] / "architecture.svg"
WIDTH, HEIGHT = 600, 702
LEFT, LEFT_WIDTH, RIGHT, RIGHT_WIDTH = 20, 330, 390, 190
INK, FAINT, PAPER, DISK, LINE = "#1f2430", "#596275", "#ffffff", "#e9ecf3", "#3f51b5"


class Drawing:
    """Boxes, arrows and their text, in SVG."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, style: str) -> None:
        self.parts.append(f'<text x="{x}" y="{y}" text-anchor="middle" class="{style}">{escape(words)}</text>')

    def package(self, x: int, y: int, width: int, name: str, *files: str) -> None:
        """A package of lm/ and the files to know in it."""
        height = 34 + 19 * len(files)
        self.parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" class="package"/>')
        self.text(x + width / 2, y + 23, name, "name")
        for line, words in enumerate(files):
            self.text(x + width / 2, y + 43 + 19 * line, words, "file")

    def disk(self, y: int, words: str) -> None:
        """Something that lies on disk, between two packages."""
        self.parts.append(f'<rect x="{LEFT + 25}" y="{y}" width="{LEFT_WIDTH - 50}" height="32" rx="16" class="disk"/>')
        self.text(LEFT + LEFT_WIDTH / 2, y + 21, words, "words")

    def arrow(self, *points: tuple[float, float]) -> None:
        path = " L".join(f"{x} {y}" for x, y in points)
        self.parts.append(f'<path d="M{path}" class="arrow" marker-end="url(#tip)"/>')


def draw() -> str:
    """The picture as SVG."""
    it = Drawing()
    middle = LEFT + LEFT_WIDTH / 2
    it.package(LEFT, 16, RIGHT + RIGHT_WIDTH - LEFT, "commands", "python -m lm: cli.py · data.py · generation.py · ...")
    steps: list[tuple[str, tuple[str, ...]]] = [
        ("raw text", ("tokenizer", "pretokenize.py · train.py · bpe.py")),
        ("vocab.json, merges.txt", ("data", "sources.py · encode.py", "sampler.py · datamodule.py")),
        ("train.npy, valid.npy, meta.json", ("training", "module.py · callbacks.py", "resume.py · lightning_cli.py")),
        ("config.yaml, best.ckpt, last.ckpt", ("generation", "generate.py · sampling.py")),
    ]
    y = 90
    tops: dict[str, int] = {}
    for words, (name, *files) in steps:
        it.disk(y, words)
        it.arrow((middle, y + 32), (middle, y + 52))
        tops[name] = y + 54
        it.package(LEFT, y + 54, LEFT_WIDTH, name, *files)
        y += 54 + 34 + 19 * len(files) + 22
        it.arrow((middle, y - 22), (middle, y - 2))
    it.disk(y, "new text")
    side = LEFT + LEFT_WIDTH

    it.package(RIGHT, tops["tokenizer"] - 20, RIGHT_WIDTH, "accounting", "parameters.py · flops.py", "memory.py")
    at = tops["training"]
    it.package(RIGHT, at - 132, RIGHT_WIDTH, "model", "attention.py · block.py", "transformer.py")
    it.package(RIGHT, at - 24, RIGHT_WIDTH, "optim", "adamw.py · clip.py", "schedule.py")
    it.package(RIGHT, at + 84, RIGHT_WIDTH, "experiments", "study.py · sweep.py")
    below = tops["generation"] + 10
    it.package(RIGHT, below, RIGHT_WIDTH, "export", "llama.py", "tokenizer_formats.py")
    centre = RIGHT + RIGHT_WIDTH / 2
    it.arrow((RIGHT, at - 94), (side + 24, at - 94), (side + 24, at + 16), (side + 2, at + 16))
    it.arrow((RIGHT, at + 32), (side + 2, at + 32))
    it.arrow((RIGHT, at + 112), (side + 24, at + 112), (side + 24, at + 56), (side + 2, at + 56))
    it.arrow((centre, at - 132), (centre, tops["tokenizer"] + 54))
    disk = tops["generation"] - 38
    it.arrow((LEFT + LEFT_WIDTH - 25, disk), (side + 12, disk), (side + 12, below + 30), (RIGHT - 2, below + 30))

    style = (
        "text{font-family:system-ui,'Segoe UI',Helvetica,Arial,sans-serif}"
        f".name{{font-size:17px;font-weight:600;fill:{INK}}}.file{{font-size:14px;fill:{FAINT}}}"
        f".words{{font-size:14.5px;fill:{INK}}}.package{{fill:{PAPER};stroke:{LINE};stroke-width:1.5}}"
        f".disk{{fill:{DISK};stroke:{FAINT};stroke-width:1}}.arrow{{fill:none;stroke:{LINE};stroke-width:1.5}}"
    )
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker>'
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            "<title>Text becomes a vocabulary, token files, a checkpoint and new text, each by one package</title>",
            f"<style>{style}</style><defs>{tip}</defs>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#fbfcfe"/>',
            *it.parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    OUT.write_text(draw(), encoding="utf-8")
