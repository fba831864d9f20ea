"""The label tokens: ids that no text leads to, and that no completion may hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from sanov.core.errors import InputError
from sanov.data.prompts import Prompts
from sanov.learning.rollouts import Tokenizer

__all__ = ["check_absent", "check_unseen", "label_tokens", "reserved_tokens"]

KEPT = re.compile(r"reserved|unused|extra_id|placeholder")  # what makers of vocabularies call tokens for later use
WHERE = "self_reward.token"


def reserved_tokens(tokenizer: Tokenizer) -> list[int]:
    """Return tokens that nothing has a use for: those that are called so first, then other special ones.

    Of a Hugging Face tokenizer these are its special tokens without a role, that its chat template does not name.

    Parameters
    ----------
    tokenizer
        Of the policy.
    """
    own = getattr(tokenizer, "reserved", None)
    if own is not None:
        return list(own)
    inner: Any = getattr(tokenizer, "tokenizer", None)
    names = {number: name for name, number in tokenizer.token_ids().items()}
    special = {number for number, token in getattr(inner, "added_tokens_decoder", {}).items() if token.special}
    template = str(getattr(inner, "chat_template", None) or "")
    roles = {tokenizer.eos, tokenizer.pad, tokenizer.bos}
    for role in ("bos", "unk", "sep", "cls", "mask"):
        roles.add(getattr(inner, f"{role}_token_id", None))
    free = sorted(number for number in special - roles if number in names and names[number] not in template)
    return sorted(free, key=lambda number: not KEPT.search(names[number].lower()))


def label_tokens(
    tokenizer: Tokenizer, named: str = "", *, needs_spare: bool = False, prompts: Prompts | None = None
) -> tuple[int, int | None]:
    """Return the label token z_c, and a spare one (z_i of the two-label verifier) where there is one.

    Parameters
    ----------
    tokenizer
        Of the policy.
    named
        What the user asks for: a token's name or id; empty for the first reserved one.
    needs_spare
        Whether a missing spare is refused.
    prompts
        In which to look for a token to propose, where none is reserved.

    Raises
    ------
    InputError
        The token has a role, its text is several tokens, there is none of that name, or none is reserved.
    """
    reserved = reserved_tokens(tokenizer)
    if not named and not reserved:
        fix = f"name one that no text holds ({_unused(tokenizer, prompts)}), or add one to the tokenizer and the model"
        raise InputError("the tokenizer has no reserved token", where=WHERE, fix=fix)
    token = _named(tokenizer, named, reserved) if named else reserved[0]
    for role in ("eos", "pad", "bos"):
        if token == getattr(tokenizer, role):
            found = f"the token {token} is {role.upper()}"
            raise InputError(found, where=WHERE, expected="a token without a role", fix=_advice(tokenizer, reserved))
    spare = next((other for other in reserved if other != token), None)
    if spare is None and needs_spare:
        found = f"there is no second reserved token beside {token}"
        raise InputError(found, where="self_reward.loss", fix="take self_reward.loss=mse, which needs one label alone")
    return token, spare


def _unused(tokenizer: Tokenizer, prompts: Prompts | None) -> str:
    """Return an option that names a token of no prompt and no solution: the last one of the vocabulary, often the rarest."""
    if prompts is None:
        return f"{WHERE}=NAME"
    solutions = (tokenizer.continued(str(text or "")) for text in prompts.columns.get("solution", ()))
    used = {token for ids in (*map(tokenizer.encode, prompts.prompts), *solutions) for token in ids}
    used |= {tokenizer.eos, tokenizer.pad, -1 if tokenizer.bos is None else tokenizer.bos}
    names = {number: name for name, number in tokenizer.token_ids().items() if number not in used}
    if not names:
        return f"{WHERE}=NAME"
    number = max(names)
    return f"such as {WHERE}={number}, which is {names[number]!r} and in none of the prompts and solutions"


def _named(tokenizer: Tokenizer, named: str, reserved: Sequence[int]) -> int:
    known = tokenizer.token_ids()
    if named.isdecimal():
        if int(named) in known.values():
            return int(named)
        raise InputError(f"there is no token {named}", where=WHERE, fix=_advice(tokenizer, reserved))
    if named in known:
        return int(known[named])
    try:
        ids = tokenizer.continued(named)
    except InputError:
        ids = []
    if len(ids) == 1:
        return int(ids[0])
    found = f"{named!r} is {len(ids)} tokens ({', '.join(map(str, ids))})" if ids else f"there is no token {named!r}"
    raise InputError(found, where=WHERE, expected="one token", fix=_advice(tokenizer, reserved))


def _advice(tokenizer: Tokenizer, reserved: Sequence[int]) -> str:
    if not reserved:
        return "add a reserved token to the tokenizer and the model"
    names = {number: name for name, number in tokenizer.token_ids().items()}
    return f"leave it empty, or take a reserved one: {', '.join(names[number] for number in reserved[:3])}"


def check_unseen(tokenizer: Tokenizer, tokens: Iterable[int], prompts: Prompts) -> None:
    """Refuse label tokens that prompts, or the solutions beside them, hold.

    Parameters
    ----------
    tokenizer
        Of the policy.
    tokens
        The label tokens.
    prompts
        With written solutions in the column ``solution``, if there are any.

    Raises
    ------
    InputError
        The first row and position.
    """
    labels = set(tokens)
    if labels <= set(getattr(tokenizer, "reserved", ())):  # no text leads to them
        return
    check_absent(labels, map(tokenizer.encode, prompts.prompts), prompts.name)
    solutions = (tokenizer.continued(str(text or "")) for text in prompts.columns.get("solution", ()))
    check_absent(labels, solutions, f"{prompts.name}, column 'solution'")


def check_absent(tokens: Iterable[int], rows: Iterable[Sequence[int]], name: str) -> None:
    """Refuse label tokens among the tokens of rows.

    Raises
    ------
    InputError
        The first row and position.
    """
    labels = set(tokens)
    for row, ids in enumerate(rows, start=1):
        found = next((place for place, token in enumerate(ids, start=1) if token in labels), None)
        if found is not None:
            text = f"token {found} is the label token {ids[found - 1]}"
            fix = f"set {WHERE}=NAME for one that no text holds"
            raise InputError(text, where=f"{name}, row {row}", expected="a label that occurs nowhere", fix=fix)
