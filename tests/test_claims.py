"""The runner of claims: verdicts, cells that are kept, budgets."""

import json
import subprocess
import sys
import textwrap

import pytest
from scipy import stats

from sanov import claims
from sanov.claims import Cell, Claim, Part, Preset, judge, reproduce
from sanov.core.errors import InputError


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
        ("equal_to", 1.0, "holds"),
        ("equal_to", 0.0, "fails"),
        ("reported", 0.0, "reported"),
    ],
)
def test_verdict_follows_the_interval(kind, bound, verdict):
    assert judge(part(kind, bound), []).verdict == verdict


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
    return {seed: scores["ours", seed] - scores["theirs", seed] for arm, seed in scores if arm == "ours"}


def make_claim(**more):
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


def test_arms_must_have_the_same_tuning_budget():
    unfair = Preset(lambda seeds: cells(seeds)[:-11], 5, "small")
    claim = make_claim()
    with pytest.raises(ValueError, match="tuning trials"):
        reproduce(Claim(**{**claim.__dict__, "presets": {"paper": unfair}}))


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
    store = claims._Store(_pn(), "smoke", reuse=False)
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
