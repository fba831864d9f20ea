"""KDRL as a signal of `learning.policy`: the teacher is asked about the completions, and its answer joins the rewards."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sanov.core.errors import InputError, SanovWarning
from sanov.core.options import Options, option
from sanov.data.prompts import Prompts
from sanov.estimators import k1, k2, k3
from sanov.learning.policy import Advantages, Signal, Step
from sanov.learning.processes import every_process
from sanov.learning.rollouts import Rollout, Rollouts, Tokenizer
from sanov.learning.token_teachers import LocalTeacher, TokenTeacher, check_tokenizers
from sanov.nets.reads import Read
from sanov.systems.kdrl.losses import (
    LARGEST,
    Combine,
    Denominator,
    Estimator,
    Mask,
    Schedule,
    coefficient,
    distillation_mask,
    distillation_values,
    exact_values,
    refuse_k1,
    return_to_go,
    token_advantages,
)

__all__ = ["Distillation", "KdSignal", "Mixing"]

KD = "kd"
LARGEST_EXACT = 4096  # tokens of a vocabulary beyond which the exact divergence is refused
SURFACES = ("advantage", "opd", "opd_then_rl", "srpo", "hdpo", "rlsd", "trrd")  # all in the surrogate
EVERYWHERE = ("opd", "opd_then_rl", "rlsd", "trrd")  # ways that ask the teacher about every completion
COLLAPSED = 0.1  # share of the first step's entropy below which the policy has collapsed


class Distillation(Options):
    """How the teacher enters."""

    combine: Combine = option(
        "loss", "How reward and teacher are combined; grpo and sft leave one of them out.", source="xu2025kdrl"
    )
    beta: float = option(5e-3, "Coefficient beta at the start.", source="xu2025kdrl, sec. 3.3", ge=0)
    schedule: Schedule = option("linear", "Shape of its way to `beta_end`.", source="xu2025kdrl; others: choice")
    beta_end: float = option(1e-3, "Its value at the end of the way.", source="xu2025kdrl, sec. 3.3", ge=0)
    beta_decay: float | None = option(
        None, "What a step of a linear way takes away; none for 5e-5.", source="xu2025kdrl, sec. 3.3", ge=0
    )
    anneal_share: float | None = option(
        None, "Share of the steps after which the end is reached, instead of a decay.", source="choice", gt=0, le=1
    )
    estimator: Estimator = option("k2", "Estimator of the reverse KL as a loss.", source="xu2025kdrl, App. A.3")
    mask: Mask = option(
        "none", "Distil all completions, wrong ones, or prompts without a right one.", source="xu2025kdrl, sec. 3.4"
    )
    denominator: Denominator = option(
        "all_tokens", "What the sum is divided by: all tokens of the step, or those distilled.", source="choice"
    )
    mask_eos: bool | None = option(
        None, "Leave EOS out; none where the teacher's is another.", source="arXiv 2609.04108, App. A.2"
    )
    clip: float | None = option(None, "Largest factor of grad log pi in nats; none for any.", source="choice", gt=0)
    discount: float = option(0.0, "Of later tokens' teacher rewards; only in advantages.", source="choice", ge=0, le=1)


class Mixing(Options):
    """Constants of the other ways to combine."""

    rl_weight: float = option(1.0, "Weight of GRPO's advantages; 0 distils alone.", source="choice", ge=0)
    opd_steps: int = option(60, "opd_then_rl: steps of distillation.", source="arXiv 2609.04108", ge=0)
    rlsd_lambda: float = option(0.5, "rlsd: share of the teacher's factor.", source="choice", ge=0, le=1)
    rlsd_epsilon: float = option(0.2, "rlsd: how far it may leave 1.", source="choice", gt=0, lt=1)
    trrd_alpha: float = option(0.5, "trrd: exponent of the ratio to the old policy.", source="choice", ge=0, le=1)


class KdSignal(Signal):
    """What KDRL adds to GRPO.

    Parameters
    ----------
    teacher
        Who says how likely sampled tokens are; None where nobody is asked.
    kd, mixing
        Options.
    steps
        Length of the run, for the coefficient.

    Raises
    ------
    InputError
        Options that exclude one another, or a teacher is missing.
    """

    def __init__(self, teacher: TokenTeacher | None, kd: Distillation, mixing: Mixing, *, steps: int):
        _check(kd, teacher)
        self.teacher, self.kd, self.mixing = teacher, kd, mixing
        decay, share = kd.beta_decay, kd.anneal_share
        if kd.schedule == "linear" and decay is None and share is None:
            decay = 5e-5
        self.beta = coefficient(kd.schedule, kd.beta, kd.beta_end, steps, decay=decay, share=share)
        self.temperature, self.mask_eos, self.group_size = 1.0, bool(kd.mask_eos), 1
        self.entropy: float | None = None  # of the first step seen; infinite once its fall was told

    @property
    def follows_steps(self) -> bool:
        """Whether the coefficient's way depends on how many steps there are."""
        kd = self.kd
        uses = kd.combine in ("loss", "advantage", "reward", "hdpo") and kd.beta != kd.beta_end
        return uses and kd.schedule != "constant" and (kd.schedule != "linear" or kd.anneal_share is not None)

    @property
    def components(self) -> tuple[str, ...]:  # type: ignore[override]
        """The loss's own component, where there is one."""
        return (KD,) if self.kd.combine == "loss" else ()

    def begin(self, policy: nn.Module, tokenizer: Tokenizer, prompts: Prompts, options: Rollout) -> Mapping[str, Any]:
        """Compare tokenizers, and see that the teacher is not what is trained."""
        self.temperature, self.group_size = options.temperature, options.group_size
        other = None if self.teacher is None else self.teacher.tokenizer
        if other is not None:
            check_tokenizers(tokenizer, other)
            self._choose_eos(tokenizer.eos, other.eos)
        compare = getattr(self.teacher, "compare", None)
        if compare is not None:  # its tokenizer is elsewhere
            compare(tokenizer, prompts)
        if isinstance(self.teacher, LocalTeacher):
            ours = {id(weight) for weight in policy.parameters() if weight.requires_grad}
            shared = [name for name, weight in self.teacher.model.named_parameters() if id(weight) in ours]
            if shared:
                fix = "give the teacher weights of its own"
                raise InputError(f"the teacher would be trained too: {', '.join(shared[:3])}", where="teacher", fix=fix)
        if self.kd.estimator == "exact" and self.teacher is not None:
            self._check_exact(policy, tokenizer, options)
        return {"mask_eos": self.mask_eos}

    def _check_exact(self, policy: nn.Module, tokenizer: Tokenizer, options: Rollout) -> None:
        if not isinstance(self.teacher, LocalTeacher):
            raise InputError("the teacher gives sampled tokens alone", where="kd.estimator", fix="use k2")
        if tokenizer.vocabulary > LARGEST_EXACT:
            size = options.prompts_per_step * options.group_size * (options.max_completion_length or 512)
            found = (
                f"a vocabulary of {tokenizer.vocabulary} needs up to {size * tokenizer.vocabulary * 4 / 2**20:,.0f} MiB"
            )
            raise InputError(found, where="kd.estimator", expected=f"at most {LARGEST_EXACT} tokens", fix="use k2")
        ours, theirs = (getattr(model, "vocabulary", None) for model in (policy, self.teacher.model))
        if ours != theirs:
            found = f"the policy has {ours} logits and the teacher {theirs}, unused ones included"
            raise InputError(found, where="kd.estimator", expected="as many", fix="use k2")

    def _choose_eos(self, ours: int, theirs: int) -> None:
        if ours == theirs:
            return
        if self.kd.mask_eos is None:
            self.mask_eos = True
        elif not self.kd.mask_eos:
            text = f"the policy ends with the token {ours} and the teacher with {theirs}: the policy's EOS will look"
            warnings.warn(
                f"{text} wrong to the teacher at every end; kd.mask_eos=true leaves it out", SanovWarning, stacklevel=4
            )

    # -- before the update --------------------------------------------------------------------------------------------

    def score(self, rollouts: Rollouts, step: int, model: nn.Module) -> None:
        """Ask the teacher about the completions that are distilled at this step."""
        self._check_rewards(rollouts)
        mask = self._mask(rollouts, step)
        rollouts.tokens["kd_mask"] = mask
        rows = torch.nonzero(mask.any(dim=1)).flatten()
        log_teacher = torch.zeros_like(rollouts.log_probs)
        if len(rows) and self.teacher is not None:
            log_teacher[rows] = self._ask(rollouts, rows)
        rollouts.tokens["log_teacher"] = log_teacher
        if self.kd.combine == "reward":
            shift = torch.where(mask, log_teacher - rollouts.log_probs, 0.0).sum(dim=1)
            rollouts.shaped = rollouts.rewards + self.beta(step) * shift.to(rollouts.rewards.dtype)
        rollouts.metrics |= self._described(rollouts, mask, log_teacher, step)

    def _ask(self, rollouts: Rollouts, rows: Tensor) -> Tensor:
        assert self.teacher is not None
        if self.kd.combine == "loss" and self.kd.estimator == "exact":
            assert isinstance(self.teacher, LocalTeacher)
            logits = self.teacher.logits(rollouts, rows, self.temperature)
            shape = (*rollouts.ids.shape, logits.shape[-1])
            whole = torch.zeros(shape, dtype=logits.dtype, device=logits.device)
            whole[rows] = logits
            rollouts.tokens["teacher_logits"] = whole
            found = logits.gather(-1, rollouts.ids[rows].unsqueeze(-1)).squeeze(-1).to(rollouts.log_probs.dtype)
        else:
            found = self.teacher.log_probs(rollouts, rows, self.temperature).to(rollouts.log_probs.dtype)
        bad = ~torch.isfinite(found) & rollouts.tokens["kd_mask"][rows]
        if bad.any():
            row, token = (int(place) for place in torch.nonzero(bad)[0])
            number = int(rollouts.ids[rows[row], token])
            text = f"the teacher's log-probability of token {number} is {float(found[row, token])}"
            fix = "mask EOS (kd.mask_eos=true), or sample without that token (rollouts.suppress)"
            raise InputError(text, where=f"completion {int(rows[row]) + 1}, position {token + 1}", fix=fix)
        return found

    def _mask(self, rollouts: Rollouts, step: int) -> Bool[Tensor, "rows width"]:
        """Return the tokens about which the teacher is asked."""
        last = rollouts.last if self.mask_eos else None
        kind: Mask = self.kd.mask
        if self.kd.combine == "hdpo":
            kind = "group"
        elif self.kd.combine == "srpo":
            kind = "response"
        elif self.kd.combine in EVERYWHERE:
            kind = "none"
        if not self._asks(step):
            return torch.zeros_like(rollouts.completion)
        return distillation_mask(kind, rollouts.completion, rollouts.rewards, self.group_size, last)

    def _asks(self, step: int) -> bool:
        combine = self.kd.combine
        if combine in ("loss", "advantage", "reward", "hdpo"):
            return self.beta(step) > 0
        if combine == "opd_then_rl":
            return step < self.mixing.opd_steps
        return combine in ("opd", "srpo", "rlsd", "trrd")

    def _check_rewards(self, rollouts: Rollouts) -> None:
        if self.kd.mask == "none" and self.kd.combine not in ("srpo", "hdpo"):
            return
        odd = [value for value in rollouts.rewards.tolist() if value == value and value not in (0.0, 1.0)]
        if odd:
            fix = "masks need the binary outcome reward: give rewards of 0 and 1"
            who = f" ({' + '.join(rollouts.names)})" if rollouts.names else ""
            raise InputError(f"a reward{who} is {odd[0]}", where="kd.mask", expected="0 or 1", fix=fix)

    def _described(self, rollouts: Rollouts, mask: Tensor, log_teacher: Tensor, step: int) -> dict[str, float]:
        """Return the gap to the teacher over all processes, of right and of wrong completions too."""
        gap = (rollouts.log_probs - log_teacher)[mask]
        right = (rollouts.rewards > 0)[:, None].expand_as(mask)[mask]
        held = gap.clamp(-LARGEST, LARGEST)
        clipped = (gap.abs() > self.kd.clip).sum() if self.kd.clip else gap.new_zeros(())
        own = torch.stack([
            values.double().sum()
            for values in (k1(gap), k2(gap), k3(held), log_teacher[mask], gap[right], gap[~right],
                           right, ~right, mask, rollouts.completion, clipped, rollouts.log_probs)
        ])  # fmt: skip
        sums = torch.stack([values.cpu() for values in every_process(own)]).sum(dim=0).tolist()
        first, second, third, log_q, gap_right, gap_wrong, n_right, n_wrong, masked, tokens, cut, log_p = sums
        self._tell_collapse(-log_p / max(tokens, 1), step)
        found = {"kd/beta": self.beta(step), "kd/mask_frac": masked / max(tokens, 1)}
        if masked:
            found |= {"kd/k1": first / masked, "kd/k2": second / masked, "kd/k3": third / masked}
            found |= {"kd/teacher_logp": log_q / masked, "kd/clip_frac": cut / masked}
            found |= {"kd/k1_right": gap_right / n_right} if n_right else {}
            found |= {"kd/k1_wrong": gap_wrong / n_wrong} if n_wrong else {}
        return found

    def _tell_collapse(self, entropy: float, step: int) -> None:
        if self.entropy is None:
            self.entropy = entropy
        elif entropy < COLLAPSED * self.entropy < math.inf:
            text = (
                f"step {step + 1}: the entropy fell from {self.entropy:.3g} to {entropy:.3g} nats: the policy collapses"
            )
            warnings.warn(f"{text}; let kd.beta fall, or lower the learning rate", SanovWarning, stacklevel=4)
            self.entropy = math.inf

    # -- the objective ------------------------------------------------------------------------------------------------

    def advantages(self, rollouts: Rollouts, step: int) -> None:
        """Weigh GRPO's advantages."""
        rollouts.advantages = rollouts.advantages * self.mixing.rl_weight

    def counts(self, rollouts: Rollouts, step: int) -> Mapping[str, float]:
        """Return the tokens that the component is divided by."""
        if self.kd.combine != "loss":
            return {}
        which = rollouts.completion if self.kd.denominator == "all_tokens" else rollouts.tokens["kd_mask"]
        return {KD: float(which.sum())}

    def learns(self, rollouts: Rollouts, step: int) -> Bool[Tensor, " rows"] | None:
        """Return the rows about which the teacher says something."""
        if self.kd.combine in ("reward", "grpo", "rlsd", "trrd") or not self._asks(step):
            return None
        return rollouts.tokens["kd_mask"].any(dim=1)

    def reads(self, batch: Step) -> Mapping[str, Read]:
        """Return the logits of the whole vocabulary, for the exact divergence."""
        if self.kd.combine == "loss" and self.kd.estimator == "exact" and "teacher_logits" in batch.tokens:
            return {KD: Read(batch.before, None)}
        return {}

    def adjust(self, found: Advantages, batch: Step) -> Advantages:
        """Put the teacher's reward into advantages or ratio, where the way is one surrogate."""
        combine, mixing = self.kd.combine, self.mixing
        if combine not in SURFACES or not self._asks(batch.step):
            return found
        log_teacher, mask = batch.tokens["log_teacher"], batch.tokens["kd_mask"]
        if combine == "trrd":
            old = mixing.trrd_alpha * found.log_old + (1 - mixing.trrd_alpha) * log_teacher
            return Advantages(found.values, found.log_new, torch.where(mask, old, found.log_old))
        reward = torch.where(mask, log_teacher - found.log_old, 0.0)
        if self.kd.clip is not None:
            reward = reward.clamp(-self.kd.clip, self.kd.clip)
        values = token_advantages(
            combine,
            found.values,
            return_to_go(reward, self.kd.discount),
            mask if self.kd.discount == 0 else batch.completion,
            batch.rewards > 0,
            self.beta(batch.step),
            step=batch.step,
            opd_steps=mixing.opd_steps,
            rlsd_lambda=mixing.rlsd_lambda,
            rlsd_epsilon=mixing.rlsd_epsilon,
        )
        return Advantages(values, found.log_new, found.log_old)

    def terms(self, found: Advantages, reads: Mapping[str, Tensor], batch: Step) -> Mapping[str, tuple[Tensor, Any]]:
        """Return the sum of the estimator over the distilled tokens, and beta."""
        if self.kd.combine != "loss":
            return {}
        return {KD: (self._values(found, reads, batch).sum(), self.beta(batch.step))}

    def _values(self, found: Advantages, reads: Mapping[str, Tensor], batch: Step) -> Float[Tensor, ...]:
        mask = batch.tokens["kd_mask"]
        if self.kd.estimator == "exact":
            if KD not in reads:
                return found.log_new.sum() * 0
            values = exact_values(reads[KD], batch.tokens["teacher_logits"][batch.completion], self.temperature)
            return values * mask[batch.completion]
        return distillation_values(
            found.log_new,
            batch.tokens["log_teacher"],
            mask,
            self.kd.estimator,
            log_old=found.log_old,
            clip=self.kd.clip,
        )


def _check(kd: Distillation, teacher: TokenTeacher | None) -> None:
    if kd.combine == "loss":
        refuse_k1(kd.estimator)
    _check_used(kd)
    if kd.beta_end > kd.beta and kd.schedule != "constant":
        found = f"it is {kd.beta_end}, above kd.beta = {kd.beta}"
        raise InputError(
            found, where="kd.beta_end", expected="at most kd.beta", fix="kd.schedule=constant, or lower it"
        )
    if kd.beta_decay is not None and kd.anneal_share is not None:
        raise InputError("kd.beta_decay and kd.anneal_share are both given", where="kd", fix="set one of the two")
    if kd.beta_decay is not None and kd.schedule != "linear":
        raise InputError(f"the schedule is {kd.schedule}", where="kd.beta_decay", expected="kd.schedule=linear")
    if kd.discount > 0 and kd.combine not in ("advantage", "opd", "opd_then_rl", "srpo", "hdpo"):
        found = f"the teacher enters by combine={kd.combine}"
        fix = "return-to-go exists only in the advantage form: kd.combine=advantage"
        raise InputError(found, where="kd.discount", expected="0", fix=fix)
    if kd.denominator == "masked_tokens" and kd.combine != "loss":
        raise InputError(f"combine={kd.combine} has no sum of its own", where="kd.denominator", expected="all_tokens")
    needs = kd.combine not in ("grpo", "sft") and not (
        kd.combine in ("loss", "advantage", "reward", "hdpo") and kd.beta == 0
    )
    if needs and teacher is None:
        fix = "teacher=DIR, teacher=URL, or kd.combine=grpo"
        raise InputError(
            "kd.beta > 0 needs a teacher" if kd.beta > 0 else f"combine={kd.combine} needs a teacher",
            where="teacher",
            fix=fix,
        )


def _check_used(kd: Distillation) -> None:
    """Refuse what a way to combine would leave aside; grpo and sft leave the teacher aside as a whole."""
    if kd.combine in ("grpo", "sft"):
        return
    if kd.mask != "none" and kd.combine not in ("loss", "advantage", "reward"):
        found = f"combine={kd.combine} says by itself which completions are distilled"
        raise InputError(found, where="kd.mask", expected="none")
    if kd.estimator not in ("k1", "k2") and kd.combine != "loss":
        raise InputError(f"combine={kd.combine} has no loss of its own", where="kd.estimator", expected="k1 or k2")
    if kd.clip is not None and (kd.combine in ("reward", "trrd") or kd.estimator == "exact"):
        way = "estimator=exact" if kd.estimator == "exact" else f"combine={kd.combine}"
        raise InputError(f"{way} has no factor to clip", where="kd.clip", expected="none")
