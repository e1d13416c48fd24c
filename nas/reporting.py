"""From what a search found to its report: the facts of the run folder put into words."""

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nas.errors import InvalidInputError
from nas.rundir import RunDir

if TYPE_CHECKING:
    from analysis.report import ReportFiles
    from nas.search.result import SearchResult
    from search_spaces.architecture import Architecture


def write_run_report(result: "SearchResult", *, pictures: bool = True) -> "ReportFiles":
    """Writes ``report.html``, ``front.csv`` and pictures into the run folder.

    Raises:
        InvalidInputError: The run folder is broken or cannot be written.
    """
    from analysis.report import write_report
    from analysis.statement import ReportFacts

    run = RunDir(result.run)
    facts = run.read()
    chosen, closest = result.chosen, result.closest
    model = chosen or closest
    said = ReportFacts(
        goals=result.goals,
        quality_name=result.quality_name,
        chosen=None if chosen is None else chosen.trial,
        closest=None if closest is None else closest.trial,
        standings=[] if model is None else result.standings(model),
        remark=" ".join(_remarks(result)),
        predictions=[result.predictions(place) for place in range(len(result.goals))],
        front_keys=[[model.key for model in front] for front in result.fronts],
        how=_how(run, facts, result),
        commands=[str(command) for command in facts.get("commands", [])] + next_commands(result),
    )
    return write_report(run.path, result.trials, said, pictures=pictures)


def _remarks(result: "SearchResult") -> list[str]:
    """What else to know of the chosen model."""
    loading = "" if result.chosen is None else loading_remark(result.chosen.trial.architecture)
    exits = [] if result.exits is None else exit_sentences(result.exits)
    return [*([loading] if loading else []), *exits]


def exit_sentences(told: Mapping[str, Any]) -> list[str]:
    """What a model with exits does and takes, both latencies, in sentences."""
    latencies = " and ".join(
        f"{told[f'{bound}_ms']:.2f} ms {words}" + (", which the budget binds" if told["bound"] == bound else "")
        for bound, words in (("expected", "as expected"), ("worst", "at worst"))
    )
    shares = ", ".join(f"{share:.0%}" for share in told["shares"])
    return [
        f"With exits at a confidence of {told['confidence']:.4g} a text of {told['seq_len']} tokens takes {latencies}; "
        f"without exits {told['without_exits_ms']:.2f} ms (all measured, in {told['precision']}).",
        f"On the {told['split']} split accuracy is {told['accuracy']:.4f}, {told['accuracy_whole']:.4f} where nothing "
        f"stops; texts take {told['layers']:.2f} of {told['num_exits']} layers on average and leave behind layers 1 to "
        f"{told['num_exits']}: {shares}.",
        f"The model with exits is in {told['folder']}.",
    ]


def loading_remark(architecture: "Architecture") -> str:
    """What it means that a model is of no stock class, as a sentence; empty where it is of one."""
    from nas.export.huggingface import MODELING_FILE, model_class

    if model_class(architecture) != "ChainEncoderModel":
        return ""
    how = f"it loads with trust_remote_code=True, by {MODELING_FILE.name} in its folder"
    if architecture.narrow_from is None:
        return f"{architecture.key()} is not of a stock Transformers class: {how}."
    num_narrow = len(architecture.sublayers) - architecture.narrow_from
    which = f"its last {num_narrow} sub-layers are" if num_narrow > 1 else "its last sub-layer is"
    return (
        f"{architecture.key()} is not of a stock Transformers class, as {which} narrow: "
        f"{how}, and gives the state of position 0 alone, or of positions that it is asked for."
    )


def next_commands(result: "SearchResult") -> list[str]:
    """What to do with a result, as commands."""
    run = result.run
    if not result.is_finished or result.exit_code == 5:
        return [f"nas search --resume {run}"] if not result.is_finished else [f"nas front {run}"]
    if result.chosen is None:
        return [f"nas export {run} --out my-model --pick fastest"]
    if result.exits is not None:
        folder = result.exits["folder"]
        return [f"nas predict {folder} < texts", f"nas measure {folder} --exits {result.exits['bound']}"]
    return [f"nas export {run} --out my-model", *_measure_commands(result)]


def _measure_commands(result: "SearchResult") -> list[str]:
    """How to measure the chosen model again, on each device; where one is not here, that is said."""
    commands = []
    for goal in result.goals:
        device = f" --device {goal.conditions.device}" if goal.conditions.device != "cpu" else ""
        texts = "" if goal.conditions.seq_len == 128 else f" --seq-len {goal.conditions.seq_len}"
        texts += "" if goal.conditions.batch_size == 1 else f" --batch-size {goal.conditions.batch_size}"
        commands.append(
            f"nas measure {result.run / 'model'}{device}{texts}"
            if goal.is_measurable
            else f"nas measure MODEL{texts}  # there: {goal.name} is only {goal.caveat}"
        )
    return commands


def _how(run: RunDir, facts: dict[str, Any], result: "SearchResult") -> dict[str, str]:
    request = facts.get("request", {})
    samplers = ", ".join(request.get("compare_samplers") or [str(request.get("sampler"))])
    rows = {
        **_devices(result),
        "run folder": str(run.path),
        "begun": str(facts.get("created", "")),
        "trials": _counts(result),
        "search": f"sampler {samplers}, engine {request.get('engine')}, seed {request.get('seed')}",
        "supernet": f"{request.get('supernet') or 'the shipped one'}, {str(facts.get('supernet', ''))[:16]}",
        **_predictors(run, result),
        "versions": ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items()),
    }
    return {name: text for name, text in rows.items() if text}


def _counts(result: "SearchResult") -> str:
    from analysis.trial import FailedTrial, OverBudgetTrial

    failed = sum(isinstance(record, FailedTrial) for record in result.records)
    over = sum(isinstance(record, OverBudgetTrial) for record in result.records)
    state = "" if result.is_finished else "; the search is not finished"
    why = "too slow or too large" if result.limits else "too slow"
    return f"{len(result.trials)} evaluated, {over} left out as {why}, {failed} failed{state}"


def _devices(result: "SearchResult") -> dict[str, str]:
    if len(result.goals) == 1:
        return {"device": result.goals[0].description}
    return {f"device of {goal.name}": goal.description for goal in result.goals}


def _predictors(run: RunDir, result: "SearchResult") -> dict[str, str]:
    """How good each predictor was on shapes it had not seen; left out where that is not known."""
    from nas.search.predictors import predictor_file, read_predictor

    rows = {}
    for place, goal in enumerate(result.goals):
        for precision in result.precisions or ("fp32",):
            with contextlib.suppress(OSError, ValueError, InvalidInputError):
                of = f" of {goal.name}" if len(result.goals) > 1 else ""
                of += f" in {precision}" if result.precisions else ""
                predictor = read_predictor(predictor_file(run.path, place, precision))
                rows[f"latency predictor{of}"] = predictor.description
    return rows
