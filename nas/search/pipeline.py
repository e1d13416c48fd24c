"""The main job, end to end: supernet, predictors, search, finalists, and a model that is shown to meet its budgets."""

import functools
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from analysis.goal import Goal
from analysis.latency import Latency
from analysis.trial import Record, Trial
from nas.devices.carried import CarriedProfile
from nas.devices.resolve import resolve
from nas.devices.target import RUNTIMES
from nas.errors import InvalidInputError, NasError
from nas.export.card import write_card
from nas.progress import Progress
from nas.rundir import RunDir
from nas.search.best import BestSoFar
from nas.search.conclusion import Conclusion
from nas.search.exit_finals import TimeTaskExits, decide_exits, exit_timer
from nas.search.exit_policy import EXIT_QUALITY, exit_judge, prefix_space
from nas.search.exporter import Exporter, WriteTaskModel
from nas.search.finalists import Finals
from nas.search.objective import EvaluatorFactory, SearchProblem
from nas.search.optuna_engine import run_in_process
from nas.search.predictors import Predictor, measure_tails, predictor_file, predictor_for
from nas.search.prepared import Prepared
from nas.search.request import SearchRequest
from nas.search.result import SearchResult, assemble, kept_goals, load_result
from nas.search.sizes import model_file
from nas.search.steering import num_evaluations, prefix_latencies, problem_for
from nas.search.store import TrialStore
from search_spaces.precisions import shapes_of

if TYPE_CHECKING:
    from nas.export.card import ExportReport

INT8_SECONDS = 2.0

OfTasks = tuple[WriteTaskModel | None, TimeTaskExits | None]


def search(
    request: SearchRequest,
    progress: Progress,
    *,
    command: str,
    write_task_model: WriteTaskModel | None = None,
    time_exits: TimeTaskExits | None = None,
) -> SearchResult:
    """Searches, exports the best model that meets every budget and limit, and shows that it does.

    Args:
        request: What to search for. With ``resume`` all but ``num_evaluations`` comes from that run folder.
        progress: What is told about it.
        command: The command that asks for it, which the run folder keeps.
        write_task_model: How a model is written where there is a task; None writes its encoder alone.
        time_exits: How the layers of a model with exits are timed; needed where those are searched.

    Returns:
        What was found; its exit code is 0, 3 (nothing fits) or 5 (the measurements do not decide).

    Raises:
        InvalidInputError: The request, the supernet, the task, the store or the run folder breaks a law.
        DeviceNotAvailableError: A device, or the Ray cluster, is not there.
        InconclusiveMeasurementError: The measuring itself broke down.
        NasError: Every evaluation failed.
    """
    with _quiet_optuna():
        if request.resume is not None:
            return _resume(request.resume, request.num_evaluations, progress, command, (write_task_model, time_exits))
        request.check()
        prepared = Prepared.of(request)
        run = RunDir.create(
            request.run_dir,
            facts={
                "commands": [command],
                "request": request.to_dict(),
                "seed": request.seed,
                "goals": [goal.to_dict() for goal in prepared.goals],
                "supernet": prepared.loaded.digest,
            },
        )
        with run.locked():
            return _Search(request, prepared, run, progress, (write_task_model, time_exits)).run()


def _resume(
    folder: Path, num_evaluations: int | None, progress: Progress, command: str, of_tasks: OfTasks
) -> SearchResult:
    run = RunDir.open(folder)
    with run.locked():
        facts = run.read()
        request = SearchRequest.from_dict(facts.get("request"))
        goals = kept_goals(facts)
        run.add_command(command)
        if num_evaluations is not None and num_evaluations != request.num_evaluations:
            request = replace(request, num_evaluations=num_evaluations)
            request.check()
        elif "conclusion" in facts:
            return load_result(run)
        prepared = Prepared.of(request)
        for was, now in zip(goals, prepared.goals, strict=True):
            if was.conditions != now.conditions or was.profiled_at != now.profiled_at:
                raise InvalidInputError(
                    f"the device of {was.name} changed since {folder} began ({was.conditions}, now {now.conditions}); "
                    "start a new search"
                )
        if facts.get("supernet") != prepared.loaded.digest:
            raise InvalidInputError(
                f"the supernet of {folder} changed since it began ({facts.get('supernet')!r}, now "
                f"{prepared.loaded.digest!r}); start a new search"
            )
        return _Search(request, prepared, run, progress, of_tasks).run()


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna announces every study on stderr; our progress says what matters."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class _Search:
    """One search in its run folder; every step finds what an interrupted one left."""

    def __init__(
        self,
        request: SearchRequest,
        prepared: Prepared,
        run: RunDir,
        progress: Progress,
        of_tasks: OfTasks = (None, None),
    ) -> None:
        self.request, self.run_dir, self.progress = request, run, progress
        self.goals, self.devices, self.targets = prepared.goals, prepared.devices, prepared.targets
        self.loaded, self.shapes = prepared.loaded, shapes_of(prepared.space)
        self.prepared = prepared
        self.num_evaluations = num_evaluations(request, prepared.samplers)
        self.exporter = Exporter(run, request, prepared.loaded, request.command, of_tasks[0])
        self.time_exits = of_tasks[1]

    def run(self) -> SearchResult:
        for note in self.prepared.notes:
            self.progress.note(note)
        predictors = [
            {precision: self._predictor(place, precision) for precision in self.devices[place]}
            for place in range(len(self.goals))
        ]
        tails = self._tails(predictors)
        factory, quality_name = self._quality(predictors)
        self.run_dir.update(quality_name=quality_name)
        problem = problem_for(self.request, self.prepared, predictors, tails, factory, self.progress)
        with self._store(problem, quality_name) as store:
            if self.request.compare_samplers:
                self._compare(problem, quality_name, store)
            else:
                self._evaluate(problem, store)
            records = store.records()
        trials = [record for record in records if isinstance(record, Trial)]
        if not trials:
            raise NasError("no architecture could be evaluated, so there is nothing to choose from")
        limits, text = self.request.limits, self.loaded.text
        if self.request.exits is None:
            tools = (self._export, self.progress, tails, self.prepared.timed)
            conclusion = Finals(self.goals, limits, self.targets, text, *tools).decide(trials, self.run_dir.model_dir)
        else:
            timed = exit_timer(self.time_exits, self._adapted(), self.loaded.tokenizer_dir)
            conclusion = decide_exits(trials, factory(), self.goals[0], timed, self.progress)
        if conclusion.chosen is not None:
            chosen = next(trial for trial in trials if trial.key == conclusion.chosen)
            if self.request.exits is None:
                self._finish_card(chosen, conclusion)
            else:
                shutil.rmtree(self.run_dir.model_dir, ignore_errors=True)
                self._export(chosen, self.run_dir.model_dir)
        self.run_dir.update(conclusion=conclusion.to_dict())
        return assemble(self.run_dir, self.goals, limits, records, conclusion)

    def _predictor(self, place: int, precision: str) -> Predictor:
        path = predictor_file(self.run_dir.path, place, precision)
        goal, is_new = self.goals[place], not path.exists()
        predictor = predictor_for(
            goal,
            self.devices[place][precision],
            self.shapes if self.request.exits is None else prefix_space(self.shapes),
            self.loaded.text,
            path,
            is_table="assembly" in self.prepared.samplers,
            seed=self.request.seed,
            progress=self.progress,
        )
        if is_new:
            of = f" of {goal.name}" if len(self.goals) > 1 else ""
            of += f" in {precision}" if self.request.precisions else ""
            caveat = f" Latencies are {goal.caveat}." if goal.caveat else ""
            self.progress.note(f"Latency predictor{of}: {predictor.description}.{caveat}")
        return predictor

    def _tails(self, predictors: list[dict[str, Predictor]]) -> list[float]:
        kept = self.run_dir.read().get("tails")
        if isinstance(kept, list) and len(kept) == len(self.goals):
            return [float(tail) for tail in kept]
        tails = measure_tails(self.goals, self.targets, predictors, self.shapes, self.loaded.text, self.progress)
        self.run_dir.update(tails=tails)
        return tails

    def _quality(self, predictors: list[dict[str, Predictor]]) -> tuple[EvaluatorFactory, str]:
        """The evaluator's factory, and what the quality is called."""
        from supernet.adapt import quality_name
        from supernet.evaluate import TeacherAgreement, agreement_name, task_quality, teacher_agreement
        from supernet.pooling import pooling_of

        if self.request.exits is not None:
            predict = functools.partial(prefix_latencies, self.prepared, predictors)
            return exit_judge(self._adapted(), predict, self.request.exits, self.goals[0].budget_s), EXIT_QUALITY
        if self.prepared.head is not None:
            return functools.partial(task_quality, self._adapted()), quality_name(self.prepared.head.spec)
        pooling = pooling_of(self.shapes)
        if self.request.engine == "ray":
            return functools.partial(teacher_agreement, self.loaded.folder, pooling), agreement_name(pooling)
        return functools.partial(TeacherAgreement, self.loaded, pooling), agreement_name(pooling)

    def _adapted(self) -> Path:
        """The supernet adapted to the task, once; in the run folder."""
        from transformers import AutoTokenizer

        from supernet.adapt import AdaptConfig, adapt, task_to_adapt

        folder = self.run_dir.path / "adapted"
        if folder.exists():
            return folder
        assert self.request.task is not None
        config = AdaptConfig(seed=self.request.seed)
        tokenizer = AutoTokenizer.from_pretrained(self.loaded.tokenizer_dir)
        task = task_to_adapt(self.request.task, tokenizer, self.loaded.text, config, self.request.task_options)
        self.progress.start("adapting the supernet to the task", config.steps)
        adapt(
            self.loaded,
            task,
            folder,
            config,
            space=self.shapes,
            every_layer=self.request.exits is not None,
            on_step=lambda step, loss: self.progress.update(step, loss=round(loss, 3)),
        )
        self.progress.finish()
        return folder

    def _store(self, problem: SearchProblem, quality_name: str, sampler: str | None = None) -> TrialStore:
        """The run's store, or that of one of the samplers it compares: opened where it has one, else created."""
        request = self.request
        url = request.storage or self.run_dir.storage_url
        facts = {
            "goals": [goal.to_dict() for goal in self.goals],
            "supernet": self.loaded.digest,
            "space": problem.space.to_dict(),
            "quality": quality_name,
            "task": request.task,
            "sampler": sampler or ",".join(self.prepared.samplers),
            "seed": request.seed,
        }
        kept = self.run_dir.read()
        studies = dict(kept.get("studies", {}))
        name = kept.get("study_name") if sampler is None else studies.get(sampler)
        if name is not None:
            store = TrialStore.open(url, name)
            store.check_facts(facts)
            return store
        if request.storage is None and sampler is None:  # what a process left that was killed while it made the tables
            for rest in self.run_dir.path.glob(f"{self.run_dir.store.name}*"):
                rest.unlink()
        name = "-".join(filter(None, (self.run_dir.path.resolve().name, sampler, uuid.uuid4().hex[:8])))
        store = TrialStore.create(url, name, facts, goals=[goal.name for goal in self.goals])
        self.run_dir.update(**({"study_name": name} if sampler is None else {"studies": {**studies, sampler: name}}))
        return store

    def _compare(self, problem: SearchProblem, quality_name: str, store: TrialStore) -> None:
        """Runs every sampler that shall be compared; what they all evaluated goes into the run's store."""
        from nas.search.comparison import compare, write_comparison

        request = self.request
        found = compare(
            problem,
            self.prepared.samplers,
            lambda sampler: self._store(problem, quality_name, sampler),
            store,
            seed=request.seed,
            num_evaluations=self.num_evaluations,
            progress=self.progress,
        )
        self.run_dir.update(comparison=[outcome.to_dict() for outcome in found.outcomes])
        self.progress.note(f"The fronts of all samplers: {write_comparison(self.run_dir.path, found, quality_name)}")

    def _evaluate(self, problem: SearchProblem, store: TrialStore) -> None:
        """Runs the engine until enough architectures are evaluated, those of an interrupted run included."""
        request = self.request
        best = BestSoFar(problem)
        for record in store.records():
            best.see(record)

        def on_event(record: Record) -> None:
            best.see(record)
            self.progress.update(best.num_evaluated, **best.facts)

        arguments: dict[str, Any] = {
            "sampler": self.prepared.samplers[0],
            "seed": request.seed,
            "num_evaluations": self.num_evaluations,
            "on_event": on_event,
        }
        self.progress.start("searching", self.num_evaluations)
        if request.engine == "ray":
            from nas.search.tune_engine import run_on_ray

            ending = run_on_ray(problem, store, address=request.ray_address, **arguments)
        else:
            ending = run_in_process(problem, store, **arguments)
        note = " (nothing else fits)" if ending == "exhausted" else ""
        self.progress.finish(f"{best.num_evaluated} evaluated, {best.num_over_budget} left out as too slow{note}")

    def _export(self, trial: Trial, folder: Path) -> None:
        self._report: ExportReport = self.exporter.export(trial, folder)

    def _finish_card(self, chosen: Trial, conclusion: Conclusion) -> None:
        """Times the int8 file too, where the float one was asked for, and writes all latencies into the model card."""
        latencies: dict[str, list[Latency]] = {}
        pairs = zip(self.goals, conclusion.measured[chosen.key], chosen.latencies, strict=True)
        for place, (goal, found, prediction) in enumerate(pairs):
            latencies.setdefault(model_file(prediction.conditions), []).append(found or prediction)
            is_fp32, runtime = prediction.conditions.precision == "fp32", self.request.goals[place].settings.runtime
            if goal.is_measurable and is_fp32 and "int8" in RUNTIMES[runtime]:
                latencies.setdefault(self._report.int8_path.name, []).append(self._measure_int8(place))
        described = "; ".join(dict.fromkeys(_described(goal) for goal in self.goals))
        write_card(self.run_dir.model_dir, self._report, self.exporter.facts(chosen, latencies, described))

    def _measure_int8(self, place: int) -> Latency:
        asked, name = self.request.goals[place], self._report.int8_path.name
        target = resolve(asked.device, replace(asked.settings, precision="int8"))
        assert not isinstance(target, CarriedProfile)  # the same name with other settings
        on = f" on {self.goals[place].name}" if len(self.goals) > 1 else ""
        self.progress.start(f"measuring the int8 file{on}")
        int8 = target.measure({name: self._report.int8_path}, seconds_each=INT8_SECONDS, attempts=1)[name]
        self.progress.finish(f"{int8.p50_s * 1e3:.2f} ms, {int8.verdict}")
        return int8


def _described(goal: Goal) -> str:
    if not goal.caveat:
        return goal.description
    return f"{goal.description}, not measured; run nas measure on this folder there"
