"""Every row of the table of systems has all that a system must have. What is missing fails; nothing is skipped."""

import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

from sanov.claims import STAGES, Context
from sanov.core.options import Options, describe, parse
from sanov.systems import BASELINES, SYSTEMS

ROOT = Path(__file__).parents[1]
by_name = pytest.mark.parametrize("row", SYSTEMS, ids=lambda row: row.name)
with_baselines = pytest.mark.parametrize("row", SYSTEMS + BASELINES, ids=lambda row: row.name)


def groups(config, prefix=""):
    """The config and each of its groups."""
    yield prefix, config
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
            yield from groups(field.annotation, f"{prefix}{name}.")


@pytest.mark.parametrize(("folder", "rows"), [("systems", SYSTEMS), ("baselines", BASELINES)])
def test_rows_and_modules_are_the_same_set(folder, rows):
    entries = (ROOT / "src" / "sanov" / folder).iterdir()
    modules = {entry.stem for entry in entries if not entry.stem.startswith("_")}
    assert modules == {row.module.split(".")[-1] for row in rows}


@with_baselines
def test_row_is_complete(row):
    assert all(row._asdict()[name] for name in row._fields if name != "extras")
    assert row.question.endswith("?")
    assert row.fits in {"yes", "no"}
    assert re.search(rf"^@\w+{{{row.paper},", (ROOT / "docs/references.bib").read_text(), re.MULTILINE)


@with_baselines
def test_module_has_the_shape_of_a_system(row):
    module = row.load()
    assert len(module.__doc__) > 200
    assert list(inspect.signature(module.read).parameters)[:2] == ["sources", "config"]
    parameters = inspect.signature(module.apply).parameters
    assert list(parameters)[:2] == ["data", "config"]
    assert {"fitted", "seed"} <= parameters.keys()
    assert hasattr(module, "fit") == (row.fits == "yes")
    if row.fits == "yes":
        assert {"seed", "out", "resume"} <= inspect.signature(module.fit).parameters.keys()
        assert all(hasattr(module.Fitted, name) for name in ("save", "load", "summary", "to_dict"))
    public = [getattr(module, name) for name in module.__all__]
    assert all(inspect.getdoc(thing) for thing in public if inspect.isfunction(thing) or inspect.isclass(thing))


@with_baselines
def test_every_option_is_documented(row):
    for prefix, config in groups(row.load().Config):
        own = [field for field in config.model_fields.values() if not _is_group(field)]
        assert len(own) <= 12, f"{prefix or 'Config'} has {len(own)} fields"
        for name, field in config.model_fields.items():
            if not _is_group(field):
                assert field.description, f"{prefix}{name} has no meaning"
                assert field.json_schema_extra["source"], f"{prefix}{name} has no source"


def _is_group(field):
    return isinstance(field.annotation, type) and issubclass(field.annotation, Options)


@by_name
def test_defaults_are_valid(row):
    config = row.load().Config()
    with pytest.raises(Exception, match="frozen"):
        setattr(config, next(iter(type(config).model_fields)), None)


@with_baselines
def test_a_default_can_be_typed_as_it_is_shown(row):
    config = row.load().Config
    assert parse(config, {option["name"]: option["default"] for option in describe(config)}) == config()


@by_name
def test_page_has_its_blocks(row):
    page = (ROOT / "docs" / "systems" / f"{row.name}.md").read_text()
    for block in ("row", "defaults", "results"):
        assert f"<!-- begin: {block} {row.name} -->" in page
        assert f"<!-- end: {block} {row.name} -->" in page
    for heading in ("Objective", "Use it", "Equation", "Deviations", "Limits"):
        assert re.search(rf"^## .*{heading}", page, re.MULTILINE | re.IGNORECASE), heading


@with_baselines
def test_tests_exist(row):
    folder = row.module.split(".")[1]
    assert list((ROOT / "tests" / folder).glob(f"test_{row.name}*.py"))


@by_name
def test_benchmark_was_run(row):
    assert (ROOT / "benchmarks" / f"{row.name}.py").is_file()
    assert json.loads((ROOT / "benchmarks" / f"{row.name}.json").read_text())


@by_name
def test_paper_result_is_committed_and_has_its_parts(row):
    claim = importlib.import_module(f"sanov.experiments.{row.name}").CLAIM
    result = json.loads((ROOT / "results" / f"{row.name}-paper.json").read_text())
    assert result["statement"] == claim.statement
    preset = claim.presets["paper"]
    fields = ("name", "statement", "kind", "bound", "required", "unit")
    told = [{name: getattr(part, name) for name in fields} for part in preset.parts or claim.parts]
    assert [{name: part[name] for name in fields} for part in result["parts"]] == json.loads(json.dumps(told))
    assert result["verdict"] in {"holds", "fails", "inconclusive"}
    assert result["scale"] == preset.scale
    for part in result["parts"]:
        assert part["verdict"] == "not run" or len(part["values"]) >= 5


@by_name
def test_one_smoke_cell_of_each_stage_runs(row, tmp_path, monkeypatch):
    """The first cell of every stage, in the order in which they need one another."""
    from sanov import claims

    monkeypatch.chdir(tmp_path)
    claim = importlib.import_module(f"sanov.experiments.{row.name}").CLAIM
    store = claims.open_cells(claim, "smoke")
    cells = list(claim.presets["smoke"].cells(range(1)))
    last = next(cell for cell in cells if cell.stage == "compare")
    records = []
    for stage in STAGES:
        needed = [cell for cell in cells if cell.stage == stage and (stage != "compare") and cell.agrees(last)]
        for cell in needed if stage != "compare" else [last]:
            context = Context("smoke", store.settings, tuple(records), store.folder)
            records.append(claims._run_cell(claim.run, cell, context, store.digest(cell)))
    assert records[-1].values
    assert json.dumps(dict(records[-1].values), allow_nan=False)


@by_name
def test_claim_has_a_negative_control(row):
    claim = importlib.import_module(f"sanov.experiments.{row.name}").CLAIM
    assert claim.presets["paper"].seeds >= 5
    assert any("control" in f"{part.name} {part.statement}".lower() for part in claim.parts)
    names = [part.name for part in claim.parts]
    for preset in ("smoke", "paper"):
        assert [part.name for part in claim.presets[preset].parts or claim.parts] == names
        assert claim.presets[preset].scale
        stages = {cell.stage for cell in claim.presets[preset].cells(range(5))}
        assert "compare" in stages
