"""The claim on `sinkd`: paired arms, equal budgets, controls that control, and a verdict that follows its rule."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sanov.claims import Cell, Context, Record, judge
from sanov.core.charts import svg
from sanov.experiments import sinkd, sinkd_data, text_teachers
from sanov.experiments.sinkd import CLAIM, RANGES, TUNED, TUNED_BY, TUNING_SEED
from sanov.experiments.sinkd_parts import ARMS, CONTROL, DATA, figures, parts, verdict
from sanov.learning.components import Rows

generator = torch.Generator().manual_seed(0)
CHOSEN = {"learning_rate": 0.01, "alpha": 0.5, "temperature": 2.0, "transport_weight": 0.4}


# -- the design -------------------------------------------------------------------------------------------------------


def test_every_arm_is_compared_on_every_seed_and_tuned_as_often():
    cells = CLAIM.presets["paper"].cells(range(10))
    compared = {(c.key["data"], c.key["arm"], c.key["seed"]) for c in cells if c.stage == "compare"}
    assert len(compared) == len(DATA) * len(ARMS) * 10
    assert {arm for _, arm, _ in compared} == set(ARMS) == set(TUNED_BY)
    trials = [(c.key["data"], c.key["arm"]) for c in cells if c.stage == "tune"]
    assert {trials.count((data, arm)) for data in DATA for arm in TUNED} == {8}
    assert TUNING_SEED not in range(1000)


def test_trials_are_a_latin_hypercube():
    """Each coordinate falls once into each eighth of its range."""
    draws = [sinkd._draw(trial, 8) for trial in range(8)]
    for name, (low, high) in RANGES.items():
        values = np.array([draw[name] for draw in draws])
        place = (values - low) / (high - low) if name == "alpha" else np.log(values / low) / np.log(high / low)
        assert sorted(np.floor(place * 8).astype(int)) == list(range(8)), name


SIZES = CLAIM.presets["paper"].settings["sizes"]


def keys(table):
    return {row.tobytes() for row in table.inputs}


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_no_seed_trains_or_tunes_on_test_rows(name):
    splits = [sinkd_data.parts(name, seed, SIZES[name]) for seed in (0, 1, TUNING_SEED)]
    test = keys(splits[0].test)
    for split in splits:
        assert keys(split.test) == test
        assert test.isdisjoint(keys(split.train) | keys(split.validation))
        assert keys(split.train).isdisjoint(keys(split.validation))
    assert keys(splits[0].train) != keys(splits[1].train)
    assert {part: len(getattr(splits[0], part)) for part in SIZES[name]} == dict(SIZES[name])


# -- arms -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    """Digits with a made-up teacher."""
    split = sinkd_data.parts("digits", 0, {"train": 96, "validation": 40, "test": 40})
    noise = np.random.default_rng(0).standard_normal((96, 10))
    return replace(split.train, logits=4 * np.eye(10)[split.train.labels] + noise)


def student(arm, table, **changes):
    settings = {"net": {"width": 8}, "training": {"epochs": 2, "batch_size": 32}}
    fitted = sinkd._fit(arm, table, {**CHOSEN, **changes}, seed=3, settings=settings)
    return torch.cat([values.flatten() for values in fitted.model.state_dict().values()])


def test_arms_differ_in_their_objective_alone(table):
    """With transport of weight 0, what was `ot` is `kl` bit for bit; and every arm is another student."""
    kl = student("kl", table)
    assert torch.equal(kl, student("ot", table, transport_weight=0.0))
    assert torch.equal(kl, student("wrong_batch", table, transport_weight=0.0))
    students = [student(arm, table) for arm in ARMS if arm != "wrong_batch_tuned"]
    for place, one in enumerate(students):
        assert not any(torch.equal(one, other) for other in students[place + 1 :])
    assert torch.equal(student("wrong_batch", table), student("wrong_batch_tuned", table))


def test_paper_arm_has_the_released_weight():
    """0.8e-3 times the sum form is 0.0256 times the mean form at 32 rows."""
    assert [c.weight for c in sinkd._components("ot_paper", CHOSEN, 32)][-1] == pytest.approx(0.0256)
    assert [c.weight for c in sinkd._components("ot", CHOSEN, 32)][-1] == CHOSEN["transport_weight"]


def test_wrong_batch_is_another_rows_teacher(table):
    others = sinkd._with_others(table, seed=0).extras["others"]
    assert not (others == table.logits).all(axis=1).any()
    assert sorted(map(tuple, others)) == sorted(map(tuple, table.logits))


def transport(arm, rows, student_logits):
    return next(c for c in sinkd._components(arm, CHOSEN, 16) if c.name == "transport").loss(student_logits, rows)


def test_shuffling_within_the_batch_is_no_control():
    """Transport is blind to it, by construction; to the teacher's outputs of other rows it is not."""
    student_logits, teacher, others = 3 * torch.randn(3, 16, 4, generator=generator, dtype=torch.float64)
    rows = Rows(teacher, torch.zeros(16, dtype=torch.long))
    shuffled = replace(rows, teacher=teacher[torch.randperm(16, generator=generator)])
    value = transport("ot", rows, student_logits)
    assert transport("ot", shuffled, student_logits).item() == pytest.approx(value.item(), rel=1e-12)
    wrong = transport("wrong_batch", replace(rows, extras={"others": others}), student_logits)
    assert wrong.item() == pytest.approx(transport("ot", replace(rows, teacher=others), student_logits).item())
    assert abs(wrong - value) > 1e-3


def test_constant_teacher_is_the_mean_of_the_batch():
    """All mass goes to one point, so that any plan costs the mean distance to it."""
    student_logits, teacher = 3 * torch.randn(2, 16, 4, generator=generator, dtype=torch.float64)
    mean = torch.softmax(teacher / 2, -1).mean(0)
    distance = (torch.softmax(student_logits / 2, -1) - mean).abs().sum(-1)
    found = transport("constant", Rows(teacher, torch.zeros(16, dtype=torch.long)), student_logits)
    assert found.item() == pytest.approx(distance.sum().item(), rel=1e-9)


def test_control_gets_the_settings_that_transport_was_tuned_to(tmp_path, monkeypatch):
    """A comparison reads the best trial of its arm; the control at the same settings that of transport."""
    sizes = {"digits": {"train": 60, "validation": 40, "test": 40}}
    settings = {"sizes": sizes, "student": {"digits": {}}, "trials": 2, "starts": 1}
    split = sinkd_data.parts("digits", 0, sizes["digits"])
    shared = Record(Cell("shared", {"data": "digits", "seed": 0}), {"test": 90.0}, 1.0, "a" * 64)
    folder = tmp_path / ("a" * 16)
    folder.mkdir()
    np.savez(folder / "logits.npz", **{part: np.eye(10)[getattr(split, part).labels] for part in sinkd_data.PARTS})
    trials = [
        Record(
            Cell("tune", {"data": "digits", "arm": arm, "trial": trial}),
            {"validation": score, **CHOSEN, "transport_weight": weight},
            1.0,
        )
        for arm, trial, score, weight in [
            ("ot", 0, 70.0, 0.1),
            ("ot", 1, 80.0, 0.2),
            ("wrong_batch_tuned", 0, 90.0, 0.3),
        ]
    ]
    context = Context("smoke", settings, (shared, *trials), tmp_path)
    fit = sinkd._fit
    small = {"net": {"width": 4}, "training": {"epochs": 1}}
    monkeypatch.setattr(sinkd, "_fit", lambda arm, rows, chosen, seed, _: fit(arm, rows, chosen, seed, small))
    expected = {"ot": 0.2, "wrong_batch": 0.2, "wrong_batch_tuned": 0.3}
    for arm, weight in expected.items():
        values = sinkd._run(Cell("compare", {"data": "digits", "arm": arm, "seed": 0}), context, Path())
        assert values["transport_weight"] == weight
        halves = (values["accuracy_apart"] + values["accuracy_near"]) / 2
        assert values["accuracy"] == pytest.approx(halves)  # 40 test rows, so halves of 20
        assert values["teacher"] == 90.0


# -- what is read off -------------------------------------------------------------------------------------------------


def records(effects, *, seeds=10, teacher=99.0, data=tuple(DATA)):
    """Made-up comparisons: accuracy 80 plus a planted effect by arm or (data set, arm), and noise shared by the arms."""
    rng = np.random.default_rng(0)
    found = []
    for name in data:
        for seed in range(seeds):
            common = rng.normal()
            for arm in ARMS:
                accuracy = 80 + common + effects.get((name, arm), effects.get(arm, 0.0)) + rng.normal(scale=0.1)
                values = {"accuracy": accuracy, "accuracy_apart": accuracy + 1, "accuracy_near": accuracy - 1}
                cell = Cell("compare", {"data": name, "arm": arm, "seed": seed})
                found.append(Record(cell, {**values, "teacher": teacher}, 1.0))
    return found


def judged(found):
    return {part.name: judge(part, found) for part in parts()}


def claim(found):
    return verdict({name: part.verdict for name, part in judged(found).items()})


def test_a_planted_effect_is_found_with_its_size():
    found = judged(records({"ot": 2.0, ("digits", "ot"): 1.0, "kl": 0.0, "ce": -1.0}))
    assert found["transport - KL, digits"].mean == pytest.approx(1.0, abs=0.2)
    assert found["transport - KL, SST-2"].mean == pytest.approx(2.0, abs=0.2)
    assert found["KL - labels alone"].mean == pytest.approx(1.0, abs=0.2)
    assert found[CONTROL].mean == pytest.approx((1 + 2 + 2) / 3, abs=0.2)
    assert found["little against much overlap"].mean == pytest.approx(0, abs=1e-9)
    assert all(len(part.values) == 10 for part in found.values())


@pytest.mark.parametrize(
    ("effects", "expected"),
    [
        ({"ot": 1.0}, "holds"),
        ({"ot": 1.0, ("digits", "ot"): 0.0}, "holds"),  # two of three are enough
        ({"ot": 1.0, ("digits", "ot"): -1.0}, "fails"),  # none may be below
        ({}, "fails"),  # nothing that is worth having, known precisely
        ({"ot": 1.0, "wrong_batch": 1.0, "wrong_batch_tuned": 1.0}, "inconclusive"),  # the control does as well
        ({"ot": 1.0, "wrong_batch_tuned": 2.0}, "fails"),  # or better
    ],
)
def test_the_verdict_follows_from_planted_effects(effects, expected):
    assert claim(records(effects)) == expected


def test_an_interval_that_covers_nothing_and_something_is_inconclusive():
    verdicts = dict.fromkeys(judged([]), "inconclusive")
    assert verdict(verdicts) == "inconclusive"
    assert claim(records({"ot": 1.0}, seeds=3)) == "inconclusive"
    assert claim(records({"ot": 1.0}, data=("digits",))) == "inconclusive"
    assert claim([]) == "inconclusive"


def test_a_teacher_that_knows_no_more_says_nothing():
    found = judged(records({"ot": 1.0}, teacher=79.0))["transport - KL, digits"]
    assert (found.verdict, found.reason) == (
        "inconclusive",
        "the teacher is no better than a student trained on labels alone",
    )


def test_the_claim_is_undecided_where_no_data_are_informative():
    """Nothing is found because there was nothing to find: neither the effect nor a control speaks against the claim."""
    assert claim(records({})) == "fails"
    assert claim(records({}, teacher=79.0)) == "inconclusive"
    assert claim(records({"wrong_batch": 2.0}, teacher=79.0)) == "inconclusive"
    found = judged(records({}, teacher=79.0))
    assert {found[f"worth having, {title}"].verdict for title in DATA.values()} == {"inconclusive"}


def test_a_mean_over_data_sets_is_of_all_of_them():
    """A seed, or a run, without one of them has no mean; what is listed at the small size is what is run there."""
    means = [part.name for part in parts() if "(mean over" in part.statement]
    assert {CONTROL, "KL - labels alone", "ranking"} < set(means)
    two = judged(records({"ot": 1.0}, data=("digits", "mnist")))
    assert {two[name].verdict for name in means} == {"not run"}
    assert two["transport - KL, digits"].verdict == "holds"
    some = [r for r in records({"ot": 1.0}) if (r.cell.key["data"], r.cell.key["seed"]) != ("sst2", 3)]
    found = judged(some)
    assert {len(found[name].values) for name in means} == {9}
    small = CLAIM.presets["smoke"].parts
    smoke = {part.name: judge(part, records({"ot": 1.0}, seeds=5, data=("digits",))) for part in small}
    assert smoke[CONTROL].verdict == "holds"
    assert "(mean over digits)" in smoke[CONTROL].statement
    assert "(mean over digits, MNIST-5k, SST-2)" in found[CONTROL].statement


def test_what_all_seeds_share_is_said():
    scale = CLAIM.presets["paper"].scale
    for words in ("Tuning is one draw", "that all seeds share", "on SST-2 teacher and rows are the same for all seeds"):
        assert words in scale


def test_ranking_is_one_for_the_papers_order_and_minus_one_for_its_reverse():
    order = {"ot": 3.0, "js": 2.0, "rkl": 1.0, "kl": 0.0}
    assert set(judged(records(order))["ranking"].values.values()) == {1.0}
    assert set(judged(records({arm: -value for arm, value in order.items()}))["ranking"].values.values()) == {-1.0}


def test_figures_can_be_drawn():
    found = records({"ot": 1.0})
    for title, spec in figures(found, list(judged(found).values())).items():
        assert "<svg" in svg(spec), title
        rows = spec["data"]["values"]
        assert all(row["low"] < row["difference"] < row["high"] for row in rows)
    assert len(rows) == 2 * len(DATA)


def test_a_draw_of_all_arms_has_no_order():
    """Equal means are no agreement either way."""
    tied = [Record(r.cell, {**r.values, "accuracy": 80.0}, 1.0) for r in records({}, seeds=5)]
    assert set(judged(tied)["ranking"].values.values()) == {0.0}


# -- the fine-tuned teacher -------------------------------------------------------------------------------------------


def test_a_teacher_of_sentences_is_fine_tuned_and_leaves_its_logits(tmp_path, monkeypatch):
    """A tiny BERT learns which of two words decides; sentences of like length stand together."""
    import tiny_bert
    from sanov.data.distillation import DistilTable

    rng = np.random.default_rng(0)
    words = np.array(["bad", "good"])
    labels = rng.integers(0, 2, 240)
    texts = tuple(" ".join(["film"] * rng.integers(0, 6) + [word]) for word in words[labels])
    table = DistilTable(texts, ("negative", "positive"), labels=labels, features=("text",))
    split = sinkd_data.Parts(table.take(range(160)), table.take(range(160, 200)), table.take(range(200, 240)))
    monkeypatch.setattr(text_teachers, "_packaged_model", lambda: tiny_bert.save(tmp_path / "encoder", head=False))
    monkeypatch.setattr(sinkd_data, "parts", lambda *_: split)
    settings = {"learning_rate": 5e-3, "epochs": 4, "batch_size": 8, "max_length": 12}
    found = sinkd_data.make_teacher("sst2", 0, {"sizes": {}, "teacher": {"sst2": settings}}, tmp_path)
    assert found["test"] > 90
    taught = sinkd_data.with_teacher(split, tmp_path)
    assert [part.logits.shape for part in taught] == [(160, 2), (40, 2), (40, 2)]
    assert sinkd_data.accuracy(taught.test.logits, taught.test) == found["test"]


def test_batches_of_sentences_hold_every_row_once_an_epoch():
    from sanov.data.distillation import DistilTable

    class Tokenizer:
        pad_token_id = 0

        def __call__(self, texts, **_):
            return {"input_ids": [[1] * len(text) for text in texts]}

    lengths = np.random.default_rng(0).integers(1, 40, 100)
    table = DistilTable(tuple("x" * n for n in lengths), ("a", "b"), labels=np.zeros(100, dtype=np.int64))
    feed = text_teachers._SentenceFeed(table, Tokenizer(), 0, {"epochs": 2, "batch_size": 8, "max_length": 64})
    assert feed.steps == 2 * 13
    assert sorted(np.concatenate(feed.rows[:13])) == list(range(100))
    batches = [next(feed(step, None)) for step in range(13)]
    assert sum(batch["counts"]["label"] for batch in batches) == 100
    padded = sum(batch["input_ids"].numel() for batch in batches)
    assert padded < 1.3 * lengths.sum()  # in random batches of 8 of 1 to 39 tokens it would be 1.8
    assert all(torch.equal(b["attention_mask"], (b["input_ids"] != 0).long()) for b in batches)
