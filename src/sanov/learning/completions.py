"""The completions protocol, ``POST /v1/completions``, as vLLM serves it: what is asked, and what an answer says.

- Prompts are lists of token ids, and with ``return_tokens_as_token_ids`` so are answers: no text is tokenized twice, and
  every token that was scored or sampled is compared with what was asked.
- ``echo`` with ``logprobs`` and ``max_tokens=0`` scores given tokens. These log-probabilities are those of the model
  itself, at temperature 1, whatever temperature the call has and whatever ``--logprobs-mode`` the server: a teacher at
  another temperature is refused. vLLM runs a token more than it is given: it needs ``--max-model-len`` of at least one
  more than the longest row.
- Those of sampled tokens are by default (``--logprobs-mode raw_logprobs``) the same. In ``processed_logprobs`` they are
  what is left after suppression, top-k and top-p; whether they are is tried before the first sampling that uses these, and
  refused. Modes that return logits are refused as soon as one is above 0, be it only that of the likeliest token.
- The seed of a call is that of its first completion; vLLM's i-th has this seed + i. So completions follow from (seed, step,
  number of the prompt, place in the group) as far as the server's own arithmetic does not depend on its load.
- Suppressed tokens have a ``logit_bias`` of -100, the least there is, and an answer with one of them is refused.

The version of the policy that wrote an answer is, whichever stands in it: the end of the model's name, ``NAME@VERSION``
(adapters of vLLM, and any server that renames its model); ``metadata.weight_version`` (SGLang); or what
``GET /weight_info`` says before and after the calls (vLLM in development mode).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sanov.core.errors import InputError
from sanov.learning.rollouts import Rollout
from sanov.learning.server_client import Client

__all__ = [
    "COMPLETIONS",
    "base_name",
    "checked",
    "choices",
    "no_model",
    "sampling",
    "scored",
    "scoring",
    "served_names",
    "shortened",
    "version_of",
    "weight_version",
]

COMPLETIONS, MODELS, WEIGHT_INFO = "/v1/completions", "/v1/models", "/weight_info"
ABOVE = 1e-4  # log-probabilities may be so much above 0 by rounding
LEAST = -9999.0  # what the protocol says for minus infinity, which JSON lacks
BIAS = -100.0  # the least that the protocol has


# -- models and versions ----------------------------------------------------------------------------------------------


def served_names(client: Client) -> list[str]:
    """Return the names of the models that a server offers.

    Raises
    ------
    InputError
        It does not answer in time, or not in the protocol.
    """
    tree = client.ask(MODELS)
    found = tree.get("data") if isinstance(tree, Mapping) else None
    if not isinstance(found, list) or not all(isinstance(model, Mapping) and "id" in model for model in found):
        expected = "a server of the completions protocol"
        raise InputError("the answer lists no models", where=client.url + MODELS, expected=expected)
    return [str(model["id"]) for model in found]


def base_name(client: Client, names: Sequence[str]) -> str | None:
    """Return the name of the policy without its version; None if it is not there, or there are several."""
    bases = {name.partition("@")[0] for name in names}
    if client.name is not None:
        return client.name if client.name in bases else None
    return next(iter(bases)) if len(bases) == 1 else None


def weight_version(client: Client) -> int | None:
    """Return the version that a server gives to its weights; None if it gives none, or it is no number."""
    tree = client.ask(WEIGHT_INFO, optional=True)
    found = str(tree.get("weight_version")) if isinstance(tree, Mapping) else ""
    return int(found) if found.isdecimal() else None


def no_model(client: Client, names: Sequence[str]) -> InputError:
    """Return the error of a server on which it is not clear which model is meant."""
    found = f"the models are {', '.join(names) or 'none'}"
    expected = client.name or "one"
    return InputError(found, where=client.url, expected=expected, fix="name one of them: http://HOST:PORT#NAME")


def version_of(answer: Mapping[str, Any], label: int | None, where: str) -> int:
    """Return the version of the policy that wrote an answer.

    Parameters
    ----------
    answer
        To a call that samples.
    label
        The version of the server's weights before and after it, where there is one.
    where
        For messages.

    Raises
    ------
    InputError
        Nothing says it.
    """
    metadata = answer.get("metadata")
    own = metadata.get("weight_version") if isinstance(metadata, Mapping) else None
    name, _, end = str(answer.get("model")).rpartition("@")
    for found in (own, end if name else None, label):
        if found is not None and str(found).isdecimal():
            return int(found)
    found = f"the answer of the model {answer.get('model')!r} does not say which version of the policy wrote it"
    fix = "serve it as NAME@VERSION, or with a weight version"
    raise InputError(found, where=where, fix=fix)


# -- calls ------------------------------------------------------------------------------------------------------------


def scoring(name: str, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the call for the log-probabilities of the tokens of rows."""
    echo = {"echo": True, "max_tokens": 0, "logprobs": 1, "return_tokens_as_token_ids": True}
    return {"model": name, "prompt": [list(row) for row in rows], "temperature": 1.0, **echo}


def sampling(name: str, ids: Sequence[int], seed: int, options: Rollout, eos: int, limit: int) -> dict[str, Any]:
    """Return the call for a group of completions: what is not said would be a default of the model's folder."""
    call = {
        "model": name,
        "prompt": list(ids),
        "n": options.group_size,
        "max_tokens": limit,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k or -1,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "seed": seed,
        "ignore_eos": True,  # of the model's folder, which may have several: the policy's is the one that ends
        "stop_token_ids": [eos],
        "logprobs": 1,
        "return_tokens_as_token_ids": True,
    }
    if options.suppress:
        call["logit_bias"] = {str(token): BIAS for token in options.suppress}
    return call


# -- answers ----------------------------------------------------------------------------------------------------------


def choices(answer: Any, count: int, where: str) -> list[Mapping[str, Any]]:
    """Return the answers to each row of a call, in their order."""
    found = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(found, list) or not all(isinstance(choice, Mapping) for choice in found):
        raise InputError("the answer has no choices", where=where, expected="a server of the completions protocol")
    by_index = {choice.get("index"): choice for choice in found}
    if len(found) != count or set(by_index) != set(range(count)):
        raise InputError(f"the answer has {len(found)} choices", where=where, expected=f"{count}, numbered from 0")
    return [by_index[index] for index in range(count)]


def scored(choice: Mapping[str, Any], where: str) -> tuple[list[int], list[Any]]:
    """Return the tokens of a choice, and what is said of each; refuse what cannot be log-probabilities."""
    found = choice.get("logprobs")
    table: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    names, values = table.get("tokens"), table.get("token_logprobs")
    if not isinstance(names, list) or not isinstance(values, list):
        raise InputError("the answer has no log-probabilities", where=where, expected="logprobs of tokens")
    if len(names) != len(values):
        wrong = f"{len(values)} log-probabilities of {len(names)} tokens"
        raise InputError(wrong, where=where, expected="one a token")
    numbers = [str(name).removeprefix("token_id:") for name in names]
    if not all(
        str(name).startswith("token_id:") and number.isdecimal() for name, number in zip(names, numbers, strict=True)
    ):
        fix = "use a server that knows return_tokens_as_token_ids, as vLLM does"
        raise InputError(f"tokens are {shortened(names)}", where=where, expected="token_id:NUMBER", fix=fix)
    likeliest = [value for top in table.get("top_logprobs") or [] for value in (top or {}).values()]
    checked(likeliest, where)  # of logits, one of these is above 0 sooner than one of the tokens
    return list(map(int, numbers)), values


def checked(values: Sequence[Any], where: str) -> list[float]:
    """Return log-probabilities, if they are such."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value <= ABOVE:
            fix = "start the server with --logprobs-mode raw_logprobs"
            raise InputError(f"a log-probability is {value}", where=where, expected="a number up to 0", fix=fix)
    return [float(value) if value > LEAST else float("-inf") for value in values]


def shortened(tree: Any) -> str:
    """Return what stands in an answer, for a message."""
    text = repr(tree)
    return text if len(text) <= 80 else f"{text[:77]}..."
