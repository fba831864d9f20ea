"""The claim on `rlg`: paired arms, equal budgets, controls that control, and a verdict that follows its rule."""

import numpy as np
import pytest
import torch

from sanov.claims import Cell, Context, Record, judge
from sanov.core.charts import svg
from sanov.experiments import rlg, rlg_arms
from sanov.experiments.rlg import CLAIM, TUNED_BY
from sanov.experiments.rlg_parts import ARMS, BASELINES, DATA, EXACT, TITLES, WEIGHTS, figures, parts, verdict
from sanov.nets.denoiser import Denoiser, DenoiserShape
from sanov.systems.rlg import Fitted

# -- the design -------------------------------------------------------------------------------------------------------


def test_every_arm_is_compared_on_every_seed_and_tuned_as_often():
    cells = CLAIM.presets["paper"].cells(range(5))
    compared = {(c.key["data"], c.key["arm"], c.key["seed"]) for c in cells if c.stage == "compare"}
    assert len(compared) == (len(DATA) * len(ARMS) + len(TITLES)) * 5
    trials = [(c.key["data"], c.key["arm"]) for c in cells if c.stage == "tune"]
    assert {trials.count((data, arm)) for data in DATA for arm in rlg_arms.KNOBS} == {4}
    assert set(rlg_arms.KNOBS) | set(TUNED_BY) == {*ARMS, *TITLES}
    assert set(BASELINES) == {*rlg_arms.KNOBS, "best_of_2"}
    assert all(len(knobs) == 4 for knobs in rlg_arms.KNOBS.values())


def test_setting_that_is_less_diverse_than_rlg_is_not_taken(monkeypatch, tmp_path):
    """Of four settings the one with the most reward that is as diverse; where none is, the most diverse."""
    diversity = {1.5: 1.0, 2.0: 0.995, 2.5: 0.9, 3.0: 0.5}

    def scored(arm, knob, folder, seed, settings):
        assert seed == rlg.TUNING_SEED
        return {"reward": knob, "diversity": 1.0 if arm == "rlg" else diversity[knob]}

    monkeypatch.setattr(rlg_arms, "scored", scored)
    shared = Record(Cell("shared", {"data": "ink", "purpose": "tuning"}), {}, 1.0, "a" * 64)

    def chosen():
        context = Context("smoke", {}, (shared,), tmp_path)
        values = [rlg._tune("ink", "slider", trial, context) for trial in range(4)]
        return max(values, key=lambda found: found["validation"])["knob"]

    assert chosen() == 2.0
    diversity.update({1.5: 0.8, 2.0: 0.7})
    assert chosen() == 2.5


# -- arms -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    shape = DenoiserShape(1, 8, 8, classes=10, units=16, depth=1)
    return Fitted(Denoiser(shape, seed=0), Denoiser(shape, seed=1), shape, tuple(map(str, range(10))), "ink", 0.1)


@torch.no_grad()
def test_rotated_guidance_is_as_far_and_elsewhere(models):
    x, t, asked = torch.randn(6, 1, 8, 8), torch.full((6,), 0.5), torch.arange(6)
    turned = rlg_arms._turned(models, 6, 0)
    own = models.policy(x, t, asked)
    gap, moved = own - models.reference(x, t, asked), turned(x, t, asked) - own
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), gap.flatten(1).norm(dim=1))
    cosine = torch.nn.functional.cosine_similarity(moved.flatten(1), gap.flatten(1))
    assert float(cosine.abs().max()) < 0.6
    again = turned(x, t, asked) - own
    assert torch.equal(again, moved)  # one turn a row, the same at all steps


@torch.no_grad()
def test_arms_take_as_many_passes_and_the_same_noise(models):
    counts = {}
    settings = {"images": 4, "steps": 6}
    calls = []
    for name in ("reference", "policy"):
        getattr(models, name).register_forward_hook(lambda *_: calls.append(1))
    for arm, knob in (
        ("rlg", 0.0),
        ("slider", 2.0),
        ("cfg", 2.0),
        ("gradient", 1.0),
        ("best_of_2", 0.0),
        ("equal", 0.0),
    ):
        if arm == "slider":
            interpolated = rlg_arms.OTHERS["slider"](models, knob, 0, settings)
            assert interpolated[1] == 1
            continue
        calls.clear()
        rlg_arms._images(arm, knob, models, models.asked(4), 0, settings)
        counts[arm] = len(calls)
    assert counts["rlg"] == counts["cfg"] == counts["best_of_2"] == 12
    assert counts["gradient"] == 4  # each with a gradient, which counts twice
    unguided, _ = rlg_arms._images("reference", 0.0, models, models.asked(4), 0, settings)
    best, _ = rlg_arms._images("best_of_2", 0.0, models, models.asked(4), 0, settings)
    reward = models.scorer()
    assert bool((reward(best) >= reward(unguided)).all())
    equal, _ = rlg_arms._images("equal", 0.0, models, models.asked(4), 0, settings)
    assert torch.equal(equal, unguided)


# -- what is read off -------------------------------------------------------------------------------------------------


def records(effects, *, diversity=None, gaps=0.0, seeds=5):
    """Made-up comparisons: planted rewards by arm, noise shared by the arms of a seed, and gaps of the samplers."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(seeds):
        for data in DATA:
            common = rng.normal()
            for arm in ARMS:
                noise = 0.0 if arm in ("equal", "reference") else rng.normal(scale=0.01)
                values = {"reward": common + effects.get(arm, 0.0) + noise, "entropy": 2.0, "path_kl": 3.0}
                values |= {"diversity": (diversity or {}).get(arm, 1.0), "flagged": 0.0}
                found.append(Record(Cell("compare", {"data": data, "arm": arm, "seed": seed}), values, 1.0))
        for sampler in TITLES:
            values = {f"gap {w:g}": rng.normal(scale=0.01) + (gaps if w == 3 else 0.0) for w in WEIGHTS}
            found.append(Record(Cell("compare", {"data": EXACT, "arm": sampler, "seed": seed}), values, 1.0))
    return found


PLANTED = {
    "policy": 0.5,
    "rlg": 1.0,
    "negative": -0.5,
    "placebo": -0.2,
    "placebo_policy": 0.0,
    "rotated": 0.3,
    **dict.fromkeys(BASELINES, 0.8),
}


def judged(found, *names):
    return {part.name: judge(part, found, seeds=5) for part in parts() if not names or part.name in names}


ALL_HOLD = {part.name: "reported" if part.kind == "reported" else "holds" for part in parts()}


def test_planted_effects_have_their_size_and_verdict():
    found = judged(records(PLANTED))
    assert found["more reward, ink"].mean == pytest.approx(0.5, abs=0.02)
    assert found["control: w = -1, ink"].mean == pytest.approx(0.5, abs=0.02)
    assert found["beta / w, ODE, w = 3"].verdict == "holds"
    assert verdict({name: part.verdict for name, part in found.items()}) == "holds"
    assert all(part.verdict in ("holds", "reported") for part in found.values())


@pytest.mark.parametrize(
    ("effects", "how", "part", "expected"),
    [
        ({"rlg": 0.4}, {}, "more reward, ink", "fails"),
        ({"rlg": 0.6}, {}, "worth having, ink", "fails"),
        ({"placebo": 0.2}, {}, "control: placebo, less than 0.05 sd, ink", "fails"),
        ({"rotated": 0.8}, {}, "control: rotated, ink", "fails"),
        ({"negative": 0.2}, {}, "control: w = -1, class probability", "fails"),
        ({"equal": 0.01}, {}, "control: equal models, ink", "fails"),
        ({"slider": 1.2}, {}, "interpolated weights - RLG, ink", "fails"),
        ({"slider": 1.2}, {"diversity": {"slider": 0.9}}, "interpolated weights - RLG, ink", "inconclusive"),
        ({}, {"diversity": {"slider": 0.9}}, "interpolated weights - RLG, ink", "holds"),
        ({}, {"gaps": -0.21}, "beta / w, ODE, w = 3", "fails"),
    ],
)
def test_what_goes_against_the_claim_is_seen(effects, how, part, expected):
    found = judged(records({**PLANTED, **effects}, **how), part)
    assert found[part].verdict == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "holds"),
        ({"more reward, ink": "fails"}, "fails"),
        ({"interpolated weights - RLG, ink": "inconclusive"}, "inconclusive"),
        ({"beta / w, ODE, w = 3": "fails"}, "fails"),
        ({"beta / w, predictor-corrector, w = 3": "fails"}, "holds"),
        ({"control: placebo, ink": "fails"}, "holds"),  # the other way in which it may hold
        ({"control: placebo, less than 0.05 sd, ink": "fails"}, "holds"),
        ({"control: rotated, ink": "fails", "control: rotated, less than 0.05 sd, ink": "fails"}, "fails"),
        ({"more reward, class probability": "not run"}, "inconclusive"),
        ({"control: rotated, ink": "not run", "control: rotated, less than 0.05 sd, ink": "not run"}, "inconclusive"),
    ],
)
def test_verdict_follows_its_rule(changes, expected):
    assert verdict({**ALL_HOLD, **changes}) == expected


def test_figures_are_drawn():
    found = records(PLANTED)
    for spec in figures(found, []).values():
        assert "<svg" in svg(spec)
