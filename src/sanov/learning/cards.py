"""The model card of a policy: what it began as, what it was trained on, with which options, and how well it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sanov import __version__
from sanov.core import files

__all__ = ["CARD", "card", "flat", "merged", "summary"]

CARD = "README.md"
HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- sanov
- {system}
---

# A policy that `sanov fit {system}` trained
"""
LOADING = """
`sanov show {system}` tells the method and whom to cite. The folder loads as any other:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (auto.from_pretrained("FOLDER") for auto in (AutoModelForCausalLM, AutoTokenizer))
```
"""


def card(system: str, config: Mapping[str, Any], results: Mapping[str, Any], said: str) -> str:
    """Return a model card in Markdown, with the front matter that model hubs read.

    Parameters
    ----------
    system
        Name of the system.
    config
        Its options, as a tree.
    results
        What is known of the training.
    said
        The same in words, of `summary`.
    """
    data = results.get("data", {})
    rewards = ", ".join(f"`{name}`" for name in config.get("rewards") or ())
    about = {
        "Base model": _base(config),
        "Rewards": rewards or "what the columns of the prompts allow",
        "Prompts": f"{data['name']} (SHA-256 {data['digest']})" if data else "",
        "Written by": f"sanov {__version__}",
    }
    parts = [HEAD.format(system=system), *(f"- {name}: {text}" for name, text in about.items() if text), ""]
    parts += ["## Results", "", "```", said, "```", LOADING.format(system=system)]
    parts += ["## Options", "", "```", *(f"{name}={value}" for name, value in flat(config)), "```", ""]
    return "\n".join(parts)


def _base(config: Mapping[str, Any]) -> str:
    named = str(config.get("policy") or "")
    if not named:
        return "a small network that was made for its prompts"
    place = Path(named) / "config.json"
    known = files.read_json(place).get("_name_or_path") if place.is_file() else None
    return f"`{named}`" + (f" ({known})" if known else "")


def summary(system: str, weights: int, results: Mapping[str, Any]) -> str:
    """Return what was trained and how well it does, on one screen."""
    numbers = merged(results)
    width = max(map(len, numbers), default=0)
    lines = [f"{system}: a policy of {weights:,} weights"]
    lines += [f"{name:<{width}}  {text}" for name, text in numbers.items()]
    return "\n".join([*lines, *(f"- {note}" for note in results.get("notes", ()))])


def flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield options with dotted names, as the command line takes them."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{path}{name}", ",".join(map(str, value)) or "none"
        else:
            text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            yield f"{path}{name}", text


def merged(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the numbers among results as text by their names in words, each with its interval beside it."""
    numbers = {name: value for name, value in results.items() if isinstance(value, int | float)}
    found = {}
    for name, value in numbers.items():
        stem, _, end = name.rpartition("_")
        if end in ("low", "high") and stem in numbers:
            continue
        low, high = numbers.get(f"{name}_low"), numbers.get(f"{name}_high")
        text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
        found[name.replace("_", " ")] = text if low is None or high is None else f"{text} [{low:.4g}, {high:.4g}]"
    return found
