"""Stage `report`: one HTML and one PDF per nodule, the run report with its checklists, and the index."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import TemplateError

from lidc_cdam import artifacts, provenance
from lidc_cdam.compute import map_items
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import alone, replacing, write_text
from lidc_cdam.progress import say
from reports import html, pdf
from reports.context import DOCUMENTS, SAFE_NAME, UNSAFE_NAME, Case, Run, case_key, chosen_nodules, open_run
from reports.facts import without_paths
from reports.index import index_content, index_row
from reports.material import load
from reports.run_report import PAPER, is_whole, write_run_report
from reports.scales import plain_limits
from reports.sections import document
from reports.viewer import viewer_data
from reports.words import nodules as counted

INDEX = "index.html"
MOST_COMBINED = 100
"""Nodules of one combined PDF, whose pages are set in memory at once."""


def report(
    run: Path,
    out: Path,
    also_run: Path | None = None,
    method: str = "cdam",
    data: Path | None = None,
    nodules: list[str] | None = None,
    combined: Path | None = None,
    workers: int = 1,
) -> None:
    """Write what a researcher opens, reads and keeps of a run; open OUT/index.html first.

    index.html lists the nodules, with search, filters and sorting; <nodule_id>.html and .pdf are one nodule's report;
    run.html and run.pdf hold the run's figures beside the baselines, its estimators, cohort, splits, settings and model
    card; checklists/ has CLAIM, TRIPOD+AI and METRICS as CSV and Markdown, filled in as far as the run knows. Called
    again, it makes only what is missing or was made from other artefacts.

    Args:
        run: Folder of a finished `crossval`.
        out: Folder for the reports.
        also_run: A second run on the same data with other targets (malignancy beside biomarkers), shown in the same
            documents.
        method: Whose maps to show; `lidc-cdam explain` writes them.
        data: Folder of the crops; by default the one that the run's config.yaml names.
        nodules: Only these nodule ids; by default every test nodule.
        combined: A PDF file that also gets the reports of the chosen nodules, with a table of contents; at most 100.
        workers: Processes that work at the same time.

    Raises:
        LidcCdamError: an artefact is missing, a nodule is unknown, or `out` holds reports of something else.
    """
    if combined is not None and (
        combined.suffix.lower() != ".pdf" or combined.is_dir() or any(each.is_file() for each in combined.parents)
    ):
        raise LidcCdamError(f"--combined must be a PDF file to write, such as REPORT/all.pdf; got {combined}.")
    runs, items = _gather(run, also_run, method, data, nodules, out)
    if combined is not None and len(items) > MOST_COMBINED:
        raise LidcCdamError(
            f"--combined takes at most {MOST_COMBINED} nodules in one file, but {len(items)} are chosen; name those to "
            f"take with --nodules."
        )
    own = {f"{item.nodule_id}.pdf" for item in items} | {PAPER}
    if combined is not None and combined.name in own and combined.resolve().parent == out.resolve():
        raise LidcCdamError(
            f"--combined must be a file of its own, but {combined} is one of the reports; name another one, such as "
            f"{out / 'all.pdf'}."
        )
    provenance.refuse_others(out, DOCUMENTS)
    record = provenance.begin(
        out,
        "report",
        {"method": method, "nodules": None if nodules is None else sorted(set(nodules))},
        {f"run {index}": f"{each.config_sha256} {_predictions(each)}" for index, each in enumerate(runs)},
    )
    whole = is_whole(out) and not (out / artifacts.FAILED).exists()
    if record.finished and whole and all(item.is_current() for item in items):
        say(f"The reports of {counted(len(items))} are finished already; open {out / INDEX}.")
        _combine(combined, items)
        return
    with alone(out, f"Another `lidc-cdam report` writes into {out}; waiting for it.", ".held-report"):
        failed = _write(record, runs, items, out, workers)
        _combine(combined, [item for item in items if item.nodule_id not in failed])
    if failed and len(failed) == len(items):
        raise LidcCdamError(f"No nodule has a report; the first: {next(iter(failed.values()))}")


@dataclass(frozen=True)
class Item:
    """One nodule to report on."""

    nodule_id: str
    runs: tuple[Run, ...]
    cases: tuple[Case | None, ...]
    out: Path
    key: str

    @property
    def page(self) -> Path:
        """The nodule's HTML file."""
        return self.out / f"{self.nodule_id}.html"

    @property
    def paper(self) -> Path:
        """The nodule's PDF file."""
        return self.out / f"{self.nodule_id}.pdf"

    def is_current(self) -> bool:
        """Whether both documents are there and were made from the same artefacts."""
        safe = SAFE_NAME.fullmatch(self.nodule_id) is not None
        return safe and self.paper.exists() and html.stored_key(self.page) == self.key


def _gather(
    run: Path, also_run: Path | None, method: str, data: Path | None, nodules: Sequence[str] | None, out: Path
) -> tuple[tuple[Run, ...], list[Item]]:
    opened = [open_run(run, method, data)]
    if also_run is not None:
        opened.append(open_run(also_run, method, data))
        both = set(opened[0][0].targets) & set(opened[1][0].targets)
        if both:
            raise LidcCdamError(
                f"--also-run must predict other targets than --run, but both predict {', '.join(sorted(both))}; "
                f"report them into two folders."
            )
    runs = tuple(facts for facts, _ in opened)
    tables = [{case.nodule_id: case for case in cases} for _, cases in opened]
    chosen = chosen_nodules(list(tables[0]), nodules, run)
    items = []
    for nodule in chosen:
        cases = tuple(table.get(nodule) for table in tables)
        items.append(Item(nodule, runs, cases, out, _key(runs, cases)))
    return runs, items


def _key(runs: Sequence[Run], cases: Sequence[Case | None]) -> str:
    nodule = next(case.nodule_id for case in cases if case is not None)
    return case_key(runs, cases, _renderer()) if SAFE_NAME.fullmatch(nodule) else ""


def _predictions(run: Run) -> str:
    return provenance.sha256(run.folder / artifacts.PREDICTIONS)


def _work(item: Item) -> dict[str, Any]:
    """Write one nodule's two documents; a row for the index, or a row with the reason why not."""
    try:
        if not SAFE_NAME.fullmatch(item.nodule_id):
            raise LidcCdamError(UNSAFE_NAME)
        material = load(item.runs, item.cases)
        if not item.is_current():
            content = document(material)
            # Both are made before either is written.
            page = html.render_case(content, item.key, viewer_data(material, content))
            paper = pdf.render_case(content)
            # Both are written before either appears, so a full disk leaves neither; the page, whose key says that both
            # are there, appears last.
            with replacing(item.page) as whole_page, replacing(item.paper) as whole_paper:
                whole_page.write_text(page, encoding="utf-8")
                whole_paper.write_bytes(paper)
        return index_row(material)
    except (LidcCdamError, ValueError, TemplateError) as error:
        return {"nodule_id": item.nodule_id, "reason": _reason(error, item.runs)}


def _write(
    record: provenance.Record, runs: Sequence[Run], items: Sequence[Item], out: Path, workers: int
) -> dict[str, str]:
    """Write what is missing, and tell; the reason by nodule that has no report."""
    provenance.reopen(out, "report")
    results = list(map_items(_work, items, "Writing reports", workers))
    order = {item.nodule_id: place for place, item in enumerate(items)}
    results.sort(key=lambda row: order[row["nodule_id"]])
    failed = [row for row in results if "reason" in row]
    _write_failed(out, failed)
    problem = _write_run_report(out, runs)
    _write_index(out, index_content(runs, results, problem))
    limits = {" ".join(each.targets): plain_limits(each.limits) for each in runs}
    record.finish(nodules=len(items), failed=len(failed), scale_limits=limits)
    _tell(runs, results, failed, out)
    if problem:
        say(f"There is no run report: {problem}")
    return {row["nodule_id"]: row["reason"] for row in failed}


@cache
def _renderer() -> str:
    """Digest of the templates and of this room's code."""
    folder = Path(__file__).resolve().parent
    paths = sorted([*folder.glob("*.py"), *folder.glob("templates/*"), *folder.glob("published/*")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _write_run_report(out: Path, runs: Sequence[Run]) -> str:
    """Write the run report; the sentence why there is none, empty when all is well."""
    try:
        write_run_report(out, runs, _renderer())
    except (LidcCdamError, TemplateError) as error:
        return _reason(error, runs)
    return ""


def _reason(error: Exception, runs: Sequence[Run]) -> str:
    return html.refusal(error) if isinstance(error, TemplateError) else without_paths(str(error), runs)


def _write_index(out: Path, content: dict[str, Any]) -> None:
    try:
        page = html.render_index(content)
    except TemplateError as error:
        raise LidcCdamError(
            f"The index must be made from its template, but {html.refusal(error)}; install this version of lidc-cdam "
            f"again."
        ) from error
    write_text(out / INDEX, page)


def _combine(path: Path | None, items: Sequence[Item]) -> None:
    """Write several nodules' reports as one PDF file."""
    if path is None:
        return
    documents = []
    for item in items:
        content = document(load(item.runs, item.cases))
        documents.append(pdf.stand_alone(content, content["shared"]))
    with replacing(path) as temporary:
        temporary.write_bytes(pdf.render_combined(documents))
    say(f"Wrote the reports of {counted(len(items))} into {path}.")


def _write_failed(out: Path, failed: Sequence[dict[str, Any]]) -> None:
    path = out / artifacts.FAILED
    if not failed:
        path.unlink(missing_ok=True)
        return
    rows = [{"nodule_id": row["nodule_id"], "series_uid": "", "reason": row["reason"]} for row in failed]
    artifacts.write_table(path, pd.DataFrame(rows), artifacts.FAILED_COLUMNS)


def _tell(runs: Sequence[Run], results: Sequence[Any], failed: Sequence[Any], out: Path) -> None:
    for run in runs:
        if not run.limits:
            command = f"lidc-cdam explain --run {run.folder} --method {run.method}"
            others = f", only those of {', '.join(run.beside)}" if run.beside else ""
            say(
                f"{run.folder} has no {run.method} maps{others}, so its reports show none of them; "
                f"run `{command}`, then report again."
            )
    if failed:
        some = "1 nodule has" if len(failed) == 1 else f"{len(failed)} nodules have"
        say(f"{some} no report; {out / artifacts.FAILED} gives each reason.")
    if len(failed) < len(results):
        say(f"Wrote HTML and PDF reports of {counted(len(results) - len(failed))}; open {out / INDEX}.")
