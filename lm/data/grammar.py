"""Probabilistic grammars that know the probability of what they write.

A grammar is a set of rules; a rule is a list of options, each drawn with a probability in proportion to its weight.
An option is text with references in braces:

    {rule}         expands the rule anew
    {name=rule}    expands the rule at the first mention in a text and repeats the result at each later one
    {name=rule.2}  the same, giving field 2 of the result: options of such rules hold fields separated by "|"

Where every choice can be told from the text, the probabilities of the choices multiply to that of the text.
`Grammar.probability` checks this: it sums over every way in which the rules can give a text.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from random import Random

Options = tuple[str | tuple[str, int], ...]
Bindings = dict[str, str]
REFERENCE = re.compile(r"\{(?:(\w+)=)?(\w+)(?:\.(\d+))?\}")


@dataclass(frozen=True)
class Reference:
    """A mention of a rule; with a name it is expanded once a text and gives its field `field`."""

    rule: str
    name: str | None
    field: int


Part = str | Reference


@dataclass(frozen=True)
class Option:
    """One alternative of a rule: its parts in order and what choosing it costs, -ln of its probability."""

    parts: tuple[Part, ...]
    nats: float


@dataclass(frozen=True)
class Rule:
    """The options with the running sum of their probabilities, which ends at 1."""

    options: tuple[Option, ...]
    cumulative: tuple[float, ...]

    @classmethod
    def of(cls, options: Options) -> "Rule":
        pairs = [option if isinstance(option, tuple) else (option, 1) for option in options]
        total = sum(weight for _, weight in pairs)
        parsed = tuple(Option(_parts(text), -math.log(weight / total)) for text, weight in pairs)
        return cls(parsed, tuple(x / total for x in accumulate(weight for _, weight in pairs)))


def _parts(text: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    end = 0
    for match in REFERENCE.finditer(text):
        parts += [text[end : match.start()], Reference(match[2], match[1], int(match[3] or 0))]
        end = match.end()
    return tuple(part for part in [*parts, text[end:]] if part != "")


class Grammar:
    """Rules that write texts and tell their probability.

    Args:
        rules: by name.
        start: the rule of a whole text.

    Raises:
        ValueError: a rule is mentioned but not there.
    """

    def __init__(self, rules: Mapping[str, Options], start: str) -> None:
        self.rules = {name: Rule.of(options) for name, options in rules.items()}
        self.start = start
        for name, rule in self.rules.items():
            for part in (part for option in rule.options for part in option.parts):
                if isinstance(part, Reference) and part.rule not in self.rules:
                    raise ValueError(f"rule {name} mentions {part.rule}, which is not a rule")

    def tell(self, rng: Random) -> tuple[str, float]:
        """Write one text; returns it with -ln of its probability."""
        pieces: list[str] = []
        nats = self._expand(self.rules[self.start], rng.random, {}, pieces)
        return "".join(pieces), nats

    def _expand(self, rule: Rule, draw: Callable[[], float], bindings: Bindings, pieces: list[str]) -> float:
        x = draw()
        index = 0
        while x >= rule.cumulative[index]:
            index += 1
        option = rule.options[index]
        nats = option.nats
        for part in option.parts:
            if isinstance(part, str):
                pieces.append(part)
            elif part.name is None:
                nats += self._expand(self.rules[part.rule], draw, bindings, pieces)
            else:
                if part.name not in bindings:
                    bound: list[str] = []
                    nats += self._expand(self.rules[part.rule], draw, bindings, bound)
                    bindings[part.name] = "".join(bound)
                pieces.append(bindings[part.name].split("|")[part.field])
        return nats

    def probability(self, text: str) -> float:
        """Probability of a text, summed over every way to derive it; 0 for a text the grammar cannot write."""
        start = (Reference(self.start, None, 0),)
        return sum(p for end, _, p in self._derive(start, text, 0, {}) if end == len(text))

    def _derive(
        self, parts: tuple[Part, ...], text: str, at: int, bindings: Bindings
    ) -> Iterator[tuple[int, Bindings, float]]:
        """Every way in which `parts` can begin at `at`: where they end, what they bind, with what probability."""
        if not parts:
            yield at, bindings, 1.0
            return
        part, rest = parts[0], parts[1:]
        if isinstance(part, Reference) and part.name is None:
            for option in self.rules[part.rule].options:
                for end, bound, p in self._derive(option.parts, text, at, bindings):
                    for last, final, q in self._derive(rest, text, end, bound):
                        yield last, final, math.exp(-option.nats) * p * q
        elif isinstance(part, Reference) and part.name not in bindings:
            assert part.name is not None
            for value, p in self.values[part.rule]:
                if text.startswith(value.split("|")[part.field], at):
                    for last, final, q in self._derive(parts, text, at, {**bindings, part.name: value}):
                        yield last, final, p * q
        else:
            piece = part if isinstance(part, str) else bindings[part.name or ""].split("|")[part.field]
            if text.startswith(piece, at):
                yield from self._derive(rest, text, at + len(piece), bindings)

    @cached_property
    def values(self) -> dict[str, list[tuple[str, float]]]:
        """What each rule without references can give, with probabilities."""
        return {
            name: [("".join(map(str, option.parts)), math.exp(-option.nats)) for option in rule.options]
            for name, rule in self.rules.items()
            if all(isinstance(part, str) for option in rule.options for part in option.parts)
        }

    def count(self) -> int:
        """How many derivations there are: different texts, where each text has but one."""
        return sum(self._count((Reference(self.start, None, 0),), frozenset()).values())

    def _count(self, parts: tuple[Part, ...], bound: frozenset[str]) -> Counter[frozenset[str]]:
        """Derivations of `parts`, by the names bound after them."""
        states = Counter({bound: 1})
        for part in parts:
            following: Counter[frozenset[str]] = Counter()
            for names, ways in states.items():
                if isinstance(part, str) or part.name in names:
                    following[names] += ways
                    continue
                for option in self.rules[part.rule].options:
                    for after, more in self._count(option.parts, names).items():
                        following[after | {part.name} if part.name else after] += ways * more
            states = following
        return states
