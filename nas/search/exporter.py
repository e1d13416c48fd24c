"""Models of a search as folders: cut from the supernet, exported, and described by a card."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.latency import Latency
from analysis.trial import Trial
from nas.export.card import CardFacts
from nas.export.export import export_model
from nas.rundir import RunDir
from nas.search.request import SearchRequest

if TYPE_CHECKING:
    from nas.export.card import ExportReport
    from supernet.adapt import AdaptedTask
    from supernet.checkpoint import LoadedSupernet
    from supernet.encoder import Encoder

#: Writes a model of a task that it has not learnt yet, so that it can be timed: encoder, task, tokenizer, folder.
WriteTaskModel = Callable[["Encoder", "AdaptedTask", Path, Path, CardFacts], "ExportReport"]


@dataclass(frozen=True)
class Exporter:
    """Exports models of one search.

    Attributes:
        run: The search's folder.
        request: What was asked.
        loaded: Its supernet.
        command: The command that makes the model, for its card.
        write_task_model: How a model is written where there is a task; None writes its encoder alone.
    """

    run: RunDir
    request: SearchRequest
    loaded: "LoadedSupernet"
    command: str
    write_task_model: WriteTaskModel | None = None

    def export(self, trial: Trial, folder: Path) -> "ExportReport":
        """Cuts a trial's model from the supernet and exports it into a folder, pooled as it was judged.

        Raises:
            InvalidInputError: The place is occupied or cannot be written, or the supernet is broken.
            ParityError: A file does not compute what the model computes.
        """
        from supernet.adapt import load_adapted
        from supernet.extract import extract
        from supernet.pooling import pooling_of

        tokenizer_dir, facts = self.loaded.tokenizer_dir, self.facts(trial)
        if self.request.task is None:
            encoder = extract(self.loaded.supernet, trial.architecture.shape)
            pooling = "first" if self.request.narrow else pooling_of(self.request.space or self.loaded.space)
            return export_model(encoder, tokenizer_dir, folder, facts=facts, pooling=pooling)
        adapted = load_adapted(self.run.path / "adapted")
        encoder = extract(adapted.supernet, trial.architecture.shape)
        if self.write_task_model is None:
            return export_model(encoder, tokenizer_dir, folder, facts=facts, pooling=adapted.pooling)
        return self.write_task_model(encoder, adapted, tokenizer_dir, folder, facts)

    def facts(
        self, trial: Trial, latencies: Mapping[str, Sequence[Latency]] | None = None, device: str | None = None
    ) -> CardFacts:
        """What the card shall say of a trial's model.

        Args:
            trial: What was found.
            latencies: By file name, where they are known.
            device: In words what they hold for.
        """
        known = {name: str(value) for name, value in self.loaded.training.items() if value is not None}
        name = str(self.run.read().get("quality_name", "quality"))
        if self.request.precisions:
            name += f", computed in {trial.architecture.precision}, which the search chose"
        return CardFacts(
            quality=trial.quality,
            quality_name=name,
            latencies=latencies or {},
            device=device,
            supernet=f"{self.loaded.folder.name} ({self.loaded.digest})",
            teacher=known.get("teacher"),
            license=known.get("license"),
            license_notes=known.get("license_notes"),
            command=self.command,
        )
