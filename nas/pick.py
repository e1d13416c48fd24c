"""A model of a finished search, picked and exported once more."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.latency import Latency
from nas.errors import DeviceNotAvailableError, InvalidInputError
from nas.measurement import latency_json, measure_model, precisions_of, with_precisions
from nas.progress import Progress
from nas.rundir import RunDir
from nas.search.exporter import Exporter
from nas.search.request import SearchRequest
from nas.search.result import FoundModel, SearchResult, load_result
from nas.search.sizes import model_file
from search_spaces.errors import unknown_name
from search_spaces.files import atomic_folder

PICKS = ("best", "fastest", "smallest")
SECONDS_EACH = 2.0


@dataclass(frozen=True)
class Exported:
    """A model on disk.

    Attributes:
        key: The architecture's stable name.
        model_dir: The folder.
        quality: As the search found it.
        latencies: By file name, one for each goal of the search; empty where its devices are not here.
    """

    key: str
    model_dir: Path
    quality: float
    latencies: Mapping[str, Sequence[Latency]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What ``nas export --json`` prints; ``latency`` is that of the first goal."""
        return {
            "key": self.key,
            "model_dir": str(self.model_dir),
            "quality": self.quality,
            "latency": {name: latency_json(latencies[0]) for name, latencies in self.latencies.items()},
            "latencies": [
                {
                    "file": name,
                    "device": latency.conditions.device,
                    "batch_size": latency.conditions.batch_size,
                    "seq_len": latency.conditions.seq_len,
                    **latency_json(latency),
                }
                for name, latencies in self.latencies.items()
                for latency in latencies
            ],
        }


def pick_model(result: SearchResult, pick: str) -> FoundModel:
    """Finds a model of a search.

    Args:
        result: What the search found.
        pick: ``best`` is the chosen one; ``fastest`` and ``smallest`` are of the front; else an architecture's key.

    Raises:
        InvalidInputError: There is no such model; the text names the ones there are.
    """
    if pick == "best":
        if result.chosen is None:
            why = "no model meets the budget" if result.is_finished else "the search is not finished"
            raise InvalidInputError(f"{result.run} has no best model: {why}; pick fastest, smallest or a model's key")
        return result.chosen
    if not result.front:
        raise InvalidInputError(f"{result.run} holds no evaluated model; continue it: nas search --resume {result.run}")
    if pick == "fastest":
        return min(result.front, key=lambda model: model.trial.latency.p50_s)
    if pick == "smallest":
        return min(result.front, key=lambda model: model.trial.num_parameters)
    found = {trial.key: FoundModel(trial) for trial in result.trials} | {model.key: model for model in result.front}
    if pick not in found:
        raise unknown_name("model", pick, [*PICKS, *(model.key for model in result.front)])
    return found[pick]


def export_pick(run_path: Path, out: Path, *, pick: str, progress: Progress) -> Exported:
    """Exports a model of a search into a folder and measures its files under the conditions of the search.

    Raises:
        InvalidInputError: The run, the pick, the supernet or the place breaks a law.
        InconclusiveMeasurementError: The measuring itself broke down.
    """
    run = RunDir.open(run_path)
    result = load_result(run)
    model = pick_model(result, pick)
    if model.model_dir is not None:
        with atomic_folder(out) as folder:
            shutil.copytree(model.model_dir, folder, dirs_exist_ok=True)
        latencies: dict[str, list[Latency]] = {}
        for latency in model.trial.latencies:
            latencies.setdefault(model_file(latency.conditions), []).append(latency)
        return Exported(model.key, out, model.trial.quality, latencies)
    return _export_anew(run, model, out, progress)


def _export_anew(run: RunDir, model: FoundModel, out: Path, progress: Progress) -> Exported:
    from nas.export.card import write_card
    from supernet.checkpoint import load_supernet

    facts = run.read()
    request = SearchRequest.from_dict(facts.get("request"))
    loaded = load_supernet(request.supernet)
    if loaded.digest != facts.get("supernet"):
        raise InvalidInputError(f"the supernet in {loaded.folder} is not the one of {run.path}; restore it")
    exporter = Exporter(run, request, loaded, f"nas export {run.path.name} --pick {model.key}")
    progress.start(f"exporting {model.key}")
    report = exporter.export(model.trial, out)
    progress.finish()
    latencies: dict[str, list[Latency]] = {}
    described = []
    for goal in request.goals:
        precisions = precisions_of(out, goal.settings.runtime) if goal.settings.precision == "fp32" else ()
        settings = with_precisions([goal.settings], precisions) if precisions else [goal.settings]
        try:
            found = measure_model(
                out, device=goal.device, settings=settings, seconds_each=SECONDS_EACH, progress=progress
            )
        except DeviceNotAvailableError:
            progress.note(f"{goal.device} is not available here, so the exported files were not measured on it.")
            continue
        for row in found.rows:
            latencies.setdefault(model_file(row.latency.conditions), []).append(row.latency)
        described.append(found.description)
    if latencies:
        device = "; ".join(dict.fromkeys(described))
        write_card(out, report, exporter.facts(model.trial, latencies, device))
    return Exported(model.key, out, model.trial.quality, latencies)
