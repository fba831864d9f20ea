"""Small policies that tests of rollouts, GRPO and its signals share: a table of logits, and a decoder of a few weights."""

import itertools
import warnings

import numpy as np
import torch
from torch import nn

from sanov.core.errors import SanovWarning
from sanov.data.prompts import Prompts
from sanov.data.rewards import Rewards
from sanov.data.tasks import named
from sanov.data.tokens import CharTokenizer
from sanov.learning import policy
from sanov.learning.rollouts import Rollout, Rollouts
from sanov.nets.reads import read_logits
from sanov.nets.transformer import Decoder, Shape

VOCABULARY, LONGEST, EOS = 3, 3, 2
TOKENIZER = CharTokenizer()


class Table(nn.Module):
    """Logits of the next of three tokens after every prefix of a completion; the prompt is the one token 0."""

    def __init__(self, seed=0, scale=1.0):
        super().__init__()
        prefixes = [p for n in range(LONGEST) for p in itertools.product(range(VOCABULARY), repeat=n)]
        self.places = {prefix: place for place, prefix in enumerate(prefixes)}
        generator = torch.Generator().manual_seed(seed)
        start = scale * torch.randn(len(prefixes), VOCABULARY, generator=generator, dtype=torch.float64)
        self.logits = nn.Parameter(start)

    def forward(self, ids, mask, reads):
        rows = []
        for row in ids.tolist():
            prefixes = [tuple(row[1:end]) for end in range(1, len(row) + 1)]
            rows.append([self.places.get(prefix, 0) for prefix in prefixes])
        return read_logits(self.logits[torch.tensor(rows)], reads)

    def log_prob(self, completion):
        """Log-probability of a whole completion, with gradient."""
        steps = [
            self.logits[self.places[tuple(completion[:end])]].log_softmax(-1)[token]
            for end, token in enumerate(completion)
        ]
        return torch.stack(steps).sum()


def completions():
    """Every completion of at most three tokens: it ends with EOS or at the limit."""
    found = []
    for length in range(1, LONGEST + 1):
        for tokens in itertools.product(range(VOCABULARY), repeat=length):
            if EOS not in tokens[:-1] and (tokens[-1] == EOS or length == LONGEST):
                found.append(tokens)
    return found


def rollouts_of(texts, rewards=None, *, group_size=1, advantages=None, prompt=(0,), eos=EOS, log_probs=None, pad=0):
    """Completions, given as tokens, as a step's rollouts; prompts may be one for all or one a row."""
    heads = [prompt] * len(texts) if not isinstance(prompt[0], list | tuple) else prompt
    starts = torch.tensor([len(head) for head in heads])
    lengths = starts + torch.tensor([len(text) for text in texts])
    ids = torch.full((len(texts), int(lengths.max())), pad)
    for row, (head, text) in enumerate(zip(heads, texts, strict=True)):
        ids[row, : int(lengths[row])] = torch.tensor([*head, *text])
    count = len(texts) // group_size
    found = Rollouts(
        Prompts(("p",) * count),
        group_size,
        ids,
        starts,
        lengths,
        torch.tensor([text[-1] == eos for text in texts]),
        torch.zeros(ids.shape, dtype=torch.float64) if log_probs is None else log_probs,
        [""] * len(texts),
        0,
        np.arange(count),
    )
    found.rewards = torch.as_tensor([0.0] * len(texts) if rewards is None else rewards, dtype=torch.float64)
    found.scores = found.rewards.numpy()[:, None]
    found.advantages = torch.zeros(len(texts)) if advantages is None else torch.as_tensor(advantages)
    return found


def gradient(model, rollouts, signals=(), grpo=None, *, budget=10**6, step=0, temperature=1.0):
    """Gradient of the objective of a step, by hand what the training loop does: sums over counts, times weights."""
    grpo = grpo or policy.Grpo()
    parts = policy.packed(rollouts, signals, grpo, budget, step)
    counts = {}
    for part in parts:
        for name, count in part["counts"].items():
            counts[name] = counts.get(name, 0.0) + count
    model.zero_grad()
    values = dict.fromkeys(counts, 0.0)
    for part in parts:
        for name, (value, weight) in policy.sums(model, part, signals, grpo, temperature).items():
            if counts[name]:
                (value * weight / counts[name]).backward(retain_graph=True)
                values[name] += float(value.detach()) / counts[name]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return torch.cat([grad.flatten() for grad in grads]), values


def decoder(seed=0, width=16, layers=1, context=48):
    """A decoder of a few thousand weights for the characters of the tasks."""
    return Decoder(Shape(TOKENIZER.vocabulary, width, layers, 2, 2 * width, context=context), seed=seed)


def tasks(count=24, seed=0, **sizes):
    """Chain sums of two small terms, and the reward that checks them."""
    task = named("chain_sum", terms=(2, 2), largest=3) if not sizes else named("chain_sum", **sizes)
    return task.rows(count, seed, "train"), Rewards((task.verifier,))


def few_letters(prompts, completions, **_):
    """Reward completions with many ones: something that even an untrained policy gets right now and then."""
    return [float(text.count("1") >= 1) for text in completions]


SMALL = Rollout(group_size=4, prompts_per_step=4, max_completion_length=6)


def run(
    model=None,
    *,
    steps=3,
    signals=(),
    reward=few_letters,
    rollouts=SMALL,
    seed=0,
    grpo=None,
    rate=3e-3,
    cut_is_told=False,
    **options,
):
    """Train the decoder on chain sums; return the model and the history."""
    model = decoder() if model is None else model
    prompts, _ = tasks()
    if not cut_is_told:
        warnings.filterwarnings("ignore", message=".*every completion was cut", category=SanovWarning)
    training = policy.Optimisation(steps=steps, learning_rate=rate, **options.pop("training", {}))
    history, noted = policy.fit(
        prompts,
        model,
        TOKENIZER,
        Rewards((reward,)),
        signals=signals,
        rollouts=rollouts,
        grpo=grpo,
        training=training,
        seed=seed,
        **options,
    )
    return model, history, noted
