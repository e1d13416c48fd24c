"""From what a search found to its report: the facts of the run folder put into words."""

import contextlib
import json
from typing import TYPE_CHECKING, Any

from nas.errors import InvalidInputError
from nas.rundir import RunDir

if TYPE_CHECKING:
    from analysis.report import ReportFiles
    from nas.search.result import SearchResult


def write_run_report(result: "SearchResult", *, pictures: bool = True) -> "ReportFiles":
    """Writes ``report.html``, ``front.csv`` and pictures into the run folder.

    Raises:
        InvalidInputError: The run folder is broken or cannot be written.
    """
    from analysis.report import ReportFacts, write_report

    run = RunDir(result.run)
    facts = run.read()
    chosen, closest = result.chosen, result.closest
    said = ReportFacts(
        device=result.device,
        quality_name=result.quality_name,
        budget_s=result.budget_s,
        chosen=None if chosen is None else chosen.trial,
        closest=None if closest is None else closest.trial,
        predictions=result.predictions,
        front_keys=[model.key for model in result.front],
        how=_how(run, facts, result),
        commands=[str(command) for command in facts.get("commands", [])] + next_commands(result),
    )
    return write_report(run.path, result.trials, said, pictures=pictures)


def next_commands(result: "SearchResult") -> list[str]:
    """What to do with a result, as commands."""
    run = result.run
    if not result.is_finished or result.exit_code == 5:
        return [f"nas search --resume {run}"] if not result.is_finished else [f"nas front {run}"]
    if result.chosen is None:
        return [f"nas export {run} --out my-model --pick fastest"]
    return [f"nas export {run} --out my-model", f"nas measure {run / 'model'}"]


def _how(run: RunDir, facts: dict[str, Any], result: "SearchResult") -> dict[str, str]:
    request = facts.get("request", {})
    rows = {
        "device": result.description,
        "run folder": str(run.path),
        "begun": str(facts.get("created", "")),
        "trials": _counts(result),
        "search": f"sampler {request.get('sampler')}, engine {request.get('engine')}, seed {request.get('seed')}",
        "supernet": f"{request.get('supernet') or 'the shipped one'}, {str(facts.get('supernet', ''))[:16]}",
        "latency predictor": _predictor(run),
        "versions": ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items()),
    }
    return {name: text for name, text in rows.items() if text}


def _counts(result: "SearchResult") -> str:
    from analysis.trial import FailedTrial, OverBudgetTrial

    failed = sum(isinstance(record, FailedTrial) for record in result.records)
    over = sum(isinstance(record, OverBudgetTrial) for record in result.records)
    state = "" if result.is_finished else "; the search is not finished"
    return f"{len(result.trials)} evaluated, {over} left out as too slow, {failed} failed{state}"


def _predictor(run: RunDir) -> str:
    """How good the predictor was on shapes it had not seen; an empty text where that is not known."""
    from nas.devices.predictor import LatencyPredictor

    with contextlib.suppress(OSError, ValueError, InvalidInputError):
        error = LatencyPredictor.from_dict(json.loads((run.path / "predictor.json").read_text())).error
        return f"{error.num_samples} shapes measured, median error {error.median:.1%} on shapes left out"
    return ""
