"""What an extra needs is read from the package's own metadata."""

from sanov.core import extras

METADATA = [
    "numpy>=2",
    "torch>=2.8 ; extra == 'torch'",
    "sanov[torch] ; extra == 'language'",
    'transformers[all]>=5 ; extra == "language"',
    "a-package-that-nobody-wrote ; extra == 'demo'",
    "sanov[demo,torch] ; extra == 'paper'",
]


def test_an_extra_of_extras_needs_what_they_need(monkeypatch):
    monkeypatch.setattr(extras, "requires", lambda name: METADATA)
    monkeypatch.setattr(extras, "version", lambda name: extras_fail(name))
    assert extras.missing("torch") == ["torch"]
    assert extras.missing("language") == ["torch", "transformers"]
    assert extras.missing("paper") == ["a-package-that-nobody-wrote", "torch"]
    assert extras.missing("torch, demo") == ["a-package-that-nobody-wrote", "torch"]
    assert extras.missing("") == []


def extras_fail(name):
    raise extras.PackageNotFoundError(name)


def test_what_is_installed_is_not_missing(monkeypatch):
    monkeypatch.setattr(extras, "requires", lambda name: ["pytest ; extra == 'dev'", *METADATA])
    assert extras.missing("dev,demo") == ["a-package-that-nobody-wrote"]
