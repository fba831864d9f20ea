"""Causal language models from folders: our decoder where it fits, and any other of transformers behind the same calls."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sanov.core import files
from sanov.core.errors import InputError, require
from sanov.nets.decoding import Decoding, evaluating
from sanov.nets.foreign import load_tokenizer, told
from sanov.nets.layout import layout_of
from sanov.nets.reads import Read, places_of, read_placed, read_states
from sanov.nets.shapes import TOKENS, shape_of, strange
from sanov.nets.transformer import Decoder, check_length, decoder_of, head_weight, load_decoder

__all__ = ["ForeignCausal", "load_causal", "load_tokenizer", "load_whole"]

HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # ORGANISATION/NAME
ALIKE = 1e-3  # of the largest logit: by how much two ways to the same logits may differ by rounding


def load_causal(directory: str | Path) -> tuple[Decoder | ForeignCausal, Any]:
    """Load a causal language model and its tokenizer.

    Parameters
    ----------
    directory
        A folder that `save_pretrained` or `save_decoder` wrote, that of an adapter, or a GGUF file or a folder with one.

    Returns
    -------
    A `Decoder` where the model is a plain Llama, else a `ForeignCausal`, in evaluation mode on the CPU; and the tokenizer.

    Raises
    ------
    InputError
        The folder cannot be read, or weights are missing.
    MissingExtra
        Without transformers, without PEFT for an adapter, without gguf for a file of that kind.
    """
    place = Path(directory)
    _check_there(place)
    if packed := _packed(place):
        return _unpacked(packed)
    tokenizer = load_tokenizer(place)
    if (place / "adapter_config.json").is_file():
        require("peft", "language")
    elif not strange(files.read_json(place / "config.json")):
        return load_decoder(place), tokenizer
    return ForeignCausal(load_whole(place)), tokenizer


def load_whole(place: Path) -> Any:
    """Load a causal language model of transformers, in evaluation mode.

    Raises
    ------
    InputError
        The folder cannot be read, or weights are missing.
    MissingExtra
        Without transformers.
    """
    _check_there(place)
    model, absent = _load(place)
    if absent:
        raise InputError(f"the folder lacks trained weights ({', '.join(absent[:3])})", where=str(place))
    return model


def _check_there(place: str | Path) -> None:
    if not Path(place).exists():
        expected = "a folder that save_pretrained wrote"
        raise InputError("there is no such folder", where=str(place), expected=expected, fix=_from_hub(str(place)))


def _from_hub(name: str) -> str | None:
    """Return how to get a model whose name on the hub was given; None where it looks like a path."""
    if not HUB.fullmatch(name) or Path(name).parent.exists():
        return None
    own = name.rpartition("/")[2]
    return (
        f"nothing is downloaded here: `hf download {name} --local-dir {own}` does that, or save_pretrained({own!r}) of "
        f"model and tokenizer where they are loaded; then name the folder {own}"
    )


def _load(place: Path, **settings: Any) -> tuple[Any, list[str]]:
    transformers = require("transformers", "language")
    with told("cannot be loaded as a causal language model", str(place)):
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            str(place), local_files_only=True, output_loading_info=True, **settings
        )
    return model.eval(), sorted(loaded["missing_keys"])


def _packed(place: Path) -> Path | None:
    """Return the GGUF file that a path means, if it means one."""
    if place.is_file():
        return place
    found = sorted(place.glob("*.gguf"))
    if (place / "config.json").is_file() or not found:
        return None
    if len(found) > 1:
        raise InputError(f"there are {len(found)} GGUF files", where=str(place), fix="name one of them")
    return found[0]


def _unpacked(file: Path) -> tuple[Decoder | ForeignCausal, Any]:
    """Load a GGUF file, its weights as float32. A Llama becomes our decoder, which can be saved as any other."""
    require("gguf", "language")
    tokenizer = load_tokenizer(file.parent, gguf_file=file.name)
    model, _ = _load(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    if strange(config):
        return ForeignCausal(model), tokenizer
    special = {name: config.get(name) for name in TOKENS}
    return decoder_of(shape_of(config, str(file)), model.state_dict(), special, str(file)), tokenizer


class ForeignCausal(nn.Module):
    """A causal language model of transformers, bare or with an adapter of PEFT, called as our own decoder is.

    Logits are formed where reads ask for them, from the last hidden states, if a first look shows that the model makes its
    logits by one matrix from them; else the model's own are taken, all of them. Generation keeps the model's cache if it
    gives the logits of a whole pass; else each step is a whole pass, right and slow.

    Parameters
    ----------
    model
        Its forward takes ``input_ids`` and ``attention_mask``, and gives ``logits``.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.wrapped = model
        self.training = model.training
        self._linear: bool | None = None
        self._cached: bool | None = None

    @property
    def context(self) -> int | None:
        """Largest number of tokens of a row; None where the model names none."""
        limit = getattr(getattr(self.wrapped, "config", None), "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def vocabulary(self) -> int:
        """Number of tokens of its embedding."""
        embedding: Any = self.wrapped
        return len(embedding.get_input_embeddings().weight)

    def forward(
        self, ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"], reads: Mapping[str, Read]
    ) -> dict[str, Tensor]:
        """Run the rows and read off what is asked for, as `Decoder.forward` does.

        Raises
        ------
        InputError
            A row is longer than the context, or as `reads.read_off`.
        """
        places, layout = places_of(reads, ids.shape), layout_of(ids, mask, dense=True)
        check_length(layout.longest, self.context)
        wanted = layout.index[places]
        aligned = layout.ids.view(len(ids), -1)
        real = torch.arange(layout.longest, device=ids.device) < mask.sum(dim=1, keepdim=True)
        if self._linear is None:
            self._linear = self._head_is_linear(aligned[:1, :2])
        if not self._linear:
            logits = self.wrapped(input_ids=aligned, attention_mask=real.long()).logits
            return read_placed(logits.flatten(0, 1)[wanted], places, reads)
        head: Any = self._head()
        states: list[Tensor] = []

        def skip(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            states.append(inputs[0])
            return (inputs[0][:, :1],)  # the logits of one token, which nobody reads

        hook = head.register_forward_pre_hook(skip)
        try:
            self.wrapped(input_ids=aligned, attention_mask=real.long())
        finally:
            hook.remove()
        return read_states(states[0].flatten(0, 1)[wanted], head_weight(head), places, reads)

    def decoding(self, room: int) -> Decoding:
        """Return what generates tokens with this model.

        Parameters
        ----------
        room
            Tokens that are to follow a prompt; nothing is reserved for them.
        """
        if self._cached is None:
            self._cached = self._cache_is_right()
        return CachedSteps(self.wrapped) if self._cached else WholePasses(self)

    def _head(self) -> Any:
        wrapped: Any = self.wrapped
        return wrapped.get_output_embeddings() if hasattr(wrapped, "get_output_embeddings") else None

    @torch.no_grad()
    def _head_is_linear(self, ids: Int[Tensor, "rows tokens"]) -> bool:
        """Whether the logits are the states that the head reads times its weights: not scaled, capped or shifted."""
        head, states = self._head(), list[Tensor]()
        if head is None or not hasattr(head, "weight") or getattr(head, "bias", None) is not None:
            return False
        hook = head.register_forward_hook(lambda module, inputs, outputs: states.append(inputs[0]))
        try:
            with evaluating(self):  # dropout would draw random numbers, here and not where a run goes on
                logits = self.wrapped(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        finally:
            hook.remove()
        return len(states) == 1 and _alike(functional.linear(states[0], head_weight(head)), logits)

    @torch.no_grad()
    def _cache_is_right(self) -> bool:
        """Whether generation with the model's cache gives the logits of whole passes, on two short rows."""
        device = next(self.parameters()).device
        ids = torch.tensor([[0, 1, 2], [1, 0, 0]], device=device) % self.vocabulary
        mask = torch.tensor([[True, True, True], [True, False, False]], device=device)
        if not can_be_cached(self.wrapped):
            return False
        ways: tuple[Decoding, Decoding] = (CachedSteps(self.wrapped), WholePasses(self))
        found = []
        for way in ways:
            first = way.prefill(ids, mask)
            try:
                way.select(torch.tensor([1, 0, 1], device=device))
            except (AttributeError, NotImplementedError):  # a cache from which rows cannot be chosen
                return False
            found.append(torch.cat([first, way.step(ids[[0, 1, 1], 1])]))
        return _alike(*found)


def can_be_cached(model: Any) -> bool:
    """Whether a model's forward takes what generation with a cache hands it."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    taken = inspect.signature(bare.forward).parameters
    return {"past_key_values", "position_ids", "attention_mask"} <= taken.keys()


class CachedSteps:
    """Generation with the cache of a transformers model; prompts are padded on the left."""

    def __init__(self, model: Any):
        self.model = model
        self.past: Any = None

    def prefill(
        self, ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """Take in prompts, right-padded, and return the logits of what follows each."""
        shift = mask.shape[1] - mask.sum(dim=1, keepdim=True)
        places = torch.arange(mask.shape[1], device=ids.device) - shift
        self.mask, self.next = (places >= 0).long(), mask.sum(dim=1, keepdim=True)
        return self._run(ids.gather(1, places.clamp_min(0)), places.clamp_min(0))

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these rows alone, in this order; a row may be named more than once."""
        self.past.batch_select_indices(rows)
        self.mask, self.next = self.mask[rows], self.next[rows]

    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Take in a token a row, and return the logits of what follows."""
        self.mask = functional.pad(self.mask, (0, 1), value=1)
        logits = self._run(tokens[:, None], self.next)
        self.next = self.next + 1
        return logits

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        outputs = self.model(
            input_ids=ids, attention_mask=self.mask, position_ids=positions, past_key_values=self.past, use_cache=True
        )
        self.past = outputs.past_key_values
        logits: Tensor = outputs.logits[:, -1]
        return logits


class WholePasses:
    """Generation without a cache: every step runs all tokens of all rows."""

    def __init__(self, model: ForeignCausal):
        self.model = model

    def prefill(
        self, ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """Take in prompts, right-padded, and return the logits of what follows each."""
        self.ids, self.mask = ids, mask
        return self._run()

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these rows alone, in this order; a row may be named more than once."""
        self.ids, self.mask = self.ids[rows], self.mask[rows]

    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Take in a token a row, and return the logits of what follows."""
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        self.mask = functional.pad(self.mask, (0, 1), value=True)
        return self._run()

    def _run(self) -> Tensor:
        last = self.mask.cumsum(dim=1).argmax(dim=1)  # the first of equals: the last real token
        at = torch.arange(self.mask.shape[1], device=last.device) == last[:, None]
        logits: Tensor = self.model(self.ids, self.mask, {"next": Read(at)})["next"]
        return logits


def _alike(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    tolerance = ALIKE if first.dtype in (torch.float32, torch.float64) else 30 * ALIKE
    return bool((first - second).abs().max() <= tolerance * second.abs().max())
