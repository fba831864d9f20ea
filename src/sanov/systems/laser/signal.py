"""LaSeR as a signal of `learning.policy`: the policy's own score joins the loss, and later the advantages."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.data.prompts import Prompts
from sanov.learning.policy import Advantages, Signal, Step
from sanov.learning.processes import every_process, place
from sanov.learning.rollouts import Rollout, Rollouts, Tokenizer
from sanov.nets.reads import Read
from sanov.systems.laser.calibration import verdicts
from sanov.systems.laser.losses import class_weights, label_losses, mixed_advantages, squared_errors
from sanov.systems.laser.scale import ROUGH, LossKind, Measured, Scale, check_rule, measure, usual_beta
from sanov.systems.laser.scoring import end_log_probs
from sanov.systems.laser.tokens import check_unseen, label_tokens

__all__ = ["Labels", "SelfReward", "SelfRewardSignal", "permuted_labels"]

COMPONENT = "self_reward"
EMBEDDED = {"beta": 0.25, "reasoning_warmup_steps": 0, "warmup_steps": 50}  # a vocabulary of 32: c_ref is some -10
PAPER = {"beta": 0.1, "reasoning_warmup_steps": 200, "warmup_steps": 200}
# Largest share of the steps that one warm-up of those takes. The released scripts have 200 of some 1,600: two epochs of
# 103 thousand prompts, 128 a step.
EMBEDDED_SHARE, PAPER_SHARE = 1 / 2, 1 / 8

Labels = Callable[[Bool[Tensor, " rows"], Bool[Tensor, " rows"], int], Bool[Tensor, " rows"]]


class SelfReward(Options):
    """How the policy's score of its own answers is trained, and used in training."""

    token: str = option("", "Label z_c: name or id of a token; empty for the first reserved one.", source="paper")
    beta: float | None = option(
        None,
        "beta_v; none: 0.1 (0.25 with the embedded tasks' tokenizer), or what c_ref needs where that is larger.",
        source="paper; choice",
        gt=0,
    )
    alpha: float = option(0.1, "Weight of the loss.", source="paper", ge=0)
    tau: float = option(0.1, "Share of the score's advantage; 0 leaves advantages alone.", source="paper", ge=0, le=1)
    std_threshold: float = option(
        0.1, "Least standard deviation of a group's scores that changes advantages.", source="paper", ge=0
    )
    reference: Literal["auto", "constant", "exact"] = option(
        "auto", "c_ref, or the policy at its start; auto: c_ref if its std * beta is at most 0.1.", source="choice"
    )
    ref_constant: float | Literal["auto", "estimate"] = option(
        "auto", "c_ref; auto: measured by fit; estimate: apply measures it anew.", source="paper: mean of about 300"
    )
    correction: bool = option(False, "Add beta log Z to scores, for a c_ref near 0.", source="choice: off is the paper")
    balanced: bool = option(True, "Right and wrong answers weigh the same.", source="paper; released scripts")
    reasoning_warmup_steps: int | None = option(
        None,
        "Steps before the loss; none: 200, at most an eighth of the steps, or 0 with the embedded tokenizer.",
        source="paper; share: released code",
        ge=0,
    )
    warmup_steps: int | None = option(
        None,
        "Steps more before advantages; none: 200, at most an eighth (50, at most half, with the embedded one).",
        source="released code; choice",
        ge=0,
    )
    loss: LossKind = option("mse", "bce: cross-entropy of two label tokens, a baseline.", source="paper; released code")

    def resolved(self, tokenizer: Tokenizer, steps: int | None = None) -> SelfReward:
        """Return it with a number for every none: those of the embedded tasks with their tokenizer, else the paper's.

        Parameters
        ----------
        tokenizer
            Of the policy.
        steps
            Updates of the training, of which a warm-up that is not given takes a share at most; None for any number.
        """
        usual, share = (EMBEDDED, EMBEDDED_SHARE) if hasattr(tokenizer, "reserved") else (PAPER, PAPER_SHARE)
        missing = {name: value for name, value in usual.items() if getattr(self, name) is None}
        for name in missing.keys() & {"reasoning_warmup_steps", "warmup_steps"} if steps is not None else ():
            missing[name] = min(int(missing[name]), int(share * (steps or 0)))
        return self.model_copy(update=missing)

    def check_steps(self, steps: int) -> None:
        """Refuse warm-ups after which nothing is left of a training.

        Parameters
        ----------
        steps
            Updates of the training.

        Raises
        ------
        InputError
            With the warm-up, and the steps.
        """
        first, more = self.reasoning_warmup_steps, self.warmup_steps
        if self.alpha > 0 and first is not None and first >= steps:
            fix = "shorten it, leave it out for a share of the steps, or train longer"
            found = f"the score would never be trained: its loss begins after {first} steps, and there are {steps}"
            raise InputError(found, where="self_reward.reasoning_warmup_steps", expected=f"less than {steps}", fix=fix)
        both = (first or 0) + (more or 0)
        if self.tau > 0 and more is not None and both >= steps:
            fix = "shorten it, leave it out for a share of the steps, or set self_reward.tau=0"
            found = f"the score would never change advantages: it does after {both} steps, and there are {steps}"
            raise InputError(found, where="self_reward.warmup_steps", expected=f"less than {steps} in all", fix=fix)

    @property
    def active(self) -> bool:
        """Whether anything is added to GRPO."""
        return self.alpha > 0 or self.tau > 0


def permuted_labels(seed: int) -> Labels:
    """Return a hook that permutes right and wrong among the rows that count: the negative control of the loss.

    Parameters
    ----------
    seed
        Of the permutations, with the step.
    """

    def permute(right: Tensor, counted: Tensor, step: int) -> Tensor:
        rows = torch.nonzero(counted).flatten()
        order = np.random.default_rng([seed, step]).permutation(len(rows))
        found = right.clone()
        found[rows] = right[rows[torch.from_numpy(order).to(rows.device)]]
        return found

    return permute


class SelfRewardSignal(Signal):
    """What LaSeR adds to GRPO.

    Parameters
    ----------
    options
        See `SelfReward`.
    seed
        Of the completions over which c_ref is measured.
    keep
        Called with the reference, where one is taken, before the first step.
    labels
        For experiments alone: changes what the loss takes for right; see `permuted_labels`. Metrics and advantages are
        not changed.

    Attributes
    ----------
    scale
        What turns log-probabilities into scores; there once training has begun.
    reference
        The policy at its start, where the scale is exact.
    """

    def __init__(
        self,
        options: SelfReward | None = None,
        *,
        seed: int = 0,
        keep: Callable[[nn.Module], None] | None = None,
        labels: Labels | None = None,
    ):
        self.options, self.seed, self.keep, self.labels = options or SelfReward(), seed, keep, labels
        self.scale: Scale | None = None
        self.reference: nn.Module | None = None
        self.group_size = 1

    @property
    def components(self) -> tuple[str, ...]:  # type: ignore[override]
        """The loss, where it has a weight."""
        return (COMPONENT,) if self.options.alpha > 0 else ()

    # -- before the first step ----------------------------------------------------------------------------------------

    def begin(self, policy: nn.Module, tokenizer: Tokenizer, prompts: Prompts, options: Rollout) -> Mapping[str, Any]:
        """Choose and check the label, measure c_ref, and see whether beta goes with it."""
        free = self.options.beta is None and not self.options.correction
        if self.steps is not None:
            self.options.check_steps(self.steps)
        own = self.options = self.options.resolved(tokenizer, self.steps)
        if options.group_size < 2 and own.tau > 0:
            found, fix = "SWA needs at least 2 completions per prompt", "set self_reward.tau=0, or larger groups"
            raise InputError(found, where="rollouts.group_size", fix=fix)
        token, spare = label_tokens(tokenizer, own.token, needs_spare=own.loss == "bce", prompts=prompts)
        self.suppressed = (token,) if spare is None else (token, spare)
        self.watched, self.group_size = (token,) if own.active else (), options.group_size
        check_unseen(tokenizer, self.suppressed if own.loss == "bce" else (token,), prompts)
        assert own.beta is not None
        scale, notes = Scale(token, spare, own.loss, own.beta, None, correction=own.correction), []
        if own.loss == "mse":
            suppress = tuple(sorted({*options.suppress, *self.suppressed}))
            sampling = options.model_copy(update={"suppress": suppress})
            scale, verdict = self._referred(scale, self._c_ref(policy, tokenizer, prompts, sampling, token), free)
            notes.append(verdict)
        self.scale = scale
        if scale.exact:
            self.reference = copy.deepcopy(policy).eval().requires_grad_(False)
            if self.keep is not None and place()[0] == 0:
                self.keep(self.reference)
            every_process(None)
        measured = {"c_ref": scale.constant, "c_ref_std": scale.std}
        told = {name: value for name, value in measured.items() if value is not None}
        return {COMPONENT: scale.to_dict(), **told, "notes": notes}

    def _c_ref(
        self, policy: nn.Module, tokenizer: Tokenizer, prompts: Prompts, sampling: Rollout, token: int
    ) -> Measured:
        if not isinstance(self.options.ref_constant, str):
            return Measured(self.options.ref_constant, None, 0)
        found = measure(policy, tokenizer, prompts, sampling, token, seed=self.seed)
        return every_process(found)[0]  # theirs may have begun with other weights than the first one's

    def _referred(self, scale: Scale, found: Measured, free: bool) -> tuple[Scale, str]:
        """Return the scale with its reference, and whether the two go together; beta is ours to choose if it is free."""
        own = self.options
        beta = usual_beta(scale.beta, found.mean) if free else scale.beta
        rough = found.std is not None and found.std * beta > ROUGH
        exact = own.reference == "exact" or (own.reference == "auto" and rough)
        verdict = check_rule(found, beta, exact=exact, correction=own.correction)
        return scale.changed(beta=beta, constant=found.mean, std=found.std, samples=found.samples, exact=exact), verdict

    # -- before the update --------------------------------------------------------------------------------------------

    def score(self, rollouts: Rollouts, step: int, model: nn.Module) -> None:
        """Read the score of each completion, and weigh right and wrong ones over the whole step."""
        right, known = self._right(rollouts)
        if not self.options.active:
            return
        assert self.scale is not None
        counted = rollouts.finished & known
        log_self, log_reference = self._log_self(rollouts, model), self._log_reference(rollouts)
        scores = self.scale.scores(log_self, log_reference)
        taught = right if self.labels is None else self.labels(right, counted, step)
        own = (int((counted & taught).sum()), int((counted & ~taught).sum()))
        n_right, n_wrong = map(sum, zip(*every_process(own), strict=True))
        weights = class_weights(taught, counted, n_right, n_wrong, balanced=self.options.balanced)
        rollouts.rows |= {
            "self_reward": scores,
            "self_reward_weight": weights * self.trains(step),
            "self_reward_right": taught,
            "self_reward_reference": log_reference,
        }
        error = squared_errors(scores.double(), taught, weights).sum()
        rollouts.metrics |= self._described(log_self, log_reference, scores, right, counted, rollouts.finished, error)

    def trains(self, step: int) -> bool:
        """Whether the loss counts at a step; the step after `step` updates has the number step + 1."""
        return self.options.alpha > 0 and step + 1 > (self.options.reasoning_warmup_steps or 0)

    def mixes(self, step: int) -> bool:
        """Whether the score's advantage is mixed in."""
        begin = (self.options.reasoning_warmup_steps or 0) + (self.options.warmup_steps or 0)
        return self.options.tau > 0 and step + 1 > begin

    def _right(self, rollouts: Rollouts) -> tuple[Bool[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """Return which rows are right, and of which that is known."""
        known = ~torch.isnan(rollouts.rewards)
        odd = known & (rollouts.rewards != 0) & (rollouts.rewards != 1)
        if self.options.active and odd.any():
            row = int(torch.nonzero(odd)[0])
            who = f" ({' + '.join(rollouts.names)})" if rollouts.names else ""
            found = f"the reward{who} is {float(rollouts.rewards[row])}"
            fix = "binarise before self-reward training"
            raise InputError(found, where=f"completion {row + 1}", expected="0 or 1", fix=fix)
        return rollouts.rewards == 1, known

    def _log_self(self, rollouts: Rollouts, model: nn.Module) -> Float[Tensor, " rows"]:
        """Return what the sampler read off its cache; where it cannot, what a pass of the policy says."""
        assert self.scale is not None
        found = rollouts.ends.get(self.scale.token)
        if found is None:
            found = end_log_probs(model, rollouts.ids, rollouts.lengths, rollouts.finished, self.scale.token)
        return found.to(rollouts.ids.device)

    def _log_reference(self, rollouts: Rollouts) -> Float[Tensor, " rows"]:
        assert self.scale is not None
        if self.reference is None:
            value = 0.0 if self.scale.constant is None else self.scale.constant
            return torch.full((len(rollouts),), value, device=rollouts.ids.device)
        reference = self.reference.to(rollouts.ids.device)
        return end_log_probs(reference, rollouts.ids, rollouts.lengths, rollouts.finished, self.scale.token)

    def _described(
        self,
        log_self: Tensor,
        log_reference: Tensor,
        scores: Tensor,
        right: Tensor,
        counted: Tensor,
        finished: Tensor,
        error: Tensor,
    ) -> dict[str, float]:
        """Return how well the score does over all processes; what is not defined is left out."""
        assert self.scale is not None
        drift = (log_reference if self.scale.exact else log_self) - (self.scale.constant or 0.0)
        own = torch.stack([part[counted].double() for part in (scores, right, drift)]).cpu().numpy()
        rows, cuts, sums = zip(*every_process((own, float((~finished).sum()), float(error))), strict=True)
        score, outcome, drifts = np.concatenate(rows, axis=1)
        outcome, cut, errors = outcome.astype(bool), sum(cuts), sum(sums)
        found = verdicts(score, outcome)
        found["mse"] = errors / len(score) if len(score) else 0.0
        moved = drifts if self.scale.exact else drifts[~outcome]
        found["c_ref_drift"] = float(moved.mean()) if len(moved) and self.scale.loss == "mse" else float("nan")
        found["unfinished"] = cut
        del found["brier"]
        return {f"self_reward/{name}": value for name, value in found.items() if value == value}

    def advantages(self, rollouts: Rollouts, step: int) -> None:
        """Mix in the advantages of scores, once the score has been trained for a while."""
        mixes = self.mixes(step)
        if self.options.active:
            rollouts.metrics["swa/active"] = float(mixes)
        if not mixes:
            return
        mixed, filtered = mixed_advantages(
            rollouts.advantages,
            rollouts.rows["self_reward"],
            rollouts.finished,
            self.group_size,
            self.options.tau,
            self.options.std_threshold,
        )
        unknown = torch.isnan(rollouts.rewards)  # what no reward applies to is not learned from
        rows = unknown if mixed.ndim == 1 else unknown[:, None]
        rollouts.advantages = torch.where(rows, rollouts.advantages, mixed)
        left, groups = zip(*every_process((float(filtered.sum()), len(filtered))), strict=True)
        rollouts.metrics["swa/filtered_frac"] = sum(left) / max(sum(groups), 1)

    # -- the objective ------------------------------------------------------------------------------------------------

    def counts(self, rollouts: Rollouts, step: int) -> Mapping[str, float]:
        """Return the finished rows whose reward is known: by them the loss is divided."""
        if self.options.alpha == 0:
            return {}
        return {COMPONENT: float((rollouts.rows["self_reward_weight"] > 0).sum())}

    def learns(self, rollouts: Rollouts, step: int) -> Bool[Tensor, " rows"] | None:
        """Return those rows."""
        return rollouts.rows["self_reward_weight"] > 0 if self.trains(step) else None

    def reads(self, batch: Step) -> Mapping[str, Read]:
        """Read the label at EOS, at temperature 1 whatever completions were sampled at."""
        at = self._places(batch)
        if at is None:
            return {}
        assert self.scale is not None
        tokens = torch.full((int(at.sum()),), self.scale.token, device=at.device)
        if self.scale.loss == "bce":
            assert self.scale.spare is not None
            right = batch.rows["self_reward_right"][at.any(dim=1)]
            tokens = torch.where(right, tokens, self.scale.spare)
        return {COMPONENT: Read(at, tokens)}

    def _places(self, batch: Step) -> Bool[Tensor, "rows tokens"] | None:
        """Return where the label is read; None if nowhere."""
        weights = batch.rows.get("self_reward_weight")
        if weights is None or self.options.alpha == 0:
            return None
        at = batch.last & (weights > 0)[:, None]
        return at if bool(at.any()) else None

    def terms(self, found: Advantages, reads: Mapping[str, Tensor], batch: Step) -> Mapping[str, tuple[Tensor, Any]]:
        """Return the sum of the loss over rows, and alpha."""
        if self.options.alpha == 0:
            return {}
        if COMPONENT not in reads:
            return {COMPONENT: (found.log_new.sum() * 0, self.options.alpha)}
        assert self.scale is not None
        rows = batch.rows["self_reward_weight"] > 0
        weights, right = batch.rows["self_reward_weight"][rows], batch.rows["self_reward_right"][rows]
        if self.scale.loss == "bce":
            values = label_losses(reads[COMPONENT], weights)
        else:
            reference = batch.rows["self_reward_reference"][rows].to(reads[COMPONENT].dtype)
            values = squared_errors(self.scale.scores(reads[COMPONENT], reference), right, weights)
        return {COMPONENT: (values.sum(), self.options.alpha)}
