"""The sentences of the report: the answer first, then the verdict on distillation, then what there is to know."""

from __future__ import annotations

from sanov.systems.fidelity.analysis import Findings, Value

__all__ = ["lines", "notes", "sentence", "swapped", "verdict"]

PAIR = ("teacher", "student")
BOTH, OTHER = "teacher, student", "teacher, baseline"
GAP = "student - baseline"


def sentence(found: Findings) -> str:
    """Whether the student decides like its teacher beyond what the accuracies imply, with the interval."""
    agreement, excess = found.get(BOTH, "agreement"), found.get(BOTH, "excess agreement")
    assert agreement is not None
    level = f" ({found.config.confidence:.0%}".replace("%", " %")
    told = f"they agree on {_percent(agreement)} of {found.data.rows:,} examples".replace(" (", f"{level} ", 1)
    if excess is None:
        kappa = found.get(BOTH, "kappa")
        told += f", Cohen's kappa {_number(kappa)}" if kappa else ""
        return f"{_opening(kappa, 'chance would have it')}: {told}; there are no labels to say who is right"
    more = f"{_points(abs_value(excess))} {'more' if excess.estimate >= 0 else 'less'}"
    text = (
        f"{_opening(excess, 'their accuracies imply')}: {told}, {more} than unrelated systems of these accuracies would"
    )
    gap = found.get(GAP, "excess agreement with the teacher")
    if gap is not None:
        side = "larger" if gap.estimate >= 0 else "smaller"
        text += f"; that excess is {_points(abs_value(gap))} {side} than the undistilled baseline's"
    return text


def _opening(value: Value | None, than: str) -> str:
    if value is None or value.low is None:
        return f"No interval says whether the student decides like its teacher beyond what {than}"
    return {
        1: f"The student decides like its teacher beyond what {than}",
        0: f"Undecided whether the student decides like its teacher beyond what {than}",
        -1: f"The student decides less like its teacher than {than}",
    }[value.sign]


def verdict(gain: Value | None, p: float | None, confidence: float) -> str | None:
    """BEATS or WORSE than the undistilled baseline where interval and exact test both say so, else INCONCLUSIVE.

    Parameters
    ----------
    gain
        In accuracy over the baseline.
    p
        Of McNemar's exact test of the same two.
    confidence
        Level of the interval; the test's is 1 less this.

    Returns
    -------
    The word; None where there is no interval.
    """
    if gain is None or gain.low is None or p is None:
        return None
    return {1: "BEATS", 0: "INCONCLUSIVE", -1: "WORSE"}[gain.sign if _significant(p, confidence) else 0]


def _significant(p: float, confidence: float) -> bool:
    return p < 1 - confidence


def lines(found: Findings) -> dict[str, str]:
    """What the summary says, by heading."""
    return {
        "read from": _origins_line(found),
        "verdict": _verdict_line(found),
        "accuracy": _accuracy_line(found),
        "agreement": _agreement_line(found),
        "baseline": _baseline_line(found),
        "errors": _errors_line(found),
        "divergence": _divergence_line(found),
        "calibration": _calibration_line(found),
        "rationales": _rationale_line(found),
        f"by {found.grouping}": _group_line(found),
        "no answer": _no_answer_line(found),
    }


def _origins_line(found: Findings) -> str:
    """Say which file is taken for whose: the order alone tells the teacher's from the student's."""
    read = dict(found.data.origins.select("system", "read from").iter_rows())
    if len(set(read.values())) == 1:
        return f"{', '.join(read)}: {read['teacher']}"
    return ", ".join(f"{system}: {name}" for system, name in read.items())


def _verdict_line(found: Findings) -> str:
    if found.data.labels is None:
        return ""
    gain = found.get(GAP, "accuracy")
    p = found.tests.get("student, baseline", (0, 0, None))[2]
    said = verdict(gain, p, found.config.confidence)
    if gain is None:
        return "none: there are no predictions of the student without a teacher (baseline=FILE)"
    if said is None or p is None:
        return "none: too few examples"
    word = {"BEATS": "", "INCONCLUSIVE": " against", "WORSE": " than"}[said]
    why = _why(gain, p, found.config.confidence)
    return f"{said}{word} the undistilled baseline: accuracy {_signed(gain)}; McNemar {_p(p)}{why}"


def _why(gain: Value, p: float, confidence: float) -> str:
    """Say what keeps the verdict open where interval and test differ."""
    if _significant(p, confidence) == bool(gain.sign):
        return ""
    level = f"{1 - confidence:.2g}"
    if gain.sign:
        return f" is not below {level}, though the interval leaves out 0"
    return f" is below {level}, though the interval holds 0"


def _accuracy_line(found: Findings) -> str:
    told = [
        f"{system} {_percent(value)}"
        for system in found.data.systems
        if (value := found.get(system, "accuracy")) is not None
    ]
    gap = found.get("student - teacher", "accuracy")
    return ", ".join(told) + (f"; student - teacher {_signed(gap)}" if gap else "")


def _agreement_line(found: Findings) -> str:
    ends = [found.get(BOTH, f"agreement, {end} possible") for end in ("lowest", "highest")]
    expected = found.get(BOTH, "expected agreement")
    parts = []
    if ends[0] and ends[1] and expected:
        span = f"{100 * ends[0].estimate:.1f} to {100 * ends[1].estimate:.1f} %"
        parts.append(f"at these accuracies {span} is possible, {100 * expected.estimate:.1f} % expected if unrelated")
    for name, said in (("kappa", "Cohen's kappa"), ("error consistency", "error consistency")):
        value = found.get(BOTH, name)
        parts += [f"{said} {_number(value)}"] if value else []
    return "; ".join(parts)


def _baseline_line(found: Findings) -> str:
    agreement, gap = found.get(OTHER, "agreement"), found.get(GAP, "agreement with the teacher")
    if agreement is None or gap is None:
        return ""
    consistency = found.get(OTHER, "error consistency")
    more = f"; error consistency {_number(consistency)}" if consistency else ""
    return f"agrees with the teacher on {_percent(agreement)}, the student {_signed(gap)}{more}"


def _errors_line(found: Findings) -> str:
    if found.data.labels is None:
        return ""
    both, inherited, different, corrected, lost = (found.counts.patterns @ found.counts.transfer(0)).round().astype(int)
    wrong = inherited + different + corrected
    share = found.get(BOTH, "errors inherited")
    told = f", {_percent(share)}" if share else ""
    return (
        f"of the teacher's {wrong:,} the student repeats {inherited:,}{told}; it replaces {different:,} by others and "
        f"corrects {corrected:,}; of the {both + lost:,} that the teacher has right it loses {lost:,}"
    )


def _divergence_line(found: Findings) -> str:
    names = {"forward KL": "KL(teacher || student)", "reverse KL": "KL(student || teacher)", "JSD": "Jensen-Shannon"}
    values = {said: found.get(BOTH, name) for name, said in names.items()}
    told = [f"{said} {_number(value)}" for said, value in values.items() if value]
    gap = found.get(GAP, "forward KL with the teacher")
    return ", ".join(told) + (f" nats; first, student - baseline {_number(gap)}" if gap else " nats" if told else "")


def _calibration_line(found: Findings) -> str:
    values = {system: found.get(system, "ECE") for system in found.data.systems}
    told = [f"{system} {_number(value)}" for system, value in values.items() if value]
    return f"expected error {', '.join(told)}" if told else ""


def _rationale_line(found: Findings) -> str:
    value, gap = found.get(BOTH, "BLEU"), found.get(GAP, "BLEU with the teacher")
    if value is None:
        return ""
    more = f"; student - baseline {_number(gap)}" if gap else ""
    return f"mean sentence BLEU with the teacher {_number(value)}{more}"


def _group_line(found: Findings) -> str:
    groups = found.groups
    if groups is None:
        return ""
    effect = next((name for name in (GAP, "student - teacher") if name in groups.columns), None)
    if effect is None or groups[f"{effect} low"].null_count():
        lowest = groups.sort("agreement")
        return f"lowest agreement {100 * lowest['agreement'][0]:.1f} %, in {lowest[found.grouping][0]!r}"
    above, below = int((groups[f"{effect} low"] > 0).sum()), int((groups[f"{effect} high"] < 0).sum())
    worst = groups.sort(effect)
    return (
        f"{effect} is above 0 in {above} of {groups.height} and below 0 in {below}; lowest, "
        f"{100 * worst[effect][0]:+.1f} points, in {worst[found.grouping][0]!r}"
    )


def _no_answer_line(found: Findings) -> str:
    told = [
        f"{system} {number:,}"
        for system, number in found.data.origins.select("system", "without an answer").iter_rows()
        if number
    ]
    return f"{', '.join(told)} of {found.data.rows:,} examples; such an example counts as wrong" if told else ""


def notes(found: Findings) -> tuple[str, ...]:
    """What was dropped, assumed or left out."""
    told = [*filter(None, [swapped(found)]), *found.data.notes, *found.notes]
    teacher, student = found.data.answers[:2]
    silent = int(((teacher < 0) & (student < 0)).sum())
    if silent and silent < found.data.rows:
        rest = found.data.rows - silent
        agreement = float(((teacher == student) & (teacher >= 0)).sum() / rest)
        told.append(
            f"in {silent:,} examples neither teacher nor student gives an answer, which counts as the same; without them "
            f"they agree on {100 * agreement:.1f} %"
        )
    return tuple(told)


def swapped(found: Findings) -> str:
    """Ask whether the files are swapped where the teacher is clearly less accurate than the student; else empty."""
    gap, test = found.get("student - teacher", "accuracy"), found.tests.get(BOTH)
    if gap is None or gap.sign < 1 or test is None or not _significant(test[2], found.config.confidence):
        return ""
    read = dict(found.data.origins.select("system", "read from").iter_rows())
    names = [f"the {part}" + (f" ({read[part]})" if read["teacher"] != read["student"] else "") for part in PAIR]
    return f"{names[0]} is less accurate than {names[1]} by {_points(gap)}: are the two swapped?"


# -- numbers ----------------------------------------------------------------------------------------------------------


def abs_value(value: Value) -> Value:
    """Return a value without its sign, its interval turned with it."""
    if value.estimate >= 0:
        return value
    return Value(-value.estimate, *(None if end is None else -end for end in (value.high, value.low)))


def _span(value: Value, scale: float, digits: int) -> str:
    if value.low is None or value.high is None:
        return ""
    low, high = (round(scale * end, digits) + 0.0 for end in (value.low, value.high))  # + 0.0: no minus before a zero
    return f" ({low:.{digits}f} to {high:.{digits}f})"


def _percent(value: Value) -> str:
    return f"{100 * value.estimate:.1f} %{_span(value, 100.0, 1)}"


def _points(value: Value) -> str:
    return f"{100 * value.estimate:.1f} points{_span(value, 100.0, 1)}"


def _signed(value: Value) -> str:
    return f"{100 * value.estimate:+.1f} points{_span(value, 100.0, 1)}"


def _number(value: Value) -> str:
    digits = 1 if abs(value.estimate) >= 10 else 3
    return f"{value.estimate:.{digits}f}{_span(value, 1.0, digits)}"


def _p(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-300 else "p < 1e-300"
