"""Teachers and samplers behind a completions server: `learning.completions` says what of its protocol is used."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from sanov.core.errors import InputError, SanovWarning
from sanov.data.prompts import Prompts
from sanov.learning.completions import (
    COMPLETIONS,
    base_name,
    checked,
    choices,
    no_model,
    sampling,
    scored,
    scoring,
    served_names,
    shortened,
    version_of,
    weight_version,
)
from sanov.learning.processes import every_process, place
from sanov.learning.publishing import SharedFolder
from sanov.learning.rollouts import Rollout, Rollouts, Sampler, Tokenizer, local_sampler
from sanov.learning.server_client import Client
from sanov.nets.decoding import gathered
from sanov.nets.sampling import Sampled

__all__ = ["CompletionsServer", "ServerTeacher", "open_sampler"]

TOKENIZE = "/tokenize"
AT_ONCE = 16  # calls that are under way together
TOGETHER = 32  # rows of a teacher's call
COMPARED = 8  # texts whose tokens are compared with the server's
CERTAIN = 1e-4  # a log-probability so near to 0 is that of a token which alone is allowed
SEEDS = 2**52  # uniform numbers are multiples of its inverse, and a half


def _client(url: str | Client) -> Client:
    return url if isinstance(url, Client) else Client(url)


class ServerTeacher:
    """A teacher behind a completions server.

    Parameters
    ----------
    url
        ``http://HOST:PORT``, with ``#NAME`` where it serves several models; or a client of it.
    tokenizer
        Of the teacher, where it is at hand; else the server is asked how it tokenizes some of the prompts.
    rows, at_once
        Rows of a call, and calls under way together.
    """

    def __init__(
        self,
        url: str | Client,
        *,
        tokenizer: Tokenizer | None = None,
        rows: int = TOGETHER,
        at_once: int = AT_ONCE,
    ):
        self.client, self.tokenizer, self.rows, self.at_once = _client(url), tokenizer, rows, at_once
        self.model = ""
        self.unchecked: tuple[Tokenizer, Prompts] | None = None

    @property
    def identity(self) -> str | None:
        """Name of the model, where the address has one: the address itself may be another tomorrow."""
        return self.client.name

    def compare(self, tokenizer: Tokenizer, prompts: Prompts) -> None:
        """Remember the policy's tokenizer: before the first question, the server has to tokenize prompts as it does."""
        self.unchecked = (tokenizer, prompts) if self.tokenizer is None else None

    def log_probs(
        self, rollouts: Rollouts, rows: Int[Tensor, " some"], temperature: float
    ) -> Float[Tensor, "some width"]:
        """Return the log-probability of each token of the completions of some rows; 0 elsewhere.

        Raises
        ------
        InputError
            The temperature is not 1, the server does not answer in time, it refuses, its tokens are others, or what it
            says is no log-probability.
        """
        if temperature != 1:
            fix = "use rollouts.temperature=1, or a teacher on this machine"
            found = f"it is {temperature}, and a completions server scores tokens at 1 alone"
            raise InputError(found, where="rollouts.temperature", fix=fix)
        self._begin()
        order = torch.argsort(rollouts.lengths[rows], descending=True, stable=True).tolist()
        parts = [order[start : start + self.rows] for start in range(0, len(order), self.rows)]
        ends, starts = rollouts.lengths[rows].tolist(), rollouts.starts[rows].tolist()
        ids = [row[:end] for row, end in zip(rollouts.ids[rows].tolist(), ends, strict=True)]
        calls = [scoring(self.model, [ids[row] for row in part]) for part in parts]
        scores = torch.zeros(len(ids), rollouts.ids.shape[1])
        for part, answer in zip(parts, self.client.ask_each(COMPLETIONS, calls, self.at_once), strict=True):
            for row, choice in zip(part, choices(answer, len(part), self.client.url), strict=True):
                values = self._values(choice, ids[row], starts[row])
                scores[row, starts[row] : ends[row]] = torch.tensor(values)
        return scores.to(rollouts.ids.device)

    def _values(self, choice: Mapping[str, Any], ids: list[int], start: int) -> list[float]:
        """Return the log-probabilities of a completion; the first token of a row has none."""
        tokens, values = scored(choice, self.client.url)
        if tokens != ids:
            found = f"{len(tokens)} tokens were scored that are not the {len(ids)} asked"
            raise InputError(found, where=self.client.url, expected="log-probabilities of the given tokens")
        return checked(values[start:], self.client.url)

    def _begin(self) -> None:
        """Find the model, and compare tokens, once."""
        if not self.model:
            names = served_names(self.client)
            self.model = self.client.name or (names[0] if len(names) == 1 else "")
            if self.model not in names:
                raise no_model(self.client, names)
        if self.unchecked is not None:
            self._compare(*self.unchecked)
            self.unchecked = None

    def _compare(self, tokenizer: Tokenizer, prompts: Prompts) -> None:
        texts = [part for prompt in prompts.prompts[:COMPARED] for part in _texts(prompt)]
        for text in texts[:COMPARED]:
            body = {"model": self.model, "prompt": text, "add_special_tokens": False}
            answer = self.client.ask(TOKENIZE, body, optional=True)
            if answer is None:
                found = f"{self.client.url} does not say how it tokenizes ({TOKENIZE})"
                warnings.warn(f"{found}: nothing checks that its tokens are the policy's", SanovWarning, stacklevel=2)
                return
            theirs, ours = answer.get("tokens") if isinstance(answer, Mapping) else None, tokenizer.continued(text)
            if theirs != ours:
                found = f"the teacher's tokens of {text[:40]!r} are {shortened(theirs)}"
                fix = "take a teacher with the policy's tokenizer"
                raise InputError(found, where=self.client.url, expected=shortened(ours), fix=fix)


class CompletionsServer:
    """A sampler that lets a completions server write the completions; see `rollouts.Sampler`.

    Parameters
    ----------
    url
        ``http://HOST:PORT``, with ``#NAME`` where it serves several models; or a client of it.
    publish
        ``publish(model, version)`` brings new weights to the server, and returns once it serves them, with nothing left
        of the old ones in its caches; called before the first completions of a version. None where something else does.
    at_once
        Calls under way together; one completes one prompt, as often as its group has rows.
    """

    def __init__(
        self,
        url: str | Client,
        *,
        publish: Callable[[nn.Module, int], object] | None = None,
        at_once: int = 4 * AT_ONCE,
    ):
        self.client, self.publish, self.at_once = _client(url), publish, at_once
        self.published: int | None = None
        self.tried = False

    def __call__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        uniforms: Float64[Tensor, "rows limit"],
        *,
        version: int,
        options: Rollout,
        eos: int,
        pad: int,
    ) -> tuple[Sampled, int]:
        """Return the completions, group by group, and the version of the policy that wrote them.

        Raises
        ------
        InputError
            The temperature is not 1, the server does not answer in time or refuses, an answer says no version, or what it
            says cannot be a completion.
        """
        if options.temperature != 1:
            found = f"it is {options.temperature}, and the log-probabilities of a completions server are those at 1"
            raise InputError(found, where="rollouts.temperature", fix="use 1, or no rollouts.server")
        self._publish(model, version)
        name = self._served(version)
        self._try(name, prompts[0], options, eos)
        seeds = (uniforms[:: options.group_size, 0] * SEEDS).long().tolist()
        calls = [
            sampling(name, ids, seed, options, eos, uniforms.shape[1]) for ids, seed in zip(prompts, seeds, strict=True)
        ]
        before = weight_version(self.client)
        answers = self.client.ask_each(COMPLETIONS, calls, self.at_once)
        label = before if before is not None and before == weight_version(self.client) else None
        rows = [
            self._completion(choice, uniforms.shape[1], options, eos, _vocabulary(model))
            for answer in answers
            for choice in choices(answer, options.group_size, self.client.url)
        ]
        versions = {version_of(answer, label, self.client.url) for answer in answers}
        stale = sorted(versions - {version})
        return _table(rows, eos, pad, uniforms.device), stale[0] if stale else version

    def _publish(self, model: nn.Module, version: int) -> None:
        """Bring the weights to the server, once for all processes."""
        if self.publish is None or self.published == version:
            return
        problem = None
        with gathered(model):  # FSDP2's parts come together on all processes, or on none
            if place()[0] == 0:
                try:
                    self.publish(model, version)
                except InputError as error:
                    problem = error
            problem = every_process(problem)[0]
        if problem is not None:
            raise problem
        self.published = version

    def _served(self, version: int) -> str:
        """Return the name to ask for: that of the version, else what there is, whose answers tell."""
        names = served_names(self.client)
        name = base_name(self.client, names)
        if name is None:
            raise no_model(self.client, names)
        if f"{name}@{version}" in names:
            return f"{name}@{version}"
        return next(found for found in reversed(names) if found == name or found.startswith(f"{name}@"))

    def _try(self, name: str, prompt: Sequence[int], options: Rollout, eos: int) -> None:
        """Refuse log-probabilities after a cut: where one token alone is allowed, that of the token would be 0."""
        if self.tried or not (options.top_p < 1 or options.top_k > 0 or options.suppress):
            return
        body = sampling(name, prompt, 0, Rollout(group_size=1), eos, 1)
        calls = [{**body, "allowed_token_ids": [token]} for token in (eos, 0 if eos else 1)]
        values = []
        for answer in self.client.ask_each(COMPLETIONS, calls, len(calls)):
            values += checked(scored(choices(answer, 1, self.client.url)[0], self.client.url)[1], self.client.url)
        if max(map(abs, values), default=1.0) < CERTAIN:  # both tokens cannot be certain
            found = "the log-probabilities are those after suppression, top-k and top-p"
            fix = "start the server with --logprobs-mode raw_logprobs"
            raise InputError(found, where=self.client.url, expected="those of the policy", fix=fix)
        self.tried = True

    def _completion(
        self, choice: Mapping[str, Any], limit: int, options: Rollout, eos: int, vocabulary: int
    ) -> tuple[list[int], list[float]]:
        """Return a completion and its log-probabilities, if it is one."""
        tokens, values = scored(choice, self.client.url)
        problem = None
        if not tokens or len(tokens) > limit:
            problem = f"a completion has {len(tokens)} tokens"
        elif eos in tokens[:-1]:
            problem = f"a completion goes on after its end ({eos})"
        elif tokens[-1] != eos and len(tokens) < limit:
            reason = choice.get("finish_reason")
            problem = (
                f"a completion ended after {len(tokens)} tokens without the token {eos} (finish_reason {reason!r})"
            )
        elif bad := [token for token in tokens if token >= vocabulary or token in options.suppress]:
            problem = f"the token {bad[0]} was sampled, which is suppressed or beyond the policy's {vocabulary}"
        if problem is not None:
            fix = "serve the policy itself, with a --max-model-len that is not below its context"
            raise InputError(problem, where=self.client.url, expected=f"1 to {limit} tokens up to {eos}", fix=fix)
        return tokens, checked(values, self.client.url)


def open_sampler(options: Rollout) -> Sampler:
    """Return who completes prompts: the policy itself, or the server that the options name.

    Parameters
    ----------
    options
        ``server``, ``weights``, ``reload`` and ``patience``.

    Raises
    ------
    InputError
        The server is no address, there is no place for new weights, or a place and no server.
    """
    if not options.server:
        if options.weights or options.reload:
            found = "there is a way to bring weights to a server, and no server"
            raise InputError(found, where="rollouts.server", expected="http://HOST:PORT")
        return local_sampler
    if not options.weights:
        fix = "pass rollouts.weights=DIR, a folder that the server reads too"
        raise InputError("nothing brings new weights to the server", where="rollouts.server", fix=fix)
    client = Client(options.server, patience=options.patience)
    return CompletionsServer(client, publish=SharedFolder(options.weights, client, options.reload))


def _table(rows: Sequence[tuple[list[int], list[float]]], eos: int, pad: int, device: torch.device) -> Sampled:
    """Put completions side by side, padded on the right."""
    width = max(len(tokens) for tokens, _ in rows)
    return Sampled(
        torch.tensor([[*tokens, *[pad] * (width - len(tokens))] for tokens, _ in rows], device=device),
        torch.tensor([len(tokens) for tokens, _ in rows], device=device),
        torch.tensor([tokens[-1] == eos for tokens, _ in rows], device=device),
        torch.tensor([[*values, *[0.0] * (width - len(values))] for _, values in rows], device=device),
    )


def _texts(prompt: Any) -> list[str]:
    return [prompt] if isinstance(prompt, str) else [str(message.get("content", "")) for message in prompt]


def _vocabulary(model: nn.Module) -> int:
    """Tokens that a model has."""
    found = getattr(getattr(model, "shape", None), "vocabulary", None) or getattr(model, "vocabulary", None)
    return int(found) if isinstance(found, int) else 2**31
