"""The claim on `fidelity`: paired students, equal budgets, controls that control, and parts that follow the criterion."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sanov.claims import Cell, Record, judge
from sanov.core.charts import svg
from sanov.experiments import fidelity, fidelity_data
from sanov.experiments.fidelity import CLAIM, CONTROLS, RANGES, TUNED, TUNED_BY, TUNING_SEED
from sanov.experiments.fidelity_parts import DATA, METHODS, figures, gains, parts

CHOSEN = {"learning_rate": 0.01, "temperature": 2.0}
PAPER = CLAIM.presets["paper"]
NAMES = ("mnist", "sst2", "reviews")


# -- the design -------------------------------------------------------------------------------------------------------


def test_every_arm_is_compared_on_every_seed_and_tuned_as_often():
    cells = PAPER.cells(range(10))
    own = [c for c in cells if c.stage == "compare" and c.key["arm"] != "published"]
    compared = {(c.key["data"], c.key["arm"], c.key["seed"]) for c in own}
    arms = {arm for _, arm, _ in compared}
    assert len(compared) == len(NAMES) * len(arms) * 10
    assert arms == {*TUNED, *CONTROLS}
    trials = [(c.key["data"], c.key["arm"]) for c in cells if c.stage == "tune"]
    assert {trials.count((data, arm)) for data in NAMES for arm in TUNED} == {8}
    assert {TUNED_BY[arm] for arm in CONTROLS} <= set(TUNED)
    assert TUNING_SEED not in range(1000)


def test_trials_are_a_latin_hypercube():
    draws = [fidelity._draw(trial, 8) for trial in range(8)]
    for name, (low, high) in RANGES.items():
        place = np.log([draw[name] / low for draw in draws]) / np.log(high / low)
        assert sorted(np.floor(place * 8).astype(int)) == list(range(8)), name


def keys(table):
    return set(table.inputs) if table.is_text else {row.tobytes() for row in table.inputs}


@pytest.mark.parametrize("name", ["digits", "mnist", "reviews", pytest.param("sst2", marks=pytest.mark.data)])
def test_no_seed_trains_or_tunes_on_test_rows(name):
    if fidelity_data.unavailable(name) and name == "sst2":
        pytest.skip("SANOV_DATA names no folder")
    sizes = {**CLAIM.presets["smoke"].settings["sizes"], **PAPER.settings["sizes"]}[name]
    splits = [fidelity_data.parts(name, seed, sizes) for seed in (0, 1, TUNING_SEED)]
    test = keys(splits[0].test)
    for split in splits:
        assert keys(split.test) == test
        assert test.isdisjoint(keys(split.train) | keys(split.validation))
        assert keys(split.train).isdisjoint(keys(split.validation))
        for part, rows in zip(fidelity_data.PARTS, split.rows, strict=True):
            assert len(getattr(split, part)) == sizes[part] == len(rows)
    assert keys(splits[0].train) != keys(splits[1].train)


# -- arms and controls ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    """Digits with a made-up teacher."""
    split = fidelity_data.parts("digits", 0, {"train": 96, "validation": 40, "test": 40})
    noise = np.random.default_rng(0).standard_normal((96, 10))
    return replace(split.train, logits=3 * np.eye(10)[split.train.labels] + 2 * noise)


def student(arm, table, chosen=CHOSEN):
    fitted = fidelity._fit(arm, table, chosen, 3, {"width": 8}, {"epochs": 2, "batch_size": 32})
    return torch.cat([values.flatten() for values in fitted.model.state_dict().values()])


def test_arms_differ_in_their_objective_alone(table):
    """On one table the controls are forward KL bit for bit; the divergences are other students, and labels another."""
    students = {arm: student(arm, table) for arm in (*TUNED, *CONTROLS)}
    for arm in CONTROLS:
        assert torch.equal(students[arm], students["fkl"])
    for place, one in enumerate(TUNED):
        assert not any(torch.equal(students[one], students[other]) for other in TUNED[place + 1 :])


def test_labels_alone_see_no_teacher_and_distillation_no_labels(table):
    others = replace(table, logits=np.roll(table.logits, 1, axis=0))
    assert torch.equal(student("ce", table), student("ce", others))
    wrong = replace(table, labels=np.roll(table.labels, 1))
    for arm in METHODS:
        assert torch.equal(student(arm, table), student(arm, wrong))
        assert not torch.equal(student(arm, table), student(arm, others))


def test_random_teacher_is_as_right_and_as_sure(table):
    logits, labels = table.logits, table.labels
    random = fidelity_data.random_teacher(logits, labels, seed=1)
    right = logits.argmax(axis=1) == labels
    assert 0 < right.sum() < len(labels)
    assert (random.argmax(axis=1) == labels).sum() == right.sum()
    assert sorted(random.max(axis=1)) == pytest.approx(sorted(logits.max(axis=1)))
    assert sorted(map(tuple, np.sort(random))) == sorted(map(tuple, np.sort(logits)))
    now = random.argmax(axis=1) == labels
    assert sorted(random.max(axis=1)[now]) == pytest.approx(sorted(logits.max(axis=1)[right]))


def test_random_teacher_errs_anywhere():
    """Errors that all fall on one class by one other class are spread over classes and rows."""
    labels = np.repeat(np.arange(5), 400)
    logits = 4.0 * np.eye(5)[np.where(labels == 2, 3, labels)] + np.random.default_rng(0).normal(0, 0.1, (2000, 5))
    random = fidelity_data.random_teacher(logits, labels, seed=2)
    wrong = random.argmax(axis=1) != labels
    assert wrong.sum() == 400
    error = 4 * np.sqrt(400 * 0.2 * 0.8)
    assert np.abs(np.bincount(labels[wrong], minlength=5) - 80).max() < error
    assert np.abs(np.bincount(random.argmax(axis=1)[wrong], minlength=5) - 80).max() < error


def test_permuted_teacher_speaks_of_other_rows(table):
    others = fidelity_data.permuted(table.logits, seed=0)
    assert not (others == table.logits).all(axis=1).any()
    assert sorted(map(tuple, others)) == sorted(map(tuple, table.logits))


def test_independent_errors():
    generator, n, classes = np.random.default_rng(0), 200_000, 10
    truth = generator.integers(0, classes, n)
    a, b = (
        np.where(generator.random(n) < right, truth, (truth + generator.integers(1, classes, n)) % classes)
        for right in (0.9, 0.6)
    )
    found = 100 * (a == b).mean()
    assert fidelity_data.expected_agreement(90.0, 60.0, classes) == pytest.approx(found, abs=100 * 4 * 0.5 / np.sqrt(n))


# -- parts ------------------------------------------------------------------------------------------------------------

TEACHER = {"small": 80.0, "medium": 85.0, "large": 90.0, "twin": 90.0, "other": 50.0}
SIZES = {"4": 400, "8": 800, "16": 1600, "32": 3200}


def records(
    gain, *, excess=lambda data, teacher, student, method: 0.0, random=0.0, seeds=range(10), base=60.0, noise=0.3
):
    """Cells in which a student of labels alone is right on 60 points, and distilled ones on `gain` more."""
    generator, found = np.random.default_rng(0), []
    for data in NAMES:
        for seed in seeds:
            own = {size: base + generator.normal(0, noise) for size in SIZES}
            for arm in (*TUNED, *CONTROLS):
                names = ["-"] if arm == "ce" else fidelity.TEACHERS_OF.get(arm, fidelity_data.TEACHERS)
                accuracy, agreement = {}, {}
                for teacher in names:
                    for place, size in enumerate(SIZES):
                        value = own[size]
                        if arm != "ce":
                            value += (
                                random if arm in CONTROLS else gain(data, teacher, place, arm)
                            ) + generator.normal(0, noise)
                            expected = fidelity_data.expected_agreement(TEACHER[teacher], value, 2)
                            agreement[f"{teacher}/{size}"] = expected + excess(data, teacher, place, arm)
                        accuracy[f"{teacher}/{size}"] = value
                values = {"accuracy": accuracy, "agreement": agreement, "teacher": TEACHER, "twin": 95.0, "classes": 2}
                values["weights"] = {f"-/{size}": weights for size, weights in SIZES.items()}
                found.append(Record(Cell("compare", {"data": data, "arm": arm, "seed": seed}), values, 1.0))
    return found


OWN = ("B: gain", "B: worth having", "B: smaller students gain more", "B: paradox", "B: control: random teacher")


def verdicts(found, names=OWN, draws=100):
    return {part.name: judge(part, found, seeds=10) for part in parts(NAMES, draws) if part.name in names}


def test_what_was_planted_is_found():
    """Gains of 4, 3, 2 and 1 points by size, and agreement that has nothing to do with them."""
    generator = np.random.default_rng(1)
    found = verdicts(records(lambda d, t, place, m: 4.0 - place, excess=lambda *_: generator.normal(0, 3), random=0.5))
    assert found["B: gain"].mean == pytest.approx(2.5, abs=0.1)
    assert {name: found[name].verdict for name in ("B: gain", "B: worth having", "B: smaller students gain more")} == {
        "B: gain": "holds", "B: worth having": "holds", "B: smaller students gain more": "holds"
    }  # fmt: skip
    assert found["B: smaller students gain more"].mean < -0.9
    assert found["B: paradox"].verdict == "holds"
    assert found["B: control: random teacher"].verdict == "holds"
    assert found["B: control: random teacher"].mean == pytest.approx(2.0, abs=0.1)


def test_the_opposite_fails_every_part():
    """Losses, larger for small students, agreement that follows the gain, and a random teacher that is better."""
    gain = lambda d, t, place, m: place - 4.0  # noqa: E731
    found = verdicts(records(gain, excess=lambda d, t, place, m: 2.0 * place, random=1.0))
    wrong = ("B: gain", "B: worth having", "B: smaller students gain more", "B: paradox", "B: control: random teacher")
    assert {found[name].verdict for name in wrong} == {"fails"}


def test_nothing_is_nothing():
    found = verdicts(records(lambda *_: 0.0))
    assert found["B: gain"].verdict == "inconclusive"
    assert found["B: worth having"].verdict == "fails"
    assert found["B: control: random teacher"].verdict == "inconclusive"
    assert found["B: smaller students gain more"].verdict == "inconclusive"


def test_a_wide_interval_is_no_paradox():
    """With four pairs a correlation of nothing is anywhere."""
    few = [
        r
        for r in records(lambda *_: 0.0, excess=lambda d, t, place, m: float(len(t) * 7 % 5 + place % 2))
        if r.cell.key["data"] == "mnist"
    ]
    part = next(part for part in parts(("mnist",), 400) if part.name == "B: paradox")
    found = judge(part, few, seeds=10)
    assert found.verdict == "inconclusive"
    assert "wide" in found.reason


def test_students_at_their_teachers_ceiling_do_not_count():
    """Where the small teacher leaves no room, its pairs are left out, and gains that go the other way there do no harm."""
    gain = lambda d, t, place, m: (place - 4.0) if t == "small" else 4.0 - place  # noqa: E731
    name = "B: smaller students gain more"
    assert verdicts(records(gain, base=79.5, noise=0.05), (name,))[name].mean < -0.9
    assert verdicts(records(gain, base=60.0, noise=0.05), (name,))[name].mean > -0.6


def test_a_seed_without_all_its_cells_has_no_number():
    cells = records(lambda *_: 1.0)
    lacking = [r for r in cells if (r.cell.key["data"], r.cell.key["arm"], r.cell.key["seed"]) != ("sst2", "jsd", 4)]
    assert gains(lacking, NAMES).seeds == tuple(seed for seed in range(10) if seed != 4)
    assert verdicts(lacking, ("B: gain",))["B: gain"].verdict == "inconclusive (9 seeds, 10 planned)"
    assert verdicts([])["B: gain"].verdict == "not run"


def test_published_fields_have_verdicts_without_seeds():
    pairs = [f"t -> s{place}" for place in range(11)]
    table = {
        "pair": pairs * 2,
        "method": ["A"] * 11 + ["B"] * 11,
        "gain": [3.0 + 0.1 * p for p in range(11)] + [-60.0] * 4 + [4.0] * 7,
    }
    values = {"rows": {"fixed": table, "best": table}, "collapsed": ["B"], "differing": {"x": 0, "y": 0}}
    cells = [
        Record(Cell("compare", {"arm": "published", "field": field}), values, 1.0) for field in ("math", "commonsense")
    ]
    found = {part.name: judge(part, cells, seeds=10) for part in parts(NAMES, 400) if part.name.startswith("A")}
    assert found["A: recomputed"].verdict == "holds"
    assert found["A: commonsense"].verdict in ("inconclusive", "fails")
    assert found["A: commonsense without the collapsed method"].mean == pytest.approx(3.5)
    assert found["A: commonsense without the collapsed method"].effect().startswith("3.5 points")
    assert "11 values" in found["A: math"].effect()


def test_figures_can_be_drawn():
    drawn = figures(records(lambda d, t, place, m: 4.0 - place, seeds=range(2)), [])
    assert len(drawn) == 2
    for spec in drawn.values():
        assert len(spec["data"]["values"]) == len(NAMES) * 3 * 4 * 3
        assert "<svg" in svg(spec)
    assert set(DATA) >= set(NAMES)
