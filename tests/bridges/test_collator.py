"""A user's own script distils by two arguments of Trainer: a collator that carries the teacher, and a loss."""

import math
import re

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the extra `language` is not installed")

import tiny_bert
from sanov.bridges.losses import distillation_loss, with_subclasses
from sanov.bridges.transformers import TeacherCollator, plain_labels, trainer_loss, unpack
from sanov.core.errors import InputError
from sanov.data.distillation import DistilTable
from sanov.learning import teachers

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, at import and while it trains

TEXTS = ("a good film", "a very bad film", "films", "bad", "good good film", "a bad film", "very good", "a film") * 2
LABELS = np.array([1, 0] * 8)
SUBCLASSES = 3


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Rows with what another BERT says of them; its words have other numbers than the student's."""
    folder = tiny_bert.save(tmp_path_factory.mktemp("teacher") / "bert", hidden_act="relu")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"good": 5', '"good": 9').replace('"very": 9', '"very": 5'))
    table = DistilTable(TEXTS, ("neg", "pos"), labels=LABELS, features=("text",), name="the reviews")
    return teachers.with_teacher(table, folder, embeddings=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert.save(tmp_path_factory.mktemp("student") / "bert")


@pytest.fixture
def tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


def student_of(folder, labels=2):
    torch.manual_seed(0)
    settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": labels}
    settings |= {"ignore_mismatched_sizes": True, "id2label": dict(enumerate(map(str, range(labels))))}
    return transformers.BertForSequenceClassification.from_pretrained(folder, **settings)


def rows_of(tokenizer, **more):
    """What a script has before it distils: tokens, a label, and the text itself; and one column more."""
    columns = {"row": range(len(TEXTS))} | more
    numbered = zip(TEXTS, LABELS, zip(*columns.values(), strict=True), strict=True)
    return [
        {**tokenizer(text), "text": text, "label": int(label), **dict(zip(columns, cells, strict=True))}
        for text, label, cells in numbered
    ]


def trainer_of(model, rows, collator, loss, out, **options):
    settings = {"per_device_train_batch_size": 4, "max_steps": 4, "logging_steps": 1, "learning_rate": 1e-2}
    settings |= {"remove_unused_columns": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    arguments = transformers.TrainingArguments(
        str(out), use_cpu=True, dataloader_pin_memory=False, **(settings | options)
    )
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collator,
        compute_loss_func=loss,
        compute_metrics=plain_labels(accuracy, subclasses=loss.objective.subclasses),
    )


def accuracy(found):
    logits, labels = found  # as most scripts write it
    assert logits.shape == (len(TEXTS), 2)
    assert labels.tolist() == LABELS.tolist()
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


OBJECTIVES = {
    "sinkd": {"transport_weight": 0.3},
    "distillation": {"alpha": 0.5},
    "lelp": {"subclasses": SUBCLASSES, "alpha": 0.25},
}


def prepared(system, taught, folder):
    """The table, a student and the loss of a system."""
    options = OBJECTIVES[system]
    table = with_subclasses(taught, **options) if system == "lelp" else taught
    return table, student_of(folder, 2 * options.get("subclasses", 1)), trainer_loss(system, **options)


def direct(system, table, model, tokenizer):
    """The objective of all rows, straight from the table."""
    with torch.no_grad():
        logits = model(**tokenizer(list(TEXTS), padding=True, return_tensors="pt")).logits
    extras = {name: torch.from_numpy(values) for name, values in table.extras.items()}
    teacher, labels = torch.from_numpy(table.logits).float(), torch.from_numpy(table.labels)
    return distillation_loss(system, **OBJECTIVES[system])(logits, teacher, labels, extras=extras).value.item()


# -- Trainer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", OBJECTIVES)
def test_losses_are_those_of_the_objective(system, taught, folder, tokenizer, tmp_path):
    table, model, loss = prepared(system, taught, folder)
    expected = direct(system, table, model, tokenizer)
    options = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 16, "max_steps": 1}
    trainer = trainer_of(model, rows_of(tokenizer), TeacherCollator(tokenizer, table), loss, tmp_path, **options)
    found = trainer.evaluate()
    trainer.train()
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert losses(trainer) == pytest.approx([expected], rel=1e-3)  # logged with few digits
    with torch.no_grad():
        logits = student_of(folder, model.config.num_labels)(
            **tokenizer(list(TEXTS), padding=True, return_tensors="pt")
        ).logits
    summed = torch.softmax(logits, dim=1).reshape(16, 2, -1).sum(dim=-1)
    assert found["eval_accuracy"] == pytest.approx(float((summed.argmax(dim=1).numpy() == LABELS).mean()))


@pytest.mark.parametrize("system", ["distillation", "lelp"])
def test_accumulation_changes_nothing_for_sums_over_rows(system, taught, folder, tokenizer, tmp_path):
    found = []
    for size in (8, 2):
        table, model, loss = prepared(system, taught, folder)
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "max_steps": 3}
        trainer = trainer_of(model, rows_of(tokenizer), TeacherCollator(tokenizer, table), loss, tmp_path, **options)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_workers_load_the_same_batches(taught, folder, tokenizer, tmp_path):
    found = []
    for workers in (0, 1):
        collator = TeacherCollator(tokenizer, taught)
        options = {"dataloader_num_workers": workers, "max_steps": 3}
        trainer = trainer_of(student_of(folder), rows_of(tokenizer), collator, trainer_loss(), tmp_path, **options)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == found[1]


def test_a_student_learns_what_its_teacher_says(taught, folder, tokenizer, tmp_path):
    loss = trainer_loss("distillation", alpha=1.0)
    trainer = trainer_of(
        student_of(folder), rows_of(tokenizer), TeacherCollator(tokenizer, taught), loss, tmp_path, max_steps=60
    )
    trainer.train()
    with torch.no_grad():
        logits = trainer.model.eval()(**tokenizer(list(TEXTS), padding=True, return_tensors="pt")).logits
    assert (logits.argmax(dim=1).numpy() == taught.logits.argmax(axis=1)).all()


# -- columns that Trainer drops ---------------------------------------------------------------------------------------


def test_a_dropped_column_is_told(taught, folder, tokenizer, tmp_path):
    collator = TeacherCollator(tokenizer, taught)
    options = {"remove_unused_columns": True}
    trainer = trainer_of(student_of(folder), rows_of(tokenizer), collator, trainer_loss(), tmp_path, **options)
    with pytest.raises(InputError, match=r"no column 'row' \(only 'input_ids'.*Add it.*remove_unused_columns=False"):
        trainer.train()


def test_a_column_that_trainer_keeps(taught, folder, tokenizer, tmp_path):
    rows = rows_of(tokenizer, label_ids=range(len(TEXTS)))
    found = []
    for column, removed in (("row", False), ("label_ids", True)):
        collator = TeacherCollator(tokenizer, taught, column=column)
        options = {"remove_unused_columns": removed, "max_steps": 2}
        trainer = trainer_of(student_of(folder), rows, collator, trainer_loss(), tmp_path, **options)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == found[1]


# -- the collator -----------------------------------------------------------------------------------------------------


def batch_of(collator, rows, *places):
    batch = collator([rows[place] for place in places])
    return batch, *unpack(batch["labels"], 2)


def test_rows_find_their_outputs(taught, tokenizer):
    rows = rows_of(tokenizer)
    batch, labels, logits = batch_of(TeacherCollator(tokenizer, taught), rows, 5, 0, 5)
    assert batch.keys() == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert labels.tolist() == LABELS[[5, 0, 5]].tolist()
    np.testing.assert_array_equal(logits, taught.logits[[5, 0, 5]].astype(np.float32))
    assert rows == rows_of(tokenizer)  # the data set is left as it was


def test_outputs_and_arrays_of_logits(taught, tokenizer):
    rows = rows_of(tokenizer)
    for teacher in (teachers.Outputs(taught.logits), taught.logits, taught.logits.astype(np.float32)):
        np.testing.assert_allclose(
            batch_of(TeacherCollator(tokenizer, teacher), rows, 3)[2], taught.logits[[3]], rtol=1e-6
        )


def test_rows_may_be_named_by_ids(taught, tokenizer):
    names = [f"r{place}" for place in range(16)]
    rows = rows_of(tokenizer, row=names[::-1])
    table = DistilTable(taught.inputs, taught.classes, taught.logits, ids=tuple(names))
    for collator in (TeacherCollator(tokenizer, table), TeacherCollator(tokenizer, taught.logits, ids=names)):
        np.testing.assert_allclose(batch_of(collator, rows, 1)[2], taught.logits[[14]], rtol=1e-6)
    numbers = TeacherCollator(tokenizer, taught.logits, ids=np.arange(100, 116))
    row = rows_of(tokenizer)[0] | {"row": torch.tensor(103)}
    np.testing.assert_allclose(batch_of(numbers, [row], 0)[2], taught.logits[[3]], rtol=1e-6)


def test_a_collator_of_the_user_is_given_all_else(taught, tokenizer):
    def collate(features):
        assert all(feature.keys() == {"text", "weight"} for feature in features)
        return tokenizer([feature["text"] for feature in features], padding=True, return_tensors="pt")

    rows = [{"text": text, "weight": 1.0, "row": row} for row, text in enumerate(TEXTS)]
    batch, labels, logits = batch_of(TeacherCollator(collate, taught), rows, 2, 4)
    assert batch["input_ids"].shape[0] == 2
    assert labels.tolist() == [-1, -1]
    np.testing.assert_allclose(logits, taught.logits[[2, 4]], rtol=1e-6)


def test_labels_of_either_name_and_of_none(taught, tokenizer):
    rows = [
        {**tokenizer("good"), "row": 0, **label}
        for label in ({"label": 1}, {"labels": 1}, {"label": None}, {"labels": -100})
    ]
    assert batch_of(TeacherCollator(tokenizer, taught), rows, *range(4))[1].tolist() == [1, 1, -1, -1]


def test_subclasses_travel_with_their_rows(taught, tokenizer):
    table = with_subclasses(taught, subclasses=SUBCLASSES)
    batch = TeacherCollator(tokenizer, table)([rows_of(tokenizer)[place] for place in (7, 2)])
    found = batch["labels"][:, 3:].reshape(2, 2, SUBCLASSES)
    np.testing.assert_allclose(found, table.extras["subclasses"][[7, 2]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(found).sum(axis=-1), 1.0, rtol=1e-5)


def test_mistakes_are_told(taught, tokenizer):
    rows = rows_of(tokenizer)
    collator = TeacherCollator(tokenizer, taught)
    for value, expected in ((16, "a number from 0 to 15"), (-1, "a number"), ("r0", "a number"), (None, "a number")):
        with pytest.raises(InputError, match=re.escape(f"'row' is {value!r}; expected {expected}")):
            collator([rows[0] | {"row": value}])
    with pytest.raises(InputError, match="'row' is 3; expected an id of the teacher's rows"):
        TeacherCollator(tokenizer, taught.logits, ids=list("abcdefghijklmnop"))([rows[3]])
    with pytest.raises(InputError, match="16 ids, 15 of them different, for 16 rows"):
        TeacherCollator(tokenizer, taught.logits, ids=list("aacdefghijklmnop"))
    with pytest.raises(InputError, match="3 ids, 3 of them different, for 16 rows"):
        TeacherCollator(tokenizer, taught.logits, ids="abc")
    with pytest.raises(InputError, match="there are no logits"):
        TeacherCollator(tokenizer, teachers.Outputs(embeddings=taught.embeddings))
    with pytest.raises(InputError, match="has the label 2"):
        collator([rows[0] | {"label": 2}])


def test_students_and_teachers_of_different_classes(taught, tokenizer):
    labels = TeacherCollator(tokenizer, taught)(rows_of(tokenizer))["labels"]
    with pytest.raises(InputError, match=r"shape \[16, 3\]; expected \[rows, 4\].*teacher of the student's classes"):
        trainer_loss()({"logits": torch.zeros(16, 3)}, labels)
    with pytest.raises(
        InputError, match=r"has 5 outputs; expected 3 for each class.*num_labels to classes \* subclasses"
    ):
        trainer_loss("lelp", subclasses=3)({"logits": torch.zeros(16, 5)}, labels)
    with pytest.raises(InputError, match=r"shape \[16, 3\]; expected \[rows, 9\].*6 numbers of its subclasses"):
        trainer_loss("lelp", subclasses=3)({"logits": torch.zeros(16, 6)}, labels)


# -- lelp in a loop of one's own --------------------------------------------------------------------------------------


def test_one_subclass_is_plain_distillation():
    rng = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 3, generator=rng), torch.randn(6, 3, generator=rng)
    found = distillation_loss("lelp", subclasses=1, temperature=2.0)(student, teacher).value
    p, q = torch.softmax(teacher / 2, dim=1), torch.log_softmax(student, dim=1)
    assert found.item() == pytest.approx(float((p * (p.log() - q)).sum(dim=1).mean()), rel=1e-5)


def test_the_divergence_of_all_outputs_is_the_sum_of_its_parts():
    rng = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 6, generator=rng), torch.randn(2, 3, 2, generator=rng)
    conditional = torch.log_softmax(torch.randn(2, 3, 2, 3, generator=rng), dim=-1)
    objective = distillation_loss("lelp", subclasses=3, temperature=4.0)
    mask = torch.tensor([[True, True, False], [True, False, True]])
    found = objective(student, teacher, extras={"subclasses": conditional}, mask=mask)
    log_p = (torch.log_softmax(teacher / 4, dim=-1)[..., None] + conditional).flatten(-2)
    rows = (log_p.exp() * (log_p - torch.log_softmax(student, dim=-1))).sum(dim=-1)
    assert found.value.item() == pytest.approx(rows[mask].mean().item(), rel=1e-5)
    assert math.isclose(found.value.item(), float(found.metrics["teacher"] + found.metrics["subclass"]), rel_tol=1e-5)
    with pytest.raises(InputError, match=r"extras\['subclasses'\]: there are none; expected .*with_subclasses returns"):
        objective(student, teacher)
    with pytest.raises(InputError, match=r"the same rows and classes, 3 outputs of the student for each class"):
        objective(student[..., :4], teacher, extras={"subclasses": conditional})
