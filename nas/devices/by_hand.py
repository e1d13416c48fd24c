"""Profiles a machine that nothing can reach: the job is carried there with the runner, and the answers back.

A transport like the others, only that days may pass between the job and its answers. The folder that is carried holds
``runner.py`` and ``job``, whose first line also tells the question; ``answers`` come to lie beside them.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nas.config import check_bounds
from nas.devices.clock import RUNNER, Event, Job
from nas.devices.fingerprint import Fingerprint
from nas.devices.profile import Profile
from nas.devices.profiling import measure_profile
from nas.devices.session import RunnerTarget
from nas.devices.shapes import choose_shapes
from nas.devices.target import RUNNER_RUNTIMES, Model, Settings, Shape
from nas.devices.workload import OnnxWorkload, Packed
from nas.errors import InconclusiveMeasurementError, InvalidInputError
from nas.progress import Progress
from search_spaces.architecture import TextSpec
from search_spaces.files import atomic_folder, write_atomic
from search_spaces.spaces import Space, space_from_dict

JOB_FILE = "job"
COMMAND = f"python3 {RUNNER.name} {JOB_FILE} answers"
MAX_HEADER_BYTES = 10_000_000
MAX_ANSWERS_BYTES = 1_000_000_000
#: The years 2020 and 2100: a machine without a clock begins with 1970 when it is switched on.
CLOCK_SET_S, LAST_CLOCK_S = 1_577_836_800.0, 4_102_444_800.0
_NOT_SEEN = Fingerprint(
    cpu_model="not seen yet",
    cpu_flags="unknown",
    num_cores=1024,
    governor="unknown",
    memory_gib=0,
    kernel="unknown",
    environment="unknown",
    machine="unknown",
    runtime="unknown",
)


@dataclass(frozen=True)
class Question:
    """What a profile is to be made of.

    Attributes:
        settings: How shapes shall be run.
        space: Where they come from.
        text: What the encoders read.
        num_samples: How many; fewer where the space holds fewer.
        seconds_each: How long to time each.
        seed: Of their choice.

    Raises:
        InvalidInputError: The runner alone cannot do it, or a number is out of bounds.
    """

    settings: Settings
    space: Space
    text: TextSpec
    num_samples: int
    seconds_each: float
    seed: int

    def __post_init__(self) -> None:
        if self.settings.runtime not in RUNNER_RUNTIMES:
            raise InvalidInputError(
                f"the runner alone measures {' and '.join(RUNNER_RUNTIMES)}, not {self.settings.runtime}; install this "
                "program there and run nas devices profile on it"
            )
        check_bounds(samples=self.num_samples, seconds_each=self.seconds_each, seed=self.seed)
        if self.settings.seq_len > self.text.max_positions:
            raise InvalidInputError(
                f"seq_len must be at most {self.text.max_positions}, the longest text these encoders read, "
                f"got {self.settings.seq_len}"
            )

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes by name; a name is of this question alone, so that no other's answers can be taken for its."""
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
        num = min(self.num_samples, self.space.size)
        chosen = choose_shapes(self.space, num, seed=self.seed)
        return {f"{digest} {shape.key()}": Shape(shape, self.text) for shape in chosen}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :meth:`from_dict` reads it."""
        return {
            **asdict(self),
            "settings": self.settings.to_dict(),
            "space": self.space.to_dict(),
            "text": asdict(self.text),
        }

    @classmethod
    def from_dict(cls, data: object) -> "Question":
        """Reads :meth:`to_dict`'s form; raises InvalidInputError where it is not one."""
        if not isinstance(data, dict) or set(data) != {field.name for field in fields(cls)}:
            raise InvalidInputError(f"a question must hold exactly {', '.join(field.name for field in fields(cls))}")
        text = data["text"]
        if not isinstance(text, dict) or set(text) != {field.name for field in fields(TextSpec)}:
            raise InvalidInputError("a question's text must hold exactly the fields of a TextSpec")
        places = {"settings": Settings.from_dict(data["settings"]), "space": space_from_dict(data["space"])}
        return cls(**{**data, **places, "text": TextSpec(**text)})


def write_job(folder: Path, question: Question) -> int:
    """Writes the folder that is to be carried to the machine; :data:`COMMAND` runs it there.

    Args:
        folder: Where; absent or empty.
        question: What to measure.

    Returns:
        The number of shapes.

    Raises:
        InvalidInputError: The folder is occupied or cannot be written.
    """
    target = RunnerTarget(
        "by hand", question.settings, run=lambda job: iter(()), workload=OnnxWorkload(), fingerprint=_NOT_SEEN
    )
    shapes = question.shapes
    job = target.job(dict(shapes), seconds_each=question.seconds_each)
    job = replace(job, header={**job.header, "question": question.to_dict()})
    with atomic_folder(folder) as temporary:
        (temporary / RUNNER.name).write_bytes(RUNNER.read_bytes())
        with (temporary / JOB_FILE).open("wb") as file:
            file.writelines(job.chunks(heartbeat_s=None))
    return len(shapes)


def read_answers(files: Sequence[Path], out: Path, *, progress: Progress | None = None) -> Profile:
    """Makes a profile of what the runner answered on the machine.

    Args:
        files: The answers, each in a folder that :func:`write_job` wrote, all to the same question.
        out: The profile's file; its name without the ending becomes the device's.
        progress: What is told about it.

    Raises:
        InvalidInputError: A file cannot be read or is of another question or machine, or a shape could not be run.
        InconclusiveMeasurementError: Answers are missing or damaged.
    """
    if not files:
        raise InvalidInputError("give at least one file of answers")
    questions = [_question(file.parent / JOB_FILE) for file in files]
    question = questions[0]
    if any(other != question for other in questions):
        raise InvalidInputError("the answers are to different questions; read those of one folder at a time")
    answers = _Answers.of([event for file in files for event in _events(file)])
    names = {name.partition(" ")[2]: name for name in question.shapes}
    missing = [name for name in names.values() if name not in answers.by_name]
    if missing:
        because = f" ({answers.error})" if answers.error else ""
        raise InconclusiveMeasurementError(
            f"{len(missing)} of {len(names)} shapes are not answered yet{because}; run it there again, it goes on "
            f"where it stopped: {COMMAND}"
        )

    def replay(job: Job) -> Iterator[Event]:
        yield answers.ready
        for entry in job.header["candidates"]:
            yield {**answers.by_name[names[entry["name"]]], "name": entry["name"]}

    measured_s = answers.measured_s or max(file.stat().st_mtime for file in files)
    target = RunnerTarget(out.stem, question.settings, run=replay, workload=_Named(), now=lambda: measured_s)
    profile = measure_profile(
        target,
        question.space,
        question.text,
        out,
        num_samples=question.num_samples,
        seconds_each=question.seconds_each,
        seed=question.seed,
        progress=progress,
    )
    profile = replace(profile, measured_at=datetime.fromtimestamp(measured_s, UTC).isoformat(timespec="seconds"))
    write_atomic(out, profile.to_json())
    return profile


class _Named:
    """A workload of names alone: what they stand for was carried there."""

    def pack(self, models: Mapping[str, Model], settings: Settings) -> Packed:
        return Packed(dict.fromkeys(models, ""), {})


@dataclass(frozen=True)
class _Answers:
    """What the runner said on one machine, over all its runs.

    Attributes:
        ready: Its first words.
        by_name: The last answer about each shape.
        error: Why a run ended early, where one did.
        measured_s: When it gave the last answer by its own clock, in seconds since 1970; None where it does not say
            so, or its clock was not set.
    """

    ready: Event
    by_name: Mapping[str, Event]
    error: str
    measured_s: float | None

    @classmethod
    def of(cls, events: Sequence[Event]) -> "_Answers":
        """Sorts events; raises InvalidInputError where they come from no machine, or from several."""
        ready = [event for event in events if event["event"] == "ready"]
        errors = [str(event.get("message"))[:300] for event in events if event["event"] == "error"]
        if not ready:
            raise InvalidInputError(f"the runner did not start there: {errors[-1] if errors else 'it said nothing'}")
        if any(event.get("facts") != ready[0].get("facts") for event in ready):
            raise InvalidInputError("the answers come from different machines, or the machine changed between its runs")
        named = {str(event.get("name")): event for event in events if event["event"] in ("result", "failed")}
        times = [event.get("at_s") for event in named.values()]
        told = [at_s for at_s in times if isinstance(at_s, int | float) and CLOCK_SET_S <= at_s <= LAST_CLOCK_S]
        return cls(ready[0], named, errors[-1] if errors else "", max(told, default=None))


def _question(path: Path) -> Question:
    """The question of a job's file."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline(MAX_HEADER_BYTES))
        return Question.from_dict(header.get("question") if isinstance(header, dict) else None)
    except OSError as error:
        raise InvalidInputError(
            f"cannot read {path}: {error.strerror or error}; put the answers beside the job that was carried there"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} is not a job of nas devices profile --write-job: {error}") from error


def _events(path: Path) -> list[Event]:
    """The events of a file; a line that a killed runner left unfinished is passed over."""
    try:
        if path.stat().st_size > MAX_ANSWERS_BYTES:
            raise InvalidInputError(f"{path} is larger than {MAX_ANSWERS_BYTES} bytes: not a runner's answers")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror or error}") from error
    events = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                events.append({"message": "it does not say why", **event} if event["event"] == "failed" else event)
    return events
