"""A real Trainer with the objective as its loss, and the teacher's logits in labels that the user packed."""

import numpy as np
import pytest
import torch
import transformers

import tiny_bert
from sanov.bridges.transformers import pack, trainer_loss, unpack
from sanov.core.errors import InputError

rng = np.random.default_rng(0)
LOGITS = rng.standard_normal((12, 2)) * 3
LABELS = np.array([0, 1] * 5 + [-1, -1])
TEXTS = ["a good film", "a very bad film", "films", "bad"] * 3


# -- the column -------------------------------------------------------------------------------------------------------


def test_unpack_undoes_pack():
    labels, logits = unpack(pack(LOGITS, LABELS))
    assert labels.tolist() == LABELS.tolist()
    assert torch.equal(logits, torch.from_numpy(LOGITS).float())
    assert unpack(pack(LOGITS))[0].tolist() == [-1] * 12


def test_no_cell_is_the_number_that_trainer_does_not_count():
    packed = pack(np.array([[-100.0, 3.0], [1.0, -100.0]]), [-100, 1])
    assert (packed != -100).all()
    assert packed[0, 1] == pytest.approx(-100)


def test_mistakes_are_told():
    with pytest.raises(InputError, match="12 rows of teacher logits and 11 labels"):
        pack(LOGITS, LABELS[:11])
    with pytest.raises(InputError, match=r"row 2 has the label 2.*0 to 1"):
        pack(LOGITS[:2], [0, 2])
    with pytest.raises(InputError, match="1 rows are not finite, the first is row 3"):
        pack(np.where(np.arange(24).reshape(12, 2) == 4, np.nan, LOGITS))
    with pytest.raises(InputError, match=r"teacher_logits: shape \[2\]; expected \[rows, classes\]"):
        pack([1.0, 2.0])
    outputs = {"logits": torch.zeros(4, 3)}
    with pytest.raises(InputError, match=r"shape \[12, 3\].*\[rows, 4\]"):
        trainer_loss()(outputs, torch.from_numpy(pack(LOGITS)))
    with pytest.raises(InputError, match="there are none"):
        trainer_loss()(outputs, None)
    with pytest.raises(InputError, match="anneal"):
        trainer_loss(anneal=True)


def test_micro_batches_add_up_to_the_step():
    """For terms that are sums over rows; every row has a label here."""
    objective = trainer_loss("distillation", alpha=0.5)
    student = torch.from_numpy(rng.standard_normal((12, 2))).float()
    packed = torch.from_numpy(pack(LOGITS, np.abs(LABELS)))
    whole = objective({"logits": student}, packed)
    parts = [
        objective((student[rows],), packed[rows], num_items_in_batch=torch.tensor(packed.numel()))
        for rows in (slice(0, 3), slice(3, 12))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


# -- Trainer ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def student(tmp_path):
    folder = tiny_bert.save(tmp_path / "student")
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    model = transformers.BertForSequenceClassification.from_pretrained(
        folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return model, tokenizer


def trainer_of(student, folder, loss, **options):
    model, tokenizer = student
    rows = [{**tokenizer(text), "labels": row} for text, row in zip(TEXTS, pack(LOGITS, np.abs(LABELS)), strict=True)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "runs"),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{"per_device_train_batch_size": 4, "max_steps": 4, "logging_steps": 1, "learning_rate": 1e-2, **options},
    )
    collator = transformers.DataCollatorWithPadding(tokenizer)
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collator,
        compute_loss_func=loss,
        compute_metrics=lambda found: {
            "agreement": float((found.predictions.argmax(-1) == unpack(found.label_ids)[1].numpy().argmax(-1)).mean())
        },
    )


@pytest.mark.filterwarnings("ignore")  # transformers' own, at import and while it trains
def test_trainer_takes_steps_that_lower_the_loss(student, tmp_path):
    loss = trainer_loss("sinkd", transport_weight=0.1, alpha=0.5)
    trainer = trainer_of(student, tmp_path, loss, max_steps=24)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert 0 <= after["eval_agreement"] <= 1
    assert set(loss.metrics) == {"label", "teacher", "transport"}
