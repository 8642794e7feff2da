import hashlib
import math
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from lm.data.grammar import Grammar
from lm.data.stories import STORIES, generate_stories

TOY = Grammar(
    {
        "text": ("{a} {x=b.1} {x=b}{x=b.1}", ("{c}!", 3)),
        "a": ("one", ("two", 2), "three{c}"),
        "b": ("cat|c", "dog|d"),
        "c": ("yes", "no"),
    },
    "text",
)


def test_probabilities_add_up_to_one_over_every_text_there_is() -> None:
    cats = [f"{a} {x[0]} {x}{x[0]}" for a in ("one", "two", "threeyes", "threeno") for x in ("cat", "dog")]
    texts = [*cats, "yes!", "no!"]
    assert sum(TOY.probability(text) for text in texts) == pytest.approx(1)
    assert TOY.probability("two c catc") == pytest.approx(1 / 4 * 2 / 4 * 1 / 2)
    assert TOY.probability("two c catd") == 0
    assert TOY.probability("two c dogd") == 0
    assert TOY.count() == len(texts)


def test_frequencies_follow_the_probabilities() -> None:
    rng = Random(0)
    draws = 20_000
    counts = Counter(TOY.tell(rng)[0] for _ in range(draws))
    chi_squared = sum((n - (e := draws * TOY.probability(t))) ** 2 / e for t, n in counts.items())
    assert len(counts) == 10
    assert chi_squared < 27.9  # 9 degrees of freedom, p = 0.001


def test_ambiguous_grammar_is_found_out() -> None:
    grammar = Grammar({"text": ("a{b}", "{c}b"), "b": ("b",), "c": ("a",)}, "text")
    text, nats = grammar.tell(Random(0))
    assert text == "ab"
    assert nats == pytest.approx(math.log(2))
    assert grammar.probability("ab") == pytest.approx(1)


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="rule text mentions missing"):
        Grammar({"text": ("{missing}",)}, "text")


def test_story_probabilities_are_exact() -> None:
    """Summed over every derivation: no story can be told in two ways, so nats are the text's information."""
    rng = Random(1)
    for _ in range(400):
        text, nats = STORIES.tell(rng)
        assert -math.log(STORIES.probability(text)) == pytest.approx(nats, abs=1e-9)
        assert STORIES.probability(text.replace("a", "o", 1)) == 0
        assert STORIES.probability(text[:-1]) == 0


def test_there_are_far_more_stories_than_anyone_could_read() -> None:
    assert STORIES.count() > 10**14


def test_stories_agree_with_themselves() -> None:
    rng = Random(2)
    for _ in range(400):
        text, _ = STORIES.tell(rng)
        words = set(text.replace(".", " ").replace(",", " ").replace('"', " ").split())
        assert not (words & {"he", "He", "him", "his", "himself"} and words & {"she", "She", "her", "herself"}), text
        assert "{" not in text
        assert "|" not in text
        assert 300 < len(text) < 900
        assert text.count('"') % 2 == 0


def test_file_is_the_same_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    nats = generate_stories(path, 20_000, seed=3)
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == "16b73973c7af94d18be43fa9e8bbabad11d5822845a68a30cc6496221479954d"
    stories = content.decode().split("\n<|endoftext|>\n")
    assert stories.pop() == ""
    assert len(content) >= 20_000 > len(content) - len(stories[-1].encode()) - 16
    assert nats == pytest.approx(sum(-math.log(STORIES.probability(story)) for story in stories))
    assert len(set(stories)) == len(stories)
    generate_stories(path, 20_000, seed=4)
    assert path.read_bytes() != content
    assert [p.name for p in tmp_path.iterdir()] == ["stories.txt"]


def test_size_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_bytes is 0"):
        generate_stories(tmp_path / "x", 0, seed=0)


def test_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("old")
    monkeypatch.setattr(Grammar, "tell", lambda self, rng: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        generate_stories(path, 1000, seed=0)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
