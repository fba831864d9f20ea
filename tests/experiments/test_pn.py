"""The claim on `pn`: what is listed, and that each part and the verdict follow from effects that are planted in records."""

import math

import numpy as np
import pytest

from sanov.claims import Cell, Record, judge
from sanov.core.charts import svg
from sanov.experiments import pn
from sanov.experiments.pn import ANALYTIC, ARMS, CLAIM, DELTA, FIRST, PARTS, POPULATIONS, SANDWICH, TRIED

TRUTHS = tuple(dict.fromkeys([*TRIED, *ANALYTIC, *POPULATIONS]))
SAMPLED = (*TRIED, *POPULATIONS)
REQUIRED = 100.0  # the true n* of every truth
NEARER = {
    "gamma 0.5": "nearer: exponential model, Gamma(0.5) truth",
    "gamma 2": "nearer: exponential model, Gamma(2) truth",
    "laplace": "nearer: normal model, Laplace truth",
    "ising tilted": "nearer: Ising model, truth with a third-order interaction",
    "normal 5": "nearer: normal model, d=5, right",
    "breast_cancer": "nearer: normal model, breast cancer (3 columns)",
    "red_wine": "nearer: normal model, red wine (11 columns)",
}


def records(seeds=20, truths=TRUTHS, **planted):
    """Made-up comparisons in which everything holds, but for what is planted.

    An error of ``arm`` is ``errors[truth, arm]`` or ``errors[arm]``, above n* for p/2 and below it for the others; the
    logarithm of a risk over delta is ``risks[truth]`` and ``halves[truth]``.
    """
    usual = dict.fromkeys(ARMS, 0.3) | {SANDWICH: 0.1, ("independence", "TIC"): 0.3}
    errors = usual | planted.get("errors", {})
    risks, halves = planted.get("risks", {}), planted.get("halves", {})
    rng = np.random.default_rng(0)
    found = []
    for seed in range(seeds):
        for truth in truths:
            noise, values = rng.normal(scale=0.01), {"required": REQUIRED}
            if truth in SAMPLED:
                far = {arm: errors.get((truth, arm), errors[arm]) for arm in ARMS}
                noises = dict.fromkeys(ARMS, noise if truth != "independence" else 0.0) | {FIRST: 0.0}
                signs = {arm: 1 if arm == FIRST or truth == "independence" else -1 for arm in ARMS}
                sizes = {arm: REQUIRED * math.exp(signs[arm] * (far[arm] + noises[arm])) for arm in ARMS}
                values |= {"sizes": sizes, "low": 90.0, "high": 110.0}
            if truth == "ising tilted":
                values["shuffled"] = planted.get("shuffled", 0.0) + noise / 10
            if truth in ANALYTIC or truth in POPULATIONS:
                values["risk"] = DELTA * math.exp(risks.get(truth, 0.0) + noise / 10)
                values["risk_of_half"] = DELTA * math.exp(halves.get(truth, 0.7) + noise / 10)
            found.append(
                Record(Cell("compare", {"truth": truth, "seed": seed}), values | planted.get("values", {}), 1.0)
            )
    return found


def judged(found, seeds=20):
    return {part.name: judge(part, found, seeds=seeds) for part in PARTS}


def claim(found):
    return pn._holds({name: part.verdict for name, part in judged(found).items()})


# -- what is listed ---------------------------------------------------------------------------------------------------


def test_cells_do_not_depend_on_what_is_here(monkeypatch):
    here = CLAIM.presets["paper"].cells(range(2))
    monkeypatch.setenv("SANOV_DATA", "nowhere")
    assert CLAIM.presets["paper"].cells(range(2)) == here
    assert {str(cell.key["truth"]) for cell in here} == set(TRUTHS)
    assert "red_wine is not here" in CLAIM.unavailable(Cell("compare", {"truth": "red_wine", "seed": 0}))
    assert CLAIM.unavailable(Cell("compare", {"truth": "gamma 2", "seed": 0})) is None


def test_scale_counts_the_truths_of_the_cells():
    scale = CLAIM.presets["paper"].scale
    assert scale.startswith(
        "20 samples of 500 rows from each of 10 truths; risks of 12 truths simulated to 0.2 %, 13 truths in all."
    )
    assert "from each of 9 truths" in CLAIM.presets["smoke"].scale


# -- parts ------------------------------------------------------------------------------------------------------------


def test_where_all_effects_are_planted_all_parts_hold():
    found = judged(records())
    assert {part.verdict for part in found.values()} == {"holds", "reported"}
    assert claim(records()) == "holds"


@pytest.mark.parametrize("truth", NEARER)
def test_nearer_is_the_error_of_the_first_order_less_that_of_the_sandwich(truth):
    found = judged(records(errors={(truth, SANDWICH): 0.05}))[NEARER[truth]]
    assert found.mean == pytest.approx(0.25, abs=0.02)
    worse = records(errors={(truth, SANDWICH): 0.5})
    assert judged(worse)[NEARER[truth]].mean == pytest.approx(-0.2, abs=0.02)
    assert judged(worse)[NEARER[truth]].verdict == "fails"
    assert claim(worse) == "fails"


@pytest.mark.parametrize(("worse", "verdict"), [(-0.1, "holds"), (0.005, "holds"), (0.1, "fails")])
def test_no_worse_allows_the_slack(worse, verdict):
    found = records(errors={("ising", SANDWICH): 0.3 + worse, ("ising", FIRST): 0.3})
    part = judged(found)["no worse: Ising model, 3 spins"]
    assert (part.mean, part.verdict) == (pytest.approx(-worse, abs=0.01), verdict)
    assert claim(found) == verdict


def test_controls_fail_where_something_moves():
    moved = records(errors={("independence", "TIC"): 0.299})
    assert judged(moved)["control: the sandwich does not move"].verdict == "fails"
    assert claim(moved) == "fails"
    assert judged(records(shuffled=0.1))["control: shuffled columns"].verdict == "fails"
    assert judged(records(shuffled=-0.1))["control: shuffled columns"].verdict == "fails"


@pytest.mark.parametrize("truth", ANALYTIC)
def test_a_risk_is_judged_in_the_worst_truth(truth):
    """Nine that are far below delta make up for nothing."""
    low = dict.fromkeys(ANALYTIC, -0.5)
    found = judged(records(risks=low | {truth: 0.2}))["risk at n*: ten families"]
    assert (found.mean, found.verdict) == (pytest.approx(-0.2, abs=0.01), "fails")
    assert judged(records(risks=low))["risk at n*: ten families"].verdict == "holds"
    high = dict.fromkeys(ANALYTIC, 1.0)
    found = judged(records(halves=high | {truth: -0.1}))["risk at n*/2: ten families"]
    assert (found.mean, found.verdict) == (pytest.approx(-0.1, abs=0.01), "fails")


def test_a_part_over_several_truths_needs_all_of_them():
    """With one real table of two there is nothing to say of real tables, nor of the seeds that lack a truth."""
    one = judged(records(truths=[truth for truth in TRUTHS if truth != "red_wine"]))
    assert {one[f"risk at {where}: real tables"].verdict for where in ("n*", "n*/2")} == {"not run"}
    assert one["right when accepting: sandwich"].verdict == "not run"
    assert one["risk at n*: ten families"].verdict == "holds"
    some = [r for r in records() if r.cell.key != {"truth": "poisson", "seed": 7}]
    part = judged(some)["risk at n*: ten families"]
    assert (len(part.values), part.verdict) == (19, "inconclusive (19 seeds, 20 planned)")
    smoke = {
        part.name: judge(part, records(5, truths=[*TRIED, "breast_cancer"])) for part in CLAIM.presets["smoke"].parts
    }
    assert smoke["risk at n*: real tables"].verdict == "holds"


def sized(required, size):
    """Truths of one n*, which all ways estimate as `size`."""
    sizes = dict.fromkeys(ARMS, size)
    return records(values={"required": required, "sizes": sizes})


@pytest.mark.parametrize(
    ("required", "size", "share"), [(400.0, 450.0, 1.0), (600.0, 450.0, 0.0), (500.0, 500.0, 1.0), (400.0, 550.0, None)]
)
def test_right_when_accepting_is_the_share_of_the_accepted(required, size, share):
    """A sample of 500 is accepted where the estimate is at most 500; that is right where n* is."""
    for name in ("right when accepting: sandwich", "right when accepting: p/2"):
        assert judged(sized(required, size))[name].mean == share


def test_right_when_accepting_reads_its_own_arm():
    found = records(values={"required": 400.0, "sizes": dict.fromkeys(ARMS, 550.0) | {SANDWICH: 450.0}})
    assert judged(found)["right when accepting: sandwich"].mean == 1.0
    assert judged(found)["right when accepting: p/2"].verdict == "not run"


@pytest.mark.parametrize(("required", "share"), [(100.0, 1.0), (80.0, 0.0), (120.0, 0.0), (90.0, 1.0)])
def test_coverage_is_the_share_of_intervals_that_hold_the_truth(required, share):
    assert judged(records(values={"required": required}))["interval covers"].mean == share


# -- the claim --------------------------------------------------------------------------------------------------------


def verdicts(**changes):
    return {part.name: "reported" if part.kind == "reported" else "holds" for part in PARTS} | changes


@pytest.mark.parametrize(
    "part", [part for part in PARTS if part.required and part.kind != "reported"], ids=lambda p: p.name
)
def test_every_required_part_decides(part):
    assert pn._holds(verdicts(**{part.name: "fails"})) == "fails"
    assert pn._holds(verdicts(**{part.name: "inconclusive"})) == "inconclusive"
    real = part.name in {NEARER["breast_cancer"], NEARER["red_wine"]}
    assert pn._holds(verdicts(**{part.name: "not run"})) == ("holds" if real else "inconclusive")


@pytest.mark.parametrize("part", [part for part in PARTS if not part.required], ids=lambda p: p.name)
def test_what_is_not_required_decides_nothing(part):
    assert pn._holds(verdicts(**{part.name: "fails"})) == "holds"


def test_a_failure_counts_whatever_else_is_inconclusive():
    assert pn._holds(verdicts(**{NEARER["laplace"]: "fails", NEARER["gamma 2"]: "inconclusive"})) == "fails"


def test_fewer_samples_than_planned_decide_nothing():
    assert claim(records(seeds=10)) == "inconclusive"
    assert claim([]) == "inconclusive"


def test_figures_can_be_drawn():
    for title, spec in CLAIM.figures(records(seeds=3), []).items():
        assert "<svg" in svg(spec), title
