"""Folders of small policies and files of prompts, as a user of `kdrl` and `laser` has them."""

import json

from learning.policy_toy import TOKENIZER, decoder
from sanov.data.tasks import named
from sanov.learning.imitation import imitate
from sanov.nets.causal import save_model

LETTERS = ["start.steps=0", "start.width=16", "start.layers=1", "start.heads=2", "start.mlp=32", "start.context=48"]
SMALL = [
    "rollouts.group_size=4",
    "rollouts.prompts_per_step=4",
    "rollouts.max_completion_length=6",
    "training.steps=3",
    "evaluation.samples=2",
    "evaluation.prompts=4",
]


def prompts_file(path, count=24, **columns):
    """Chain sums of two small terms as JSON lines; further columns are constant."""
    table = named("chain_sum", terms=(2, 2), largest=3).rows(count, 0, "train")
    rows = [{**table.row(place), **columns} for place in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def policy_folder(path, seed=0, steps=0, **shape):
    """A policy in a folder, after some steps of imitation."""
    model = decoder(seed, **shape)
    if steps:
        rows = named("chain_sum", terms=(2, 2), largest=3).rows(64, 0, "train")
        imitate(rows, model, TOKENIZER, steps=steps, batch_size=32, learning_rate=1e-2)
    save_model(model, path, TOKENIZER)
    return path


def words(options):
    """Options of the command line from a dictionary."""
    return [f"{name}={value}" for name, value in options.items()]
