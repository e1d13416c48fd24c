"""The main job, end to end: supernet, predictor, search, finalists, and a model that is shown to meet its budget."""

import functools
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from analysis.trial import OverBudgetTrial, Record, Trial
from nas.config import cache_dir
from nas.devices.predictor import LatencyPredictor
from nas.devices.profile import load_or_measure
from nas.devices.resolve import resolve
from nas.devices.target import Target
from nas.errors import InfeasibleBudgetError, InvalidInputError, NasError
from nas.export.card import CardFacts, write_card
from nas.export.export import export_model
from nas.progress import Progress
from nas.rundir import RunDir
from nas.search.finalists import Finals
from nas.search.objective import EvaluatorFactory, SearchProblem
from nas.search.optuna_engine import run_in_process
from nas.search.result import Conclusion, SearchRequest, SearchResult, assemble, load_result
from nas.search.store import TrialStore
from search_spaces.files import write_atomic
from search_spaces.space import DIMENSIONS, SearchSpace

if TYPE_CHECKING:
    from nas.export.card import ExportReport
    from supernet.checkpoint import LoadedSupernet

#: Without a number of evaluations. Not as many as some seconds allow: the same seed shall give the same search.
DEFAULT_EVALUATIONS = 80
INT8_SECONDS = 2.0


def search(request: SearchRequest, progress: Progress) -> SearchResult:
    """Searches, exports the best model that meets the budget, and shows that it does.

    Args:
        request: What to search for. With ``resume`` all but ``num_evaluations`` comes from that run folder.
        progress: What is told about it.

    Returns:
        What was found; its exit code is 0, 3 (nothing fits) or 5 (the measurements do not decide).

    Raises:
        InvalidInputError: The request, the supernet, the task, the store or the run folder breaks a law.
        DeviceNotAvailableError: The device, or the Ray cluster, is not there.
        InconclusiveMeasurementError: The measuring itself broke down.
        NasError: Every evaluation failed.
    """
    with _quiet_optuna():
        if request.resume is not None:
            return _resume(request.resume, request.num_evaluations, progress)
        request.check()
        prepared = _Prepared.of(request)
        run = RunDir.create(
            request.run_dir,
            facts={
                "request": request.to_dict(),
                "seed": request.seed,
                "description": prepared.target.description,
                "conditions": asdict(prepared.target.conditions),
                "supernet": prepared.loaded.digest,
            },
        )
        with run.locked():
            return _Search(request, prepared, run, progress).run()


def _resume(folder: Path, num_evaluations: int | None, progress: Progress) -> SearchResult:
    run = RunDir.open(folder)
    with run.locked():
        facts = run.read()
        request = SearchRequest.from_dict(facts.get("request"))
        if num_evaluations is not None and num_evaluations != request.num_evaluations:
            request = replace(request, num_evaluations=num_evaluations)
            request.check()
        elif "conclusion" in facts:
            return load_result(run)
        prepared = _Prepared.of(request)
        for name, now in (
            ("conditions", asdict(prepared.target.conditions)),
            ("supernet", prepared.loaded.digest),
        ):
            if facts.get(name) != now:
                raise InvalidInputError(
                    f"the {name} of {folder} changed since it began ({facts.get(name)!r}, now {now!r}); "
                    "start a new search"
                )
        return _Search(request, prepared, run, progress).run()


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna announces every study on stderr; our progress says what matters."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@dataclass(frozen=True)
class _Prepared:
    """What a request names, found and checked, before anything is written."""

    target: Target
    loaded: "LoadedSupernet"
    space: SearchSpace

    @classmethod
    def of(cls, request: SearchRequest) -> "_Prepared":
        target = resolve(
            request.device, threads=request.threads, batch_size=request.batch_size, seq_len=request.seq_len
        )
        from supernet.checkpoint import load_supernet

        loaded = load_supernet(request.supernet)
        if request.task is None and loaded.reference is None:
            raise InvalidInputError(
                f"the supernet in {loaded.folder} was trained without a teacher, so agreement with it is unknown; "
                "search with --task FILE_OR_ID instead"
            )
        if request.seq_len > loaded.text.max_positions:
            raise InvalidInputError(
                f"seq_len must be at most {loaded.text.max_positions}, the longest text of this supernet, "
                f"got {request.seq_len}"
            )
        space = loaded.space if request.space is None else request.space
        _check_within(space, loaded.space)
        return cls(target, loaded, space)


def _check_within(space: SearchSpace, whole: SearchSpace) -> None:
    """Checks that a space holds only what a supernet holds, by its extremes and each choice beside the smallest."""
    smallest = space.smallest()
    shapes = [smallest, space.largest()]
    for name, choices in space.dimensions.items():
        shapes += [space.build({**space.values(smallest), name: choice}) for choice in choices]
    for shape in shapes:
        if shape not in whole:
            listed = {name: getattr(whole, name) for name in DIMENSIONS}
            raise InvalidInputError(
                f"the space {space.name!r} holds {shape.key()}, which the supernet does not ({listed}); "
                "narrow the space or train a supernet for it"
            )


class _Search:
    """One search in its run folder; every step finds what an interrupted one left."""

    def __init__(self, request: SearchRequest, prepared: _Prepared, run: RunDir, progress: Progress) -> None:
        self.request, self.run_dir, self.progress = request, run, progress
        self.target, self.loaded, self.space = prepared.target, prepared.loaded, prepared.space

    def run(self) -> SearchResult:
        predictor = self._predictor()
        factory, quality_name = self._quality()
        self.run_dir.update(quality_name=quality_name)
        problem = self._problem(predictor, factory)
        with self._store(problem, quality_name) as store:
            self._evaluate(problem, store)
            records = store.records()
        trials = [record for record in records if isinstance(record, Trial)]
        if not trials:
            raise NasError("no architecture could be evaluated, so there is nothing to choose from")
        finals = Finals(self.target, self.loaded.text, self.request.budget_s, self._export, self.progress)
        conclusion = finals.decide(trials, self.run_dir.model_dir)
        if conclusion.chosen is not None:
            chosen = next(trial for trial in trials if trial.key == conclusion.chosen)
            self._finish_card(chosen, conclusion)
        self.run_dir.update(conclusion=conclusion.to_dict())
        return assemble(self.run_dir, self.request, records, conclusion)

    def _predictor(self) -> LatencyPredictor:
        """The latency predictor; kept in the run folder, so that a resumed search is steered by the same one."""
        path = self.run_dir.path / "predictor.json"
        if path.exists():
            try:
                return LatencyPredictor.from_dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                raise InvalidInputError(f"{path} is broken ({error}); start a new search") from error
        predictor = load_or_measure(
            self.target,
            self.space,
            self.loaded.text,
            cache_dir=cache_dir(),
            seed=self.request.seed,
            progress=self.progress,
        )
        write_atomic(path, json.dumps(predictor.to_dict()))
        held_out = predictor.error
        self.progress.note(
            f"Latency predictor: {held_out.num_samples} shapes, median error {held_out.median:.1%} on shapes left out."
        )
        return predictor

    def _quality(self) -> tuple[EvaluatorFactory, str]:
        """The evaluator's factory, and what the quality is called."""
        from supernet.evaluate import TaskAccuracy, TeacherAgreement, task_accuracy, teacher_agreement

        if self.request.task is not None:
            return functools.partial(task_accuracy, self._adapted()), TaskAccuracy.name
        if self.request.engine == "ray":
            return functools.partial(teacher_agreement, self.loaded.folder), TeacherAgreement.name
        return functools.partial(TeacherAgreement, self.loaded), TeacherAgreement.name

    def _adapted(self) -> Path:
        """The supernet adapted to the task, once; in the run folder."""
        from transformers import AutoTokenizer

        from supernet.adapt import AdaptConfig, adapt, load_task

        folder = self.run_dir.path / "adapted"
        if folder.exists():
            return folder
        assert self.request.task is not None
        config = AdaptConfig(seed=self.request.seed)
        tokenizer = AutoTokenizer.from_pretrained(self.loaded.tokenizer_dir)
        task = load_task(self.request.task, tokenizer, config)
        self.progress.start("adapting the supernet to the task", config.steps)
        adapt(
            self.loaded,
            task,
            folder,
            config,
            space=self.space,
            on_step=lambda step, loss: self.progress.update(step, loss=round(loss, 3)),
        )
        self.progress.finish()
        return folder

    def _problem(self, predictor: LatencyPredictor, factory: EvaluatorFactory) -> SearchProblem:
        """The problem within its budget; where even the smallest shape seems too slow, that shape alone."""
        problem = SearchProblem(
            self.space, self.loaded.text, functools.cache(predictor.predict), factory, self.request.budget_s
        )
        try:
            return problem.restricted()
        except InfeasibleBudgetError as error:
            self.progress.note(f"{error} It is measured all the same.")
            smallest = self.space.values(self.space.smallest())
            choices = {name: value or "hidden" for name, value in smallest.items()}
            alone = SearchSpace.from_dict({**self.space.to_dict(), **choices})
            return replace(problem, space=alone, budget_s=None)

    def _store(self, problem: SearchProblem, quality_name: str) -> TrialStore:
        """The store: opened where the run has one, else created."""
        request = self.request
        url = request.storage or self.run_dir.storage_url
        facts = {
            "device": asdict(self.target.conditions),
            "supernet": self.loaded.digest,
            "space": problem.space.to_dict(),
            "budget_s": request.budget_s,
            "quality": quality_name,
            "task": request.task,
            "sampler": request.sampler,
            "seed": request.seed,
        }
        name = self.run_dir.read().get("study_name")
        if name is not None:
            store = TrialStore.open(url, name)
            store.check_facts(facts)
            return store
        if request.storage is None:  # what a process left that was killed while it made the tables
            for rest in self.run_dir.path.glob(f"{self.run_dir.store.name}*"):
                rest.unlink()
        name = f"{self.run_dir.path.resolve().name}-{uuid.uuid4().hex[:8]}"
        store = TrialStore.create(url, name, facts)
        self.run_dir.update(study_name=name)
        return store

    def _evaluate(self, problem: SearchProblem, store: TrialStore) -> None:
        """Runs the engine until enough architectures are evaluated, those of an interrupted run included."""
        request = self.request
        num_evaluations = request.num_evaluations or DEFAULT_EVALUATIONS
        best = _Best(request.budget_s)
        for record in store.records():
            best.see(record)

        def on_event(record: Record) -> None:
            best.see(record)
            self.progress.update(best.num_evaluated, **best.facts)

        arguments: dict[str, Any] = {
            "sampler": request.sampler,
            "seed": request.seed,
            "num_evaluations": num_evaluations,
            "on_event": on_event,
        }
        self.progress.start("searching", num_evaluations)
        if request.engine == "ray":
            from nas.search.tune_engine import run_on_ray

            ending = run_on_ray(problem, store, address=request.ray_address, **arguments)
        else:
            ending = run_in_process(problem, store, **arguments)
        note = " (nothing else fits)" if ending == "exhausted" else ""
        self.progress.finish(f"{best.num_evaluated} evaluated, {best.num_over_budget} left out as too slow{note}")

    def _export(self, trial: Trial, folder: Path) -> Path:
        self._report = self._export_trial(trial, folder)
        return self._report.onnx_path

    def _export_trial(self, trial: Trial, folder: Path) -> "ExportReport":
        from supernet.extract import extract

        weights = self.loaded.supernet
        if self.request.task is not None:
            from supernet.adapt import load_adapted

            weights = load_adapted(self.run_dir.path / "adapted").supernet
        encoder = extract(weights, trial.architecture)
        return export_model(encoder, self.loaded.tokenizer_dir, folder, facts=self._card_facts(trial))

    def _finish_card(self, chosen: Trial, conclusion: Conclusion) -> None:
        """Times the int8 file too and writes both latencies into the model card."""
        request = self.request
        target = resolve(
            request.device,
            threads=request.threads,
            batch_size=request.batch_size,
            seq_len=request.seq_len,
            precision="int8",
        )
        self.progress.start("measuring the int8 file")
        name = "model.int8.onnx"
        int8 = target.measure([(name, self._report.int8_path)], seconds_each=INT8_SECONDS, attempts=1)[name]
        self.progress.finish(f"{int8.p50_s * 1e3:.2f} ms, {int8.verdict}")
        latencies = {"model.onnx": conclusion.measured[chosen.key], name: int8}
        facts = replace(self._card_facts(chosen), latencies=latencies)
        write_card(self.run_dir.model_dir, self._report, facts)

    def _card_facts(self, trial: Trial) -> CardFacts:
        known = {name: str(value) for name, value in self.loaded.training.items() if value is not None}
        return CardFacts(
            quality=trial.quality,
            quality_name=str(self.run_dir.read().get("quality_name", "quality")),
            device=self.target.description,
            supernet=f"{self.loaded.folder.name} ({self.loaded.digest})",
            teacher=known.get("teacher"),
            license=known.get("license"),
            license_notes=known.get("license_notes"),
            command=_command(self.request),
        )


@dataclass
class _Best:
    """What a person wants to see while the search runs."""

    budget_s: float | None
    num_evaluated: int = 0
    num_over_budget: int = 0
    best: Trial | None = None

    def see(self, record: Record) -> None:
        if isinstance(record, OverBudgetTrial):
            self.num_over_budget += 1
            return
        self.num_evaluated += 1
        if not isinstance(record, Trial):
            return
        fits = self.budget_s is None or record.latency.p50_s <= self.budget_s
        if fits and (self.best is None or record.quality > self.best.quality):
            self.best = record

    @property
    def facts(self) -> dict[str, str | float]:
        if self.best is None:
            return {}
        best = self.best
        return {"best": best.key, "quality": round(best.quality, 4), "ms": round(best.latency.p50_s * 1e3, 2)}


def _command(request: SearchRequest) -> str:
    budget = "" if request.budget_s is None else f" --latency-ms {request.budget_s * 1e3:g}"
    return f"nas search{budget} --device {request.device} --seed {request.seed}"
