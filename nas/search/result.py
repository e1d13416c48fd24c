"""What a search is asked, and what it answers: both can be written to the run folder and read back."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from analysis.latency import Latency
from analysis.pareto import pareto_front
from analysis.trial import Record, Trial
from nas.config import check_bounds
from nas.errors import InvalidInputError, unknown_name
from nas.measurement import latency_json
from nas.rundir import RunDir
from search_spaces.architecture import Architecture
from search_spaces.space import SearchSpace

ENGINES = ("inprocess", "ray")


@dataclass(frozen=True)
class SearchRequest:
    """What to search for, where and how.

    Attributes:
        budget_s: The longest latency allowed; None for the whole front.
        device: The target's name.
        supernet: Folder of the supernet; None for the one that ships.
        space: The part of the supernet's space to search; None for all of it.
        sampler: A key of ``SAMPLERS``.
        engine: ``inprocess`` or ``ray``.
        ray_address: The cluster for the ``ray`` engine; None for a local one.
        seed: Of all randomness.
        num_evaluations: Architectures to evaluate; 80 where None.
        threads: Threads of the runtime that the model shall run in.
        batch_size: Texts at a time.
        seq_len: Tokens a text.
        task: File or hub id of a labelled task to judge quality by; None for agreement with the teacher.
        run_dir: Folder for the search; None for a new one under ``runs/``.
        storage: Database for the trials as a URL; None for SQLite in the run folder.
        resume: Run folder to continue; everything but ``num_evaluations`` then comes from there.
    """

    budget_s: float | None = None
    device: str = "cpu"
    supernet: Path | None = None
    space: SearchSpace | None = None
    sampler: str = "tpe"
    engine: str = "inprocess"
    ray_address: str | None = None
    seed: int = 0
    num_evaluations: int | None = None
    threads: int = 1
    batch_size: int = 1
    seq_len: int = 128
    task: str | None = None
    run_dir: Path | None = None
    storage: str | None = None
    resume: Path | None = None

    def check(self) -> None:
        """Checks every number and name.

        Raises:
            InvalidInputError: One breaks its law.
        """
        from nas.search.samplers import check_sampler

        check_bounds(
            latency_ms=None if self.budget_s is None else self.budget_s * 1e3,
            seed=self.seed,
            evaluations=self.num_evaluations,
            threads=self.threads,
            batch_size=self.batch_size,
            seq_len=self.seq_len,
        )
        check_sampler(self.sampler)
        if self.engine not in ENGINES:
            raise unknown_name("engine", self.engine, ENGINES)
        if self.ray_address is not None and self.engine != "ray":
            raise InvalidInputError("a Ray address needs the engine 'ray'; add --engine ray or leave the address out")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form without the folders of the run itself; :meth:`from_dict` reads it."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("run_dir", "resume")}
        data["supernet"] = None if self.supernet is None else str(self.supernet.resolve())
        data["space"] = None if self.space is None else self.space.to_dict()
        return data

    @classmethod
    def from_dict(cls, data: object) -> "SearchRequest":
        """Reads :meth:`to_dict`'s form.

        Raises:
            InvalidInputError: A field is missing, unknown or breaks its law.
        """
        names = {f.name for f in fields(cls)} - {"run_dir", "resume"}
        if not isinstance(data, dict) or set(data) != names:
            raise InvalidInputError("the run folder does not say what was searched for; start the search anew")
        supernet, space = data["supernet"], data["space"]
        request = cls(
            **{
                **data,
                "supernet": None if supernet is None else Path(str(supernet)),
                "space": None if space is None else SearchSpace.from_dict(space),
            }
        )
        request.check()
        return request


@dataclass(frozen=True)
class FoundModel:
    """A model of the front.

    Attributes:
        trial: What was evaluated, with the best latency known: measured where it was, else predicted.
        model_dir: Where it is exported; None where it is not.
        predicted: What had been predicted, where the latency was measured.
    """

    trial: Trial
    model_dir: Path | None = None
    predicted: Latency | None = None

    @property
    def key(self) -> str:
        """The architecture's stable name."""
        return self.trial.key

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints of a model."""
        trial = self.trial
        return {
            "key": trial.key,
            "architecture": trial.architecture.to_dict(),
            "quality": trial.quality,
            "latency": latency_json(trial.latency),
            "num_parameters": trial.num_parameters,
            "num_macs": trial.num_macs,
            "model_dir": None if self.model_dir is None else str(self.model_dir),
        }


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        run: The run folder.
        device: The target's name.
        description: The target in words.
        quality_name: What the quality is.
        budget_s: The budget, or None.
        exit_code: 0 done, 3 nothing fits, 5 cannot be decided.
        chosen: The exported model, shown to meet the budget; None where none does.
        closest: The nearest model where none is chosen.
        front: The Pareto front by rising latency; holds the chosen model.
        records: All that the search came to, in order.
        measured: Measured latencies by architecture key.
        is_finished: Whether the search came to its end.
    """

    run: Path
    device: str
    description: str
    quality_name: str
    budget_s: float | None
    exit_code: int
    chosen: FoundModel | None
    closest: FoundModel | None
    front: tuple[FoundModel, ...]
    records: tuple[Record, ...]
    measured: Mapping[str, Latency]
    is_finished: bool = True

    @property
    def trials(self) -> list[Trial]:
        """The evaluated architectures in order, each with the best latency known."""
        return [
            replace(record, latency=self.measured.get(record.key, record.latency))
            for record in self.records
            if isinstance(record, Trial)
        ]

    @property
    def predictions(self) -> dict[str, Latency]:
        """What had been predicted of the measured architectures, by key."""
        trials = (record for record in self.records if isinstance(record, Trial))
        return {trial.key: trial.latency for trial in trials if trial.key in self.measured}

    def to_dict(self) -> dict[str, Any]:
        """What ``nas search --json`` prints."""
        data = {
            "run": str(self.run),
            "device": self.device,
            "budget_ms": None if self.budget_s is None else self.budget_s * 1e3,
            "exit_code": self.exit_code,
            "chosen": None if self.chosen is None else self.chosen.to_dict(),
            "front": [model.to_dict() for model in self.front],
        }
        if self.chosen is None:
            data["closest"] = None if self.closest is None else self.closest.to_dict()
        return data


@dataclass(frozen=True)
class Conclusion:
    """How a finished search ended, as ``run.json`` keeps it.

    Attributes:
        exit_code: 0 done, 3 nothing fits, 5 cannot be decided.
        chosen: The chosen architecture's key.
        closest: The key of the nearest one where none is chosen.
        measured: Measured latencies by architecture key.
    """

    exit_code: int
    chosen: str | None
    closest: str | None
    measured: Mapping[str, Latency]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "exit_code": self.exit_code,
            "chosen": self.chosen,
            "closest": self.closest,
            "measured": {key: latency.to_dict() for key, latency in self.measured.items()},
        }

    @classmethod
    def from_dict(cls, data: object) -> "Conclusion":
        """Reads :meth:`to_dict`'s form; raises InvalidInputError where it is not one."""
        if not isinstance(data, dict) or set(data) != {f.name for f in fields(cls)}:
            raise InvalidInputError("the run folder's conclusion is broken; resume the search")
        measured = data["measured"]
        if not isinstance(measured, dict) or data["exit_code"] not in (0, 3, 5):
            raise InvalidInputError("the run folder's conclusion is broken; resume the search")
        return cls(
            data["exit_code"],
            data["chosen"],
            data["closest"],
            {str(key): Latency.from_dict(latency) for key, latency in measured.items()},
        )


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
    conclusion = facts.get("conclusion")
    return assemble(run, request, records, None if conclusion is None else Conclusion.from_dict(conclusion))


def assemble(run: RunDir, request: SearchRequest, records: list[Record], conclusion: Conclusion | None) -> SearchResult:
    """Puts a result together from what the run folder and the store hold."""
    facts = run.read()
    trials = [record for record in records if isinstance(record, Trial)]
    measured = {} if conclusion is None else conclusion.measured

    def model(trial: Trial) -> FoundModel:
        found = measured.get(trial.key)
        is_exported = conclusion is not None and conclusion.chosen == trial.key and run.model_dir.is_dir()
        model_dir = run.model_dir if is_exported else None
        if found is None:
            return FoundModel(trial, model_dir)
        return FoundModel(replace(trial, latency=found), model_dir, trial.latency)

    by_key = {trial.key: trial for trial in trials}

    def named(key: str | None) -> FoundModel | None:
        return model(by_key[key]) if key in by_key else None

    chosen, closest = (None, None) if conclusion is None else (named(conclusion.chosen), named(conclusion.closest))
    front = pareto_front(trials)  # by predictions, which are alike for all; measurements replace them only then
    if chosen is not None and chosen.key not in {trial.key for trial in front}:
        front.append(by_key[chosen.key])
    models = sorted(map(model, front), key=lambda found: found.trial.latency.p50_s)
    return SearchResult(
        run=run.path,
        device=request.device,
        description=str(facts.get("description", request.device)),
        quality_name=str(facts.get("quality_name", "quality")),
        budget_s=request.budget_s,
        exit_code=0 if conclusion is None else conclusion.exit_code,
        chosen=chosen,
        closest=closest,
        front=tuple(models),
        records=tuple(records),
        measured=measured,
        is_finished=conclusion is not None,
    )


def find_architecture(result: SearchResult, key: str) -> Architecture:
    """The architecture of a key among the evaluated ones.

    Raises:
        InvalidInputError: There is none; the text suggests the nearest.
    """
    known = {trial.key: trial.architecture for trial in result.trials}
    if key not in known:
        raise unknown_name("model", key, [model.key for model in result.front])
    return known[key]
