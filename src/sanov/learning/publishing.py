"""New weights for a server that samples: a folder that both see, and a call that makes the server read it."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path

from torch import nn

from sanov.core import files
from sanov.core.errors import InputError
from sanov.learning.completions import base_name, served_names, weight_version
from sanov.learning.server_client import Client
from sanov.nets.causal import save_model

__all__ = ["SharedFolder"]

VLLM = "vllm"
KEEP = 2  # versions that stay in the folder: a server may still read the last but one
POLL = 1.0  # seconds between questions whether a version is served


class SharedFolder:
    """Saves each version as a Hugging Face folder ``NAME@VERSION``, whole or not at all, and has the server load it.

    Parameters
    ----------
    folder
        Where the server finds it, at the same path.
    client
        The server.
    reload
        An address: it gets a POST of ``{"model": "NAME@VERSION", "path": ..., "version": ...}``, and answers once the
        weights are in place and caches of the old ones are gone. ``vllm``: vLLM's own calls, for a server that was
        started with ``VLLM_SERVER_DEV_MODE=1`` and ``--weight-transfer-config '{"backend": "disk"}'``. Empty: the server
        looks after the folder by itself, and is waited for until it offers ``NAME@VERSION`` or that weight version.

    Raises
    ------
    InputError
        `reload` is no address.
    """

    def __init__(self, folder: str | Path, client: Client, reload: str = ""):
        self.folder, self.client, self.vllm, self.begun = Path(folder).absolute(), client, reload == VLLM, False
        self.reload = client.at(reload) if reload and not self.vllm else None

    def __call__(self, model: nn.Module, version: int) -> None:
        """Bring a version to the server.

        Raises
        ------
        InputError
            The folder cannot be written, the server does not answer in time, or it refuses.
        """
        base = self.client.name or base_name(self.client, served_names(self.client))
        if base is None:
            fix = "name the policy: rollouts.server=http://HOST:PORT#NAME"
            raise InputError("it is not said which model is the policy", where=self.client.url, fix=fix)
        name = f"{base}@{version}"
        path = self.folder / name
        with files.atomic_folder(path) as temporary:
            save_model(model, temporary)
        self._drop_old(base, version)
        if self.vllm:
            self._tell_vllm(path, version)
        elif self.reload is not None:
            self.reload.tell("", {"model": name, "path": str(path), "version": version})
        else:
            self._await(name, version)

    def _drop_old(self, base: str, version: int) -> None:
        """Remove all but the newest versions: what a longer run left behind is no newer one of this."""
        found = {}
        for path in self.folder.glob("*@*"):
            if match := re.fullmatch(re.escape(base) + r"@(\d+)", path.name):
                found[int(match[1])] = path
        kept = sorted(number for number in found if number <= version)[-KEEP:]
        for number, path in found.items():
            if number not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _tell_vllm(self, path: Path, version: int) -> None:
        """Have vLLM read the folder while it pauses, which also empties its caches of what the old weights computed."""
        if not self.begun:
            self.client.tell("/init_weight_transfer_engine", {"init_info": {}})
            self.begun = True
        self.client.tell("/pause?mode=wait", {})
        self.client.tell("/start_weight_update", {})
        self.client.tell("/update_weights", {"update_info": {"path": str(path)}})
        self.client.tell("/finish_weight_update", {"weight_version": str(version)})
        self.client.tell("/resume", {})

    def _await(self, name: str, version: int) -> None:
        client, start = self.client, self.client.clock()
        while name not in served_names(client) and weight_version(client) != version:
            if client.clock() - start > client.patience:
                found = f"does not serve {name} after {client.patience:g} s"
                fix = f"have it load {self.folder / name} (rollouts.reload), and go on with --resume"
                raise InputError(found, where=client.url, fix=fix)
            client.wait(threading.Event(), POLL)
