"""What a search answers: put together from the run folder and the store, as JSON, and read back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.goal import Goal, Limits, Standing, standings
from analysis.latency import Latency
from analysis.pareto import pareto_front
from analysis.trial import Record, Trial
from nas.errors import InvalidInputError
from nas.measurement import latency_json
from nas.rundir import RunDir
from nas.search.conclusion import Conclusion, Latencies
from nas.search.outcome import SamplerOutcome
from nas.search.request import SearchRequest
from nas.search.sizes import model_file


@dataclass(frozen=True)
class FoundModel:
    """A model of a front.

    Attributes:
        trial: What was evaluated, with the best latencies known: measured where they were, else predicted.
        model_dir: Where it is exported; None where it is not.
        size_bytes: Of its model file; None where it was not exported.
    """

    trial: Trial
    model_dir: Path | None = None
    size_bytes: int | None = None

    @property
    def key(self) -> str:
        """The architecture's stable name."""
        return self.trial.key

    @property
    def precision(self) -> str:
        """The number format in which it runs, on the first goal."""
        return self.trial.latency.conditions.precision

    @property
    def file(self) -> str:
        """The file of an exported folder that runs so."""
        return model_file(self.trial.latency.conditions)

    def to_dict(self, goals: Sequence[Goal]) -> dict[str, Any]:
        """What ``--json`` prints of a model; its latencies by goal where there are several."""
        trial = self.trial
        latencies = {goal.name: latency_json(one) for goal, one in zip(goals, trial.latencies, strict=True)}
        return {
            "key": trial.key,
            "architecture": trial.architecture.to_dict(),
            "quality": trial.quality,
            "precision": self.precision,
            "file": self.file,
            "latency": latency_json(trial.latency),
            **({"latencies": latencies} if len(goals) > 1 else {}),
            "num_parameters": trial.num_parameters,
            "num_macs": trial.num_macs,
            "size_mb": None if self.size_bytes is None else self.size_bytes / 1e6,
            "model_dir": None if self.model_dir is None else str(self.model_dir),
        }


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        run: The run folder.
        goals: What was asked, one for each latency of a trial.
        limits: What was asked beside time.
        quality_name: What the quality is.
        exit_code: 0 done, 3 nothing fits, 5 cannot be decided.
        chosen: The exported model, shown to keep to everything; None where none does.
        closest: The nearest model where none is chosen.
        fronts: For each goal its Pareto front by rising latency; holds the chosen model.
        records: All that the search came to, in order.
        measured: Measured latencies by architecture key.
        sizes: Bytes of model files by architecture key.
        is_finished: Whether the search came to its end.
        comparison: How each sampler did, where several were compared.
        exits: What the model with exits does and takes: ``bound``, ``folder``, ``confidence``, ``shares``,
            ``accuracy``, ``expected_ms``, ``worst_ms`` ...; None where there are none, or none have been taught yet.
        precisions: What the precision was chosen from; empty where it was not searched.
        task_model: What the chosen model learnt of a task: ``split``, ``scores``, ``teacher``, ``teacher_scores``; None
            where there was none, or it has not been learnt yet.
    """

    run: Path
    goals: tuple[Goal, ...]
    quality_name: str
    exit_code: int
    chosen: FoundModel | None
    closest: FoundModel | None
    fronts: tuple[tuple[FoundModel, ...], ...]
    records: tuple[Record, ...]
    measured: Mapping[str, Latencies]
    limits: Limits = field(default_factory=Limits)
    sizes: Mapping[str, int] = field(default_factory=dict)
    is_finished: bool = True
    comparison: tuple[SamplerOutcome, ...] = ()
    precisions: tuple[str, ...] = ()
    exits: Mapping[str, Any] | None = None
    task_model: Mapping[str, Any] | None = None

    @property
    def front(self) -> tuple[FoundModel, ...]:
        """The models of all fronts, each once, by rising latency on the first goal."""
        models = {model.key: model for front in self.fronts for model in front}
        return tuple(sorted(models.values(), key=lambda model: model.trial.latency.p50_s))

    @property
    def trials(self) -> list[Trial]:
        """The evaluated architectures in order, each with the best latencies known."""
        return [_best_known(record, self.measured) for record in self.records if isinstance(record, Trial)]

    def predictions(self, goal: int) -> dict[str, Latency]:
        """What had been predicted of the architectures that were measured on a goal, by key."""
        trials = (record for record in self.records if isinstance(record, Trial))
        return {
            trial.key: trial.latencies[goal]
            for trial in trials
            if trial.key in self.measured and self.measured[trial.key][goal] is not None
        }

    def standings(self, model: FoundModel) -> list[Standing]:
        """How a model stands to everything that was asked."""
        return standings(self.goals, self.limits, model.trial.latencies, self.sizes.get(model.key))

    def to_dict(self) -> dict[str, Any]:
        """What ``nas search --json`` prints; ``device`` and ``budget_ms`` are those of the first goal."""
        data = {
            "run": str(self.run),
            "device": self.goals[0].conditions.device,
            "budget_ms": _ms(self.goals[0].budget_s),
            "goals": [self._goal_dict(place) for place in range(len(self.goals))],
            "exit_code": self.exit_code,
            "chosen": None if self.chosen is None else self.chosen.to_dict(self.goals),
            "front": [model.to_dict(self.goals) for model in self.front],
        }
        if self.task_model is not None:
            data["task_model"] = dict(self.task_model)
        if self.exits is not None:
            data["exits"] = dict(self.exits)
        if self.comparison:
            data["comparison"] = [outcome.to_dict() for outcome in self.comparison]
        if self.chosen is None:
            data["closest"] = None if self.closest is None else self.closest.to_dict(self.goals)
        model = self.chosen or self.closest
        data["standings"] = (
            []
            if model is None
            else [
                {"what": one.what, "state": one.state, "share": one.share, "said": one.said}
                for one in self.standings(model)
            ]
        )
        return data

    def _goal_dict(self, place: int) -> dict[str, Any]:
        goal = self.goals[place]
        return {
            "name": goal.name,
            "device": goal.conditions.device,
            "description": goal.description,
            "runtime": goal.conditions.runtime,
            "precision": ",".join(self.precisions) or goal.conditions.precision,
            "threads": goal.conditions.threads,
            "batch_size": goal.conditions.batch_size,
            "seq_len": goal.conditions.seq_len,
            "budget_ms": _ms(goal.budget_s),
            "percentile": goal.percentile,
            "source": "measured" if goal.is_measurable else "predicted",
            "note": goal.caveat,
            "front": [model.key for model in self.fronts[place]],
        }


def load_result(run: RunDir) -> SearchResult:
    """Reads what a search found so far, finished or not.

    Raises:
        InvalidInputError: The run folder or its store is missing, broken, or not of a search.
    """
    from nas.search.store import TrialStore

    facts = run.read()
    request = SearchRequest.from_dict(facts.get("request"))
    if "study_name" not in facts:
        raise InvalidInputError(f"{run.path} holds no trials yet; continue it with nas search --resume {run.path}")
    with TrialStore.open(request.storage or run.storage_url, facts["study_name"]) as store:
        records = store.records()
        num_goals = store.num_goals
    goals = kept_goals(facts)
    if num_goals != len(goals):
        raise InvalidInputError(f"{run.path} has {len(goals)} goals and its trials {num_goals}; start the search anew")
    conclusion = facts.get("conclusion")
    return assemble(
        run, goals, request.limits, records, None if conclusion is None else Conclusion.from_dict(conclusion, num_goals)
    )


def kept_goals(facts: Mapping[str, Any]) -> tuple[Goal, ...]:
    """The goals that a run folder keeps.

    Raises:
        InvalidInputError: They are not there, or broken.
    """
    goals = facts.get("goals")
    if not isinstance(goals, list) or not goals:
        raise InvalidInputError("the run folder does not say what its goals are; start the search anew")
    return tuple(map(Goal.from_dict, goals))


def assemble(
    run: RunDir, goals: Sequence[Goal], limits: Limits, records: list[Record], conclusion: Conclusion | None
) -> SearchResult:
    """Puts a result together from what the run folder and the store hold."""
    facts = run.read()
    trials = [record for record in records if isinstance(record, Trial)]
    measured = {} if conclusion is None else conclusion.measured
    sizes = {} if conclusion is None else conclusion.sizes

    def model(trial: Trial) -> FoundModel:
        is_exported = conclusion is not None and conclusion.chosen == trial.key and run.model_dir.is_dir()
        model_dir = run.model_dir if is_exported else None
        return FoundModel(_best_known(trial, measured), model_dir, sizes.get(trial.key))

    by_key = {trial.key: trial for trial in trials}

    def named(key: str | None) -> FoundModel | None:
        return model(by_key[key]) if key in by_key else None

    chosen, closest = (None, None) if conclusion is None else (named(conclusion.chosen), named(conclusion.closest))

    def front_of(place: int) -> tuple[FoundModel, ...]:
        front = pareto_front(trials, place)  # by predictions, which are alike for all; measurements replace them then
        if chosen is not None and chosen.key not in {trial.key for trial in front}:
            front.append(by_key[chosen.key])
        return tuple(sorted(map(model, front), key=lambda found: found.trial.latencies[place].p50_s))

    return SearchResult(
        run=run.path,
        goals=tuple(goals),
        quality_name=str(facts.get("quality_name", "quality")),
        exit_code=0 if conclusion is None else conclusion.exit_code,
        chosen=chosen,
        closest=closest,
        fronts=tuple(map(front_of, range(len(goals)))),
        records=tuple(records),
        measured=measured,
        limits=limits,
        sizes=sizes,
        is_finished=conclusion is not None,
        comparison=tuple(map(SamplerOutcome.from_dict, facts.get("comparison", []))),
        precisions=tuple(facts["request"]["precisions"]),
        task_model=facts.get("task_model"),
        exits=facts.get("exits"),
    )


def _best_known(trial: Trial, measured: Mapping[str, Latencies]) -> Trial:
    found = measured.get(trial.key)
    if found is None:
        return trial
    pairs = zip(found, trial.latencies, strict=True)
    return replace(trial, latencies=tuple(prediction if one is None else one for one, prediction in pairs))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
