"""What follows from facts by rules "if all of these, then that": forward chaining on bitsets.

Atoms are plain words; a word that begins with "not " is an atom of its own, so that a rule can ask for the absence of
a property that the facts state. A set of atoms is one integer, a rule's body another: whether a rule fires is one AND.
A fact that comes in later costs only the rules that mention it, so that a conversation can be followed turn by turn.

>>> rules = HornRules([Rule("cat", ("ears", "eyes", "tail")), Rule("tiger", ("cat", "big", "striped"))])
>>> state = rules.start()
>>> state.add("ears", "eyes", "tail", "big")  # what these facts bring that was not known
('big', 'cat', 'ears', 'eyes', 'tail')
>>> state.add("striped")
('striped', 'tiger')
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

NOT = "not "


@dataclass(frozen=True)
class Rule:
    """`head` holds where every atom of `body` does."""

    head: str
    body: tuple[str, ...]


def negated(atom: str) -> str:
    """The opposite of an atom.

    >>> negated("big"), negated("not big")
    ('not big', 'big')
    """
    return atom.removeprefix(NOT) if atom.startswith(NOT) else NOT + atom


class HornRules:
    """A set of rules, indexed once.

    Args:
        rules: in any order; cycles are allowed.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self.names: list[str] = []
        self._bits: dict[str, int] = {}
        self.bodies: list[int] = []  # the atoms of each rule's body
        self.heads: list[int] = []
        self.uses: list[int] = []  # for each atom, the rules whose body has it
        self.at_once = 0  # rules without a body
        for number, rule in enumerate(self.rules):
            body = 0
            for atom in rule.body:
                place = self.place(atom)
                body |= 1 << place
                self.uses[place] |= 1 << number
            self.bodies.append(body)
            self.heads.append(self.place(rule.head))
            self.at_once |= (not rule.body) << number

    def place(self, atom: str) -> int:
        """The bit of an atom; a new atom gets the next one."""
        if atom not in self._bits:
            self._bits[atom] = len(self.names)
            self.names.append(atom)
            self.uses.append(0)
        return self._bits[atom]

    def start(self) -> Closure:
        """Nothing known yet but what needs no facts."""
        return Closure(self)

    def closure(self, facts: Iterable[str]) -> frozenset[str]:
        """All that follows from `facts`, these among it."""
        state = self.start()
        state.add(*facts)
        return state.atoms()


@dataclass
class Closure:
    """What is known so far about one thing. `known` is a bitset over the rules' atoms."""

    rules: HornRules
    known: int = 0
    _fired: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self._chase(self.rules.at_once)

    def add(self, *facts: str) -> tuple[str, ...]:
        """Learn facts; returns what is newly known, sorted, the facts among it."""
        before, touched = self.known, 0
        for fact in facts:
            place = self.rules.place(fact)
            if not self.known >> place & 1:
                self.known |= 1 << place
                touched |= self.rules.uses[place]
        self._chase(touched)
        return _names(self.rules, self.known & ~before)

    def _chase(self, waiting: int) -> None:
        """Fire rules until none of those that may have become ready is."""
        rules, bodies, heads = self.rules, self.rules.bodies, self.rules.heads
        waiting &= ~self._fired
        while waiting:
            lowest = waiting & -waiting
            waiting ^= lowest
            number = lowest.bit_length() - 1
            if bodies[number] & ~self.known:
                continue
            self._fired |= lowest
            head = heads[number]
            if not self.known >> head & 1:
                self.known |= 1 << head
                waiting |= rules.uses[head] & ~self._fired

    def __contains__(self, atom: str) -> bool:
        place = self.rules._bits.get(atom)
        return place is not None and bool(self.known >> place & 1)

    def atoms(self) -> frozenset[str]:
        """All that is known."""
        return frozenset(_names(self.rules, self.known))


def _names(rules: HornRules, bits: int) -> tuple[str, ...]:
    found = []
    while bits:
        lowest = bits & -bits
        found.append(rules.names[lowest.bit_length() - 1])
        bits ^= lowest
    return tuple(sorted(found))
