"""The command line: one grammar for every system.

A word with ``=`` is an option (dotted for groups), any other is data. A user's mistake ends with status 2 and one
message.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanov import __version__
from sanov.core.errors import InputError, MissingExtra, SanovError
from sanov.core.progress import quiet as silenced
from sanov.systems import BASELINES, SYSTEMS, Row, find

if TYPE_CHECKING:
    from sanov.claims import Claim
    from sanov.core.results import ClaimResult

__all__ = ["app", "main"]

app = typer.Typer(
    name="sanov",
    help=(
        "Move a model onto a reference distribution. A word with '=' is an option (sanov show NAME lists them), "
        "any other is data: a file, several, or a folder."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="A system: see `sanov list`.")]
Words = Annotated[list[str] | None, typer.Argument(metavar="DATA... KEY=VALUE...", help="Data files, and options.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML or JSON file of options.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Jobs = Annotated[int, typer.Option(help="Processes, of one thread each.", min=1)]


@app.command("list")
def list_(
    all_: Annotated[bool, typer.Option("--all", help="The baselines too.")] = False, as_json: AsJson = False
) -> None:
    """Show the systems: what moves, onto what, under which divergence, and a user's question."""
    rows = SYSTEMS + (BASELINES if all_ else ())
    if as_json:
        _print_json([row._asdict() for row in rows])
        return
    for row in rows:
        print(f"{row.name:<14}{row.question}")
        print(f"{'':<14}{row.model} -> {row.reference}, under {row.divergence}")


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show a system: idea and equations, options with their sources, what to install, citation."""
    from sanov.core.citations import citation
    from sanov.core.options import describe

    row = find(name)
    module = _load(row)
    options = describe(module.Config)
    if as_json:
        _print_json({**row._asdict(), "idea": module.__doc__, "options": options, "citation": citation(row.paper)})
        return
    print(f"{row.name}: {row.title}\n\n{(module.__doc__ or '').strip()}\n\nOptions (key=value)")
    for option in options:
        unit = f" [{option['unit']}]" if option["unit"] else ""
        print(f"  {option['name']} = {option['default']}{unit}  ({option['legal']})")
        print(f"      {option['meaning']} Source: {option['source']}.")
    print(f"\nInstall: pip install 'sanov{f'[{row.extras}]' if row.extras else ''}'\n\nCite\n{citation(row.paper)}")


@app.command()
def fit(
    name: Name,
    words: Words = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder for what is fitted.")],
    config: ConfigFile = None,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fit a system to data and save it: sanov fit NAME DATA... --out DIR [key=value ...]."""
    from sanov.core.files import check_writable
    from sanov.core.options import parse, split

    row = find(name)
    if row.fits != "yes":
        raise InputError("there is nothing to fit", where=name, fix=f"use: sanov apply {name} DATA...")
    sources, options = split(words or [])
    module = _load(row)
    settings = parse(module.Config, options, config)
    check_writable(out, folder=True)
    with silenced(quiet or as_json):
        fitted = module.fit(module.read(sources, settings), settings, seed=seed, out=out, resume=resume)
    if as_json:
        _print_json({"out": str(out), **fitted.to_dict()})
    else:
        print(fitted.summary())
        print(f"saved in {out}; next: sanov apply {name} DATA... --fitted {out}")


@app.command()
def apply(
    name: Name,
    words: Words = None,
    *,
    fitted: Annotated[Path | None, typer.Option(help="Folder that `sanov fit` wrote.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File (.json .csv .parquet .xlsx .html .tex), or a folder for everything.")
    ] = None,
    config: ConfigFile = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Apply a system to data: sanov apply NAME DATA... [--fitted DIR] [--out PATH] [key=value ...]."""
    from dataclasses import replace

    from sanov.core.answers import check_place
    from sanov.core.options import parse, split

    row = find(name)
    sources, options = split(words or [])
    module = _load(row)
    settings = parse(module.Config, options, config)
    if out is not None:
        check_place(out)
    with silenced(quiet or as_json):
        answer = module.apply(module.read(sources, settings), settings, fitted=fitted, seed=seed)
    answer = replace(answer, provenance={**answer.provenance, "command": shlex.join(["sanov", *sys.argv[1:]])})
    if out is not None:
        answer.save(out)
    if as_json:
        _print_json(answer.to_dict())
    else:
        print(answer.summary())
        if out is not None:
            print(f"saved in {out}")


@app.command()
def demo(
    jobs: Jobs = 1,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("report"),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Test the claims of all installed systems at a small size, and write their page."""
    results = _run_claims(SYSTEMS, "smoke", as_json=as_json, quiet=quiet, jobs=jobs)
    written = _write_page(out)
    if as_json:
        _print_json({**written, "results": [result.model_dump(mode="json") for result in results]})
    else:
        print(f"page: {written['page']}")


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="A system, or `all`.")],
    preset: Annotated[str, typer.Option(help="smoke (seconds) or paper (the criterion).")] = "paper",
    seeds: Annotated[
        int, typer.Option(help="Number of seeds; 0 for the preset's, with which alone there are verdicts.", min=0)
    ] = 0,
    jobs: Jobs = 1,
    backend: Annotated[str, typer.Option(help="loky, ray or dask.")] = "loky",
    reuse: Annotated[bool, typer.Option("--reuse", help="Accept cells of older source.")] = False,
    only: Annotated[str, typer.Option(help="Run these cells alone, such as data=digits,arm=kl.")] = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Test a paper's claim against tuned baselines, with intervals and negative controls."""
    from sanov.core.options import split

    rows = SYSTEMS if name == "all" else (find(name),)
    words, chosen = split(filter(None, only.split(",")))
    if words:
        raise InputError("is no KEY=VALUE", where=f"--only {words[0]}", expected="words such as data=digits,arm=kl")
    results = _run_claims(
        rows, preset, as_json=as_json, quiet=quiet, seeds=seeds, jobs=jobs, backend=backend, reuse=reuse, only=chosen
    )
    if as_json:
        _print_json([result.model_dump(mode="json") for result in results])


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("report"),
    check: Annotated[bool, typer.Option("--check", help="Only check that generated blocks are current.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write one page of all claims, and every generated block of README and docs."""
    if check:
        stale = _refresh(check=True)
        if stale:
            raise InputError("generated blocks are stale", where=", ".join(stale), fix="run: sanov report")
        print("all generated blocks are current")
        return
    written = _write_page(out)
    if as_json:
        _print_json(written)
    else:
        print(f"page: {written['page']}")


@app.command("check-loss")
def check_loss(
    reference: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="Your loss on sampled tokens.")],
    as_json: AsJson = False,
) -> None:
    """Say which KL the expected gradient of your own distillation loss follows; status 3 where it is none."""
    from sanov.core.user_code import load_function

    found = _checks().check_loss(load_function(reference))
    if as_json:
        _print_json(found.to_dict())
    else:
        print(f"{reference}: {found.follows}\n{found.sentence()}")
        print(f"By enumeration; log-ratios of policy to teacher up to {found.largest_log_ratio:.1f} were looked at.")
    if not found.is_sound:
        raise typer.Exit(3)


# -- what the commands share ------------------------------------------------------------------------------------------


def _load(row: Row) -> Any:
    from sanov.core.extras import missing

    absent = missing(row.extras)
    if absent:
        raise MissingExtra(absent[0], row.extras)
    return row.load()


def _checks() -> Any:
    from sanov.core.extras import missing

    absent = missing("torch")
    if absent:
        raise MissingExtra(absent[0], "torch")
    from sanov import loss_checks

    return loss_checks


def _run_claims(rows: Sequence[Row], preset: str, *, as_json: bool, quiet: bool, **how: Any) -> list[ClaimResult]:
    """Test the claims of some systems, print what each gave, and leave out what is not installed where there are others."""
    from sanov import claims

    results = []
    for row in rows:
        try:
            claim = _claim(row, preset)
        except MissingExtra as error:
            if len(rows) == 1:
                raise
            print(f"{row.name}: not run: {error}\n", file=sys.stderr)
            continue
        with silenced(quiet or as_json):
            results.append(claims.reproduce(claim, preset, **how))
        if not as_json:
            print(_verdict(results[-1]))
    return results


def _claim(row: Row, preset: str) -> Claim:
    import importlib

    from sanov.core.extras import missing

    try:
        claim: Claim = importlib.import_module(f"sanov.experiments.{row.name}").CLAIM
    except ModuleNotFoundError as error:
        if error.name == f"sanov.experiments.{row.name}":
            raise InputError("there is no claim to test", where=row.name) from None
        raise
    extras = claim.presets[preset].extras if preset in claim.presets else ""
    absent = missing(extras)
    if absent:
        raise MissingExtra(absent[0], extras)
    return claim


def _refresh(*, check: bool = False) -> list[str]:
    """Renew the generated blocks, in a checkout; return the documents that were not current."""
    from sanov import report as pages

    documents = [Path("README.md"), *sorted(Path("docs").rglob("*.md"))] if Path("src/sanov").is_dir() else []
    return [str(path) for path in pages.refresh(documents, _blocks(), check=check)] if documents else []


def _write_page(out: Path) -> dict[str, Any]:
    from sanov import report as pages

    changed = _refresh()
    return {"page": str(pages.write(out, pages.gather(Path()))), "changed": changed}


def _verdict(result: ClaimResult) -> str:
    verdict = f"too small a run to be quoted: {result.verdict}" if result.preset == "smoke" else result.verdict.upper()
    lines = [f"{result.system}: {result.statement}", f"  {verdict} ({result.preset}: {result.scale})"]
    lines += [f"  {part.line()}" for part in result.parts]
    return "\n".join([*lines, f"  {sum(result.cells.values())} cells, {result.seconds:.1f} s", ""])


def _blocks() -> dict[str, str]:
    """Return the generated text of every block by its name."""
    from sanov import report as pages
    from sanov.core.options import describe

    blocks = {"systems": pages.systems_table([row._asdict() for row in SYSTEMS], Path("results"))}
    for row in SYSTEMS + BASELINES:
        blocks[f"row {row.name}"] = pages.row_table(row._asdict())
        blocks[f"defaults {row.name}"] = pages.options_table(describe(_load(row).Config))
        blocks[f"results {row.name}"] = pages.results_block(Path("results") / f"{row.name}-paper.json")
    return blocks


def _print_json(tree: Any) -> None:
    from sanov.core.files import plain

    print(json.dumps(plain(tree), indent=1, allow_nan=False, default=str))


def _show_warning(message: Warning | str, *_: Any) -> None:
    text = " ".join(str(message).split())
    if text not in _SHOWN:
        _SHOWN.add(text)
        print(f"note: {text}", file=sys.stderr)


_SHOWN: set[str] = set()


def main() -> None:
    """Run the command line; a user's mistake prints one message and ends with status 2."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # threads beyond the free cores cost far more than they give
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    if sys.argv[1:] == ["--version"]:
        print(__version__)
        return
    try:
        app()
    except SanovError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on where it can be resumed", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    main()
