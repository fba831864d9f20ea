"""A small completions server for tests: real sockets, our decoders, and the protocol as vLLM documents it.

It samples by its own plain loop, one full forward pass a token, and can be told to fail in every way.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from sanov.data.tokens import CharTokenizer
from sanov.nets.reads import Read
from sanov.nets.transformer import load_decoder


class Refusal(Exception):
    """A status and a message instead of an answer."""

    def __init__(self, status, message):
        self.status, self.message = status, message


class CompletionsServer:
    """Serves decoders by name on a free port of this machine, until `stop`.

    ``fault(path, body)`` may raise a `Refusal`, or return bytes that are sent instead of an answer; ``change(answer)``
    changes the answer to a call of ``/v1/completions``. `calls` has (path, body) of all calls.
    """

    def __init__(self, models, *, mode="raw", longest=256, tokenizer=None, key=None):
        self.models, self.mode, self.longest, self.key = dict(models), mode, longest, key
        self.tokenizer = CharTokenizer() if tokenizer is None else tokenizer
        self.fault = self.change = None
        self.reloads, self.weight_version, self.metadata = True, None, None
        self.calls, self.lock, self.headers = [], threading.Lock(), []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.005})
        self.thread.start()

    def stop(self):
        """Refuse every further connection."""
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.thread.is_alive():
            self.stop()

    def bodies(self, path="/v1/completions"):
        return [body for called, body in self.calls if called == path]

    def answer(self, path, body):
        with self.lock:
            self.calls.append((path, body))
        if self.fault is not None and (content := self.fault(path, body)) is not None:
            return content
        with self.lock, torch.inference_mode():
            return json.dumps(self._route(path, body)).encode()

    def _route(self, path, body):
        match path.partition("?")[0]:
            case "/v1/models":
                return {"data": [{"id": name, "max_model_len": self.longest} for name in self.models]}
            case "/v1/completions":
                answer = self._complete(body)
                return answer if self.change is None else self.change(answer)
            case "/tokenize" if self.tokenizer:
                assert body["add_special_tokens"] is False
                return {"tokens": self.tokenizer.encode(body["prompt"])}
            case "/weight_info" if self.weight_version is not None:
                return {"weight_version": self.weight_version}
            case "/reload":
                if self.reloads:
                    self.models = {body["model"]: load_decoder(body["path"])}
                return {}
            case "/update_weights":
                self.models = dict.fromkeys(self.models, load_decoder(body["update_info"]["path"]))
                return {}
            case "/finish_weight_update":
                self.weight_version = body["weight_version"]
                return {}
            case "/init_weight_transfer_engine" | "/start_weight_update" | "/pause" | "/resume":
                return {}
        raise Refusal(404, "Not Found")

    def _complete(self, body):
        if body["model"] not in self.models:
            raise Refusal(404, f"The model `{body['model']}` does not exist.")
        model, prompts = self.models[body["model"]], body["prompt"]
        prompts = [prompts] if isinstance(prompts[0], int) else prompts
        for ids in prompts:
            if max(ids) >= model.shape.vocabulary:
                raise Refusal(400, f"Token id {max(ids)} is out of vocabulary")
            if len(ids) + max(body["max_tokens"], 1) > self.longest:
                raise Refusal(400, f"This model's maximum context length is {self.longest} tokens.")
        choose = self._echoed if body.get("echo") else self._sampled
        found = [choice for ids in prompts for choice in choose(model, ids, body)]
        answer = {"object": "text_completion", "model": body["model"], "system_fingerprint": "test"}
        answer["choices"] = [{"index": index, "text": "", **choice} for index, choice in enumerate(found)]
        return answer | ({"metadata": self.metadata} if self.metadata is not None else {})

    def _echoed(self, model, ids, body):
        assert body["max_tokens"] == 0
        scores = self._scores(_logits(model, [ids])[0])  # at temperature 1, whatever the call says
        values = [None] + [float(scores[position, token]) for position, token in enumerate(ids[1:])]
        yield {"finish_reason": "length", "logprobs": _table(ids, values, [None, *scores[:-1]])}

    def _sampled(self, model, ids, body):
        """Sample a group, all rows to the limit: what follows a token that ends a row is thrown away."""
        assert body["ignore_eos"]
        generators = [torch.Generator().manual_seed(body["seed"] + place) for place in range(body["n"])]
        rows, tables = [list(ids) for _ in generators], [[] for _ in generators]
        for _ in range(body["max_tokens"]):
            for row, table, logits, generator in zip(
                rows, tables, _logits(model, rows)[:, -1], generators, strict=True
            ):
                cut = _cut(logits, body)
                row.append(int(torch.multinomial(cut.softmax(dim=-1), 1, generator=generator)))
                table.append(self._scores(logits if self.mode == "raw" else cut))
        for row, table in zip(rows, tables, strict=True):
            tokens = row[len(ids) :]
            ends = [place for place, token in enumerate(tokens, start=1) if token in body["stop_token_ids"]]
            tokens = tokens[: ends[0]] if ends else tokens
            values = [float(scores[token]) for token, scores in zip(tokens, table, strict=False)]
            yield {"finish_reason": "stop" if ends else "length", "logprobs": _table(tokens, values, table)}

    def _scores(self, logits):
        return logits if self.mode == "logits" else logits.log_softmax(dim=-1).clamp_min(-9999.0)


def _logits(model, rows):
    """Logits at every token of rows that are equally long."""
    ids = torch.tensor(rows)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    return model(ids, everywhere, {"all": Read(everywhere)})["all"].unflatten(0, ids.shape)


def _cut(logits, body):
    """Logits after bias, temperature, allowed tokens, top-k and top-p."""
    logits = logits.clone()
    for token, bias in body.get("logit_bias", {}).items():
        logits[int(token)] += bias
    logits /= body["temperature"]
    if "allowed_token_ids" in body:
        kept = torch.tensor(body["allowed_token_ids"])
        logits = torch.full_like(logits, -torch.inf).index_copy(0, kept, logits[kept])
    if body["top_k"] > 0:
        logits[logits < logits.topk(body["top_k"]).values[-1]] = -torch.inf
    if body["top_p"] < 1:
        probs, order = logits.softmax(dim=-1).sort(descending=True)
        logits[order[probs.cumsum(dim=-1) - probs >= body["top_p"]]] = -torch.inf
    return logits


def _table(tokens, values, tables):
    """What stands under ``logprobs``: the log-probability of each token, and of the likeliest."""
    names = [f"token_id:{token}" for token in tokens]
    tops = [
        None if scores is None else {f"token_id:{int(scores.argmax())}": float(scores.max()), name: value}
        for name, value, scores in zip(names, values, tables, strict=False)
    ]
    return {"tokens": names, "token_logprobs": values, "top_logprobs": tops, "text_offset": [0] * len(tokens)}


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, body):
            server.headers.append(dict(self.headers))
            try:
                if server.key is not None and self.headers.get("Authorization") != f"Bearer {server.key}":
                    raise Refusal(401, "Unauthorized")
                status, content = 200, server.answer(self.path, body)
            except Refusal as refusal:
                status, content = refusal.status, json.dumps({"error": {"message": refusal.message}}).encode()
            if content == b"":  # the connection ends without a word
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            self._answer(None)

        def do_POST(self):
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *_):
            pass

    return Handler
