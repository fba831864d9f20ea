"""`rlg` as its user meets it: fit, resume, apply, what is written, and what is refused."""

import json
import math
import struct
import zlib

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from browser import look
from sanov.core import pages
from sanov.core.charts import svg
from sanov.core.errors import InputError, SanovWarning
from sanov.core.options import parse
from sanov.systems import rlg
from sanov.systems.rlg import calibration, fitting, guard, pictures, reading, training
from sanov.systems.rlg.calibration import Run
from sanov.systems.rlg.fitted import Fitted, interpolated
from sanov.systems.rlg.gaussian import EXAMPLE
from sanov.systems.rlg.mixtures import Mixture

DOUBLE = {"dtype": torch.float64}
SMALL = {
    "base": {"units": 16, "depth": 1, "steps": 30, "batch_size": 32},
    "tune": {"steps": 20, "batch_size": 32, "learning_rate": 0.01},
    "images": 12,
    "sheet": 3,
    "sampler": {"steps": 4},
    "w": (0.0, 1.0, 2.0),
}


def arrays(rows=80):
    """Bright and dark bars, upright and lying."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 0.2, (rows, 8, 8))
    for row in range(rows):
        place, bright = rng.integers(0, 6), rng.uniform(0.4, 1)
        images[row][(slice(None), slice(place, place + 2)) if row % 2 else (slice(place, place + 2),)] += bright
    return {"images": images.clip(0, 1), "labels": np.where(np.arange(rows) % 2, "upright", "lying")}


def config(**changes):
    return rlg.Config.model_validate({**SMALL, **changes})


DATA = rlg.read([arrays()], config())


@pytest.fixture(scope="module")
def fitted():
    return rlg.fit(DATA, config(), seed=0)


def state(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


# -- fit --------------------------------------------------------------------------------------------------------------


def test_policy_begins_as_its_reference_and_learns(fitted):
    assert torch.equal(state(rlg.fit(DATA, config(), seed=0).reference), state(fitted.reference))
    assert not torch.equal(state(fitted.policy), state(fitted.reference))
    assert fitted.beta == pytest.approx(2 * float(fitted.scorer()(DATA.pixels).std()))
    assert fitted.history.height == 20


@pytest.mark.parametrize("stage", ["reference", "policy"])
def test_stopped_run_goes_on_bit_for_bit(stage, tmp_path, monkeypatch, fitted):
    """It is stopped within either training, and a folder that was not finished says so."""
    batches, calls = training.Matching.batches, []

    def failing(self, step, model):
        calls.append(step)
        if len(calls) == (14 if stage == "reference" else 30 + 14):
            raise KeyboardInterrupt
        return batches(self, step, model)

    settings = config(checkpoint_every=5)
    monkeypatch.setattr(training.Matching, "batches", failing)
    with pytest.raises(KeyboardInterrupt):
        rlg.fit(DATA, settings, seed=0, out=tmp_path / "m")
    monkeypatch.setattr(training.Matching, "batches", batches)
    with pytest.raises(InputError, match=r"holds no finished models.*--resume"):
        Fitted.load(tmp_path / "m")
    with pytest.raises(InputError, match="unfinished run"):
        rlg.fit(DATA, settings, seed=0, out=tmp_path / "m")
    with pytest.raises(InputError, match="had other seed"):
        rlg.fit(DATA, settings, seed=1, out=tmp_path / "m", resume=True)
    resumed = rlg.fit(DATA, settings, seed=0, out=tmp_path / "m", resume=True)
    assert torch.equal(state(resumed.policy), state(fitted.policy))
    loaded = Fitted.load(tmp_path / "m")
    assert torch.equal(state(loaded.policy), state(fitted.policy))
    assert loaded.history.equals(resumed.history)
    assert loaded.to_dict() == resumed.to_dict()


def test_folder_tells_what_is_in_it(tmp_path, fitted):
    fitted.save(tmp_path / "m")
    assert "weights" in json.loads((tmp_path / "m" / "config.json").read_text())
    assert "rlg: a reference and its policy, networks (mlp)" in Fitted.load(tmp_path / "m").summary()
    (tmp_path / "m" / "policy.safetensors").write_bytes((tmp_path / "m" / "reference.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"damaged.*not those that config.json describes"):
        Fitted.load(tmp_path / "m")


@pytest.mark.parametrize("method", ["dpo", "flow_grpo", "flow_grpo_exact", "ddpo"])
def test_every_method_tunes_a_network(method):
    own = {**SMALL["tune"], "method": method, "steps": 2, "group_size": 8, "rollout_steps": 3}
    found = rlg.fit(DATA, config(tune=own, base={**SMALL["base"], "steps": 2}), seed=0)
    assert not torch.equal(state(found.policy), state(found.reference))
    assert (found.beta is None) == (method != "flow_grpo_exact")


def test_class_reward_keeps_its_classifier(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CLASSIFIER_STEPS", 5)
    found = rlg.fit(DATA, config(reward="class:lying", tune={**SMALL["tune"], "steps": 2}), seed=0, out=tmp_path / "m")
    loaded = Fitted.load(tmp_path / "m")
    asked = loaded.asked(12)
    x = loaded.sample(1.0, 12, condition=asked).x
    torch.testing.assert_close(loaded.scorer()(x, asked), found.scorer()(x, asked))


def test_given_reference_is_taken_as_it_is(tmp_path, fitted):
    fitted.save(tmp_path / "first")
    other = rlg.fit(DATA, config(reference=str(tmp_path / "first"), reward="symmetry"), seed=5, out=tmp_path / "second")
    assert torch.equal(state(other.reference), state(fitted.reference))
    both = config(also=(str(tmp_path / "second"),), also_w=(0.5,), w=(0.0, 1.0))
    answer = rlg.apply(None, both, fitted=tmp_path / "first")
    alone = rlg.apply(None, config(w=(0.0, 1.0)), fitted=tmp_path / "first")
    assert not np.allclose(answer.to_frame()["reward"], alone.to_frame()["reward"])
    elsewhere = rlg.fit(DATA, config(), seed=3, out=tmp_path / "third")
    with pytest.raises(InputError, match=r"reference is .* expected policies tuned from one reference"):
        fitted.check_same(elsewhere, "third")
    wide = rlg.fit(DATA, config(base={**SMALL["base"], "units": 8, "predicts": "noise", "steps": 2}), seed=0)
    with pytest.raises(
        InputError, match=r"'noise', and 'velocity' in the reference; expected .*architecture and prediction"
    ):
        fitted.check_same(wide, "wide")


def test_analytic_policy_is_the_exact_tilt(tmp_path):
    found = rlg.fit(DATA, config(tune={"method": "analytic"}), seed=0, out=tmp_path / "m")
    weights = (found.scorer()(DATA.pixels) / found.beta).softmax(0)
    slope = torch.full((64,), 1 / 128, **DOUBLE)
    moved = slope @ slope * 0.01 / found.beta
    expected = float(weights @ DATA.pixels.flatten(1).double() @ slope) + float(moved)
    loaded = Fitted.load(tmp_path / "m")
    assert isinstance(loaded.policy, Mixture)
    assert loaded.asked(3) is None
    assert loaded.policy.mean_reward(slope) == pytest.approx(expected)
    assert rlg.apply(None, config(), fitted=loaded).to_frame().height == 3


# -- apply ------------------------------------------------------------------------------------------------------------


def test_ends_of_the_knob_are_the_models(fitted):
    """The same noise at every w; w = 0 and 1 are what either model gives alone, bit for bit."""
    how = {"sampler": rlg.Sampler(name="flow_sde", steps=4), "condition": fitted.asked(12)}
    alone = Fitted(fitted.policy, fitted.policy, fitted.shape, fitted.classes)
    assert torch.equal(fitted.sample(1.0, 12, **how).x, alone.sample(0.0, 12, **how).x)
    by_row = fitted.sample(torch.tensor([0.0, 1.0] * 6), 12, **how).x
    torch.testing.assert_close(by_row[::2], fitted.sample(0.0, 12, **how).x[::2], rtol=0, atol=0)
    torch.testing.assert_close(by_row[1::2], fitted.sample(1.0, 12, **how).x[1::2], rtol=0, atol=0)
    ramp = fitted.sample(lambda sigma: 1 - sigma, 12, **how).x
    assert not torch.equal(ramp, fitted.sample(0.5, 12, **how).x)


def test_answer_holds_calibration_guard_and_sheets(fitted):
    answer = rlg.apply(None, config(judge=("symmetry",)), fitted=fitted)
    frame = answer.to_frame()
    assert frame["w"].to_list() == [0.0, 1.0, 2.0]
    assert frame["passes"].to_list() == [1.0, 1.0, 2.0]
    assert frame["path_kl"][0] == 0.0
    assert frame["path_kl"][1] > 0
    assert frame["nominal_beta"].to_list() == pytest.approx([None, fitted.beta, fitted.beta / 2])
    assert "symmetry" in frame.columns
    asked = fitted.asked(12)
    sampled = fitted.sample(2.0, 12, sampler=rlg.Sampler(steps=4), condition=asked).x
    assert frame["reward"][2] == pytest.approx(float(fitted.scorer()(sampled, asked).mean()))
    assert "beta / w is nominal" in " ".join(answer.notes)
    assert len(answer.summary().splitlines()) <= 24
    for spec in answer.figures.values():
        assert "<svg" in svg(spec)
    (sheet,) = (spec for title, spec in answer.figures.items() if title.startswith("Contact sheet"))
    assert len(sheet["data"]["values"]) == 3 * 3
    assert sheet["data"]["values"][0]["row"] == "1: lying"


def text_of(data):
    """Keywords and texts of a PNG file, with every checksum checked; and its pixels."""
    assert data.startswith(pictures.SIGNATURE)
    place, texts, packed, header = 8, {}, b"", ()
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0] == zlib.crc32(kind + body)
        if kind == b"tEXt":
            keyword, _, text = body.partition(b"\0")
            texts[keyword.decode()] = text.decode("latin-1")
        header = struct.unpack(">IIBBBBB", body) if kind == b"IHDR" else header
        packed += body if kind == b"IDAT" else b""
        place += 12 + length
    return texts, header, zlib.decompress(packed)


def test_folder_holds_every_image_with_its_origin(tmp_path, fitted):
    rlg.apply(None, config(), fitted=fitted, seed=7).save(tmp_path / "out")
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("*.png"))
    assert len(files) == 3 * 12 + 1
    assert files[0] == "images/w=0/00000.png"
    texts, header, packed = text_of((tmp_path / "out" / "images" / "w=2" / "00003.png").read_bytes())
    assert header[:4] == (8, 8, 8, 0)
    assert {name: texts[name] for name in ("w", "seed", "row", "condition")} == {
        "w": "2",
        "seed": "7",
        "row": "4",
        "condition": "upright",
    }
    assert {name: texts[name] for name in ("reference", "policy")} == fitted.digests()
    x = fitted.sample(2.0, 12, sampler=rlg.Sampler(steps=4), condition=fitted.asked(12), seed=7).x
    rows = np.frombuffer(packed, np.uint8).reshape(8, 9)
    assert not rows[:, 0].any()
    assert np.array_equal(rows[:, 1:], pictures.pixels(x)[3, :, :, 0])


def test_pictures_are_read_by_others(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for channels, mode in ((1, "L"), (3, "RGB")):
        image = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
        pictures.written(tmp_path / "x.png", image, {"w": "-1.5", "who": "Ré"})
        with image_module.open(tmp_path / "x.png") as found:
            assert found.mode == mode
            assert found.text == {"w": "-1.5", "who": "Ré"}
            assert np.array_equal(np.asarray(found).reshape(image.shape), image)
    with pytest.raises(InputError, match="an image has 2 channels"):
        pictures.png(np.zeros((2, 2, 2), np.uint8))
    grid = rng.integers(0, 256, (2, 3, 4, 4, 1), dtype=np.uint8)
    whole = pictures.sheet(grid, 2)
    assert whole.shape == (18, 28, 1)
    assert np.array_equal(whole[10:18:2, 20:28:2], grid[1, 2])


def test_slider_shows_the_weight_it_stands_at(tmp_path, fitted):
    answer = rlg.apply(None, config(w=(0.0, 1.0, 4.0)), fitted=fitted)
    probe = """
      const slider = document.querySelector("input[type=range]"), chart = slider.closest(".panel");
      const shown = () => [...chart.querySelectorAll("image")].map(image => image.getAttribute("href") ?? image.href.baseVal);
      const found = [];
      for (const w of ["0", "0.9", "3.9"]) {
        slider.value = w; slider.dispatchEvent(new Event("input"));
        await new Promise(done => setTimeout(done, 200));
        found.push(shown());
      }
      return found;"""
    seen = look(pages.render(answer.page()), tmp_path, probe=probe)
    assert seen.console == []
    assert seen.requests == []
    for weight, shown in zip((0.0, 1.0, 4.0), seen.probe, strict=True):
        x = fitted.sample(weight, 12, sampler=rlg.Sampler(steps=4), condition=fitted.asked(12)).x
        assert shown == [pictures.data_address(image) for image in pictures.pixels(x)]


def test_normal_densities_need_no_models(monkeypatch):
    monkeypatch.setattr("sanov.systems.rlg.gaussian.STEPS", 50)  # that the checks pass is tested with the closed forms
    data = rlg.read(["embedded:normal"], config(normal={"s1": 1.5}))
    answer = rlg.apply(data, config())
    assert any("no proper tilted density exists at w = 2" in note for note in answer.notes)
    assert any("changes its sign at w = 1.8" in note for note in answer.notes)
    assert answer.to_frame()["ode_variance"][2] == pytest.approx(5.0625, rel=1e-4)
    assert 0 < answer.values["passed"] < answer.values["checks"]


def test_command_line_end_to_end(command, tmp_path):
    np.savez(tmp_path / "bars.npz", **arrays())
    words = ["base.units=8", "base.depth=1", "base.steps=3", "tune.steps=2", "tune.batch_size=16", "base.batch_size=16"]
    assert command("fit", "rlg", "bars.npz", "--out", "m", *words) == (0, "")
    status, _ = command("apply", "rlg", "--fitted", "m", "--out", "out", "w=0,0.5,2", "images=4", "sampler.steps=2")
    assert status == 0
    assert (tmp_path / "out" / "images" / "w=0.5" / "00003.png").is_file()
    assert "One weight at a time" in (tmp_path / "out" / "index.html").read_text()
    status, said = command("apply", "rlg", "w=1")
    assert status == 2
    assert "there are no models" in said


# -- calibration ------------------------------------------------------------------------------------------------------


def test_diversity_and_tilted_mean_by_hand():
    x = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    gaps = [float(((x[i] - x[j]) / 2).pow(2).mean().sqrt()) for i in range(5) for j in range(i)]
    assert calibration.diversity(x) == pytest.approx(np.mean(gaps), rel=1e-6)
    rewards = torch.randn(500, generator=torch.Generator().manual_seed(0), **DOUBLE)
    share = torch.exp(rewards * 1.5 / 2.0)
    assert calibration.tilted_mean(rewards, 2.0, 1.5) == pytest.approx(float((share * rewards).sum() / share.sum()))
    assert calibration.tilted_mean(rewards, 0.2, 3.0) is None


def test_weight_is_named_by_reward_or_by_kl():
    frame = pl.DataFrame({"w": [0.0, 1.0, 2.0], "reward": [0.0, 3.0, 2.0], "path_kl": [0.0, 5.0, 20.0]})
    assert calibration.wanted_weight(frame, None)[0] == 1.0
    assert calibration.wanted_weight(frame, 1.0)[0] == 0.0
    assert calibration.wanted_weight(frame.filter(pl.col("w") > 0), 1.0)[1].startswith("no w tried")


def test_rewards_that_spread_more_are_told():
    def of(spread):
        return Run(torch.zeros(9, 1, 2, 2), spread * torch.linspace(-1, 1, 9, **DOUBLE), None, 1.0)

    runs = {0.0: of(1.0), 1.0: of(1.5), 1.7: of(2.0), 2.0: of(2.0)}
    assert calibration.improper(runs) == {2.0: pytest.approx(1.8)}
    assert calibration.improper({0.0: of(1.0), 1.0: of(0.5), 3.0: of(0.2)}) == {}


# -- guard ------------------------------------------------------------------------------------------------------------


def test_measures_by_hand():
    board = torch.ones(8, 8)
    board[::2, ::2], board[1::2, 1::2] = -1, -1
    images = torch.stack([board, torch.zeros(8, 8), -torch.ones(8, 8)])[:, None]
    found = guard.measures(images)
    assert found["edge_density"].tolist() == [1.0, 0.0, 0.0]
    assert found["colour_entropy"].tolist() == pytest.approx([math.log(2), 0, 0])
    assert found["brightness"].tolist() == [0.5, 0.5, 0.0]
    assert found["dark_share"].tolist() == [0.5, 0.0, 1.0]


def test_place_where_a_band_is_left_is_between_two_weights():
    rows = [(0.0, 0.0), (1.0, 0.2), (2.0, 0.8), (3.0, 2.0), (-1.0, -0.9)]
    base = np.random.default_rng(0).normal(size=400)
    base = (base - base.mean()) / base.std()
    found = {w: dict.fromkeys(guard.MEASURES, base + shift) for w, shift in rows}
    left = guard.leaves(guard.shifts(found, 0.5), 0.5)
    assert {(each.measure, round(each.weight, 6)) for each in left if each.weight > 0} == {
        (name, 1.5) for name in guard.MEASURES
    }
    assert {round(each.weight, 3) for each in left if each.weight < 0} == {-0.556}
    assert guard.leaves(guard.shifts({w: found[w] for w in (0.0, 1.0)}, 0.5), 0.5) == []


@pytest.fixture(scope="module")
def kernels():
    """The kernel density of digits."""
    data = reading.read(["embedded:digits"], EXAMPLE)
    return data, Mixture(data.pixels.flatten(1).double(), torch.tensor(0.01, **DOUBLE))


def warned(reference, policy, seed, weights=(0.0, 1.0, 2.0)):
    models = Fitted(reference, policy, rlg.fitting.shape_for(DATA, training.Base(conditional=False)))
    found = {w: guard.measures(models.sample(w, 128, sampler=rlg.Sampler(steps=8), seed=seed).x) for w in weights}
    return guard.leaves(guard.shifts(found, 0.5), 0.5)


def test_guard_flags_a_hack_and_no_placebo(kernels):
    """A reward for a checkerboard is hacked by drawing one over the digits; a placebo is the tilt by permuted ink."""
    data, every = kernels
    chosen = torch.arange(0, len(data), 4)
    reference = Mixture(every.means[chosen], every.variance)
    board = torch.ones(8, 8, **DOUBLE)
    board[::2, ::2], board[1::2, 1::2] = -1, -1
    hacked = reference._with(reference.means + 0.4 * board.flatten(), reference.variance, reference.log_weights)
    left = warned(reference, hacked, 0)
    assert "edge_density" in {each.measure for each in left}
    assert 0 < left[0].weight < 1
    rewards = reference.means.mean(1)
    false_alarms = 0
    for seed in range(20):
        order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
        log_weights = rewards[order] / (2 * rewards.std())
        placebo = reference._with(reference.means, reference.variance, log_weights)
        false_alarms += bool(warned(reference, placebo, seed))
    assert false_alarms <= 1


# -- exact digits -----------------------------------------------------------------------------------------------------


def test_exact_rewards_of_the_tilted_digits(kernels):
    """Kernels of width .1 on digits in [-1, 1], the mean pixel for reward, beta = 2 sd = .1346."""
    data, reference = kernels
    slope = torch.full((64,), 1 / 64, **DOUBLE)
    beta = 2 * float((data.pixels.flatten(1).double() @ slope).std())
    assert beta == pytest.approx(0.1346, abs=1e-4)
    weights = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    found = [reference.tilted(slope, beta / w if w else math.inf).mean_reward(slope) for w in weights]
    assert found == pytest.approx([-0.3895, -0.3717, -0.3535, -0.3351, -0.3167, -0.2807], abs=1e-4)
    assert np.all(np.diff(found) > 0)
    h = 1e-4
    ends = [reference.tilted(slope, beta / w).mean_reward(slope) for w in (2 - h, 2 + h)]
    tilted = reference.tilted(slope, beta / 2)
    share = tilted.log_weights.softmax(0)
    rewards = tilted.means @ slope
    variance = float(share @ rewards**2 - (share @ rewards) ** 2 + slope @ slope * 0.01)
    assert (ends[1] - ends[0]) / (2 * h) == pytest.approx(variance / beta, rel=1e-4)  # never negative


def test_ode_falls_short_of_the_tilted_digits(kernels):
    """Paired, with the same noise: -.0139 at w = 3 where both models are exact."""
    data, reference = kernels
    slope = torch.full((64,), 1 / 64, **DOUBLE)
    beta = 2 * float((data.pixels.flatten(1).double() @ slope).std())
    start = torch.randn(200, 64, generator=torch.Generator().manual_seed(0), **DOUBLE)
    guided = rlg.sample(rlg.Mixed(reference, [reference.tilted(slope, beta)], [3.0]), start, rlg.Sampler(steps=40))
    exact = reference.tilted(slope, beta / 3)
    tilted = rlg.sample(rlg.Mixed(exact, [exact], [1.0]), start, rlg.Sampler(steps=40))
    gap = ((guided.x - tilted.x) @ slope).numpy()
    error = gap.std(ddof=1) / math.sqrt(len(gap))
    assert gap.mean() == pytest.approx(-0.0139, abs=4 * math.hypot(error, 0.0006))
    assert gap.mean() < -4 * error


# -- weights in place of outputs --------------------------------------------------------------------------------------


def test_interpolated_weights_are_another_thing():
    """Equal at w = 0 and 1; elsewhere apart by the square of the change of the weights."""
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    x = torch.randn(200, 2, **DOUBLE)
    change = {name: torch.randn_like(value) for name, value in reference.state_dict().items()}
    gaps = []
    for scale in (0.5, 0.25, 0.125):
        policy = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
        policy.load_state_dict({name: value + scale * change[name] for name, value in reference.state_dict().items()})
        with torch.no_grad():
            mixed = {w: torch.lerp(reference(x), policy(x), w) for w in (0.0, 1.0, 2.0)}
            for w in (0.0, 1.0):
                torch.testing.assert_close(interpolated(reference, policy, w)(x), mixed[w], rtol=0, atol=1e-12)
            gaps.append(float((interpolated(reference, policy, 2.0)(x) - mixed[2.0]).norm()))
    assert gaps[1] / gaps[2] == pytest.approx(4, rel=0.25)
    assert gaps[0] > 2 * gaps[1]


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"w": "nan"}, "w holds nan: expected finite numbers"),
        ({"w": "0,inf"}, "w holds inf"),
        ({"sampler.steps": "0"}, "sampler.steps: the value is '?0'?; expected a whole number >= 1"),
        ({"sampler.noise": "-1"}, "sampler.noise: the value is '?-1'?; expected a number >= 0"),
        ({"sampler.name": "euler"}, "sampler.name: the value is 'euler'; expected flow_ode | flow_sde"),
        ({"tune.beta": "0"}, "tune.beta: the value is '?0'?; expected a number > 0"),
        ({"also": "x"}, "there are 0 weights also_w for 1 policies"),
    ],
)
def test_options_out_of_range_are_refused(words, message):
    with pytest.raises(InputError, match=message.replace("|", r"\|")):
        parse(rlg.Config, words)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            ["embedded:digit"],
            "there are no such images; expected one of embedded:digits, embedded:mnist, embedded:normal",
        ),
        (["a", "b"], "there are 2 sources"),
        ([{"images": np.zeros((9, 4))}], r"`images` has shape \(9, 4\)"),
        ([{"images": np.zeros((9, 4, 4)), "labels": np.zeros(3)}], r"`labels` has shape \(3,\)"),
        ([{"images": np.full((9, 4, 4), np.nan)}], "pixels lie between nan and nan"),
        ([{"images": np.zeros((3, 4, 4))}], "there are 3 images; expected at least 8"),
        ([{"images": -np.ones((9, 4, 4))}], "pixels lie between -1 and -1"),
        ([pl.DataFrame({f"x{j}": np.arange(9.0) for j in range(5)})], "5 columns of pixels, which make no square"),
    ],
)
def test_sources_without_images_are_refused(sources, message):
    with pytest.raises(InputError, match=message):
        rlg.read(sources, config())


def test_tables_of_pixels_are_images():
    frame = pl.DataFrame({**{f"p{j}": np.full(9, 16.0 * (j == 1)) for j in range(4)}, "label": list("aabbaabba")})
    found = rlg.read([frame], config())
    assert found.pixels[0, 0].tolist() == [[-1, 1], [-1, -1]]
    assert found.classes == ("a", "b")
    assert rlg.read([], config()) is None


def test_fit_says_what_does_not_go_together(tmp_path, fitted):
    for changes, message in (
        ({"reward": "symmetry", "tune": {"method": "analytic"}}, "exact mixtures need a linear reward"),
        ({"base": {**SMALL["base"], "path": "cosine"}, "tune": {"method": "flow_grpo"}}, "the path is 'cosine'"),
        ({"base": {**SMALL["base"], "conditional": False}, "reward": "class"}, "no class is asked for.* class:NAME"),
        ({"tune": {"method": "ddpo", "batch_size": 10, "group_size": 4}}, "10 rollouts in groups of 4 for 1 updates"),
    ):
        with pytest.raises(InputError, match=message):
            rlg.fit(DATA, config(**changes), out=tmp_path / "m")
    with pytest.raises(InputError, match="there are no images to learn from"):
        rlg.fit(None, config())
    fitted.save(tmp_path / "first")
    small = rlg.read([{"images": np.zeros((9, 4, 4))}], config())
    with pytest.raises(InputError, match=r"images are \(1, 4, 4\).*expected \(1, 8, 8\)"):
        rlg.fit(small, config(reference=str(tmp_path / "first")))
    assert not (tmp_path / "m").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x.txt").write_text("mine")
    with pytest.raises(InputError, match="other files in it"):
        rlg.fit(DATA, config(), out=tmp_path / "taken")


def test_few_effective_images_are_told():
    with pytest.warns(SanovWarning, match=r"effective sample of \d+ of 80 images; the smallest beta that leaves 40"):
        rlg.fit(DATA, config(tune={**SMALL["tune"], "steps": 1, "beta": 1e-3}, base={**SMALL["base"], "steps": 1}))


def test_sampler_of_flows_on_another_path_is_refused():
    other = rlg.fit(DATA, config(base={**SMALL["base"], "path": "cosine", "steps": 2}), seed=0)
    with pytest.raises(InputError, match="sampler=flow_ode: the path is 'cosine'"):
        rlg.apply(None, config(), fitted=other)
    assert rlg.apply(None, config(sampler={"name": "ddpm", "steps": 3}), fitted=other).to_frame().height == 3


def test_reading_of_fitting_is_one_thing():
    assert fitting.shape_for(DATA, training.Base()).kind == "mlp"
    assert fitting.shape_for(DATA, training.Base(conditional=False)).classes == 0
