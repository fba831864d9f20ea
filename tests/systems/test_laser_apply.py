"""Test time: completions of one's own and of others, tables of scores, and what is refused."""

import json
import math
import re

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from learning.policy_toy import TOKENIZER, decoder, tasks
from sanov.comparisons import difference_interval
from sanov.core import charts
from sanov.core.errors import InputError
from sanov.data.prompts import Prompts
from sanov.data.rewards import Rewards
from sanov.data.verifiers import Countdown, Exact, Number
from sanov.learning import policies
from sanov.learning.policies import Evaluation, Tasks
from sanov.learning.rollouts import Rollout
from sanov.systems import laser
from sanov.systems.laser import Config, Fitted, SelfReward, verification
from sanov.systems.laser.calibration import held_out
from sanov.systems.laser.reading import answers_of, held
from systems.laser_toy import LABEL, PAD, SHORT, SPARE, eager, small_digits

SCALE = {"token": LABEL, "spare": SPARE, "loss": "mse", "beta": 0.4, "constant": -3.6, "correction": True}
# a text holds no special tokens, which this policy would write
PLAIN_TEXT = SHORT.model_copy(update={"max_completion_length": 8, "suppress": (PAD, TOKENIZER.bos)})
OPTIONS = Config(rollouts=PLAIN_TEXT, evaluation=Evaluation(samples=4))
PROMPTS = tasks(12)[0]


def fitted(model=None, **scale):
    return Fitted("laser", model or eager(), TOKENIZER, {}, {"self_reward": {**SCALE, **scale}})


def asked(reward=small_digits):
    return Tasks(PROMPTS, None if reward is None else Rewards((reward,)))


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """The intervals here are not about their width."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "DRAWS", 40)
        yield


@pytest.fixture(scope="module")
def answer(few_draws):
    return laser.apply(asked(), OPTIONS, fitted=fitted(), seed=1)


# -- one's own completions --------------------------------------------------------------------------------------------


def test_completions_are_scored_and_judged(answer):
    table = answer.to_frame()
    assert len(table) == 48
    scored = table.filter(pl.col("answer").is_not_null())
    log_z = 0.4 * np.log1p(math.exp(-3.6) * math.expm1(1 / 0.4))
    np.testing.assert_allclose(scored["score"], 0.4 * (scored["log_label"].to_numpy() + 3.6) + log_z, rtol=1e-6)
    assert (table["verdict"] == (table["score"] > 0.5)).all()
    values = answer.values
    right = table["reward"].to_numpy() == 1
    assert values["auroc"] == pytest.approx(roc_auc_score(right, table["score"]))
    assert values["auroc_low"] <= values["auroc"] <= values["auroc_high"]
    assert values["acc"] == pytest.approx((table["verdict"].to_numpy() == right).mean())
    assert "suppress" not in answer.summary()


def test_those_that_were_cut_or_say_nothing_score_zero_and_are_counted(answer):
    table = answer.to_frame()
    cut = table.filter(~pl.col("finished"))
    assert 0 < len(cut) < len(table)
    assert answer.values["unfinished"] == len(cut)
    assert cut["log_label"].is_null().all()
    silent = table.filter(pl.col("answer").is_null())
    assert set(silent["score"]) == {0.0}
    assert answer.values["without_answer"] == len(silent) >= len(cut)
    assert f"{len(silent)} completions give no answer" in " ".join(answer.notes)


def test_votes_are_by_prompt_and_their_gain_has_an_interval(answer):
    votes = answer.to_frame("Votes")
    assert votes["prompt"].to_list() == list(dict.fromkeys(PROMPTS.prompts))
    known = votes.drop_nulls(["right_majority", "right_weighted"])
    gain = (known["right_weighted"] - known["right_majority"]).to_numpy()
    assert answer.values["weighted_minus_majority"] == pytest.approx(gain.mean())
    found = (answer.values["weighted_minus_majority_low"], answer.values["weighted_minus_majority_high"])
    assert found == difference_interval(gain)


def test_a_few_prompts_have_no_interval():
    few = laser.apply(Tasks(PROMPTS.take([0, 1]), asked().rewards), OPTIONS, fitted=fitted())
    assert "2 prompts are too few for an interval" in few.sentence
    assert "weighted_minus_majority_low" not in few.values


def test_what_is_fitted_is_judged_on_other_prompts(answer):
    verdicts = answer.to_frame("Verdicts")
    assert verdicts["judged_on"].to_list() == ["all prompts", *["held-out prompts"] * 3, "those with an answer"]
    assert verdicts["completions"].to_list()[:4] == [48, 24, 24, 24]
    whole = answer.to_frame()
    scores, right = whole["score"].to_numpy(), whole["reward"].to_numpy() == 1
    fit = held_out(np.repeat(np.arange(12), 4), 0.5, seed=1)
    assert answer.values["fitted_threshold"] == laser.fit_threshold(scores[fit], right[fit])
    others = laser.verdicts(scores[~fit], right[~fit], threshold=answer.values["fitted_threshold"])
    assert (verdicts["f1"][2], verdicts["auroc"][2]) == (others["f1"], others["auroc"])
    calibrated = laser.apply(
        asked(), OPTIONS.model_copy(update={"score_threshold": "calibrated"}), fitted=fitted(), seed=1
    )
    assert calibrated.values["threshold"] == answer.values["fitted_threshold"]
    assert calibrated.values["f1"] == verdicts["f1"][2]
    table = calibrated.to_frame()
    assert (table["verdict"] == (table["score"] > calibrated.values["threshold"])).all()
    p = 1 / (1 + np.exp(-(answer.values["platt_slope"] * table["score"] + answer.values["platt_intercept"])))
    np.testing.assert_allclose(table["probability"], p, rtol=1e-9)


def test_the_score_is_shown_beside_what_costs_nothing(answer):
    beside = answer.to_frame("Beside the score")
    assert beside["confidence"].to_list() == ["score", "mean log-probability", "shortness", "agreement"]
    table = answer.to_frame()
    by_hand = [roc_auc_score(table["reward"], column) for column in (table["mean_log_prob"], -table["tokens"])]
    assert beside["auroc"].to_list()[1:3] == pytest.approx(by_hand)
    np.testing.assert_allclose(beside["score_minus_it"][1:], answer.values["auroc"] - beside["auroc"][1:].to_numpy())
    assert answer.to_frame("By length")["rows"].sum() == 48
    for name in ("Reliability", "Scores"):
        assert charts.svg(answer.figures[name]).startswith("<svg")
    assert len(answer.summary().splitlines()) <= 24


def test_a_reward_that_was_trained_on_is_asked_for():
    policy = Fitted("laser", eager(), TOKENIZER, {"rewards": ["mine:good", "exact"]}, {"self_reward": SCALE})
    found = laser.apply(asked(None), OPTIONS, fitted=policy)
    assert "rewards=mine:good,exact" in " ".join(found.notes)
    assert "rewards=" not in " ".join(laser.apply(asked(), OPTIONS, fitted=policy).notes)


def test_what_a_policy_was_trained_with_is_the_default():
    stored = {"max_completion_length": 3, "temperature": 0.5, "top_k": 0, "suppress": [PAD]}
    tree = {"rewards": ["exact"], "rollouts": stored, "evaluation": {"samples": 2, "share": 0.2}}
    policy = Fitted("laser", eager(), TOKENIZER, tree, {"self_reward": SCALE})
    data = Tasks(PROMPTS, None)  # no columns that say which reward
    found = laser.apply(data, Config(), fitted=policy, seed=1)
    assert found.notes[0] == (
        "as in its training, where nothing else was given: rewards=exact rollouts.max_completion_length=3 "
        f"rollouts.temperature=0.5 rollouts.suppress={PAD} evaluation.samples=2."
    )
    given = Config(rewards=("exact",), rollouts=Rollout(**stored), evaluation=Evaluation(samples=2))
    same = laser.apply(laser.Questions(PROMPTS, Rewards((Exact(),))), given, fitted=policy, seed=1)
    assert found.to_frame().equals(same.to_frame())
    assert not any("as in its training" in note for note in same.notes)
    other = laser.apply(data, Config(rollouts=Rollout(max_completion_length=5)), fitted=policy, seed=1)
    assert other.to_frame()["tokens"].max() == 5
    assert "max_completion_length" not in other.notes[0]


def test_a_score_that_was_never_trained_is_told_first():
    def told(losses, **results):
        history = pl.DataFrame({"step": [1, 2], **losses})
        policy = Fitted("laser", eager(), TOKENIZER, {}, {"self_reward": SCALE, **results}, history)
        return laser.apply(asked(), OPTIONS, fitted=policy, seed=1).sentence

    never = "the score of this policy was never trained (in none of 2 steps); "
    assert told({"loss_self_reward": [math.nan, None]}).startswith(never)
    assert told({}).startswith(never)
    assert "never trained" not in told({"loss_self_reward": [math.nan, 0.3]})
    plain = laser.apply(asked(), config(ref_constant=-3.6, beta=0.4, correction=True), fitted=PLAIN).sentence
    assert plain.startswith("the score of this policy was never trained (it is one of kdrl); ")


def test_how_answers_are_found_is_told_where_no_verifier_says():
    given = held(Prompts(("a0+1=",), {"completion": ["1:1"], "answer": [1]}), ["exact"])
    assert any("the last box" in note for note in laser.apply(asked(), OPTIONS, fitted=fitted()).notes)
    assert not any("the last box" in note for note in laser.apply(given, OPTIONS, fitted=fitted()).notes)


def test_the_label_is_never_in_a_completion():
    found = laser.apply(asked(None), OPTIONS, fitted=fitted(eager(label=9.0, eos=0.5)))
    assert "nothing says which are right" in found.sentence
    assert sum(found.to_frame()["tokens"]) > 200
    again = policies.complete(eager(label=9.0, eos=0.5), TOKENIZER, PROMPTS, None, OPTIONS.rollouts, samples=4)
    assert any(LABEL in row for row in again.ids)
    assert found.to_frame()["completion"].to_list() != again.texts


def test_an_area_of_one_class_is_undefined():
    found = laser.apply(asked(lambda prompts, completions, **_: [1.0] * len(completions)), OPTIONS, fitted=fitted())
    assert found.values["auroc"] is None
    assert "they are all right, so AUROC is undefined" in found.sentence
    assert any("AUROC is undefined" in note for note in found.notes)


# -- completions and scores of a table --------------------------------------------------------------------------------


def test_a_table_of_completions_scores_as_they_did_when_they_were_sampled(answer):
    """Cross-model scoring is the same call: the policy that judges need not be the one that wrote."""
    given = held(Prompts(tuple(answer.to_frame()["prompt"]), answer.to_frame().drop("prompt").to_dict(as_series=False)))
    again = laser.apply(given, OPTIONS, fitted=fitted(), seed=1)
    for name in ("log_label", "score"):
        np.testing.assert_allclose(again.to_frame()[name].to_numpy(), answer.to_frame()[name].to_numpy(), atol=1e-5)
    assert again.values["auroc"] == pytest.approx(answer.values["auroc"], abs=1e-3)
    assert again.to_frame()["tokens"].to_list() == answer.to_frame()["tokens"].to_list()
    other = laser.apply(given, OPTIONS, fitted=fitted(decoder(seed=4)), seed=1)
    assert not np.allclose(other.to_frame()["score"], answer.to_frame()["score"])
    assert other.to_frame("Votes")["majority"].equals(answer.to_frame("Votes")["majority"])


def test_a_table_of_scores_is_voted_on_without_a_policy(answer):
    frame = answer.to_frame().select("prompt", "answer", "score", "reward")
    given = laser.read([frame], OPTIONS)
    again = laser.apply(given, OPTIONS)
    assert again.to_frame("Votes").drop("samples").equals(answer.to_frame("Votes").drop("samples"))
    assert again.values["auroc"] == pytest.approx(answer.values["auroc"])
    unknown = laser.apply(laser.read([frame.drop("reward")], OPTIONS), OPTIONS)
    assert "nothing says which are right" in unknown.sentence
    assert "right_majority" not in unknown.to_frame("Votes").columns


def test_lists_of_completions_are_one_row_each():
    columns = {"completion": [["1:1", "2:2"], ["3:3"]], "finished": [[True, False], [True]], "answer": [1, 3]}
    given = held(Prompts(("a0+1=", "a1+2="), columns), ["exact"])
    assert given.given.groups.tolist() == [0, 0, 1]
    assert given.given.rewards.tolist() == [1, 0, 1]
    assert given.prompts.columns["answer"] == [1, 3]
    found = laser.apply(given, OPTIONS, fitted=fitted())
    assert found.to_frame()["answer"].to_list() == ["1", None, "3"]
    assert found.values["unfinished"] == 1


def test_what_ended_may_be_said_in_any_way_that_tables_have():
    for cells in ([True, False, None], ["TRUE", "False", ""], [1, 0, 1.0], ["1", "0", None]):
        given = held(Prompts(("a0+1=",) * 3, {"completion": ["1:1"] * 3, "finished": cells}))
        assert given.given.finished.tolist() == [True, False, True]


def test_a_chat_is_one_completion():
    chat = [{"role": "assistant", "content": "1:1"}]
    one = held(Prompts(("a0+1=",), {"completion": [chat], "reward": [1]}))
    several = held(Prompts(("a0+1=",), {"completion": [[chat, chat]], "reward": [[1, 1]]}))
    assert (one.given.completions, several.given.completions) == (["1:1"], ["1:1", "1:1"])


def test_a_prompt_that_comes_again_is_one():
    columns = {"completion": ["1:1", "3:3", "2:2"], "reward": [1, None, 0]}
    given = held(Prompts(("a0+1=", "a1+2=", "a0+1="), columns))
    assert given.given.groups.tolist() == [0, 1, 0]
    assert np.isnan(given.given.rewards).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"score": [0.1, 0.2]}, "there are scores of nothing"),
        ({"score": [0.1, "high"], "answer": ["1", "2"]}, r"row 2: the cell is 'high'"),
        ({"score": [0.1, math.nan], "answer": ["1", "2"]}, r"row 2: the cell is nan"),
        (
            {"completion": [["1", "2"], ["3"]], "reward": [[1], [0]]},
            "row 1: 'reward' has 1 entries and 'completion' has 2",
        ),
        ({"completion": ["1", "2"], "reward": [1, 0.5]}, r"completion 2: the reward is 0\.5"),
        ({"completion": ["1", "2"], "finished": ["yes", "no"]}, r"'finished', row 1: the cell is 'yes'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(columns, told):
    with pytest.raises(InputError, match=told):
        held(Prompts(("a0+1=", "a1+2="), columns, "table"))


def test_a_completion_with_the_label_is_refused():
    given = held(Prompts(("a0+1=", "a1+2="), {"completion": ["1:1", "3:2"], "reward": [1, 0]}, "theirs.csv"))
    colon = TOKENIZER.encode(":")[0]
    with pytest.raises(InputError, match=rf"theirs\.csv, row 1: token 2 is the label token {colon}"):
        laser.apply(given, OPTIONS, fitted=fitted(token=colon))


def test_answers_without_completions_cannot_be_scored():
    given = held(Prompts(("a0+1=",), {"answer": ["1"], "score": [0.5]}))
    with pytest.raises(InputError, match="answers and no completions to score"):
        laser.apply(given, OPTIONS, fitted=fitted())


def test_a_completion_beyond_the_context_is_refused():
    given = held(Prompts(("a0+1=",), {"completion": ["1" * 60], "reward": [0]}, "long.csv"))
    with pytest.raises(InputError, match=r"long\.csv, row 1: prompt and completion have 67 tokens, and the context 48"):
        laser.apply(given, OPTIONS, fitted=fitted())


class Rounded(Exact):
    """A verifier for which equal numbers are equal answers, whatever their text."""

    def answer(self, completion, row):
        return completion

    def same(self, first, second):
        return float(first) == float(second)


def test_answers_share_a_form():
    def found(reward, *texts):
        data = Tasks(Prompts(("p",), {"answer": [7]}), None if reward is None else Rewards((reward,)))
        return answers_of(data, np.zeros(len(texts), dtype=int), texts, np.ones(len(texts), dtype=bool))

    assert found(Exact(), "3,7:007", "7", "3:7") == ["7", None, "7"]
    assert found(Number(), "so #### 1,080.50") == ["1080.5"]
    assert found(Countdown(), "2 * 3", "3*2") == ["2*3", "3*2"]
    assert found(None, "3,7: 7 ", "no colon", "") == ["7", "no colon", None]
    assert found(None, r"so: \boxed{5}. Note: done", r"thus \boxed{5}", "a: 3 #### 5\n", ":") == ["5", "5", "5", None]
    assert found(small_digits, "3:") == [None]
    assert found(Rounded(), "2.0", "3", "2", "2.0") == ["2.0", "3", "2.0", "2.0"]


# -- the scale --------------------------------------------------------------------------------------------------------

PLAIN = policies.Fitted("kdrl", eager(), TOKENIZER)


def config(**options):
    return OPTIONS.model_copy(update={"self_reward": SelfReward(**options)})


def test_any_policy_is_scored_with_a_constant_that_is_given_or_measured():
    """As the control: the score of a policy whose label was never trained."""
    given = laser.apply(asked(), config(ref_constant=-3.6, beta=0.4, correction=True), fitted=PLAIN, seed=1)
    assert given.to_frame()["score"].equals(laser.apply(asked(), OPTIONS, fitted=fitted(), seed=1).to_frame()["score"])
    measured = laser.apply(asked(), config(ref_constant="estimate", correction=True), fitted=PLAIN)
    told = re.search(r"c_ref = (-[\d.]+)", measured.notes[0])
    assert float(told[1]) == pytest.approx(measured.to_frame()["log_label"].mean(), abs=0.02)


def test_another_label_needs_a_constant_of_its_own():
    with pytest.raises(InputError, match=f"c_ref was measured for the token {LABEL}, and {SPARE} is asked for"):
        laser.apply(asked(), config(token=str(SPARE)), fitted=fitted())
    found = laser.apply(asked(), config(token=str(SPARE), ref_constant="estimate"), fitted=fitted())
    assert f"token {SPARE}" in " ".join(found.notes)


def test_another_beta_scales_the_scores():
    one, other = (
        laser.apply(asked(), config(beta=beta, correction=False, ref_constant=-9.0), fitted=fitted(), seed=1).to_frame()
        for beta in (0.25, 0.5)
    )
    np.testing.assert_allclose(other["score"], 2 * one["score"].to_numpy(), rtol=1e-6)


def test_a_constant_that_is_no_log_probability_is_refused():
    with pytest.raises(InputError, match="must be < 0"):
        laser.apply(asked(), config(ref_constant=1.0), fitted=fitted())


def test_an_exact_scale_needs_the_reference():
    with pytest.raises(InputError, match=r"not there.*`reference`.*ref_constant=NUMBER"):
        laser.apply(asked(), OPTIONS, fitted=fitted(exact=True))
    same = Fitted.of(fitted(exact=True, correction=False, constant=-3.6), eager())
    table = laser.apply(asked(), OPTIONS, fitted=same).to_frame()
    np.testing.assert_allclose(table["score"], 0.0, atol=1e-5)  # against itself
    judged = laser.apply(held(Prompts(("a0+1=",), {"completion": ["1:1"], "reward": [1]})), OPTIONS, fitted=same)
    assert judged.to_frame()["score"][0] == pytest.approx(0.0, abs=1e-5)


def test_the_reference_is_the_one_that_is_asked_for():
    stored = Fitted.of(fitted(exact=True), eager())
    found = laser.apply(asked(), config(reference="constant"), fitted=stored, seed=1).to_frame()["score"]
    assert found.equals(laser.apply(asked(), OPTIONS, fitted=fitted(), seed=1).to_frame()["score"])
    for policy in (fitted(), PLAIN):
        with pytest.raises(InputError, match="the policy at its start, which is not there"):
            laser.apply(asked(), config(reference="exact", ref_constant=-9.0), fitted=policy)


def test_another_loss_is_refused():
    with pytest.raises(InputError, match=r"self_reward\.loss=bce: the policy was trained with mse"):
        laser.apply(asked(), config(loss="bce"), fitted=fitted())
    again = laser.apply(asked(), config(loss="mse", correction=True), fitted=fitted(), seed=1).to_frame()["score"]
    assert again.equals(laser.apply(asked(), OPTIONS, fitted=fitted(), seed=1).to_frame()["score"])


def test_two_labels_need_no_constant():
    found = laser.apply(asked(), OPTIONS, fitted=fitted(loss="bce", constant=None)).to_frame().drop_nulls("answer")
    np.testing.assert_allclose(found["score"], np.exp(found["log_label"].to_numpy()), rtol=1e-6)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_without_a_policy_there_is_nothing_to_score():
    with pytest.raises(InputError, match="there is no policy"):
        laser.apply(asked(), OPTIONS)


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        (None, "nothing says which completions are right"),
        (lambda prompts, completions, **_: [0.0] * len(completions), "not right and wrong completions on two prompts"),
    ],
)
def test_a_threshold_cannot_be_fitted_to_nothing(reward, told):
    with pytest.raises(InputError, match=told):
        laser.apply(asked(reward), OPTIONS.model_copy(update={"score_threshold": "calibrated"}), fitted=fitted())


def test_rewards_between_zero_and_one_are_refused_by_name():
    def half(prompts, completions, **_):
        return [0.5] * len(completions)

    with pytest.raises(InputError, match=r"row 1: the reward \(half\) is 0\.5"):
        laser.apply(asked(half), OPTIONS, fitted=fitted())


def test_a_table_can_be_judged_again(tmp_path):
    """The right answers stand beside the model's own, and a reward finds them by their own name."""
    columns = {**PROMPTS.columns, "about": [{"row": row} for row in range(len(PROMPTS))]}
    data = laser.Questions(Prompts(PROMPTS.prompts, columns), Rewards((Exact(),)))
    first = laser.apply(data, OPTIONS, fitted=fitted(eager(eos=0.5)), seed=1)
    frame = first.to_frame()
    assert frame["prompt_answer"].to_list() == np.repeat(np.array(PROMPTS.columns["answer"]), 4).tolist()
    assert json.loads(frame["about"][4]) == {"row": 1}
    first.save(tmp_path / "scores.csv")
    again = laser.read([tmp_path / "scores.csv"], Config(rewards=("exact",)))
    assert again.given.rewards.tolist() == frame["reward"].to_list()
    frame.drop("prompt_answer").write_csv(tmp_path / "bare.csv")
    with pytest.raises(InputError, match=r"bare.csv the column `answer` holds the model's own.*`prompt_answer`"):
        laser.read([tmp_path / "bare.csv"], Config(rewards=("exact",)))


def test_a_saved_table_is_read_again(tmp_path, answer):
    answer.save(tmp_path / "scores.csv")
    again = laser.read([tmp_path / "scores.csv"], OPTIONS)
    frame = answer.to_frame()
    np.testing.assert_allclose(again.given.scores, frame["score"])
    assert again.given.completions == frame["completion"].to_list()
    assert again.given.answers == frame["answer"].to_list()
    assert again.given.finished.tolist() == frame["finished"].to_list()
