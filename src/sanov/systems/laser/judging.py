"""A policy's scores of completions: its own, which it samples, or those that a table holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64

from sanov.core.errors import InputError
from sanov.learning import policies
from sanov.learning.rollouts import Rollout, encoded
from sanov.systems.laser.fitted import Fitted
from sanov.systems.laser.reading import Given, Questions, answers_of, told
from sanov.systems.laser.scale import Measured, Scale, check_rule, measure
from sanov.systems.laser.scoring import end_log_probs_of
from sanov.systems.laser.signal import SelfReward
from sanov.systems.laser.tokens import check_absent, label_tokens
from sanov.systems.laser.verification import Judged

__all__ = ["judge_completed", "judge_given", "judge_own", "scale_of", "scored_already"]


def scale_of(fitted: Fitted, options: SelfReward, data: Questions, rollouts: Rollout, *, seed: int = 0) -> Scale:
    """Return what turns this policy's log-probabilities into scores: what `fit` stored, changed where options say so.

    Parameters
    ----------
    fitted
        The policy, which need not be one of `laser`.
    options
        Those that were given (`model_fields_set`) change what is stored: a token, a beta, c_ref, or ``estimate``.
    data, rollouts
        Where c_ref is measured anew.
    seed
        Of that.

    Raises
    ------
    InputError
        There is no c_ref, it is that of another token, or the reference is missing.
    """
    stored = fitted.results.get("self_reward")
    if stored is None and options.ref_constant == "auto" and options.loss != "bce":
        fix = "set self_reward.ref_constant=NUMBER to pass it, or self_reward.ref_constant=estimate to re-estimate it"
        raise InputError("not trained by laser, or c_ref missing: pass it or re-estimate", where=repr(fitted), fix=fix)
    known = None if stored is None else Scale.from_dict(stored)
    scale = _unstored(fitted, options) if known is None else _changed(fitted, known, options)
    if scale.loss == "mse" and options.ref_constant != "auto":
        scale = _with_constant(fitted, scale, options, data, rollouts, seed)
    if scale.loss == "mse" and scale.constant is not None and scale != known:
        check_rule(Measured(scale.constant, None, 0), scale.beta, correction=scale.correction)
    if scale.exact and fitted.reference is None:
        text = "scores of this policy are read against the policy at its start, which is not there"
        fix = "keep the folder `reference` beside the weights, or set self_reward.ref_constant=NUMBER (or estimate)"
        raise InputError(text, where="self_reward.reference=exact", fix=fix)
    return scale


def _with_constant(
    fitted: Fitted, scale: Scale, options: SelfReward, data: Questions, rollouts: Rollout, seed: int
) -> Scale:
    if not isinstance(options.ref_constant, str):
        return scale.changed(constant=options.ref_constant, std=None, samples=0, exact=options.reference == "exact")
    sampling = rollouts.model_copy(update={"suppress": tuple(sorted({*rollouts.suppress, *scale.suppressed}))})
    found = measure(fitted.model, fitted.tokenizer, data.prompts, sampling, scale.token, seed=seed)
    exact = options.reference == "exact"
    return scale.changed(constant=found.mean, std=found.std, samples=found.samples, exact=exact)


def _unstored(fitted: Fitted, options: SelfReward) -> Scale:
    own = options.resolved(fitted.tokenizer)
    assert own.beta is not None
    token, spare = label_tokens(fitted.tokenizer, own.token, needs_spare=own.loss == "bce")
    exact = own.loss == "mse" and own.reference == "exact"
    return Scale(token, spare, own.loss, own.beta, None, exact=exact, correction=own.correction)


def _changed(fitted: Fitted, scale: Scale, options: SelfReward) -> Scale:
    """Return a stored scale with what was given instead; c_ref of one token says nothing of another."""
    given = options.model_fields_set
    if "loss" in given and options.loss != scale.loss:
        found, fix = f"the policy was trained with {scale.loss}", "leave it out: a score is what was trained"
        raise InputError(found, where=f"self_reward.loss={options.loss}", fix=fix)
    if "reference" in given and options.reference != "auto" and scale.loss == "mse":
        scale = scale.changed(exact=options.reference == "exact")
    if "token" in given and options.token:
        token, spare = label_tokens(fitted.tokenizer, options.token)
        if token != scale.token and options.ref_constant == "auto" and scale.loss == "mse":
            found = f"c_ref was measured for the token {scale.token}, and {token} is asked for"
            fix = "set self_reward.ref_constant=estimate, or a number"
            raise InputError(found, where="self_reward.token", fix=fix)
        scale = scale.changed(token=token, spare=spare)
    if "beta" in given and options.beta is not None:
        scale = scale.changed(beta=options.beta)
    return scale.changed(correction=options.correction) if "correction" in given else scale


def judge_own(
    fitted: Fitted, scale: Scale, data: Questions, rollouts: Rollout, samples: int, *, seed: int = 0
) -> Judged:
    """Sample completions of every prompt, and read their scores off the same cache.

    Parameters
    ----------
    fitted, scale
        The policy, and what its scores are.
    data
        Prompts and rewards.
    rollouts, samples
        How, and how many of each prompt.
    seed
        Of the sampling.

    Raises
    ------
    InputError
        A prompt does not fit the context, or a reward is refused or no 0 or 1.
    """
    options = rollouts.model_copy(update={"suppress": tuple(sorted({*rollouts.suppress, *scale.suppressed}))})
    found = policies.complete(
        fitted.model,
        fitted.tokenizer,
        data.prompts,
        data.rewards,
        options,
        samples=samples,
        watch=(scale.token,),
        seed=seed,
    )
    return judge_completed(fitted, scale, data, found)


def judge_completed(fitted: Fitted, scale: Scale, data: Questions, found: policies.Completed) -> Judged:
    """Read the scores of completions that were sampled with the label watched.

    Parameters
    ----------
    fitted, scale, data
        As in `judge_own`.
    found
        Completions of the prompts.

    Raises
    ------
    InputError
        A reward is no 0 or 1.
    """
    groups = np.repeat(np.arange(len(data.prompts)), found.rewards.shape[1])
    rewards = found.rewards.ravel()
    odd = np.flatnonzero(~np.isnan(rewards) & (rewards != 0) & (rewards != 1))
    if len(odd):
        where = f"{data.prompts.name}, row {groups[odd[0]] + 1}"
        who = "" if data.rewards is None else f" ({' + '.join(data.rewards.names)})"
        raise InputError(f"the reward{who} is {rewards[odd[0]]:g}", where=where, expected="0 or 1", fix="binarise it")
    finished = found.finished.ravel()
    log_self = found.ends[scale.token].ravel()
    reference = _log_reference(fitted, scale, data, groups, found.ids, finished)
    answers = answers_of(data, groups, found.texts, finished)
    return Judged(
        prompts=[told(data.prompts.prompts[group]) for group in groups],
        groups=groups,
        answers=answers,
        scores=_scores(scale, log_self, reference, answers),
        rewards=rewards,
        finished=finished,
        lengths=found.lengths.ravel(),
        columns={
            "completion": found.texts,
            "log_label": log_self,
            "mean_log_prob": found.mean_log_prob.ravel(),
        },
        free={
            "mean log-probability": found.mean_log_prob.ravel(),
            "shortness": -found.lengths.ravel().astype(float),
            "agreement": _agreement(groups, answers),
        },
    )


def judge_given(fitted: Fitted, scale: Scale, data: Questions, *, name: str = "the completions") -> Judged:
    """Score completions that a table holds, whoever wrote them.

    Parameters
    ----------
    fitted, scale
        The policy that judges, and what its scores are.
    data
        With `given` completions.
    name
        What to call them in a message.

    Raises
    ------
    InputError
        A completion holds the label, or does not fit the context.
    """
    given = data.given
    assert given is not None
    if given.completions is None:
        found, fix = (
            "there are answers and no completions to score",
            "leave --fitted out to vote by the scores that are there",
        )
        raise InputError(found, where=data.prompts.name, expected="a column `completion`", fix=fix)
    tokenizer = fitted.tokenizer
    ids = [
        [*tokenizer.continued(text), *([tokenizer.eos] if ended else [])]
        for text, ended in zip(given.completions, given.finished, strict=True)
    ]
    check_absent(scale.suppressed, ids, name)
    heads = _heads(fitted, data, given)
    log_self = end_log_probs_of(fitted.model, tokenizer, heads, ids, given.finished, scale.token, name=name)
    reference = _log_reference(fitted, scale, data, given.groups, ids, given.finished)
    answers = _answers(data, given)
    lengths = np.array([len(row) for row in ids])
    return Judged(
        prompts=[told(data.prompts.prompts[group]) for group in given.groups],
        groups=given.groups,
        answers=answers,
        scores=_scores(scale, log_self, reference, answers),
        rewards=given.rewards,
        finished=given.finished,
        lengths=lengths,
        columns={"completion": given.completions, "log_label": log_self},
        free={"shortness": -lengths.astype(float), "agreement": _agreement(given.groups, answers)},
    )


def scored_already(data: Questions) -> Judged:
    """Return a table of answers and scores as it is, for votes and calibration without a policy.

    Parameters
    ----------
    data
        With `given` scores.
    """
    given = data.given
    assert given is not None
    assert given.scores is not None
    answers = _answers(data, given)
    return Judged(
        prompts=[told(data.prompts.prompts[group]) for group in given.groups],
        groups=given.groups,
        answers=answers,
        scores=given.scores,
        rewards=given.rewards,
        finished=given.finished,
        columns={} if given.completions is None else {"completion": given.completions},
        free={"agreement": _agreement(given.groups, answers)},
    )


def _answers(data: Questions, given: Given) -> list[str | None]:
    """Return the table's answers, or those in its completions; a completion that was cut gives none."""
    if given.answers is None:
        assert given.completions is not None
        return answers_of(data, given.groups, given.completions, given.finished)
    return [answer if ended else None for answer, ended in zip(given.answers, given.finished, strict=True)]


def _heads(fitted: Fitted, data: Questions, given: Given) -> list[list[int]]:
    tokens, _ = encoded(data.prompts, fitted.tokenizer, None, 2**31)
    return [tokens[group] for group in given.groups]


def _scores(
    scale: Scale, log_self: np.ndarray, log_reference: np.ndarray | None, answers: Sequence[str | None]
) -> Float64[np.ndarray, " rows"]:
    """Return scores; 0 for completions that were cut or give no answer."""
    reference = None if log_reference is None else torch.from_numpy(log_reference)
    raw = scale.scores(torch.from_numpy(np.ascontiguousarray(log_self)), reference).numpy()
    silent = np.array([answer is None for answer in answers])
    found: Float64[np.ndarray, " rows"] = np.where(silent | np.isnan(raw), 0.0, raw)
    return found


def _log_reference(
    fitted: Fitted,
    scale: Scale,
    data: Questions,
    groups: np.ndarray,
    ids: Sequence[Sequence[int]],
    finished: np.ndarray,
) -> Float64[np.ndarray, " rows"] | None:
    if not scale.exact:
        return None
    tokens, _ = encoded(data.prompts, fitted.tokenizer, None, 2**31)
    heads = [tokens[group] for group in groups]
    return end_log_probs_of(fitted.reference, fitted.tokenizer, heads, ids, finished, scale.token)


def _agreement(groups: np.ndarray, answers: Sequence[str | None]) -> Float64[np.ndarray, " rows"]:
    """Return the share of a prompt's completions that give the same answer as each; 0 for one that gives none."""
    counts: dict[tuple[int, str], int] = {}
    for group, answer in zip(groups.tolist(), answers, strict=True):
        if answer is not None:
            counts[group, answer] = counts.get((group, answer), 0) + 1
    sizes = np.bincount(groups)
    return np.array([
        0.0 if answer is None else counts[group, answer] / sizes[group]
        for group, answer in zip(groups.tolist(), answers, strict=True)
    ])  # fmt: skip
