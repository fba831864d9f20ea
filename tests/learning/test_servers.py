"""Teachers and samplers behind a completions server: equal to local ones, asked again, stopped cleanly, never stale."""

import json
import threading

import pytest
import torch

from learning.completions_server import CompletionsServer as LocalServer
from learning.completions_server import Refusal
from sanov.core.errors import InputError, SanovWarning
from sanov.data.prompts import Prompts
from sanov.data.rewards import Rewards, load
from sanov.data.tasks import named
from sanov.data.tokens import CharTokenizer
from sanov.learning import policy
from sanov.learning.policies import Evaluation, Tasks
from sanov.learning.policy import Optimisation
from sanov.learning.publishing import SharedFolder
from sanov.learning.rollouts import Rollout, collect, local_sampler
from sanov.learning.server_client import Client
from sanov.learning.servers import CompletionsServer, ServerTeacher, open_sampler
from sanov.learning.token_teachers import LocalTeacher, RecordedTeacher, open_teacher
from sanov.nets.reads import Read
from sanov.nets.sampling import keyed_uniforms, sample
from sanov.nets.transformer import Decoder, Shape, load_decoder, save_decoder
from sanov.systems import kdrl
from sanov.systems.kdrl import Distillation, KdSignal, Mixing

TOKENIZER = CharTokenizer()
EOS, PAD = TOKENIZER.eos, TOKENIZER.pad
LIMIT, GROUP = 8, 3
pytestmark = pytest.mark.filterwarnings("ignore:.*every completion was cut")  # the policy is no trained one
SAMPLING = Rollout(group_size=GROUP, prompts_per_step=3, max_completion_length=LIMIT)


@pytest.fixture(autouse=True)
def straight(monkeypatch):
    """No proxy between the tests and their servers."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("SANOV_SERVER_KEY", raising=False)


def decoder(seed, vocabulary=TOKENIZER.vocabulary):
    """A model that prefers some tokens, and ends now and then."""
    model = Decoder(Shape(vocabulary, 16, 1, 2, 24, context=48), seed=seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim == 2 else 1.0)
    return model


def tasks(count=12):
    return named("chain_sum", terms=(2, 2), largest=9).rows(count, 0, "train")


def encoded(prompts):
    return [TOKENIZER.encode(text) for text in prompts.prompts]


def rollouts(model=None, count=4, step=0, **options):
    """Completions of a small policy, by its own hand."""
    prompts = tasks(count)
    return collect(
        decoder(0) if model is None else model,
        prompts,
        encoded(prompts),
        torch.arange(count).numpy(),
        limit=LIMIT,
        options=SAMPLING.model_copy(update=options),
        tokenizer=TOKENIZER,
        rewards=Rewards((load("exact"),)),
        seed=1,
        step=step,
    )


@pytest.fixture
def serve():
    """Start servers that end with the test."""
    started = []

    def start(models, **options):
        started.append(LocalServer(models, **options))
        return started[-1]

    yield start
    for server in started:
        server.__exit__()


class Clock:
    """Time that passes by waiting alone."""

    def __init__(self):
        self.now, self.waits = 0.0, []

    def client(self, url, patience=100.0):
        return Client(url, patience=patience, clock=lambda: self.now, wait=self.wait)

    def wait(self, event, seconds):
        self.waits.append(seconds)
        self.now += seconds


def failing(times, failure):
    """Fail so often, then answer."""
    left = iter(range(times))

    def fault(path, body):
        if path == "/v1/completions" and next(left, None) is not None:
            if isinstance(failure, int):
                raise Refusal(failure, "busy")
            return failure
        return None

    return fault


# -- a teacher --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_a_served_teacher_says_what_a_local_one_says(serve, rows):
    found, teacher = rollouts(), decoder(7)
    server = serve({"teacher": teacher})
    chosen = torch.tensor([4, 0, 11, 7, 2, 3])
    said = ServerTeacher(server.url, rows=rows).log_probs(found, chosen, 1.0)
    expected = LocalTeacher(teacher, TOKENIZER).log_probs(found, chosen, 1.0)
    assert expected[found.completion[chosen]].std() > 0.1  # it is no constant that agrees
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=0)
    assert sorted(len(body["prompt"]) for body in server.bodies()) == {1: [1] * 6, 5: [1, 5], 64: [6]}[rows]
    assert (said[~found.completion[chosen]] == 0).all()


def test_a_served_teacher_needs_no_row(serve):
    nothing = torch.tensor([], dtype=torch.long)
    assert ServerTeacher(serve({"teacher": decoder(7)}).url).log_probs(rollouts(), nothing, 1.0).shape[0] == 0


@pytest.mark.parametrize("mode", ["raw", "processed"])
def test_scores_of_given_tokens_are_at_temperature_1_alone(serve, mode):
    server = serve({"teacher": decoder(7)}, mode=mode)
    teacher, found, row = ServerTeacher(server.url), rollouts(), torch.tensor([0])
    expected = LocalTeacher(decoder(7), TOKENIZER).log_probs(found, row, 1.0)
    torch.testing.assert_close(teacher.log_probs(found, row, 1.0), expected, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match=r"rollouts.temperature: it is 0.7, .* scores tokens at 1 alone"):
        teacher.log_probs(found, row, 0.7)


def test_logits_are_no_log_probabilities(serve):
    server = serve({"teacher": decoder(7)}, mode="logits")
    with pytest.raises(InputError, match=r"a log-probability is \d.* --logprobs-mode raw_logprobs"):
        ServerTeacher(server.url).log_probs(rollouts(), torch.tensor([0]), 1.0)


def test_the_likeliest_token_tells_logits_where_those_asked_for_do_not(serve):
    server = serve({"teacher": decoder(7)})
    server.change = edited(top_logprobs=lambda tops: [*tops[:-1], {"token_id:3": 2.5}])
    with pytest.raises(InputError, match=r"a log-probability is 2.5"):
        ServerTeacher(server.url).log_probs(rollouts(), torch.tensor([0]), 1.0)


def test_rows_are_known_by_their_number_not_by_their_place(serve):
    found, server = rollouts(), serve({"teacher": decoder(7)})
    server.change = lambda answer: answer | {"choices": answer["choices"][::-1]}
    said = ServerTeacher(server.url).log_probs(found, torch.arange(12), 1.0)
    expected = LocalTeacher(decoder(7), TOKENIZER).log_probs(found, torch.arange(12), 1.0)
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=0)


def test_what_json_cannot_say_is_minus_infinity(serve):
    def change(answer):
        answer["choices"][0]["logprobs"]["token_logprobs"][-1] = -9999.0
        return answer

    server, found = serve({"teacher": decoder(7)}), rollouts()
    server.change = change
    said = ServerTeacher(server.url).log_probs(found, torch.tensor([0]), 1.0)
    assert said[0, found.lengths[0] - 1] == -torch.inf


def edited(**changes):
    """Change what stands under the first answer's log-probabilities."""

    def change(answer):
        table = answer["choices"][0]["logprobs"]
        for name, edit in changes.items():
            table[name] = edit(table[name])
        return answer

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            edited(token_logprobs=lambda values: values[:-1]),
            r"\d+ log-probabilities of \d+ tokens; expected one a token",
        ),
        (edited(token_logprobs=lambda values: [*values[:-1], None]), "a log-probability is None; expected a number"),
        (
            edited(token_logprobs=lambda values: [*values[:-1], 0.5]),
            "a log-probability is 0.5; expected a number up to 0",
        ),
        (edited(token_logprobs=lambda values: [*values[:-1], float("nan")]), "a log-probability is nan"),
        (edited(token_logprobs=lambda values: [*values[:-1], "-1"]), "a log-probability is -1"),
        (edited(tokens=lambda names: names[::-1]), r"tokens were scored that are not the \d+ asked"),
        (edited(tokens=lambda names: ["a"] * len(names)), "expected token_id:NUMBER. Use a server that knows"),
        (lambda answer: answer | {"choices": answer["choices"][1:]}, r"the answer has 3 choices; expected 4"),
        (
            lambda answer: answer | {"choices": [answer["choices"][0]] * 4},
            r"the answer has 4 choices; expected 4, numbered",
        ),
        (lambda answer: {"error": "?"}, "the answer has no choices"),
        (lambda answer: answer | {"choices": [{"index": 0}, *answer["choices"][1:]]}, "has no log-probabilities"),
    ],
)
def test_answers_that_cannot_be_right_are_refused(serve, change, message):
    server = serve({"teacher": decoder(7)})
    server.change = change
    with pytest.raises(InputError, match=message) as told:
        ServerTeacher(server.url).log_probs(rollouts(), torch.arange(4), 1.0)
    assert server.url in str(told.value)
    assert len(server.bodies()) == 1  # asking again would not mend it


def test_a_row_of_another_length_is_not_taken(serve):
    def change(answer):  # as a server that puts a token in front of every prompt
        table = answer["choices"][0]["logprobs"]
        table["tokens"].insert(0, "token_id:28")
        table["token_logprobs"].insert(0, None)
        return answer

    server = serve({"teacher": decoder(7)})
    server.change = change
    with pytest.raises(InputError, match="tokens were scored that are not"):
        ServerTeacher(server.url).log_probs(rollouts(), torch.arange(1), 1.0)


# -- whose tokens they are --------------------------------------------------------------------------------------------


class Shifted(CharTokenizer):
    """The same characters under other numbers."""

    def encode(self, text, *, where=""):
        return [(token + 1) % 20 for token in super().encode(text)]


def test_a_teacher_with_another_tokenizer_is_refused(serve):
    server = serve({"teacher": decoder(7)}, tokenizer=Shifted())
    teacher = ServerTeacher(server.url)
    teacher.compare(TOKENIZER, tasks())
    assert server.calls == []  # nothing is asked before it has to be
    with pytest.raises(InputError, match=r"the teacher's tokens of 'a.*' are \[.*\]; expected \[.*policy's tokenizer"):
        teacher.log_probs(rollouts(), torch.arange(4), 1.0)
    assert server.bodies() == []


def test_tokens_are_compared_once_also_behind_a_record_and_in_chats(serve, tmp_path):
    server = serve({"teacher": decoder(7)})
    teacher = RecordedTeacher(tmp_path / "record", ServerTeacher(server.url))
    teacher.compare(TOKENIZER, Prompts(([{"role": "user", "content": "1+1"}], [{"role": "user", "content": "2"}])))
    found = rollouts()
    for rows in (torch.arange(2), torch.arange(4), torch.arange(4)):
        teacher.log_probs(found, rows, 1.0)
    assert [body["prompt"] for body in server.bodies("/tokenize")] == ["1+1", "2"]
    assert [len(body["prompt"]) for body in server.bodies()] == [2, 2]


def test_a_server_that_does_not_tokenize_is_believed_with_a_warning(serve):
    teacher = ServerTeacher(serve({"teacher": decoder(7)}, tokenizer=False).url)
    teacher.compare(TOKENIZER, tasks())
    with pytest.warns(SanovWarning, match="nothing checks that its tokens are the policy's"):
        teacher.log_probs(rollouts(), torch.arange(1), 1.0)


def test_a_smaller_vocabulary_and_a_shorter_context_are_told(serve):
    found = rollouts()
    assert int(found.ids.max()) >= 12
    with pytest.raises(InputError, match=r"refused the call \(status 400: Token id \d+ is out of vocabulary\)"):
        ServerTeacher(serve({"teacher": decoder(7, vocabulary=12)}).url).log_probs(found, torch.arange(12), 1.0)
    with pytest.raises(InputError, match="status 400: This model's maximum context length is 8"):
        ServerTeacher(serve({"teacher": decoder(7)}, longest=8).url).log_probs(found, torch.arange(12), 1.0)


def test_one_of_several_models_is_named(serve):
    server, found, rows = serve({"one": decoder(1), "two": decoder(7)}), rollouts(), torch.arange(2)
    with pytest.raises(InputError, match=r"the models are one, two; expected one. Name one of them: .*#NAME"):
        ServerTeacher(server.url).log_probs(found, rows, 1.0)
    with pytest.raises(InputError, match="the models are one, two; expected three"):
        ServerTeacher(f"{server.url}#three").log_probs(found, rows, 1.0)
    said = ServerTeacher(f"{server.url}/v1/#two").log_probs(found, rows, 1.0)
    torch.testing.assert_close(said, LocalTeacher(decoder(7), TOKENIZER).log_probs(found, rows, 1.0), atol=1e-5, rtol=0)


def test_a_key_is_sent_where_there_is_one(serve, monkeypatch):
    server = serve({"teacher": decoder(7)}, key="secret")
    with pytest.raises(InputError, match=r"status 401: Unauthorized.*SANOV_SERVER_KEY"):
        ServerTeacher(server.url).log_probs(rollouts(), torch.arange(1), 1.0)
    monkeypatch.setenv("SANOV_SERVER_KEY", "secret")
    ServerTeacher(server.url).log_probs(rollouts(), torch.arange(1), 1.0)


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [500, 503, 429, b""])
def test_what_fails_is_asked_again_at_growing_intervals(serve, failure):
    server, clock, found = serve({"teacher": decoder(7)}), Clock(), rollouts()
    server.fault = failing(3, failure)
    with pytest.warns(SanovWarning, match="no answer .* it is asked again for 100 s"):
        said = ServerTeacher(clock.client(server.url)).log_probs(found, torch.arange(4), 1.0)
    assert clock.waits == [0.5, 1.0, 2.0]
    expected = LocalTeacher(decoder(7), TOKENIZER).log_probs(found, torch.arange(4), 1.0)
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("failure", [500, b"", "refused"])
def test_what_fails_for_long_ends_the_run_at_its_limit(serve, failure):
    server, clock = serve({"teacher": decoder(7)}), Clock()
    teacher = ServerTeacher(clock.client(server.url))
    teacher.log_probs(rollouts(), torch.arange(1), 1.0)
    if failure == "refused":
        server.stop()
    else:
        server.fault = failing(10**6, failure)
    with (
        pytest.warns(SanovWarning, match="no answer"),
        pytest.raises(InputError, match=r"/v1/completions: gave no answer within 100 s \(.*\).*--resume"),
    ):
        teacher.log_probs(rollouts(), torch.arange(4), 1.0)
    assert clock.now == 100.0
    assert max(clock.waits) == 30.0


def test_what_is_wrong_with_a_call_is_told_at_once(serve):
    server, clock = serve({"teacher": decoder(7)}), Clock()
    server.fault = failing(10**6, 400)
    with pytest.raises(InputError, match=r"refused the call \(status 400: busy\)"):
        ServerTeacher(clock.client(server.url)).log_probs(rollouts(), torch.arange(4), 1.0)
    assert clock.waits == []


@pytest.mark.parametrize("content", [b"<html>", b'{"choices": ['])
def test_garbage_is_shown(serve, content):
    server = serve({"teacher": decoder(7)})
    server.fault = failing(1, content)
    with pytest.raises(InputError, match=r"/v1/completions: the answer is '.*; expected JSON"):
        ServerTeacher(server.url).log_probs(rollouts(), torch.arange(4), 1.0)


def test_a_server_of_another_kind_is_told(serve):
    server = serve({})
    server.fault = lambda path, body: b'{"hello": 1}'
    with pytest.raises(
        InputError, match="/v1/models: the answer lists no models; expected a server of the completions"
    ):
        ServerTeacher(server.url).log_probs(rollouts(), torch.arange(4), 1.0)


def test_one_that_fails_for_good_ends_the_waiting_of_the_others(serve):
    server, found, woken, waiting = serve({"teacher": decoder(7)}), rollouts(), [], threading.Semaphore(0)
    last = found.ids[0, : found.lengths[0]].tolist()

    def fault(path, body):
        if path != "/v1/completions":
            return
        if body["prompt"] == [last]:
            for _ in range(3):
                assert waiting.acquire(timeout=60.0)
            raise Refusal(400, "no")
        raise Refusal(500, "busy")

    def wait(event, seconds):
        waiting.release()
        woken.append(event.wait(60.0))

    server.fault = fault
    teacher = ServerTeacher(Client(server.url, wait=wait), rows=1)
    with pytest.warns(SanovWarning), pytest.raises(InputError, match="status 400: no"):
        teacher.log_probs(found, torch.arange(4), 1.0)
    assert woken == [True] * 3


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "http://", "http://a:b", "http://[", ""])
def test_what_is_no_address_is_told(url):
    with pytest.raises(InputError, match="is no address of a server; expected http://HOST:PORT"):
        Client(url)


# -- a sampler --------------------------------------------------------------------------------------------------------


def sampled(sampler, model, *, step=0, chosen=slice(None), seed=1, count=4, **options):
    """Completions of some prompts by a sampler, with the noise that they have in a step."""
    options = SAMPLING.model_copy(update=options)
    rows = torch.arange(count * options.group_size).reshape(count, -1)[chosen].flatten()
    return sampler(
        model,
        encoded(tasks(count))[chosen],
        keyed_uniforms(seed, step, rows, LIMIT),
        version=step,
        options=options,
        eos=EOS,
        pad=PAD,
    )


def test_completions_come_with_the_log_probabilities_of_the_policy(serve):
    model = decoder(0)
    found, version = sampled(CompletionsServer(serve({"policy@0": model}).url), model)
    assert version == 0
    assert found.tokens.shape[0] == 12
    assert set(found.finished.tolist()) == {True, False}
    for row, ids in enumerate(ids for ids in encoded(tasks(4)) for _ in range(GROUP)):
        length = int(found.lengths[row])
        tokens = found.tokens[row, :length]
        assert found.finished[row] == (tokens[-1] == EOS)
        assert found.finished[row] or length == LIMIT
        assert (found.tokens[row, length:] == PAD).all()
        assert (found.log_probs[row, length:] == 0).all()
        whole = torch.tensor([[*ids, *tokens.tolist()]])
        at = torch.zeros_like(whole, dtype=torch.bool)
        at[0, len(ids) - 1 : -1] = True
        expected = model(whole, torch.ones_like(at), {"own": Read(at, tokens)})["own"].detach()
        torch.testing.assert_close(found.log_probs[row, :length], expected, atol=1e-5, rtol=0)


def test_the_noise_follows_from_seed_step_and_number_of_the_prompt(serve):
    model = decoder(0)
    sampler = CompletionsServer(serve({"policy@0": model, "policy@1": model}).url)
    whole, again = sampled(sampler, model)[0], sampled(sampler, model)[0]
    assert torch.equal(whole.tokens, again.tokens)
    part = sampled(sampler, model, chosen=slice(2, 4))[0]
    width = min(part.tokens.shape[1], whole.tokens.shape[1])
    assert torch.equal(part.tokens[:, :width], whole.tokens[6:, :width])
    assert torch.equal(part.lengths, whole.lengths[6:])
    for other in (sampled(sampler, model, step=1), sampled(sampler, model, seed=2)):
        assert other[0].tokens.tolist() != whole.tokens.tolist()
    assert len({tuple(row) for row in whole.tokens.tolist()}) > 8  # neither prompts nor rows of a group share it


def test_the_likeliest_token_alone_is_that_of_the_local_sampler(serve):
    model = decoder(0)
    found, _ = sampled(CompletionsServer(serve({"policy@0": model}).url), model, top_k=1, group_size=1)
    ids = encoded(tasks(4))
    uniforms = keyed_uniforms(0, 0, torch.arange(4), LIMIT)
    greedy = sample(model, ids, limit=LIMIT, eos=EOS, pad=PAD, temperature=0.0, uniforms=uniforms)
    assert torch.equal(found.tokens, greedy.tokens)
    torch.testing.assert_close(found.log_probs, greedy.log_probs, atol=1e-5, rtol=0)


def test_nothing_is_left_to_defaults_of_the_served_folder(serve):
    model = decoder(0)
    server = serve({"policy@0": model})
    sampled(CompletionsServer(server.url), model, top_p=0.9, suppress=(30, 31))
    body = server.bodies()[-1]
    wanted = {"n": 3, "max_tokens": LIMIT, "temperature": 1.0, "top_p": 0.9, "top_k": -1, "min_p": 0.0}
    wanted |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
    wanted |= {"stop_token_ids": [EOS], "ignore_eos": True, "logit_bias": {"30": -100.0, "31": -100.0}}
    assert {name: body[name] for name in wanted} == wanted


def test_suppressed_tokens_are_never_sampled_and_change_no_log_probability(serve):
    model, banned = decoder(0), tuple(token for token in range(2, 28) if token != EOS)
    sampler = CompletionsServer(serve({"policy@0": model}).url)
    found, _ = sampled(sampler, model, suppress=banned)
    real = torch.arange(found.tokens.shape[1]) < found.lengths[:, None]
    assert not set(found.tokens[real].tolist()) & set(banned)
    assert found.log_probs.exp()[real].mean() < 0.2  # of the whole vocabulary, not of what is left


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.5}, {"suppress": (3,)}])
def test_log_probabilities_after_a_cut_are_refused(serve, options):
    model = decoder(0)
    sampler = CompletionsServer(serve({"policy@0": model}, mode="processed").url)
    plain, _ = sampled(sampler, model)  # where nothing is cut, they are the same
    raw, _ = sampled(CompletionsServer(serve({"policy@0": model}).url), model)
    torch.testing.assert_close(plain.log_probs, raw.log_probs)
    with pytest.raises(InputError, match=r"are those after suppression, top-k and top-p.*--logprobs-mode raw_logprobs"):
        sampled(sampler, model, **options)


def test_whether_they_are_is_tried_once(serve):
    model = decoder(0)
    server = serve({"policy@0": model})
    sampler = CompletionsServer(server.url)
    for _ in range(2):
        sampled(sampler, model, top_k=4)
    assert len(server.bodies()) == 2 + 4 + 4


def test_another_temperature_and_logits_are_refused(serve):
    model = decoder(0)
    with pytest.raises(InputError, match=r"rollouts.temperature: it is 0.5"):
        sampled(CompletionsServer(serve({"policy@0": model}).url), model, temperature=0.5)
    with pytest.raises(InputError, match="a log-probability is"):
        sampled(CompletionsServer(serve({"policy@0": model}, mode="logits").url), model)


def completion(tokens):
    """Put other tokens into the first answer."""
    names = [f"token_id:{token}" for token in tokens]
    return edited(tokens=lambda _: names, token_logprobs=lambda _: [-1.0] * len(tokens), top_logprobs=lambda _: [])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "a completion has 0 tokens"),
        ([1] * (LIMIT + 1), "a completion has 9 tokens; expected 1 to 8"),
        ([1, EOS, 1, EOS], "goes on after its end"),
        ([1, 2, 3], r"ended after 3 tokens without the token 29 \(finish_reason .*\).*--max-model-len"),
        ([1, 32, EOS], "the token 32 was sampled, which is suppressed or beyond the policy's 32"),
        ([1, 31, EOS], "the token 31 was sampled, which is suppressed"),
    ],
)
def test_what_cannot_be_a_completion_is_refused(serve, tokens, message):
    model = decoder(0)
    server = serve({"policy@0": model})
    sampler = CompletionsServer(server.url)
    sampler.tried = True
    server.change = completion(tokens)
    with pytest.raises(InputError, match=message):
        sampled(sampler, model, suppress=(31,))


# -- versions ---------------------------------------------------------------------------------------------------------


def fitted(sampler, *, steps=3, seed=3, signals=(), model=None, **more):
    """Train a small policy; return it and its history."""
    model = decoder(0) if model is None else model
    history, _ = policy.fit(
        tasks(),
        model,
        TOKENIZER,
        Rewards((tenths,)),
        rollouts=SAMPLING,
        training=Optimisation(steps=steps, learning_rate=3e-3),
        sampler=sampler,
        signals=signals,
        seed=seed,
        **more,
    )
    return model, history


def tenths(completions, **_):
    """A reward that most groups disagree about."""
    return [float("1" in text or "+" in text) for text in completions]


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_new_weights_reach_the_server_at_every_step(serve, tmp_path):
    server = serve({"policy@7": decoder(5)})  # of another run
    client = Client(server.url)
    sampler = CompletionsServer(client, publish=SharedFolder(tmp_path, client, f"{server.url}/reload"))
    seen = []

    def remember(updates, metrics):
        seen.append(weights(server.models[f"policy@{updates - 1}"]))

    model, _ = fitted(sampler, callbacks=[remember])
    assert [body["version"] for body in server.bodies("/reload")] == [0, 1, 2]
    assert torch.equal(seen[0], weights(decoder(0)))
    assert not torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[2], weights(model))  # the last update is not sampled from
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy@1", "policy@2"]
    assert torch.equal(weights(load_decoder(tmp_path / "policy@2")), seen[2])


def test_a_stale_version_ends_the_run(serve, tmp_path):
    server = serve({"policy@0": decoder(0)})
    client = Client(server.url)
    sampler = CompletionsServer(client, publish=SharedFolder(tmp_path, client, f"{server.url}/reload"))

    def forget(updates, metrics):
        server.reloads = updates < 2

    with pytest.raises(InputError, match=r"the completions are of version 1; expected 2. Give the server the newest"):
        fitted(sampler, callbacks=[forget])


def test_one_stale_answer_among_many_is_seen(serve):
    model = decoder(0)
    server = serve({"policy@4": model})
    answers = iter(range(10))
    server.change = lambda answer: answer | ({"model": "policy@3"} if next(answers) == 2 else {})
    assert sampled(CompletionsServer(server.url), model, step=4)[1] == 3


@pytest.mark.parametrize("metadata", [{"weight_version": "5"}, {"weight_version": 5}])
def test_a_version_may_stand_in_the_metadata(serve, metadata):
    model = decoder(0)
    server = serve({"policy": model})
    server.metadata = metadata
    assert sampled(CompletionsServer(server.url), model, step=5)[1] == 5
    assert sampled(CompletionsServer(server.url), model, step=6)[1] == 5
    server.weight_version = "6"  # what the answer itself says comes first
    assert sampled(CompletionsServer(server.url), model, step=6)[1] == 5


def test_a_version_may_be_that_of_the_weights_if_it_stays(serve):
    model = decoder(0)
    server = serve({"policy": model})
    server.weight_version = "5"
    assert sampled(CompletionsServer(server.url), model, step=6)[1] == 5

    def change(answer):
        server.weight_version = "6"
        return answer

    server.change = change
    with pytest.raises(InputError, match="does not say which version of the policy wrote it"):
        sampled(CompletionsServer(server.url), model, step=6)


@pytest.mark.parametrize("name", ["policy", "policy@new", "@"])
def test_an_answer_without_a_version_is_refused(serve, name):
    server = serve({name: decoder(0)})
    server.metadata = {"weight_version": "default"}
    with pytest.raises(
        InputError, match=r"does not say which version of the policy wrote it. Serve it as NAME@VERSION"
    ):
        sampled(CompletionsServer(server.url), decoder(0))


def test_the_policy_is_found_beside_other_models(serve):
    model = decoder(0)
    server = serve({"base": decoder(9), "policy@1": decoder(8), "policy@2": model})
    with pytest.raises(InputError, match="the models are base, policy@1, policy@2"):
        sampled(CompletionsServer(server.url), model, step=2)
    named_one = CompletionsServer(f"{server.url}#policy")
    assert sampled(named_one, model, step=2)[1] == 2
    assert {body["model"] for body in server.bodies()} == {"policy@2"}
    assert sampled(named_one, model, step=3)[1] == 2  # the newest there is, which is stale


def test_vllm_is_told_in_its_own_calls(serve, tmp_path):
    server, model = serve({"served": decoder(5)}), decoder(0)
    client = Client(server.url)
    sampler = CompletionsServer(client, publish=SharedFolder(tmp_path, client, "vllm"))
    found = [sampled(sampler, model, step=step)[1] for step in (0, 1)]
    assert found == [0, 1]
    assert torch.equal(weights(server.models["served"]), weights(model))
    update = ["/pause?mode=wait", "/start_weight_update", "/update_weights", "/finish_weight_update", "/resume"]
    told = [path for path, body in server.calls if body is not None and not path.startswith("/v1")]
    assert told == ["/init_weight_transfer_engine", *update, *update]
    assert server.bodies("/update_weights")[1] == {"update_info": {"path": str(tmp_path / "served@1")}}


def test_a_server_that_watches_the_folder_is_waited_for(serve, tmp_path):
    server, model, clock = serve({"policy@0": decoder(5)}), decoder(0), Clock()

    def wait(event, seconds):
        clock.wait(event, seconds)
        if len(clock.waits) == 3:
            server.models = {"policy@4": load_decoder(tmp_path / "policy@4")}

    client = Client(server.url, patience=9.5, clock=lambda: clock.now, wait=wait)
    publish = SharedFolder(tmp_path, client)
    assert sampled(CompletionsServer(client, publish=publish), model, step=4)[1] == 4
    assert clock.waits == [1.0] * 3
    with pytest.raises(InputError, match=r"does not serve policy@5 after 9.5 s. Have it load .*policy@5"):
        publish(model, 5)


def test_a_folder_that_cannot_be_written_ends_the_run(serve, tmp_path):
    (tmp_path / "file").write_text("")
    client = Client(serve({"policy@0": decoder(0)}).url)
    sampler = CompletionsServer(client, publish=SharedFolder(tmp_path / "file", client))
    with pytest.raises(InputError, match="cannot be written"):
        sampled(sampler, decoder(0))


def test_options_choose_the_sampler(tmp_path):
    assert open_sampler(SAMPLING) is local_sampler
    served = {"server": "http://host:1#policy", "weights": str(tmp_path), "reload": "vllm", "patience": 5.0}
    sampler = open_sampler(SAMPLING.model_copy(update=served))
    assert (sampler.client.url, sampler.client.name, sampler.client.patience) == ("http://host:1", "policy", 5.0)
    assert sampler.publish.vllm
    with pytest.raises(InputError, match=r"rollouts.server: nothing brings new weights to the server"):
        open_sampler(SAMPLING.model_copy(update={"server": "http://host:1"}))
    for lonely in ({"weights": "folder"}, {"reload": "vllm"}):
        with pytest.raises(InputError, match="there is a way to bring weights to a server, and no server"):
            open_sampler(SAMPLING.model_copy(update=lonely))
    with pytest.raises(InputError, match="is no address of a server"):
        open_sampler(SAMPLING.model_copy(update=served | {"server": "host"}))


# -- killed and resumed -----------------------------------------------------------------------------------------------


def signal(url, steps=5):
    teacher = ServerTeacher(Client(url, patience=0.0))
    return KdSignal(teacher, Distillation(beta=0.1, schedule="constant"), Mixing(), steps=steps)


def test_a_run_whose_teacher_was_killed_resumes_to_the_same_bits(serve, tmp_path):
    teacher, folder = decoder(7), tmp_path / "checkpoints"
    whole, history = fitted(local_sampler, steps=5, signals=[signal(serve({"teacher": teacher}).url)])
    server = serve({"teacher": teacher})

    def kill(updates, metrics):
        if updates == 3:
            server.stop()

    run = {"steps": 5, "out": folder}
    with pytest.raises(InputError, match="--resume"):
        fitted(local_sampler, signals=[signal(server.url)], callbacks=[kill], **run)
    assert [path.name for path in folder.iterdir()] == ["step-00000003"]  # none was due
    assert not torch.equal(weights(whole), weights(decoder(0)))
    resumed, other = fitted(local_sampler, signals=[signal(serve({"teacher": teacher}).url)], resume=True, **run)
    assert torch.equal(weights(resumed), weights(whole))
    assert str(other) == str(history)


def test_a_run_whose_sampler_was_killed_resumes_to_the_same_bits(serve, tmp_path):
    def sampler(name):
        server = serve({"policy@0": decoder(5)})
        client = Client(server.url, patience=0.0)
        return server, CompletionsServer(client, publish=SharedFolder(tmp_path / name, client, f"{server.url}/reload"))

    _, first = sampler("whole")
    whole, history = fitted(first, steps=4)
    server, second = sampler("shared")

    def kill(updates, metrics):
        if updates == 2:
            server.stop()

    run = {"steps": 4, "out": tmp_path / "checkpoints"}
    with pytest.raises(InputError, match="--resume"):
        fitted(second, callbacks=[kill], **run)
    resumed, other = fitted(sampler("shared")[1], resume=True, **run)
    assert torch.equal(weights(resumed), weights(whole))
    assert str(other) == str(history)


@pytest.fixture
def config(tmp_path):
    """Options of `kdrl` with a teacher at an address, for a small policy in a folder."""
    folder = tmp_path / "policy"
    folder.mkdir()
    save_decoder(decoder(0), folder)
    TOKENIZER.save(folder)

    def build(url, **options):
        return kdrl.Config(
            policy=str(folder),
            teacher=url,
            kd=Distillation(beta=0.1, schedule="constant"),
            rollouts=SAMPLING.model_copy(update={"patience": 0.0, **options}),
            training=Optimisation(steps=4, learning_rate=3e-3),
            evaluation=Evaluation(share=0.0),
        )

    return build


def test_kdrl_goes_on_with_a_teacher_at_another_address(serve, config, tmp_path):
    data, teacher = Tasks(tasks(), Rewards((tenths,))), decoder(7)
    kdrl.fit(data, config(serve({"teacher": teacher}).url), out=tmp_path / "whole")
    server = serve({"teacher": teacher})
    scored = []

    def fault(path, body):
        scored.append(path)
        if scored.count("/v1/completions") > 2:
            raise Refusal(503, "gone")

    server.fault = fault
    with pytest.raises(InputError, match=r"gave no answer within 0 s \(status 503: gone\).*--resume"):
        kdrl.fit(data, config(server.url), out=tmp_path / "run")
    again = config(serve({"teacher": teacher}).url, patience=60.0)
    kdrl.fit(data, again, out=tmp_path / "run", resume=True)
    files = [tmp_path / name / "model.safetensors" for name in ("run", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert json.loads((tmp_path / "run" / "sanov.json").read_text())["results"]["steps"] == 4


def test_kdrl_compares_tokens_with_the_server(serve, config):
    with pytest.raises(InputError, match="the teacher's tokens of"):
        kdrl.fit(Tasks(tasks(), Rewards((tenths,))), config(serve({"teacher": decoder(7)}, tokenizer=Shifted()).url))


def test_nothing_is_left_behind_where_the_first_step_fails(serve, config, tmp_path):
    data, server = Tasks(tasks(), Rewards((tenths,))), serve({"teacher": decoder(7)})
    url = server.url
    server.stop()
    with pytest.raises(InputError, match="--resume"):
        kdrl.fit(data, config(url), out=tmp_path / "run")
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    kdrl.fit(data, config(serve({"teacher": decoder(7)}).url), out=tmp_path / "run")  # begins anew, without a word


def test_kdrl_samples_by_a_server_that_its_options_name(serve, config, tmp_path):
    server, teacher = serve({"policy@0": decoder(0)}), serve({"teacher": decoder(7)})
    options = {"server": server.url, "weights": str(tmp_path / "shared"), "reload": f"{server.url}/reload"}
    kdrl.fit(Tasks(tasks(), Rewards((tenths,))), config(teacher.url, **options), out=tmp_path / "run")
    assert [body["version"] for body in server.bodies("/reload")] == [0, 1, 2, 3]
    assert len(server.bodies()) == 4 * 3


def test_an_address_opens_a_served_teacher():
    teacher = open_teacher("http://host:1/v1#name", patience=7.0)
    assert isinstance(teacher, ServerTeacher)
    assert (teacher.client.url, teacher.client.name, teacher.client.patience) == ("http://host:1", "name", 7.0)
