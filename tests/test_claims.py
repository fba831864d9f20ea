"""The runner of claims: verdicts, cells that are kept, budgets."""

import json
import math
import subprocess
import sys
import textwrap

import pytest
from scipy import stats

from sanov import claims
from sanov.claims import Cell, Claim, Part, Preset, judge, reproduce
from sanov.comparisons import Interval
from sanov.core.errors import InputError, MissingExtra, SanovWarning


def part(kind="above", bound=0.0, values=(1.0, 1.1, 0.9, 1.2, 0.8), **more):
    return Part("p", "a statement", lambda records: dict(enumerate(values)), kind=kind, bound=bound, **more)


@pytest.mark.parametrize(
    ("kind", "bound", "verdict"),
    [
        ("above", 0.0, "holds"),
        ("above", 0.999, "inconclusive"),
        ("above", 2.0, "fails"),
        ("not_below", 0.7, "holds"),
        ("not_below", 1.0, "inconclusive"),
        ("not_below", 1.5, "fails"),
        ("within", (0.0, 2.0), "holds"),
        ("within", (1.0, 2.0), "inconclusive"),
        ("within", (2.0, 3.0), "fails"),
        ("equal_to", 1.0, "fails"),  # the interval covers it
        ("reported", 0.0, "reported"),
    ],
)
def test_verdict_follows_the_interval(kind, bound, verdict):
    assert judge(part(kind, bound), []).verdict == verdict


@pytest.mark.parametrize(
    ("kind", "bound", "interval", "verdict"),
    [
        ("above", 0.0, (0.1, 2.0), "holds"),
        ("above", 0.0, (-0.1, 2.0), "inconclusive"),
        ("not_above", 0.0, (-0.1, 2.0), "holds"),
        ("not_above", 0.0, (-2.0, -0.1), "holds"),
        ("not_above", 0.0, (0.1, 2.0), "fails"),
        ("within", (-1.0, 0.0), (-0.8, -0.2), "holds"),
        ("within", (-1.0, 0.0), (-0.8, 0.2), "inconclusive"),
        ("within", (-1.0, 0.0), (0.1, 0.2), "fails"),
    ],
)
def test_an_interval_of_its_own_decides(kind, bound, interval, verdict):
    """Values that depend on one another have an interval that is not Student's t."""
    own = Interval(0.7, *interval, 12, 100)
    found = judge(part(kind, bound, interval=lambda records: own), [], seeds=5)
    assert (found.verdict, found.mean, found.low, found.high) == (verdict, 0.7, *interval)
    assert judge(part(kind, bound, interval=lambda records: own), [], seeds=6).verdict.startswith(
        "inconclusive (5 seeds"
    )


def test_an_interval_that_is_not_defined_is_no_verdict():
    nothing = Interval(math.nan, math.nan, math.nan, 1, 0)
    found = judge(part("not_above", interval=lambda records: nothing), [])
    assert (found.verdict, found.reason) == ("inconclusive", "its interval is not defined")


def test_published_results_have_no_seeds():
    effect = {"a -> b": 1.0, "a -> c": 3.0}
    own = Interval(2.0, 1.0, 3.0, 2, 100)
    published = Part("p", "a statement", lambda records: effect, interval=lambda records: own, over="pair")
    found = judge(published, [], seeds=10)
    assert (found.verdict, found.values) == ("holds", effect)
    assert found.effect().endswith("2 values, asked: > 0")
    assert judge(Part("p", "a statement", lambda records: effect), [], seeds=10).verdict.startswith(
        "inconclusive (2 seeds"
    )


def test_equal_to_needs_all_values_equal():
    assert judge(part("equal_to", 2.0, values=(2.0,) * 5), []).verdict == "holds"
    assert judge(part("equal_to", 2.0, values=(2.0,) * 4 + (2.1,)), []).verdict == "fails"


def test_there_is_a_verdict_only_at_the_number_of_seeds_that_was_planned():
    assert judge(part(), [], seeds=5).verdict == "holds"
    assert judge(part(), [], seeds=6).verdict == "inconclusive (5 seeds, 6 planned)"
    assert judge(part(values=(1.0,) * 7), [], seeds=6).verdict == "inconclusive (7 seeds, 6 planned)"
    assert judge(part("reported"), [], seeds=6).verdict == "reported"


def scores(values):
    return [
        claims.Record(Cell("compare", {"seed": seed}), {"score": {"test": value}}, 1.0)
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_value_makes_a_part_inconclusive_with_the_reason(missing):
    """Whether a cell has none, or the effect of a seed is none."""
    reads = Part(
        "p", "a statement", lambda records: {r.cell.key["seed"]: 1 + r.values["score"]["test"] for r in records}
    )
    result = judge(reads, scores([1.0, 1.0, missing, 1.1, 1.0, 1.2]))
    assert (result.verdict, result.reason) == ("inconclusive", "test is missing in compare seed=2")
    result = judge(part(values=(1.0, 1.1, math.nan, 1.0, 1.0, 1.0)), [])
    assert (result.verdict, result.reason, result.mean) == ("inconclusive", "no value for seed 2", None)
    assert result.values["2"] is None
    assert judge(part("reported", values=(1.0, math.nan)), []).reason == "no value for seed 1"


def test_interval_is_the_paired_t():
    values = (0.3, -0.1, 0.4, 0.2, 0.25, 0.0)
    result = judge(part(values=values), [])
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((low, high), rel=1e-12)


def test_too_few_seeds_and_no_cells_are_said():
    assert judge(part(values=(1.0, 2.0)), []).verdict == "inconclusive (2 seeds)"
    assert judge(part(values=(1.0,)), []).verdict == "inconclusive (1 seed)"
    assert judge(part(values=()), []).verdict == "not run"


def test_uninformative_data_are_inconclusive_with_the_reason():
    result = judge(part(sanity=lambda records: "the teacher is no better than chance"), [])
    assert (result.verdict, result.reason) == ("inconclusive", "the teacher is no better than chance")


@pytest.mark.parametrize(
    ("verdicts", "claim"),
    [
        (("holds", "holds"), "holds"),
        (("holds", "inconclusive"), "inconclusive"),
        (("inconclusive", "fails"), "fails"),
        (("holds", "not run"), "inconclusive"),
        ((), "inconclusive"),
    ],
)
def test_claim_needs_all_required_parts(verdicts, claim):
    parts = [judge(part(), []).model_copy(update={"verdict": verdict}) for verdict in verdicts]
    optional = judge(part(), []).model_copy(update={"verdict": "fails", "required": False})
    assert claims._all_required([*parts, optional]) == claim


# -- cells ------------------------------------------------------------------------------------------------------------

CALLS = []


def run(cell, context, folder):
    CALLS.append(str(cell))
    if cell.stage == "shared":
        (folder / "start.txt").write_text(f"{cell.key['seed']}")
        return {"start": cell.key["seed"]}
    if cell.stage == "tune":
        return {"validation": -abs(cell.key["trial"] - 1), "rate": cell.key["trial"] * 10}
    values, place = context.shared(seed=cell.key["seed"])
    assert (place / "start.txt").read_text() == str(values["start"])
    return {
        "score": context.tuned(arm=cell.key["arm"]).values["rate"] + (cell.key["arm"] == "ours") * (5 + values["start"])
    }


def cells(seeds):
    shared = [Cell("shared", {"seed": seed}) for seed in seeds]
    tune = [Cell("tune", {"arm": arm, "data": "d", "trial": trial}) for arm in ("ours", "theirs") for trial in range(3)]
    return shared + tune + [Cell("compare", {"arm": arm, "seed": seed}) for arm in ("ours", "theirs") for seed in seeds]


def difference(records):
    scores = {(record.cell.key["arm"], record.cell.key["seed"]): record.values["score"] for record in records}
    pairs = [seed for arm, seed in scores if arm == "ours" and ("theirs", seed) in scores]
    return {seed: scores["ours", seed] - scores["theirs", seed] for seed in pairs}


def make_claim(cells=cells, run=run, **more):
    part = Part("better", "ours beats theirs", difference)
    presets = {"smoke": Preset(cells, 5, "small"), "paper": Preset(cells, 6, "as large as it gets")}
    return Claim("pn", "a statement", "a paper", [part], presets, run, lambda settings: {"d": "0"}, **more)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CALLS.clear()


def test_stages_read_one_another_and_the_result_is_written(tmp_path):
    result = reproduce(make_claim())
    assert result.verdict == "holds"
    assert result.parts[0].values == {str(seed): 5.0 + seed for seed in range(6)}
    assert result.cells == {"shared": 6, "tune": 6, "compare": 12}
    written = json.loads((tmp_path / "results/pn-paper.json").read_text())
    assert written["parts"][0]["mean"] == pytest.approx(7.5)
    assert str(tmp_path) not in json.dumps(written)


def test_a_cell_is_run_once_and_more_seeds_extend_it():
    reproduce(make_claim())
    first = len(CALLS)
    reproduce(make_claim())
    assert len(CALLS) == first
    result = reproduce(make_claim(), seeds=8)
    assert len(CALLS) == first + 2 + 4
    assert result.cells["compare"] == 16


def test_the_two_presets_do_not_share_cells(tmp_path):
    reproduce(make_claim(), "smoke")
    assert (tmp_path / "build/results/pn-smoke.json").is_file()
    assert not (tmp_path / "results").exists()


def test_files_of_a_shared_cell_are_made_again_when_they_are_needed(tmp_path):
    reproduce(make_claim())
    for folder in (tmp_path / "build/shared/pn").iterdir():
        (folder / "start.txt").unlink()
        folder.rmdir()
    CALLS.clear()
    reproduce(make_claim())
    assert CALLS == []  # nothing is missing, so nothing is made again
    lines = (tmp_path / "results/cells/pn.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "results/cells/pn.jsonl").write_text("".join(lines[:-1]))
    reproduce(make_claim())
    assert sorted(CALLS) == ["compare arm=theirs seed=5", "shared seed=5"]


def test_cells_of_older_source_count_only_with_reuse(monkeypatch):
    reproduce(make_claim())
    CALLS.clear()
    monkeypatch.setattr(claims, "source_digest", lambda module: "newer")
    result = reproduce(make_claim(), reuse=True)
    assert CALLS == []
    assert result.older_cells == 24
    assert reproduce(make_claim()).older_cells == 0
    assert len(CALLS) == 24


def test_a_cell_that_read_older_cells_is_no_cell_of_todays_source(tmp_path, monkeypatch):
    reproduce(make_claim())
    monkeypatch.setattr(claims, "source_digest", lambda module: "newer")
    assert reproduce(make_claim(), seeds=7, reuse=True).older_cells == 24 + 2  # seed 6 was tuned by older cells
    CALLS.clear()
    result = reproduce(make_claim(), seeds=7)
    assert (len(CALLS), result.older_cells) == (6 + 6 + 14, 0)  # all but the teacher of seed 6


def test_a_stopped_run_goes_on(monkeypatch):
    def dies(cell, context, folder):
        if len(CALLS) == 9:
            raise KeyboardInterrupt
        return run(cell, context, folder)

    claim = make_claim()
    with pytest.raises(KeyboardInterrupt):
        reproduce(Claim(**{**claim.__dict__, "run": dies}))
    reproduce(claim)
    assert len(CALLS) == len(set(CALLS)) == 24


def without(*keys):
    """The cells but for the trials of these keys."""

    def some(seeds):
        return [cell for cell in cells(seeds) if not (cell.stage == "tune" and any(cell.matches(key) for key in keys))]

    return some


@pytest.mark.parametrize("missing", [{"arm": "theirs", "trial": 2}, {"arm": "theirs"}])
def test_arms_must_have_the_same_tuning_budget(missing):
    """Some trials less, or none at all."""
    with pytest.raises(ValueError, match="tuning trials"):
        reproduce(make_claim(without(missing)))
    assert CALLS == []


def test_an_arm_that_is_not_tuned_or_tuned_by_another_is_declared():
    def untuned(cell, context, folder):
        if cell.stage == "compare" and cell.key["arm"] == "theirs":
            return {"score": 0.0}
        return run(cell, context, folder)

    def by_ours(cell, context, folder):
        return (
            {"score": context.tuned(arm="ours").values["rate"]}
            if cell.stage == "compare"
            else run(cell, context, folder)
        )

    some = without({"arm": "theirs"})
    assert reproduce(make_claim(some, untuned, tuned_by={"theirs": ""})).verdict == "holds"
    assert reproduce(make_claim(some, by_ours, tuned_by={"theirs": "ours"}), "smoke").cells["compare"] == 10


def test_a_comparison_waits_for_all_its_trials():
    """Run with some of its trials, a cell would be kept and read by every later run."""
    honest = reproduce(make_claim()).parts[0].values
    for path in ("results/cells/pn.jsonl", "results/pn-paper.json"):
        claims.Path(path).unlink()
    with pytest.warns(SanovWarning, match="pn: 6 cells were not run: their tuning is not complete"):
        result = reproduce(make_claim(), only={"arm": "theirs", "trial": "0"})
    assert result.cells == {"shared": 6, "tune": 1, "compare": 0}
    assert reproduce(make_claim(), only={"arm": "theirs"}).cells == {"shared": 6, "tune": 3, "compare": 6}
    assert reproduce(make_claim()).parts[0].values == honest


def test_a_cell_whose_data_are_missing_is_not_run_but_read():
    elsewhere = reproduce(make_claim())
    CALLS.clear()
    absent = make_claim(unavailable=lambda cell: "seed 5 is not here" if cell.key.get("seed") in {5, 6} else None)
    assert reproduce(absent).parts == elsewhere.parts
    with pytest.warns(SanovWarning, match="seed 5 is not here"):
        result = reproduce(absent, seeds=7)
    assert CALLS == []
    assert (result.parts[0].values, result.cells) == (elsewhere.parts[0].values, elsewhere.cells)


def test_values_in_memory_are_those_that_the_disk_gives():
    def odd(cell, context, folder):
        if cell.stage == "tune":
            return {"validation": cell.key["trial"], "rate": math.nan, "pair": (1, 2)}
        if cell.stage == "compare":
            best = context.tuned(arm=cell.key["arm"])
            assert (best.values["rate"], best.values["pair"]) == (None, [1, 2])
        return {"score": 1.0}

    first = reproduce(make_claim(run=odd))
    assert reproduce(make_claim(run=odd)).parts == first.parts


def test_a_trial_without_a_validation_result_is_not_chosen():
    def diverges(cell, context, folder, trials=(1,)):
        if cell.stage == "tune" and cell.key["trial"] in trials:
            return {"validation": math.nan, "rate": -99}
        return run(cell, context, folder)

    def always(cell, context, folder):
        return diverges(cell, context, folder, (0, 1, 2))

    reproduce(make_claim(run=diverges))
    compared = [json.loads(line) for line in claims.Path("results/cells/pn.jsonl").read_text().splitlines()][12:]
    assert {line["values"]["score"] for line in compared if line["key"]["arm"] == "theirs"} <= {0, 20}
    with pytest.raises(LookupError, match="no tuning cell with a validation result"):
        reproduce(make_claim(run=always), "smoke")


def test_two_processes_that_share_the_work_lose_nothing():
    """One that starts later and ends earlier leaves its cells for the result of the other."""

    def meanwhile(cell, context, folder):
        if cell.stage == "compare" and cell.key == {"arm": "ours", "seed": 4}:
            reproduce(make_claim(), only={"arm": "theirs"})
        return run(cell, context, folder)

    result = reproduce(make_claim(run=meanwhile), only={"arm": "ours"})
    assert result.cells == {"shared": 6, "tune": 6, "compare": 12}
    assert result.verdict == "holds"
    assert json.loads(claims.Path("results/pn-paper.json").read_text())["cells"] == result.cells


def test_a_figure_of_missing_values_is_left_out():
    def some(cell, context, folder):
        values = run(cell, context, folder)
        return {"score": None} if cell.key == {"arm": "ours", "seed": 2} else values

    claim = make_claim(run=some, figures=lambda records, parts: {"f": {"data": [r.values["score"] for r in records]}})
    result = reproduce(claim)
    assert (result.figures, result.parts[0].reason) == ({}, "score is missing in compare arm=ours seed=2")
    assert reproduce(make_claim(figures=claim.figures), "smoke").figures


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"amr": "ours"}, "--only amr=ours: no cell has such a key; expected seed or arm or data or trial"),
        ({"arm": "nobody"}, "--only arm=nobody: no cell has that arm; expected ours or theirs"),
    ],
)
def test_a_choice_that_no_cell_meets_is_a_users_mistake(only, message):
    with pytest.raises(InputError, match=message):
        reproduce(make_claim(), only=only)
    assert CALLS == []


def test_unknown_or_missing_backend_is_said_before_any_work(monkeypatch):
    with pytest.raises(InputError, match="foo: there is no such preset or backend; expected loky or ray or dask"):
        reproduce(make_claim(), backend="foo")
    monkeypatch.setitem(claims.BACKENDS, "ray", "a_module_that_nobody_has")
    with pytest.raises(MissingExtra, match=r"sanov\[cluster\]"):
        reproduce(make_claim(), backend="ray")
    assert CALLS == []


def test_unknown_preset_is_a_users_mistake():
    with pytest.raises(InputError, match="smoke or paper"):
        reproduce(make_claim(), "papers")


def test_processes_give_the_same_cells(tmp_path, monkeypatch):
    """The workers find the claim by its name, as those on another machine would."""
    script = textwrap.dedent("""
        from sanov import claims
        from sanov.experiments import pn
        result = claims.reproduce(pn.CLAIM, "smoke", seeds=2, jobs=2)
        print(sum(result.cells.values()))
    """)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 0
    lines = [json.loads(line) for line in (tmp_path / "build/results/cells/pn.jsonl").read_text().splitlines()]
    store = claims.open_cells(_pn(), "smoke")
    line = lines[-1]
    records = tuple(
        claims.Record(
            Cell(other["stage"], other["key"]),
            other["values"],
            other["seconds"],
            store.digest(Cell(other["stage"], other["key"])),
        )
        for other in lines
        if other["stage"] == "shared"
    )
    cell = Cell(line["stage"], line["key"])
    again = claims._run_cell(_pn().run, cell, claims.Context("smoke", store.settings, records, store.folder), "x" * 16)
    assert again.values == line["values"]


def _pn():
    from sanov.experiments import pn

    return pn.CLAIM


def test_data_sets_may_differ_in_their_number_of_trials():
    def of(data, trials):
        tune = [
            Cell("tune", {"data": data, "arm": arm, "trial": trial})
            for arm in ("ours", "theirs")
            for trial in range(trials)
        ]
        return [*tune, *(Cell("compare", {"data": data, "arm": arm, "seed": 0}) for arm in ("ours", "theirs"))]

    claims._check_budget(make_claim(), [*of("few", 1), *of("many", 3)])
    with pytest.raises(ValueError, match="tuning trials"):
        claims._check_budget(make_claim(), [*of("few", 1), *of("many", 3)[1:]])
