"""The score is one number however it is read; the label is reserved and never sampled; c_ref and its rule."""

import math
import types

import numpy as np
import pytest
import torch

from learning.policy_toy import TOKENIZER, decoder, rollouts_of, run, tasks
from sanov.core.errors import InputError, SanovWarning
from sanov.data.prompts import Prompts
from sanov.learning.policies import complete
from sanov.learning.rollouts import Rollout
from sanov.nets.reads import Read
from sanov.nets.sampling import keyed_uniforms, sample
from sanov.systems.laser import Scale, SelfReward, SelfRewardSignal, scoring
from sanov.systems.laser.scale import Measured, check_rule, measure, usual_beta
from sanov.systems.laser.scoring import end_log_probs, end_log_probs_of
from sanov.systems.laser.tokens import check_absent, check_unseen, label_tokens, reserved_tokens
from systems.laser_toy import EOS, LABEL, PAD, SPARE, eager


def sampled(model, *, rows=12, limit=8, watch=(LABEL,), seed=0, **options):
    prompts = [TOKENIZER.encode(text) for text in ("a1+2=", "a13-4=", "a7+7+1=")]
    group = rows // len(prompts)
    found = sample(
        model,
        prompts,
        group_size=group,
        limit=limit,
        eos=EOS,
        pad=PAD,
        suppress=(LABEL, SPARE),
        watch=watch,
        uniforms=keyed_uniforms(seed, 0, torch.arange(rows), limit),
        **options,
    )
    return [prompts[row // group] for row in range(rows)], found


def read_at_end(model, head, tokens, *, label=LABEL, left=0, right=0):
    """By one forward pass over a single row, with padding on either side."""
    row = torch.tensor([[PAD] * left + [*head, *tokens] + [PAD] * right])
    place = torch.arange(row.shape[1])[None]
    end = left + len(head) + len(tokens)
    mask = (place >= left) & (place < end)
    with torch.no_grad():
        read = Read(place == end - 1, torch.tensor([label]))
        return float(model(row, mask, {"end": read})["end"])


# -- one number -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_cache_the_pass_and_the_appended_label_say_the_same(temperature):
    """And whatever temperature the completion was sampled at, the score is that of temperature 1."""
    model = eager()
    heads, found = sampled(model, rows=24, temperature=temperature)
    assert 3 < found.finished.sum() < 24
    for row in torch.nonzero(found.finished).flatten().tolist():
        tokens = found.tokens[row, : found.lengths[row]].tolist()
        by_cache = float(found.ends[LABEL][row])
        assert by_cache == pytest.approx(read_at_end(model, heads[row], tokens), abs=1e-5)
        ids = torch.tensor([[*heads[row], *tokens, LABEL]])
        with torch.no_grad():
            states = model.hidden(ids, torch.ones_like(ids, dtype=torch.bool))[0]
        logits = states[-2] @ model.lm_head.weight.T  # what predicts the label that was appended
        assert by_cache == pytest.approx(float(logits.detach().log_softmax(-1)[LABEL]), abs=1e-5)
    assert found.ends[LABEL][~found.finished].isnan().all()


def test_an_appended_label_changes_no_other_log_probability():
    model, head = decoder(), TOKENIZER.encode("a1+2=3:3")
    for tail in ([], [LABEL]):
        ids = torch.tensor([[*head, EOS, *tail]])
        at = torch.zeros_like(ids, dtype=torch.bool)
        at[:, : len(head)] = True
        with torch.no_grad():
            read = model(ids, torch.ones_like(at), {"a": Read(at, ids[0, 1 : len(head) + 1])})["a"]
        first = read if not tail else first
    torch.testing.assert_close(read, first, rtol=0, atol=1e-6)


def test_padding_and_neighbours_do_not_matter():
    model = decoder(layers=2)
    heads = [TOKENIZER.encode(text) for text in ("a1+2=", "a13-4=", "a7+7+1=")]
    texts = [[*TOKENIZER.encode(text), EOS] for text in ("3:3", "9:9", "14,15:15")]
    alone = [read_at_end(model, head, text) for head, text in zip(heads, texts, strict=True)]
    padded = [read_at_end(model, head, text, left=3, right=2) for head, text in zip(heads, texts, strict=True)]
    together = end_log_probs_of(model, TOKENIZER, heads, texts, np.array([True] * 3), LABEL)
    np.testing.assert_allclose(padded, alone, atol=1e-5)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_what_a_training_step_reads_is_the_same():
    """At another temperature of sampling too: the read of the label has its own."""
    model = decoder()
    heads = [TOKENIZER.encode("a1+2="), TOKENIZER.encode("a13-4=")]
    texts = [[*TOKENIZER.encode("3:3"), EOS], TOKENIZER.encode("9,9")]
    rollouts = rollouts_of(texts, [1.0, 0.0], prompt=heads, eos=EOS, group_size=1)
    signal = SelfRewardSignal(SelfReward(tau=0.0, beta=0.25, reasoning_warmup_steps=0, ref_constant=-9.0))
    signal.begin(model, TOKENIZER, Prompts(("a1+2=",)), Rollout(temperature=0.5))
    signal.score(rollouts, 0, model)
    from sanov.learning import policy

    (part,) = policy.packed(rollouts, [signal], policy.Grpo(), 10**6, 0)
    values = policy.sums(model, part, [signal], policy.Grpo(), 0.5)
    score = 0.25 * (read_at_end(model, heads[0], texts[0]) + 9.0)
    assert float(values["self_reward"][0].detach()) == pytest.approx(0.5 * (score - 1) ** 2, abs=1e-5)
    assert part["counts"]["self_reward"] == 1
    assert float(rollouts.rows["self_reward"][0]) == pytest.approx(score, abs=1e-5)


def test_an_end_in_the_last_place_counts():
    model = eager()
    heads, found = sampled(model, rows=60, limit=3)
    late = found.finished & (found.lengths == 3)
    assert late.any()
    row = int(torch.nonzero(late)[0])
    expected = read_at_end(model, heads[row], found.tokens[row].tolist())
    assert float(found.ends[LABEL][row]) == pytest.approx(expected, abs=1e-5)


def test_watching_changes_no_completion():
    model = eager()
    _, watched = sampled(model, rows=60)
    _, alone = sampled(model, rows=60, watch=())
    assert torch.equal(watched.tokens, alone.tokens)
    assert torch.equal(watched.lengths, alone.lengths)
    torch.testing.assert_close(watched.log_probs, alone.log_probs, rtol=0, atol=1e-5)
    assert alone.ends == {}


def test_a_sampler_that_does_not_watch_is_made_up_for():
    model = eager()
    heads, found = sampled(model, rows=12)
    texts = [found.tokens[row, : found.lengths[row]].tolist() for row in range(12)]
    rollouts = rollouts_of(texts, prompt=heads, eos=EOS, pad=PAD)
    again = end_log_probs(model, rollouts.ids, rollouts.lengths, rollouts.finished, LABEL)
    torch.testing.assert_close(again, found.ends[LABEL], rtol=0, atol=1e-5, equal_nan=True)


def test_every_process_makes_as_many_passes(monkeypatch):
    """Where another has three parts, the one part here is followed by two passes that change nothing."""
    heads, found = sampled(eager(), rows=12)
    texts = [found.tokens[row, : found.lengths[row]].tolist() for row in range(12)]
    rollouts, passes = rollouts_of(texts, prompt=heads, eos=EOS, pad=PAD), []

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = eager()

        def forward(self, *inputs):
            passes.append(1)
            return self.inner(*inputs)

    monkeypatch.setattr(scoring, "every_process", lambda value: [value, 3])
    values = end_log_probs(Counting(), rollouts.ids, rollouts.lengths, rollouts.finished, LABEL)
    assert len(passes) == 3
    torch.testing.assert_close(values, found.ends[LABEL], rtol=0, atol=1e-5, equal_nan=True)


# -- the label --------------------------------------------------------------------------------------------------------


def test_the_label_is_never_sampled_even_by_a_policy_that_prefers_it():
    model = eager(label=9.0, eos=-2.0)
    prompts = Prompts(("a1+2=", "a3-1=", "a7+7="))
    free = Rollout(max_completion_length=12)
    forbidden = free.model_copy(update={"suppress": (LABEL, SPARE)})
    often = complete(model, TOKENIZER, prompts, None, free, samples=10)
    assert sum(row.count(LABEL) for row in often.ids) > 0.9 * sum(map(len, often.ids))
    never = complete(model, TOKENIZER, prompts, None, forbidden, samples=300)
    assert sum(map(len, never.ids)) > 10_000
    assert not any({LABEL, SPARE} & set(row) for row in never.ids)


def test_training_suppresses_the_label_and_its_spare():
    seen = []

    def watch(prompts, completions, completion_ids, **_):
        seen.extend(token for row in completion_ids for token in row)
        return [0.0] * len(completions)

    run(eager(label=9.0), steps=2, signals=[SelfRewardSignal(SelfReward(ref_constant=-9.0))], reward=watch)
    assert len(seen) > 50
    assert not {LABEL, SPARE} & set(seen)


def vocabulary(names, special, *, eos=0, template=None):
    """What `nets.vocabulary.Vocabulary` is to `tokens`, over a list of names; a text is split into its characters."""
    added = {n: types.SimpleNamespace(special=True) for n in special}
    inner = types.SimpleNamespace(added_tokens_decoder=added, chat_template=template, unk_token_id=None)
    known = {name: number for number, name in enumerate(names)}
    return types.SimpleNamespace(
        eos=eos,
        pad=eos,
        bos=None,
        tokenizer=inner,
        token_ids=lambda: known,
        continued=lambda text: [known[text]] if text in known else [known[letter] for letter in text],
        encode=lambda text: [known[letter] for letter in text],
        decode=lambda ids: "".join(names[number] for number in ids),
        vocabulary=len(names),
    )


NAMES = [
    "<end>",
    "<start>",
    "a",
    "b",
    "<|vision_start|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
]


def test_reserved_tokens_come_first_and_those_of_the_template_never():
    assert reserved_tokens(TOKENIZER) == [LABEL, SPARE]
    found = reserved_tokens(vocabulary(NAMES, {0, 1, 4, 5, 6}, template="{{ '<start>' + x }}"))
    assert found == [5, 6, 4]
    assert label_tokens(vocabulary(NAMES, {0, 1, 4}, template="<start>")) == (4, None)


def test_a_hugging_face_tokenizer_gives_its_unused_special_tokens(tmp_path):
    pytest.importorskip("transformers", reason="the extra `language` is not installed")
    from transformers import AutoTokenizer

    from sanov.nets.vocabulary import Vocabulary

    TOKENIZER.save(tmp_path)
    found = Vocabulary(AutoTokenizer.from_pretrained(str(tmp_path)))
    assert label_tokens(found) == (LABEL, SPARE)
    assert label_tokens(found, "<|reserved_1|>") == (SPARE, LABEL)
    assert found.decode([1, LABEL, 2]).replace(" ", "") == "12"


@pytest.mark.parametrize(
    ("named", "told"),
    [("<|eos|>", "is EOS"), ("27", "is PAD"), (str(TOKENIZER.bos), "is BOS"), ("99", "no token 99")],
)
def test_a_label_with_a_role_is_refused(named, told):
    with pytest.raises(InputError, match=told) as error:
        label_tokens(TOKENIZER, named)
    assert "<|reserved_0|>" in str(error.value)


def test_a_label_of_several_tokens_is_refused():
    with pytest.raises(InputError, match=r"is 2 tokens \(2, 3\).*<\|reserved_special_token_0\|>"):
        label_tokens(vocabulary(NAMES, {5, 6}), "ab")
    with pytest.raises(InputError, match="there is no token 'zzz'"):
        label_tokens(TOKENIZER, "zzz")


def test_a_tokenizer_without_reserved_tokens_is_told():
    with pytest.raises(InputError, match="no reserved token"):
        label_tokens(vocabulary(["<end>", "a"], {0}))
    plain = vocabulary(["<end>", "a", "b", "c"], {0})
    prompts = Prompts(("ab", "a"), {"solution": ["c", ""]})
    with pytest.raises(InputError, match=r"no reserved token.*self_reward.token=NAME"):
        label_tokens(plain, prompts=prompts)
    with pytest.raises(InputError, match=r"such as self_reward.token=3, which is 'c' and in none of the prompts"):
        label_tokens(plain, prompts=Prompts(prompts.prompts))
    assert label_tokens(plain, "3") == (3, None)
    with pytest.raises(InputError, match="no second reserved token"):
        label_tokens(vocabulary(NAMES[:5], {4}), needs_spare=True)


def test_a_label_that_occurs_is_refused_with_its_place():
    table = Prompts(("a1+2=", "a3-1="), {"solution": ["3:3", "2:2"]}, "prompts.jsonl")
    minus = TOKENIZER.encode("-")[0]
    with pytest.raises(InputError, match=r"prompts\.jsonl, row 2: token 3 is the label token"):
        check_unseen(TOKENIZER, (minus,), table)
    with pytest.raises(InputError, match=r"column 'solution', row 1: token 2"):
        check_unseen(TOKENIZER, TOKENIZER.encode(":"), table)
    with pytest.raises(InputError, match="the completions, row 1: token 2"):
        check_absent((LABEL,), [[1, LABEL]], "the completions")
    check_unseen(TOKENIZER, (LABEL, SPARE), table)


# -- c_ref ------------------------------------------------------------------------------------------------------------


def test_c_ref_is_the_mean_over_the_policys_own_completions():
    model = eager()
    prompts, _ = tasks(40)
    options = Rollout(max_completion_length=8, suppress=(LABEL, SPARE))
    found = measure(model, TOKENIZER, prompts, options, LABEL, seed=3)
    again = measure(model, TOKENIZER, prompts, options, LABEL, seed=3)
    assert found == again
    assert 100 < found.samples <= 320
    heads = [[TOKENIZER.bos, *TOKENIZER.encode(prompt)] for prompt in prompts.prompts]
    rows = complete(model, TOKENIZER, prompts, None, options, samples=8, seed=5)
    each = [heads[row // 8] for row in range(len(rows.ids))]
    values = end_log_probs_of(model, TOKENIZER, each, rows.ids, rows.finished.ravel(), LABEL)
    values = values[~np.isnan(values)]
    error = math.hypot(found.std / math.sqrt(found.samples), values.std() / math.sqrt(len(values)))
    assert found.mean == pytest.approx(values.mean(), abs=5 * error)
    assert found.std == pytest.approx(values.std(), rel=0.3)


def test_a_policy_that_never_ends_cannot_be_measured():
    with pytest.raises(InputError, match=r"of 304 completions 0 end.*max_completion_length"):
        measure(eager(eos=-40.0), TOKENIZER, tasks(16)[0], Rollout(max_completion_length=3), LABEL)


@pytest.mark.parametrize("correction", [False, True])
def test_a_probability_above_one_is_refused_unless_the_normaliser_is_added(correction):
    if correction:
        assert "with beta log Z added" in check_rule(Measured(-9.5, 0.2, 300), 0.1, correction=True)
        return
    with pytest.raises(InputError, match="a correct answer would need probability >= 1") as error:
        check_rule(Measured(-9.5, 0.2, 300), 0.1)
    assert "10.00" in str(error.value)
    assert "9.50" in str(error.value)
    assert "self_reward.beta=0.22" in str(error.value)


def test_a_likely_label_is_warned_of():
    with pytest.warns(SanovWarning, match=r"c_ref -9\.00, 1/beta 8\.00.*2/\|c_ref\| = 0\.222"):
        check_rule(Measured(-9.0, 0.2, 300), 0.125)


def test_a_rough_constant_is_warned_of():
    with pytest.warns(SanovWarning, match=r"-24\.87 with a standard deviation of 1\.18.*reference=exact"):
        check_rule(Measured(-24.87, 1.18, 300), 0.1)
    assert "they go together" in check_rule(Measured(-24.87, 1.18, 300), 0.1, exact=True)
    assert "they go together" in check_rule(Measured(-23.11, 0.04, 300), 0.1)


@pytest.mark.parametrize("c_ref", [-2.5, -3.6, -4.0, -9.5, -12.0, -23.0])
def test_a_beta_that_is_ours_to_choose_goes_with_c_ref(c_ref):
    """Without a warning; and no larger than it has to be."""
    beta = usual_beta(0.1, c_ref)
    assert "they go together" in check_rule(Measured(c_ref, None, 0), beta)
    if beta > 0.1:
        lower = beta - 0.011
        assert lower < 2 / abs(c_ref) or c_ref + 1 / lower > -2


def test_a_free_beta_is_raised_and_a_given_one_is_not():
    free = SelfRewardSignal(SelfReward(ref_constant=-6.0))
    assert free.begin(decoder(), TOKENIZER, tasks(8)[0], Rollout())["self_reward"]["beta"] == 0.34
    given = SelfRewardSignal(SelfReward(ref_constant=-6.0, beta=0.2))
    with pytest.warns(SanovWarning, match="smallest comfortable beta"):
        given.begin(decoder(), TOKENIZER, tasks(8)[0], Rollout())
    assert given.scale.beta == 0.2


@pytest.mark.parametrize("constant", [0.0, 3.0, math.nan])
def test_a_constant_is_a_log_probability(constant):
    with pytest.raises(InputError, match=r"self_reward\.ref_constant: .* a log-probability must be < 0"):
        check_rule(Measured(constant, None, 0), 0.1)


def test_constant_and_exact_scores_agree_where_the_reference_is_constant():
    log_self = torch.tensor([-5.0, -9.0, -7.5], dtype=torch.float64)
    tree = {"token": LABEL, "spare": SPARE, "loss": "mse", "beta": 0.2, "constant": -9.0}
    constant, exact = Scale(**tree), Scale(**tree, exact=True)
    torch.testing.assert_close(exact.scores(log_self, torch.full_like(log_self, -9.0)), constant.scores(log_self))
    assert Scale.from_dict(exact.to_dict()) == exact


def test_the_numbers_of_the_embedded_tasks_and_of_the_paper():
    def usual(tokenizer):
        own = SelfReward().resolved(tokenizer)
        return own.beta, own.reasoning_warmup_steps, own.warmup_steps

    assert usual(TOKENIZER) == (0.25, 0, 50)
    assert usual(vocabulary(NAMES, {5})) == (0.1, 200, 200)
    assert SelfReward(beta=0.3).resolved(TOKENIZER).beta == 0.3


def test_warm_ups_that_are_not_given_leave_most_of_the_steps():
    """The numbers of the paper at the length of its runs, a share of shorter ones; the embedded tasks have their own."""

    def warm_ups(steps, tokenizer=None, **given):
        own = SelfReward(**given).resolved(tokenizer or vocabulary(NAMES, {5}), steps)
        return own.reasoning_warmup_steps, own.warmup_steps

    assert warm_ups(1600) == warm_ups(None) == (200, 200)
    assert warm_ups(120) == (15, 15)
    assert warm_ups(3) == (0, 0)
    assert warm_ups(120, warmup_steps=7) == (15, 7)
    assert warm_ups(120, TOKENIZER) == (0, 50)
    assert warm_ups(20, TOKENIZER) == (0, 10)
