"""``nas exits``: exits taught to a task model, one folder for each way of stopping, and what each is worth.

The folder, beside which ``OUT.unfinished`` holds the run until all of it is there::

    run.json           what was asked; a resumed run must ask the same
    task-model/        where the model had no head: the fine-tuned model
    dact-tau0.05/      a model folder for each tau, see nas.finish.exits
    pabee/             jointly trained heads that stop by patience
    confidence/        the same heads that stop by calibrated confidence
    summary.json       every figure of the report
    report.html        accuracy over layers and time, areas, where texts stop
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from nas.config import Bound
from nas.errors import InvalidInputError, unknown_name
from nas.export.export import encoder_weights
from nas.export.int8 import quantize
from nas.export.onnx_graph import INPUT_NAMES, build_graph
from nas.export.task_head import Pooling
from nas.finish.companion import Locked
from nas.finish.evaluation import Logits, evaluate, torch_run
from nas.finish.exit_curves import (
    Answers,
    Point,
    area,
    chosen,
    confidences,
    dact_points,
    patiences,
    point,
)
from nas.finish.exit_evaluation import answers_alone
from nas.finish.exit_export import load_exits, save_exits
from nas.finish.exit_folder import FACTS, Description, is_adaptive, read_description
from nas.finish.exit_layers import check_can_exit
from nas.finish.exit_model import ExitModel
from nas.finish.exit_report import ExitsResult, Made, write_report
from nas.finish.exit_timing import NUM_TEXTS, Timing, time_texts
from nas.finish.exit_training import answers_of, teach_exits
from nas.finish.exits import AdaptiveModel, Batch, OnnxLayers, padded, run
from nas.finish.finetune import FinetuneConfig, check_free, finetune, unfinished
from nas.finish.halting import Dact, Policy
from nas.finish.model import TaskModel, has_head, load_model, load_task_model
from nas.finish.training import LoopConfig
from nas.progress import Progress, ended
from nas.rundir import RunDir
from search_spaces.files import write_atomic
from supernet.examples import Examples, TaskBatch
from supernet.task import Task, load_task
from supernet.task_spec import TaskOptions
from supernet.teacher import weights_digest

METHODS = ("dact", "pabee", "confidence")
MAX_TAUS = 8
_TAU = Bound(0, 100, whole=False)
FINE_TUNED, NEVER = "fine-tuned", "never stopping"
INT8 = " in int8"  # behind the name of what runs in it


@dataclass(frozen=True)
class ExitsRequest:
    """What is asked for.

    Attributes:
        methods: Some of :data:`METHODS`; ``all`` stands for all of them.
        taus: DACT's prices of a layer; a model folder for each.
        loop: How long and how fast exits are taught.
        num_timed: How many texts are timed; 0 times none.
        early: Which state stands for a text at every exit but the last.

    Raises:
        InvalidInputError: A method is not known, a tau is out of bounds, or nothing would be made.
    """

    methods: tuple[str, ...] = METHODS
    taus: tuple[float, ...] = (0.1, 0.3)
    loop: LoopConfig = field(default_factory=LoopConfig)
    num_timed: int = NUM_TEXTS
    early: Pooling = "mean"

    def __post_init__(self) -> None:
        if "all" in self.methods:
            object.__setattr__(self, "methods", METHODS)
        for method in self.methods:
            if method not in METHODS:
                raise unknown_name("method of stopping", method, (*METHODS, "all"))
        for tau in self.taus:
            if not _TAU.allows(tau):
                raise InvalidInputError(f"tau, the price of a layer, must be {_TAU}, got {tau!r}")
        if not self.methods or ("dact" in self.methods and not self.taus):
            raise InvalidInputError("give at least one method, and for dact at least one tau")
        if self.early not in ("first", "mean"):
            raise InvalidInputError(f"pooling must be first or mean, got {self.early!r}")
        if not isinstance(self.num_timed, int) or not 0 <= self.num_timed <= 10_000:
            raise InvalidInputError(f"timed must be a whole number from 0 to 10000, got {self.num_timed!r}")
        if len(self.taus) > MAX_TAUS or len({f"{tau:g}" for tau in self.taus}) != len(self.taus):
            raise InvalidInputError(
                f"tau may be at most {MAX_TAUS} prices that differ in six digits, got {list(self.taus)}"
            )

    @property
    def teachings(self) -> tuple[float | None, ...]:
        """What is taught: a tau each for DACT, None for joint training."""
        taus: tuple[float | None, ...] = self.taus if "dact" in self.methods else ()
        return taus if set(self.methods) == {"dact"} else (*taus, None)


def make_exits(
    source: str | Path,
    task_source: str,
    out: Path,
    request: ExitsRequest,
    *,
    options: TaskOptions | None = None,
    tuning: FinetuneConfig | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> ExitsResult:
    """Teaches exits, writes a model folder for each way of stopping, and judges them; all of it or nothing.

    Args:
        source: A task model of this task, or an encoder, which is fine-tuned first.
        task_source: A file, folder or hub id, see :func:`supernet.task.load_task`.
        out: The folder; must be absent or empty. ``OUT.unfinished`` beside it holds the run until then.
        request: What is asked for.
        options: What is named of the task.
        tuning: How an encoder is fine-tuned; None as ``nas finetune`` does it by default.
        resume: Whether to go on from an unfinished run.
        progress: What is told about it.

    Raises:
        InvalidInputError: The model cannot have exits, or not for this task; ``out`` is occupied, or the unfinished run
            is of another request; the loss is no longer finite.
        ParityError: A graph does not compute what its model computes.
    """
    check_free(out)
    options, tuning = options or TaskOptions(), tuning or FinetuneConfig(loop=request.loop)
    with ended(progress) as said:
        said.start("reading model and task")
        loaded = load_task_model(source) if has_head(source) else load_model(source)
        spec = loaded.spec if isinstance(loaded, TaskModel) else None
        check_can_exit(loaded.encoder.architecture, spec)
        task = load_task(task_source, loaded.tokenizer, options, text=loaded.encoder.text, expected=spec)
        check_can_exit(loaded.encoder.architecture, task.spec)
        locked = Locked.of(source, loaded.encoder)
        asked = {
            "model": weights_digest(loaded.encoder if spec is None else loaded),  # type: ignore[arg-type]
            "task": task_source,
            "spec": asdict(task.spec),
            "data": task.digest(),
            "request": asdict(request),
            "tuning": asdict(tuning) if spec is None else None,
        }
        run_dir = _open(unfinished(out), json.loads(json.dumps(asked)), resume=resume)
        with run_dir.locked():
            if not isinstance(loaded, TaskModel):
                loaded = _finetuned(source, task_source, run_dir.path / "task-model", tuning, options, said)
            loaded.to("cuda" if torch.cuda.is_available() else "cpu")
            result = _Work(loaded, task, run_dir.path, request, said, locked).done(out)
        (run_dir.path / ".lock").unlink(missing_ok=True)
        run_dir.path.replace(out)
    return result


def _open(folder: Path, asked: Mapping[str, Any], *, resume: bool) -> RunDir:
    """Makes the folder of the unfinished run, or opens it again."""
    if not folder.exists():
        return RunDir.create(folder, facts={"exits": asked})
    if not resume:
        raise InvalidInputError(
            f"{folder} holds an unfinished run; repeat the command with --resume, or remove that folder"
        )
    opened = RunDir.open(folder)
    found = opened.read().get("exits")
    known = found if isinstance(found, dict) else {}
    differing = sorted(name for name in known.keys() | asked.keys() if known.get(name) != asked.get(name))
    if differing:
        raise InvalidInputError(
            f"the run in {folder} was started with another {', '.join(differing)}; repeat its options, or remove that "
            "folder"
        )
    return opened


def _finetuned(
    source: str | Path, task_source: str, folder: Path, tuning: FinetuneConfig, options: TaskOptions, said: Progress
) -> TaskModel:
    """The fine-tuned model, unless an earlier run got as far."""
    if not folder.exists():
        finetune(source, task_source, folder, config=tuning, options=options, resume=True, progress=said)
    model = load_task_model(folder)
    model.name = str(source)
    return model


class _Work:
    """A run: what is taught and judged one after the other."""

    def __init__(
        self,
        model: TaskModel,
        task: Task,
        folder: Path,
        request: ExitsRequest,
        progress: Progress,
        locked: Locked | None,
    ) -> None:
        self.model, self.task, self.folder, self.request, self.progress = model, task, folder, request, progress
        self.locked = locked
        self.split = "test" if task.test is not None else "validation"
        self.judged = task.split(self.split)
        self.curves: dict[str, list[Point]] = {}
        self.made: dict[str, Point] = {}
        self.made_int8: dict[str, Point] = {}

    def done(self, out: Path) -> ExitsResult:
        """Makes every model folder and puts the figures together."""
        for tau in self.request.teachings:
            self._teach(tau)
        labels = np.asarray(self.judged.labels)
        guess = float(np.bincount(labels).max() / len(labels))
        num_exits = len(next(iter(self.made.values())).exits)
        self.progress.start("evaluating")
        accuracy = evaluate(torch_run(self.model), self.model.spec, self.judged).scores["accuracy"]
        self.model.cpu()
        accuracy_int8 = self._accuracy_int8()
        times = self._time() if self.request.num_timed else {}
        result = ExitsResult(
            out=out,
            model=self.model.name,
            task=self.task.name,
            split=self.split,
            num_texts=len(labels),
            num_exits=num_exits,
            accuracy=accuracy,
            accuracy_int8=accuracy_int8,
            guess=guess,
            curves=self.curves,
            areas={method: area(points, num_exits, guess) for method, points in self.curves.items()},
            made=[
                *(Made(name, one, times.get(name)) for name, one in self.made.items()),
                *(Made(name, one, times.get(name + INT8), "int8") for name, one in self.made_int8.items()),
            ],
            reference=times.get(FINE_TUNED),
            reference_int8=times.get(FINE_TUNED + INT8),
            never=times.get(NEVER),
        )
        write_atomic(self.folder / "summary.json", json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n")
        write_report(self.folder / "report.html", result)
        shutil.rmtree(self.folder / "training", ignore_errors=True)
        return result

    def _teach(self, tau: float | None) -> None:
        """Teaches one model, or reads what an earlier run taught, and writes its folders."""
        names = [f"dact-tau{tau:g}"] if tau is not None else [name for name in self.request.methods if name != "dact"]
        made = [name for name in names if is_adaptive(self.folder / name)]
        if made:
            exits = load_exits(self.folder / made[0])[0].to(next(self.model.parameters()).device)
        else:
            place = self.folder / "training" / ("joint" if tau is None else names[0])
            exits, _ = teach_exits(
                self.model,
                self.task,
                tau,
                self.request.loop,
                place,
                early=self.request.early,
                is_locked=self.locked is not None,
                resume=True,
                progress=self.progress,
            )
        validation, judged = answers_of(exits, self.task.validation), answers_of(exits, self.judged)
        exits.cpu()
        known: dict[str, Answers] = {}

        def in_int8(layers: OnnxLayers, split: str) -> Answers:
            if split not in known:  # the graphs of all names are the same
                known[split] = answers_alone(layers, self.task.split(split), exits.encoder.text, self.progress)
            return known[split]

        for name in names:
            policy, setting, curve = _policy(name, tau, validation, judged)
            method, folder = curve[0].method, self.folder / name
            judge = partial(point, method, setting, policy)
            self.curves.setdefault(method, []).extend(curve)
            self.made[name] = judge(judged)
            if name not in made:
                description = describe(exits, tau, policy, {FACTS["fp32"]: judge(validation).to_dict()})

                def int8_facts(layers: OnnxLayers, judge: Callable[[Answers], Point] = judge) -> dict[str, Any]:
                    return {FACTS["int8"]: judge(in_int8(layers, "validation")).to_dict()}

                save_exits(folder, exits, description, self.model.tokenizer, int8_facts=int8_facts)
            if self.locked is not None:
                self.locked.write(folder, exits.encoder)
            layers = OnnxLayers(folder, read_description(folder), precision="int8")
            self.made_int8[name] = judge(in_int8(layers, self.split))

    def _time(self) -> dict[str, Timing]:
        """Times single texts in the fine-tuned model, in each folder, and in the first folder where nothing stops."""
        folders = {
            name + behind: AdaptiveModel.load(self.folder / name, precision=precision)
            for precision, behind in (("fp32", ""), ("int8", INT8))
            for name in self.made
        }
        models: dict[str, Callable[[Batch], object]] = {FINE_TUNED: one_graph(self.model)}
        models |= {FINE_TUNED + INT8: one_graph(self.model, precision="int8")}
        models |= {name: stopping(adaptive) for name, adaptive in folders.items()}
        models[NEVER] = stopping(next(iter(folders.values())), halts=False)
        texts = single_texts(self.judged, self.model, self.request.num_timed, seed=self.request.loop.seed)
        return time_texts(models, texts, seed=self.request.loop.seed, progress=self.progress)

    def _accuracy_int8(self) -> float:
        """The fine-tuned model's in int8, a text at a time."""
        run_int8 = one_graph(self.model, precision="int8")
        self.progress.start("evaluating the fine-tuned model in int8")

        def answer(batch: TaskBatch) -> Logits:
            return run_int8({name: getattr(batch, name).numpy() for name in INPUT_NAMES})

        return evaluate(answer, self.model.spec, self.judged, batch_size=1).scores["accuracy"]


def _policy(name: str, tau: float | None, validation: Answers, judged: Answers) -> tuple[Policy, str, list[Point]]:
    """How a folder stops, that in words, and its method's curve on the judged split.

    What can be chosen is chosen on the validation split: the fewest layers at no less than the accuracy of not
    stopping.
    """
    if tau is not None:
        return Dact(), f"tau {tau:g}, margin rule", dact_points(judged, tau)
    policies = patiences(validation) if name == "pabee" else confidences(validation)
    whole = float((validation.logits[-1].argmax(1) == validation.labels).mean())
    best = chosen([point(name, setting, policy, validation) for setting, policy in policies.items()], whole)
    curve = [point(name, setting, policy, judged) for setting, policy in policies.items()]
    return policies[best.setting], best.setting, curve


def describe(exits: ExitModel, tau: float | None, policy: Policy, facts: Mapping[str, Any]) -> Description:
    """What ``exits.json`` says of a model that was taught."""
    return Description(
        exits.encoder.architecture,
        exits.encoder.text,
        exits.spec,
        exits.pooling,
        exits.early,
        exits.activation,
        "joint" if tau is None else "dact",
        tau,
        exits.num_exits,
        policy,
        facts,
    )


def single_texts(examples: Examples, model: TaskModel, number: int, *, seed: int) -> list[Batch]:
    """Some texts of a split, each a batch by itself."""
    drawn = np.random.default_rng(seed).permutation(len(examples))[:number].tolist()
    return [padded([examples.input_ids[at]], [examples.token_type_ids[at]], model.text) for at in drawn]


def stopping(model: AdaptiveModel, *, halts: bool = True) -> Callable[[Batch], object]:
    """Runs a batch in a model with exits."""
    return lambda batch: run(model.layers, batch, model.policy, halts=halts)


def one_graph(model: TaskModel, *, precision: str = "fp32") -> Callable[[Batch], Logits]:
    """Runs a batch in a task model as it is exported, on one thread."""
    head = model.head.exported()
    assert head.weights is not None
    weights = encoder_weights(model.encoder) | {f"head.{name}": array for name, array in head.weights.items()}
    graph = build_graph(model.architecture, model.text, weights, head=head)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(graph, path) if precision == "fp32" else quantize(graph, path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(batch: Batch) -> Logits:
        logits: Logits = session.run(None, dict(batch))[0]
        return logits

    return run
