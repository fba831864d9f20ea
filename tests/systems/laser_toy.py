"""Small policies, rewards and options for the tests of `laser`, which processes can share."""

import torch

from learning.policy_toy import TOKENIZER, decoder, tasks
from sanov.data.rewards import Rewards
from sanov.learning.policies import Evaluation, Tasks
from sanov.learning.policy import Optimisation, Signal
from sanov.learning.rollouts import Rollout
from sanov.nets.causal import save_model
from sanov.systems import laser

LABEL, SPARE = TOKENIZER.reserved
EOS, PAD = TOKENIZER.eos, TOKENIZER.pad
SHORT = Rollout(group_size=4, prompts_per_step=4, max_completion_length=6)
FIXED = {"ref_constant": -9.0, "beta": 0.25}  # so that nothing is measured


def eager(seed=0, label=0.0, eos=1.5):
    """A decoder that likes the label, or to end, by about so many nats more after whatever it reads."""
    model = decoder(seed)
    with torch.no_grad():
        model.model.embed_tokens.weight += 0.03  # so that states lean one way, whatever is read
        for token, gain in ((LABEL, label), (EOS, eos)):
            model.lm_head.weight[token] += gain / model.shape.width
    return model


def small_digits(prompts, completions, **_):
    """Reward completions with a digit from 1 to 3, which an untrained policy writes in half of its own."""
    return [float(bool(set(text) & set("123"))) for text in completions]


class Still(Signal):
    """Takes all advantages away, so that only what signals add is learned."""

    def advantages(self, rollouts, step):
        rollouts.advantages = torch.zeros_like(rollouts.advantages)


def signal(**options):
    """LaSeR's signal without warm-ups, with a given c_ref unless something else is said."""
    usual = {"reasoning_warmup_steps": 0, "warmup_steps": 0, **FIXED}
    return laser.SelfRewardSignal(laser.SelfReward(**(usual | options)))


def config(folder, model=None, **options):
    """Options of a fit of some seconds that begins at a policy in a folder."""
    if not (folder / "config.json").is_file():
        save_model(eager() if model is None else model, folder, TOKENIZER)
    usual = {
        "policy": str(folder),
        "rollouts": SHORT,
        "training": Optimisation(steps=3, learning_rate=3e-3),
        "evaluation": Evaluation(samples=4, share=0.2),
        "self_reward": laser.SelfReward(correction=True),
    }
    return laser.Config(**(usual | options))


def questions(count=24, reward=small_digits):
    """Chain sums, and a reward."""
    return Tasks(tasks(count)[0], Rewards((reward,)))
