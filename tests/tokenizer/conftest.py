"""Text in several scripts, and a tokenizer trained on it."""

import random

import pytest

from lm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe

TEXT = """The old boat's crew didn't stop; they'll row until we've seen 12 or 345 islands, I'm told.
"You're late!" he'd said.
Der Bär läuft über die große Brücke und grüßt das Mädchen. Straßenbahnhaltestelle, Äpfel, Öl, 3,5 Kilometer!
老人在河边钓鱼。小猫也在河边。今天天气很好，我们一起去河边吧。2026年11月
😀😀 🎉🎉🎉 👩‍👩‍👧 naïve café cafe\u0301  ½ ² ٣٤ हिन्दी \u3000全角 \u00a0hard\u00a0space
\n\t's \n'll  'tis ''s 'S it's\r\n\r\n\ttabs\t\t  and   runs    of spaces \x00\x01\x7f\x1b[0m
"""


@pytest.fixture(scope="session")
def text() -> str:
    return TEXT


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = random.Random(1).choices(TEXT.split(" "), k=4000)
    path.write_text(f"{TEXT}{END_OF_TEXT}{' '.join(words)}", encoding="utf-8", newline="")
    vocab, merges = train_bpe(path, 600, [END_OF_TEXT, "<|pad|>"])
    return Tokenizer(vocab, merges, [END_OF_TEXT, "<|pad|>"])
