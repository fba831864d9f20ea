"""What is put before TRL's ``GRPOTrainer``: the hooks by which signals see completions and change the loss."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sanov.bridges.trl_batches import NONE, carried, counts_of, label_tokens, rollouts_of, step_of, with_labels
from sanov.bridges.trl_checks import PIP, check_arguments, check_batch, check_trainer
from sanov.core import files
from sanov.core.errors import InputError
from sanov.data.prompts import Prompts
from sanov.learning.policy import Advantages, Grpo, Signal, Step, advantages_of
from sanov.learning.processes import every_process, place
from sanov.learning.rollouts import Rollout, Rollouts
from sanov.nets.foreign_causal import ForeignCausal
from sanov.nets.vocabulary import Vocabulary
from sanov.systems import find

__all__ = ["Maker", "Signalled"]

EPSILON = 1e-4  # that TRL adds to a standard deviation of rewards
NOTED = "sanov_signals.json"
FORBIDDEN = -100  # vLLM's least bias of a logit
FEW = 1000  # prompts that are taken of a stream

Maker = Callable[[int], Signal]


class Signalled:
    """The hooks. Annotated below are the attributes of TRL and transformers that they use.

    ``given`` are the signals, or what makes them; ``peer`` is TRL's own class.
    """

    given: ClassVar[tuple[Signal | Maker, ...]]
    peer: ClassVar[Any]
    args: Any
    state: Any
    accelerator: Any
    model: Any
    train_dataset: Any
    processing_class: Any
    generation_config: Any
    generation_kwargs: dict[str, Any]
    eos_token_ids: list[int]
    reward_weights: Tensor
    temperature: float
    aux_loss_enabled: bool
    current_gradient_accumulation_steps: int

    def __init__(self, *args: Any, **kwargs: Any):
        parent: Any = super()
        names = list(inspect.signature(self.peer.__init__).parameters)[1:]
        if self.given:
            check_arguments(dict(zip(names, args, strict=False)) | kwargs)
        self.signals: tuple[Signal, ...] = ()  # until the first completions are asked for
        self._policy: Policy | None = None
        self._scored: tuple[list[Any], list[Any], Tensor] | None = None
        self._held: list[Any] = []
        self._told: dict[str, list[float]] = {}
        parent.__init__(*args, **kwargs)
        if self.given:
            check_trainer(self)

    # -- before the first step ----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Let signals check what is there, and measure what they need."""
        made = [each if isinstance(each, Signal) else each(int(self.state.max_steps)) for each in self.given]
        policy = Policy(self.accelerator.unwrap_model(self.model))
        tokenizer, table = Vocabulary(self.processing_class), _prompts_of(self.train_dataset)
        file, goes_on = Path(self.args.output_dir) / NOTED, self.state.global_step > 0
        before = files.read_json(file) if goes_on and file.is_file() else []
        noted = []
        for number, signal in enumerate(made):
            if goes_on:
                _restore(signal, before[number] if number < len(before) else {}, file)
            signal.steps = int(self.state.max_steps)
            noted.append(dict(signal.begin(policy, tokenizer, table, self._rollout())))
        self._keep_labels(made)
        if not goes_on and place()[0] == 0:
            files.write_json(file, noted)
        self.signals, self._policy = tuple(made), policy

    def _rollout(self) -> Rollout:
        own = self.args
        return Rollout(
            group_size=own.num_generations,
            prompts_per_step=max(own.generation_batch_size // own.num_generations, 1),
            max_completion_length=own.max_completion_length,
            temperature=own.temperature,
            top_p=own.top_p,
            top_k=own.top_k or 0,
        )

    def _keep_labels(self, signals: Sequence[Signal]) -> None:
        """Let nobody sample what signals keep for themselves, and see that it is read as they read it."""
        if self.temperature != 1 and any(signal.watched for signal in signals):
            fix = "sample at temperature 1: labels are read there, and TRL has one temperature for both"
            raise InputError(f"it is {self.temperature}", where="GRPOConfig.temperature", expected="1.0", fix=fix)
        tokens = {token for signal in signals for token in signal.suppressed}
        if tokens and self.args.use_transformers_continuous_batching:
            where = "GRPOConfig.use_transformers_continuous_batching"
            raise InputError("it may sample tokens that a signal keeps for itself", where=where, expected="False")
        if tokens and self.args.use_vllm:
            self._check_bias(tokens)
        elif tokens:
            own = sorted({*(self.generation_kwargs.get("suppress_tokens") or ()), *tokens})
            self.generation_kwargs["suppress_tokens"] = self.generation_config.suppress_tokens = own

    def _check_bias(self, tokens: set[int]) -> None:
        """See that vLLM samples none of some tokens: its options were fixed when the trainer was made."""
        bias = (self.args.generation_kwargs or {}).get("logit_bias") or {}
        if any(float(bias.get(token, 0)) > FORBIDDEN for token in tokens):
            wanted = dict.fromkeys(sorted(tokens), FORBIDDEN)
            found = "it does not keep vLLM from sampling tokens that a signal keeps for itself"
            fix = f'pass generation_kwargs={{"logit_bias": {wanted}}}'
            raise InputError(found, where="GRPOConfig.generation_kwargs", fix=fix)

    # -- completions --------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, *rest: Any, **more: Any) -> Tensor:
        parent: Any = super()
        found: Tensor = parent._calculate_rewards(inputs, prompts, completions, *rest, **more)
        self._scored = (prompts, completions, found)
        return found

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """Let TRL sample and score, and signals look."""
        parent: Any = super()
        training = self.given and self.model.training  # evaluation is TRL's alone
        if training and self._policy is None:
            self._begin()
        batch = parent._generate_and_score_completions(inputs)
        if not training:
            return batch
        every = self.args.steps_per_generation * self.args.num_iterations
        check_batch(batch, old=self.args.gradient_accumulation_steps % every != 0)
        rollouts, step = self._rollouts(batch), int(self.state.global_step)
        self._read_off(rollouts, batch)
        assert self._policy is not None
        for signal in self.signals:
            signal.score(rollouts, step, self._policy)
        if rollouts.shaped is not None:
            rollouts.advantages = self._advantages(rollouts.shaped, rollouts.group_size)
        for signal in self.signals:
            signal.advantages(rollouts, step)
        for name, value in rollouts.metrics.items():
            self._told.setdefault(name, []).append(value)
        own = {name: count for signal in self.signals for name, count in signal.counts(rollouts, step).items()}
        counts = every_process(own)
        return carried(batch, rollouts, {name: sum(each[name] for each in counts) for name in own})

    def _rollouts(self, batch: Mapping[str, Tensor]) -> Rollouts:
        """Return the completions with their rewards, which TRL has of all processes."""
        if self._scored is None:
            raise InputError("it scores completions by other means", where="GRPOTrainer", fix=PIP)
        (prompts, completions, everywhere), self._scored = self._scored, None
        rows, group = len(prompts), self.args.num_generations
        first = self.accelerator.process_index * rows
        scores = everywhere[first : first + rows].double()
        rewards = (scores * self.reward_weights.to(scores)).nansum(dim=1)
        rewards[scores.isnan().all(dim=1)] = torch.nan
        return rollouts_of(
            batch,
            Prompts(tuple(prompts[::group])),
            [text if isinstance(text, str) else str(text[-1].get("content", "")) for text in completions],
            scores.cpu().numpy(),
            rewards,
            eos=self.eos_token_ids,
            pad=int(self.processing_class.pad_token_id),
            step=int(self.state.global_step),
            first=first // group,
        )

    def _advantages(self, rewards: Float[Tensor, " rows"], group_size: int) -> Float[Tensor, " rows"]:
        """Return what TRL would make of rewards that a signal shaped."""
        way = self.args.multi_objective_aggregation
        if way != "sum_then_normalize":
            where = "GRPOConfig.multi_objective_aggregation"
            found = f"it is {way!r}, and a signal shapes the sum of rewards"
            raise InputError(found, where=where, expected="sum_then_normalize")
        return advantages_of(rewards, group_size, Grpo(scale_rewards=self.args.scale_rewards, adv_eps=EPSILON))

    @torch.no_grad()
    def _read_off(self, rollouts: Rollouts, batch: Mapping[str, Tensor]) -> None:
        """Fill in what the policy says of its completions, and of a watched token after them."""
        watched = [token for signal in self.signals for token in signal.watched]
        stored, labels = batch.get("old_per_token_logps"), None
        if len(watched) == 1:
            labels = torch.where(rollouts.finished, watched[0], NONE)
        if stored is None or labels is not None:
            with _evaluating(self.model):
                size = self.args.per_device_train_batch_size
                stored, _, _, after = self._pass(self.model, batch, labels, batch_size=size)
            if labels is not None:
                rollouts.ends = {watched[0]: torch.where(rollouts.finished, after, torch.nan)}
        inside = rollouts.completion
        rollouts.log_probs = stored.new_zeros(inside.shape)
        rollouts.log_probs[inside] = stored[batch["completion_mask"].bool()]

    # -- the objective ------------------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """Return what was computed already, where TRL's loss asks for it; else let TRL compute it."""
        parent: Any = super()
        return self._held.pop() if self._held else parent._get_per_token_logps_and_entropies(*args, **kwargs)

    def _pass(
        self, model: nn.Module, batch: Mapping[str, Tensor], labels: Tensor | None, **settings: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        """Let TRL run the model: log-probabilities, entropies, auxiliary loss, and log-probabilities of the labels."""
        ids, mask = batch["completion_ids"], batch["completion_mask"]
        width, ends = ids.shape[1], mask.sum(dim=1, keepdim=True)
        if labels is not None:
            ids, mask = with_labels(ids, mask, labels)
        values, entropies, auxiliary = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([batch["prompt_ids"], ids], dim=1),
            torch.cat([batch["prompt_mask"], mask], dim=1),
            ids.shape[1],
            **settings,
        )
        after = values[:, 0] if labels is None else values.gather(1, ends).squeeze(1)
        return values[:, :width], None if entropies is None else entropies[:, :width], auxiliary, after

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Return TRL's loss with the advantages and old log-probabilities of signals, and their components added."""
        parent: Any = super()
        part = step_of(inputs, int(self.state.global_step))
        if part is None:
            return parent.compute_loss(model, inputs, *args, **kwargs)
        asked = {name: read for signal in self.signals for name, read in signal.reads(part).items()}
        labels = label_tokens(asked, part, self.temperature)
        log_new, entropies, auxiliary, after = self._pass(
            model, inputs, labels, compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
        )
        found = self._adjusted(inputs, part, log_new)
        width = inputs["prompt_ids"].shape[1]
        own = {"advantages": found.values[:, width:], "old_per_token_logps": found.log_old[:, width:]}
        self._held.append((log_new, entropies, auxiliary))
        loss = parent.compute_loss(model, {**inputs, **own}, *args, **kwargs)
        if self._held:
            raise InputError("its loss computes log-probabilities by other means", where="GRPOTrainer", fix=PIP)
        reads = {} if labels is None else dict.fromkeys(asked, after[labels != NONE])
        return loss + self._components(found, reads, part, counts_of(inputs))

    def _adjusted(self, inputs: Mapping[str, Tensor], part: Step, log_new: Tensor) -> Advantages:
        """Return what the surrogate is made of, as signals changed it."""
        where, width = inputs["completion_mask"].bool(), inputs["prompt_ids"].shape[1]
        values, log_old = inputs["advantages"], inputs.get("old_per_token_logps")
        values = values[:, None].expand(where.shape) if values.ndim == 1 else values
        log_old = log_new.detach() if log_old is None else log_old
        whole = (functional.pad(torch.where(where, each, 0.0), (width, 0)) for each in (values, log_new, log_old))
        found = Advantages(*whole)
        for signal in self.signals:
            found = signal.adjust(found, part)
        return found

    def _components(
        self, found: Advantages, reads: Mapping[str, Tensor], part: Step, counts: Mapping[str, Tensor]
    ) -> Float[Tensor, ""]:
        """Return the sum of the signals' components, each over its count in a step.

        Gradients of micro-batches are added, and those of processes averaged. A count is of all that was sampled at once,
        which several steps may share.
        """
        share = self.current_gradient_accumulation_steps / self.args.steps_per_generation
        total = found.log_new.new_zeros(())
        for signal in self.signals:
            for name, (value, weight) in signal.terms(found, reads, part).items():
                total = total + weight * value / (counts[name].clamp(min=1.0) / self.accelerator.num_processes * share)
        return total

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of what signals told since the last time, and let TRL log."""
        parent: Any = super()
        if self.model.training:
            logs |= {name: float(np.mean(values)) for name, values in self._told.items()}
            self._told.clear()
        parent.log(logs, *args, **kwargs)


class Policy(ForeignCausal):
    """The policy as signals know one. A copy stands on its own: TRL's forward pass calls the model it was made for."""

    def __deepcopy__(self, memo: dict[int, Any]) -> ForeignCausal:
        copied: Any = copy.deepcopy(self.wrapped, memo)
        for model in (copied, copied.get_base_model() if hasattr(copied, "get_base_model") else copied):
            model.__dict__.pop("forward", None)
        odd = [name for name, part in copied.named_modules() if "forward" in part.__dict__]
        if odd:
            fix = "take a constant: laser(reference='constant')"
            raise InputError(
                f"the forward pass of {odd[0]} was replaced, so that it has no copy", where="policy", fix=fix
            )
        return ForeignCausal(copied)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Leave nothing to chance in a pass of a model that is being trained."""
    model.eval()
    try:
        yield
    finally:
        model.train()


def _prompts_of(data: Any) -> Prompts:
    """Return the prompts of TRL's data set with their written solutions; of a stream, the first ones."""
    rows = data if hasattr(data, "__len__") else list(islice(data, FEW))
    names = getattr(data, "column_names", None) or list(rows[0])
    columns = {name: [row[name] for row in rows] for name in ("prompt", "solution") if name in names}
    return Prompts(tuple(columns.pop("prompt", ())), columns, "train_dataset")


def _restore(signal: Signal, noted: Mapping[str, Any], file: Path) -> None:
    """Give a signal what it measured when the run began, and which cannot be measured any more."""
    system: Any = find("laser").load()
    if not isinstance(signal, system.SelfRewardSignal) or signal.options.loss != "mse":
        return
    scale = noted.get("self_reward")
    if scale is None or scale["exact"]:
        found = "the policy at its start is not kept" if scale else "nothing is known of the run's start"
        fix = "begin anew; with self_reward.reference=constant a run can go on"
        raise InputError(found, where=str(file), expected="c_ref of LaSeR", fix=fix)
    measured = {"ref_constant": scale["constant"], "beta": scale["beta"], "reference": "constant"}
    signal.options = signal.options.model_copy(update=measured)
