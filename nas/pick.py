"""A model of a finished search, picked and exported once more."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.latency import Latency
from nas.errors import DeviceNotAvailableError, InvalidInputError
from nas.measurement import MODEL_FILES, latency_json, measure_model
from nas.progress import Progress
from nas.rundir import RunDir
from nas.search.result import FoundModel, SearchRequest, SearchResult, load_result
from search_spaces.errors import unknown_name
from search_spaces.files import atomic_folder

if TYPE_CHECKING:
    from supernet.checkpoint import LoadedSupernet
    from supernet.encoder import Encoder

PICKS = ("best", "fastest", "smallest")
SECONDS_EACH = 2.0


@dataclass(frozen=True)
class Exported:
    """A model on disk.

    Attributes:
        key: The architecture's stable name.
        model_dir: The folder.
        quality: As the search found it.
        latencies: Measured, by file name; empty where the device is not here.
    """

    key: str
    model_dir: Path
    quality: float
    latencies: Mapping[str, Latency] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What ``nas export --json`` prints."""
        return {
            "key": self.key,
            "model_dir": str(self.model_dir),
            "quality": self.quality,
            "latency": {name: latency_json(latency) for name, latency in self.latencies.items()},
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
    model = pick_model(load_result(run), pick)
    if model.model_dir is not None:
        with atomic_folder(out) as folder:
            shutil.copytree(model.model_dir, folder, dirs_exist_ok=True)
        return Exported(model.key, out, model.trial.quality, {"model.onnx": model.trial.latency})
    return _export_anew(run, model, out, progress)


def _export_anew(run: RunDir, model: FoundModel, out: Path, progress: Progress) -> Exported:
    from nas.export.card import CardFacts, write_card
    from nas.export.export import export_model
    from supernet.checkpoint import load_supernet

    facts = run.read()
    request = SearchRequest.from_dict(facts.get("request"))
    loaded = load_supernet(request.supernet)
    if loaded.digest != facts.get("supernet"):
        raise InvalidInputError(f"the supernet in {loaded.folder} is not the one of {run.path}; restore it")
    known = {name: str(value) for name, value in loaded.training.items() if value is not None}
    card = CardFacts(
        quality=model.trial.quality,
        quality_name=str(facts.get("quality_name", "quality")),
        supernet=f"{loaded.folder.name} ({loaded.digest})",
        teacher=known.get("teacher"),
        license=known.get("license"),
        license_notes=known.get("license_notes"),
        command=f"nas export {run.path.name} --pick {model.key}",
    )
    progress.start(f"exporting {model.key}")
    report = export_model(_encoder(run, request, loaded, model), loaded.tokenizer_dir, out, facts=card)
    progress.finish()
    try:
        measurement = measure_model(
            out,
            device=request.device,
            budget_s=None,
            threads=request.threads,
            batch_size=request.batch_size,
            seq_len=request.seq_len,
            seconds_each=SECONDS_EACH,
            progress=progress,
        )
    except DeviceNotAvailableError:
        progress.note(f"{request.device} is not available here, so the exported files were not measured.")
        return Exported(model.key, out, model.trial.quality)
    latencies = {name: measurement.latencies[name] for name in MODEL_FILES if name in measurement.latencies}
    write_card(out, report, replace(card, latencies=latencies, device=measurement.description))
    return Exported(model.key, out, model.trial.quality, latencies)


def _encoder(run: RunDir, request: SearchRequest, loaded: "LoadedSupernet", model: FoundModel) -> "Encoder":
    from supernet.adapt import load_adapted
    from supernet.extract import extract

    weights = loaded.supernet if request.task is None else load_adapted(run.path / "adapted").supernet
    return extract(weights, model.trial.architecture)
