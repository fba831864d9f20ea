"""A teacher is asked once, whatever kind it is; and its outputs are found again as long as they are its outputs."""

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="the extra `language` is not installed")

import tiny_bert
from sanov.core.errors import InputError, SanovWarning
from sanov.data.distillation import DistilTable, Head
from sanov.data.distillation_sources import Columns
from sanov.learning import distil, row_cache, teacher_kinds, teachers
from sanov.learning.components import teacher_loss
from sanov.learning.training import Training
from sanov.nets import foreign

TEXTS = ("good film", "a very bad film", "bad", "a very very very good film", "good", "films a", "very", "a", "bad bad")
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(9, 4))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert.save(tmp_path_factory.mktemp("teacher") / "bert")


@pytest.fixture(autouse=True)
def _no_shared_cache(monkeypatch):
    monkeypatch.delenv(teachers.VARIABLE, raising=False)


@pytest.fixture
def asked(monkeypatch):
    """Count the texts that Hugging Face teachers are asked about."""
    count, outputs = [], foreign.TextTeacher.outputs

    def counted(self, texts, first=1):
        count.extend(texts)
        return outputs(self, texts, first)

    monkeypatch.setattr(foreign.TextTeacher, "outputs", counted)
    return count


def table(**changes):
    labels = np.array([1, 0, 0, 1, 1, 0, 0, 1, 0])
    whole = {"inputs": TEXTS, "classes": ("neg", "pos"), "labels": labels, "features": ("text",), "name": "the reviews"}
    return DistilTable(**(whole | changes))


# -- Hugging Face -----------------------------------------------------------------------------------------------------


def test_one_pass_gives_logits_embeddings_and_head(bert, asked):
    found = teachers.outputs(bert, TEXTS, embeddings=True)
    assert asked == list(TEXTS)
    model, tokenizer = foreign.load_classifier(bert)
    with torch.no_grad():
        for row, text in enumerate(TEXTS):
            words = tokenizer(text, return_tensors="pt")
            np.testing.assert_allclose(found.embeddings[row], model.bert(**words).pooler_output[0], atol=1e-5)
            np.testing.assert_allclose(found.logits[row], model(**words).logits[0], atol=1e-5)
    np.testing.assert_array_equal(found.head.weight, model.classifier.weight.detach().double().T)
    np.testing.assert_allclose(found.head.logits(found.embeddings), found.logits, atol=1e-5)


def test_logits_are_the_same_with_embeddings_and_without(bert):
    plain = teachers.outputs(bert, TEXTS)
    np.testing.assert_array_equal(plain.logits, teachers.outputs(bert, TEXTS, embeddings=True).logits)
    assert (plain.embeddings, plain.head) == (None, None)
    np.testing.assert_array_equal(plain.logits.astype(float), foreign.classifier_logits(bert, TEXTS))


def test_an_encoder_gives_the_mean_of_its_tokens(tmp_path):
    folder = tiny_bert.save(tmp_path / "base", head=False)
    found = teachers.outputs(folder, TEXTS, embeddings=True)
    model, tokenizer = foreign.load_encoder(folder)
    with torch.no_grad():
        alone = [
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0).numpy() for text in TEXTS
        ]
    np.testing.assert_allclose(found.embeddings, alone, atol=1e-5)
    assert (found.logits, found.head) == (None, None)
    taught = teachers.with_teacher(table(), folder, embeddings=True)
    assert (taught.logits, taught.classes) == (None, ("neg", "pos"))
    with pytest.raises(InputError, match=r"lacks trained weights.*Fine-tune"):
        teachers.with_teacher(table(), folder)


def test_a_classifier_whose_last_layer_is_not_linear(bert, monkeypatch):
    load = foreign.load_classifier

    def squashed(directory):
        model, tokenizer = load(directory)
        model.classifier = nn.Sequential(model.classifier, nn.Tanh())
        return model, tokenizer

    monkeypatch.setattr(foreign, "load_classifier", squashed)
    with pytest.raises(InputError, match="logits are not the outputs of a linear layer"):
        teachers.outputs(bert, TEXTS, embeddings=True)
    assert teachers.outputs(bert, TEXTS).logits.shape == (9, 2)


def test_long_texts_are_told_with_their_number(bert, tmp_path):
    with pytest.warns(SanovWarning, match="1 of 2 texts reach the teacher's limit of 5 tokens"):
        teachers.outputs(bert, ["good " * 4, "bad"], max_length=5, folder=tmp_path)


# -- kept -------------------------------------------------------------------------------------------------------------


def test_epochs_cost_one_pass(bert, tmp_path, asked):
    for epochs in (1, 5):
        training = Training(epochs=epochs, batch_size=4)
        distil.fit(table(), (teacher_loss(1.0),), teacher=str(bert), training=training, out=tmp_path / f"{epochs}")
        assert asked == list(TEXTS)
        asked.clear()


def test_a_table_to_choose_by_is_shown_to_the_teacher_too(bert, tmp_path, asked):
    """Once, whatever the number of evaluations; without labels agreement with the teacher chooses."""
    others = ("a good film", "bad film", "very good")
    held_out = DistilTable(others, ("neg", "pos"), features=("text",))
    options = {"teacher": str(bert), "validation": held_out, "out": tmp_path / "student"}
    for epochs in (1, 3):
        found = distil.fit(table(), (teacher_loss(1.0),), training=Training(epochs=epochs, batch_size=4), **options)
        assert asked == [*TEXTS, *others]  # by the second fit neither
    said = teachers.outputs(bert, others).logits.argmax(axis=1)
    agreed = (found.logits(held_out).argmax(axis=1) == said).mean()
    assert found.results["validation_agreement"] == pytest.approx(agreed)


def test_fits_share_a_cache(bert, tmp_path, asked, monkeypatch):
    monkeypatch.setenv(teachers.VARIABLE, str(tmp_path / "shared"))
    tables = [teachers.with_teacher(table(), bert, folder=tmp_path / name, embeddings=name != "b") for name in "abc"]
    assert len(asked) == len(TEXTS)  # what was kept with embeddings also serves a fit that wants logits alone
    assert not (tmp_path / "a").exists()
    np.testing.assert_array_equal(tables[0].logits, tables[1].logits)
    np.testing.assert_array_equal(tables[0].embeddings, tables[2].embeddings)
    assert tables[1].embeddings is None


def test_without_a_folder_nothing_is_kept(bert, asked):
    for _ in range(2):
        teachers.with_teacher(table(), bert)
    assert len(asked) == 2 * len(TEXTS)


def weights(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["classifier.bias"] += 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def vocabulary(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"film"', '"movie"'))


def settings(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"gelu"', '"relu"'))


@pytest.mark.parametrize("change", [weights, vocabulary, settings])
def test_a_changed_teacher_is_asked_again(change, tmp_path, asked):
    folder = tiny_bert.save(tmp_path / "bert")
    before = teachers.outputs(folder, TEXTS, folder=tmp_path / "cache")
    change(folder)
    after = teachers.outputs(folder, TEXTS, folder=tmp_path / "cache")
    assert len(asked) == 2 * len(TEXTS)
    assert not np.array_equal(before.logits, after.logits)


def test_other_rows_or_another_length_are_asked_again(bert, tmp_path, asked):
    for rows, length in ((TEXTS, None), (TEXTS, 12), (TEXTS[::-1], None), (TEXTS[:5], None), (TEXTS, None)):
        teachers.outputs(bert, rows, max_length=length, folder=tmp_path)
    assert len(asked) == 3 * len(TEXTS) + 5


def test_what_outputs_do_not_depend_on_changes_nothing(tmp_path, asked):
    folder = tiny_bert.save(tmp_path / "bert")
    teachers.outputs(folder, TEXTS, folder=tmp_path / "cache")
    for name in ("README.md", "training_args.bin", "trainer_state.json", "optimizer.pt"):
        (folder / name).write_text("something")
    folder.rename(tmp_path / "moved")
    teachers.outputs(tmp_path / "moved", TEXTS, folder=tmp_path / "cache")
    assert len(asked) == len(TEXTS)


def test_a_stopped_pass_goes_on_with_the_same_outputs(bert, tmp_path, monkeypatch):
    monkeypatch.setattr(row_cache, "SHARD", 2)
    whole = teachers.outputs(bert, TEXTS, embeddings=True, folder=tmp_path / "whole")
    texts, outputs = [], foreign.TextTeacher.outputs

    def stopped(self, some, first=1):
        texts.extend(some)
        if len(texts) == 6:
            raise KeyboardInterrupt
        return outputs(self, some, first)

    monkeypatch.setattr(foreign.TextTeacher, "outputs", stopped)
    with pytest.raises(KeyboardInterrupt):
        teachers.outputs(bert, TEXTS, embeddings=True, folder=tmp_path / "half")
    texts[:] = ["a text more than at which it was stopped"] * 7
    found = teachers.outputs(bert, TEXTS, embeddings=True, folder=tmp_path / "half")
    assert texts[7:] == list(TEXTS[4:])
    for name in ("logits", "embeddings"):
        assert getattr(found, name).tobytes() == getattr(whole, name).tobytes()


def test_a_shared_cache_that_cannot_be_written(bert, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(teachers.VARIABLE, str(tmp_path / "file"))
    with pytest.warns(SanovWarning, match="file cannot be written: the teacher's outputs are not kept there"):
        teachers.with_teacher(table(), bert, folder=tmp_path / "fit")
    monkeypatch.setattr(foreign, "TextTeacher", lambda *_, **__: pytest.fail("asked again"))
    teachers.with_teacher(table(), bert, folder=tmp_path / "fit")


# -- other teachers ---------------------------------------------------------------------------------------------------


class Counted:
    """A function of texts or features that counts its calls."""

    def __init__(self, give):
        self.give, self.calls = give, 0

    def __call__(self, rows):
        self.calls += 1
        return self.give(rows)


def lengths(texts):
    return np.array([[len(text), 1.5] for text in texts])


def test_a_function_of_texts(tmp_path):
    teacher = Counted(lengths)
    for key in ("", "", "v1", "v1", "v2"):
        found = teachers.with_teacher(table(), teacher, folder=tmp_path, key=key)
        np.testing.assert_array_equal(found.logits, lengths(TEXTS))
    assert teacher.calls == 4  # without a key nobody knows whether it is the same function


def test_a_function_that_gives_embeddings_and_a_head(tmp_path):
    head = {"head_weight": RNG.normal(size=(4, 2)), "head_bias": np.array([1.0, -1.0])}
    teacher = Counted(lambda rows: {"embeddings": rows, **head})
    features = table(inputs=FEATURES, features=())
    for _ in range(2):
        found = teachers.with_teacher(features, teacher, folder=tmp_path, embeddings=True, key="linear")
        np.testing.assert_array_equal(found.embeddings, FEATURES)
        np.testing.assert_allclose(found.logits, Head(**{n[5:]: x for n, x in head.items()}).logits(FEATURES))
        np.testing.assert_array_equal(found.head.weight, head["head_weight"])
    assert teacher.calls == 1


def test_a_network_of_features(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 2)).train()
    features = table(inputs=FEATURES, features=())
    found = teachers.with_teacher(features, network, folder=tmp_path, embeddings=True)
    assert network.training
    expected = network.eval()(torch.from_numpy(FEATURES).float()).detach().numpy()
    np.testing.assert_array_equal(found.logits, expected.astype(float))
    np.testing.assert_allclose(found.head.logits(found.embeddings), found.logits, atol=1e-6)
    with torch.no_grad():
        network[0].weight += 1
    assert not np.array_equal(teachers.with_teacher(features, network, folder=tmp_path).logits, found.logits)


def test_arrays():
    found = teachers.with_teacher(table(), lengths(TEXTS))
    np.testing.assert_array_equal(found.logits, lengths(TEXTS))
    both = teachers.outputs((lambda rows: (lengths(rows), FEATURES[: len(rows)])), TEXTS, embeddings=True)
    np.testing.assert_array_equal(both.embeddings, FEATURES)


# -- tables -----------------------------------------------------------------------------------------------------------


def test_classes_follow_the_teacher(bert):
    labels = np.array([0, 1, 1, 0, 0, 1, 1, 0, 1])
    taught = teachers.with_teacher(table(classes=("pos", "neg"), labels=labels), bert)
    assert taught.classes == ("neg", "pos")
    assert taught.labels.tolist() == table().labels.tolist()
    wide = teachers.with_teacher(table(classes=("0", "1")), lambda rows: np.ones((len(rows), 3)))
    assert wide.classes == ("0", "1", "2")


@pytest.mark.parametrize("suffix", ["csv", "parquet", "ndjson", "npz"])
def test_texts_of_any_file(suffix, bert, tmp_path, asked):
    path = tmp_path / f"t.{suffix}"
    names = ["pos" if label else "neg" for label in table().labels]
    if suffix == "npz":
        np.savez(path, inputs=np.array(TEXTS), labels=np.array(names))
    else:
        getattr(pl.DataFrame({"text": TEXTS, "label": names}), f"write_{suffix}")(path)
    found = teachers.with_teacher(teachers.read([path], Columns(), str(bert)), str(bert), folder=tmp_path)
    np.testing.assert_array_equal(found.logits, teachers.outputs(bert, TEXTS, folder=tmp_path / teachers.CACHE).logits)
    assert len(asked) == len(TEXTS)  # the texts are the same, whatever held them
    assert found.labels.tolist() == table().labels.tolist()


def test_a_table_with_embeddings_needs_no_teacher(bert):
    whole = pl.DataFrame({"text": TEXTS, "embedding_1": FEATURES[:, 0], "embedding_2": FEATURES[:, 1]})
    with pytest.raises(InputError, match="the table has teacher embeddings, and a teacher is named too"):
        teachers.read([whole], Columns(), str(bert))


def test_a_table_that_has_all_is_left_alone(bert, asked):
    whole = table(logits=lengths(TEXTS))
    assert teachers.with_teacher(whole, bert) is whole
    assert teachers.with_teacher(whole, "") is whole
    assert not asked
    assert teachers.with_teacher(whole, bert, embeddings=True).embeddings.shape == (9, 16)


MISTAKES = {
    "no rows": (lengths, {"inputs": (), "labels": None}, {}, "there are no rows"),
    "rows": (lambda rows: lengths(rows)[1:], {}, {}, r"logits are of shape .8, 2.; expected .9, classes. for 9 rows"),
    "one axis": (lambda rows: np.ones(len(rows)), {}, {}, r"shape \[9\].*\[9, classes\]"),
    "NaN": (lambda rows: np.where(lengths(rows) == 3, np.nan, 1.0), {}, {}, "logits of 1 rows are not finite.*row 3"),
    "other arrays": (lambda rows: {"scores": lengths(rows)}, {}, {}, "gives 'scores'; expected logits"),
    "nothing": (lambda rows: {"embeddings": lengths(rows)}, {}, {}, "gives no logits"),
    "no embeddings": (lengths, {}, {"embeddings": True}, "gives no embeddings"),
    "classes": (
        lambda rows: np.ones((len(rows), 3)),
        {},
        {},
        "the reviews: the teacher has 3 classes, and the table 2",
    ),
    "texts for a network": (nn.Linear(4, 2), {}, {}, "a network reads features"),
    "not linear": (nn.Tanh(), {"inputs": FEATURES[:, :2]}, {"embeddings": True}, "not the outputs of a linear layer"),
    "a head that does not fit": (
        {"logits": lengths(TEXTS), "embeddings": FEATURES, "head_weight": np.ones((4, 2)), "head_bias": np.ones(2)},
        {},
        {"embeddings": True},
        "embeddings must be the input of the last linear layer",
    ),
    "half a head": (lambda rows: {"logits": lengths(rows), "head_bias": np.ones(2)}, {}, {}, "without the other half"),
    "no folder": ("none", {}, {}, "none: there is no such folder"),
    "features for BERT": ("bert", {"inputs": FEATURES}, {}, "reads texts, and the table has none"),
}


@pytest.mark.parametrize(("teacher", "changes", "options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(teacher, changes, options, message, bert, tmp_path, monkeypatch):
    monkeypatch.chdir(bert.parent)
    with pytest.raises(InputError, match=f"(?s){message}"):
        teachers.with_teacher(table(**changes), teacher, folder=tmp_path / "fit", key="k", **options)
    if "the reviews: the teacher has 3 classes" not in message:  # the teacher itself is not at fault there
        assert not (tmp_path / "fit").exists()


def test_a_network_without_readable_source_is_told_apart_by_name():
    kind = type("Made", (nn.Linear,), {})
    assert teacher_kinds._source(kind) == "Made"
