"""The value of an arithmetic expression, exactly and in bounded time: no `eval`, no recursion, no powers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

__all__ = ["LONGEST", "evaluate", "numbers_in", "parse"]

LONGEST = 512  # characters of an expression; more is no answer
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
TOKEN = re.compile(r" *(?:([0-9]{1,12})|([-+*/()]))")


def parse(text: str) -> list[str] | None:
    """Return an expression in postfix order, or None if the text is none.

    Whole numbers without a sign, ``+ - * /`` between two values, parentheses and spaces; nothing else, at most `LONGEST`
    characters.

    Reference
    ---------
    dijkstra1961algol: the shunting-yard algorithm.
    """
    tokens = _tokens(text)
    if tokens is None:
        return None
    output: list[str] = []
    waiting: list[str] = []
    value_next = True  # whether a value must come, or what joins two
    for token in tokens:
        if (token == "(" or token.isdigit()) is not value_next:
            return None
        if token.isdigit():
            output.append(token)
            value_next = False
        elif token == "(":
            waiting.append(token)
        elif token == ")":
            while waiting and waiting[-1] != "(":
                output.append(waiting.pop())
            if not waiting:
                return None
            waiting.pop()
        else:
            while waiting and PRECEDENCE.get(waiting[-1], 0) >= PRECEDENCE[token]:
                output.append(waiting.pop())
            waiting.append(token)
            value_next = True
    if value_next or "(" in waiting:
        return None
    return output + waiting[::-1]


def _tokens(text: str) -> list[str] | None:
    if len(text) > LONGEST:
        return None
    text, tokens, place = text.rstrip(" "), [], 0
    while place < len(text):
        found = TOKEN.match(text, place)
        if found is None:
            return None
        tokens.append(found[1] or found[2])
        place = found.end()
    return tokens


def numbers_in(postfix: Sequence[str]) -> list[int]:
    """Return the numbers of an expression, in ascending order, each as often as it occurs."""
    return sorted(int(token) for token in postfix if token.isdigit())


def evaluate(postfix: Sequence[str]) -> Fraction | None:
    """Return the exact value of what `parse` returned; None where it divides by zero."""
    values: list[Fraction] = []
    for token in postfix:
        if token.isdigit():
            values.append(Fraction(int(token)))
            continue
        right, left = values.pop(), values.pop()
        if token == "/" and right == 0:
            return None
        values.append(_joined(left, token, right))
    return values.pop()


def _joined(left: Fraction, sign: str, right: Fraction) -> Fraction:
    match sign:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
    return left / right
