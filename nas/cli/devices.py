"""``nas devices``: where latencies can be measured, and how more places become known."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli import options
from nas.cli.outcome import EXIT_CODES, Interrupted, command_line, print_json, say, verb

if TYPE_CHECKING:
    from nas.devices.profile import Profile

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)

Runtime = Annotated[
    str | None, typer.Option(help="onnxruntime, openvino, torch or torch-graphs; the device's own by default.")
]
Precision = Annotated[str | None, typer.Option(help="fp32, int8 ...; the device's own by default.")]


@app.callback()
def devices(
    context: typer.Context,
    as_json: options.AsJson = False,
) -> None:
    """Tell where latencies can be measured, and make more places known.

    Without a verb, list the devices. A device that is not known is never replaced by another one.
    """
    if context.invoked_subcommand is None:
        list_devices(as_json=as_json)
    elif as_json:
        raise typer.BadParameter(f"write it behind the verb: nas devices {context.invoked_subcommand} --json")


@verb
def list_devices(as_json: options.AsJson = False) -> None:
    """List the devices that latencies can be measured on, and how to add one."""
    from nas import api

    known = api.devices()
    if as_json:
        print_json({"devices": [{"name": name, "description": words} for name, words in known.items()]})
        return
    for name, words in known.items():
        print(f"{name}: {words}")
    say(
        "To measure on another machine: nas devices add NAME ssh://USER@HOST, or install this program there, run nas "
        "devices profile --out FILE.json, and bring the file here. A device that is not listed is never replaced by "
        "another one: its name ends with exit code 4."
    )


@verb
def add(
    name: Annotated[str, typer.Argument(help="What the device shall be called: lower-case letters, digits, . _ -")],
    address: Annotated[
        str,
        typer.Argument(help="ssh://user@host:port, ray://host:port, ray:host:port, ray:auto, or a profile's FILE.json"),
    ],
    python: Annotated[
        str | None, typer.Option(help="ssh: the Python there that has onnxruntime; python3 by default.")
    ] = None,
    accelerator: Annotated[str | None, typer.Option(help="Ray: the node's accelerator type, such as A100.")] = None,
    resource: Annotated[str | None, typer.Option(help="Ray: the node's custom resource.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="What to measure with there unless something else is asked.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="Number format, likewise.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the runtime, likewise.")] = None,
    cpus: Annotated[str | None, typer.Option(help="Cores to run on such as 2,3, likewise.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Give a device a name that lasts. Nothing is connected to; nas devices probe does that.

    Example: nas devices add board ssh://pi@board.local --threads 4
    """
    from nas import api

    words = api.add_device(
        name,
        address,
        python=python,
        accelerator=accelerator,
        resource=resource,
        runtime=runtime,
        precision=precision,
        threads=threads,
        cpus=None if cpus is None else options.whole_numbers("--cpus", cpus),
    )
    if as_json:
        print_json({"name": name, "description": words})
    else:
        print(f"{name}: {words}")


@verb
def remove(
    name: Annotated[str, typer.Argument(help="A device that was added.")],
    as_json: options.AsJson = False,
) -> None:
    """Forget a device that was added. Its profiles are kept."""
    from nas import api

    api.remove_device(name)
    if as_json:
        print_json({"removed": name})
    else:
        print(f"{name} is removed")


@verb
def probe(
    name: Annotated[str, typer.Argument(help="A device that nas devices lists, or ssh://user@host.")],
    as_json: options.AsJson = False,
) -> None:
    """Ask a device what it is, now. The exit code is 4 where it is not there."""
    from nas import api

    fingerprint = api.probe_device(name)
    facts = fingerprint.to_dict()
    if as_json:
        print_json({"name": name, "description": str(fingerprint), "fingerprint": fingerprint.digest, "facts": facts})
        return
    print(f"{name}: {fingerprint}")
    for fact, value in facts.items():
        print(f"  {fact.replace('_', ' ')}: {value}")


@verb
def profile(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The device to measure on.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="The profile's file, ending in .json; one begun is gone on with.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Search space: a preset's name or a TOML file; the supernet's by default.")
    ] = None,
    supernet: Annotated[
        Path | None, typer.Option(help="Folder that nas train made; encoders like the shipped one's by default.")
    ] = None,
    samples: Annotated[int, typer.Option(help="How many shapes to measure.")] = 40,
    runtime: Runtime = None,
    precision: Precision = None,
    threads: options.Threads = None,
    cpus: options.Cpus = None,
    batch_size: Annotated[int, typer.Option(help="Texts at a time.")] = 1,
    seq_len: Annotated[int, typer.Option(help="Tokens a text.")] = 128,
    seconds: Annotated[float, typer.Option(help="How long to time each shape.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Seed of the choice of shapes.")] = 0,
    write_job: Annotated[
        Path | None, typer.Option(help="For a machine with python3 and onnxruntime only: write what to run there here.")
    ] = None,
    answers: Annotated[
        list[Path] | None, typer.Option(help="Make --out of what such a machine answered; may be repeated.")
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure what a device's latencies are predicted from, into a file that can be carried to another machine.

    Example: nas devices profile a100 --out a100.json, then elsewhere: nas search --latency-ms 2 --device a100.json
    """
    from nas import api
    from nas.errors import InvalidInputError
    from nas.progress import choose_progress

    _check_ways(context, out=out, write_job=write_job, answers=answers)
    progress = choose_progress(quiet=quiet)
    question: dict[str, Any] = {
        "space": space,
        "supernet": supernet,
        "samples": samples,
        "runtime": runtime,
        "precision": precision,
        "threads": threads,
        "cpus": None if cpus is None else options.whole_numbers("--cpus", cpus),
        "batch_size": batch_size,
        "seq_len": seq_len,
        "seconds_each": seconds,
        "seed": seed,
    }
    if write_job is not None:
        _say_job(write_job, api.write_profile_job(write_job, **question), as_json=as_json)
        return
    if out is None:
        raise InvalidInputError("say where the profile shall be written: --out FILE.json")
    if answers:
        _say_profile(out, api.read_profile_answers(answers, out, progress=progress), as_json=as_json)
        return
    try:
        measured = api.profile_device(out, device=name, progress=progress, **question)
    except KeyboardInterrupt as interruption:
        how = f"go on with: {command_line(context)}" if out.exists() else "nothing was written"
        raise Interrupted(how) from interruption
    _say_profile(out, measured, as_json=as_json)


_VERBS: dict[str, Callable[..., None]] = {
    "list": list_devices,
    "add": add,
    "probe": probe,
    "profile": profile,
    "remove": remove,
}
for _name, _function in _VERBS.items():
    app.command(_name, epilog=EXIT_CODES)(_function)

_BESIDE_ANSWERS = {"out", "answers", "as_json", "quiet"}


def _check_ways(
    context: typer.Context, *, out: Path | None, write_job: Path | None, answers: list[Path] | None
) -> None:
    """A profile is measured, left to be measured by hand, or made of what was: what belongs to another is refused."""
    from nas.errors import InvalidInputError

    if write_job is not None and (out is not None or answers or _given(context, {"name"})):
        raise InvalidInputError(
            "--write-job is for a machine that is not connected; leave out NAME, --out and --answers"
        )
    if answers and (others := _given(context, set(context.params) - _BESIDE_ANSWERS)):
        raise InvalidInputError(f"--answers are to a question that was asked already; leave out {', '.join(others)}")


def _given(context: typer.Context, names: set[str]) -> list[str]:
    sources = {name: context.get_parameter_source(name) for name in sorted(names)}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return ["NAME" if name == "name" else f"--{name.replace('_', '-')}" for name in given]


def _say_job(folder: Path, num_shapes: int, *, as_json: bool) -> None:
    from nas.devices.by_hand import COMMAND

    there = f"cd {folder.name} && {COMMAND}"
    back = f"nas devices profile --answers {folder / 'answers'} --out board.json"
    if as_json:
        print_json({"folder": str(folder), "num_shapes": num_shapes, "run_there": there, "then_here": back})
        return
    print(f"{folder} holds a job of {num_shapes} shapes. Carry it to the machine and run there:")
    print(f"  {there}")
    print("Stopped, the same command goes on. Then bring the answers back beside the job and run here:")
    print(f"  {back}")


def _say_profile(out: Path, measured: "Profile", *, as_json: bool) -> None:
    error = measured.predictor().error
    if as_json:
        print_json(
            {
                "profile": str(out),
                "description": measured.description,
                "measured_at": measured.measured_at,
                "num_samples": len(measured.samples),
                "median_error": error and error.median,
                "p95_error": error and error.p95,
            }
        )
        return
    print(f"{out}: {len(measured.samples)} shapes on {measured.description}")
    if error is None:
        print("How far predictions are off is not known: of one shape none can be left out; take more with --samples")
    else:
        print(
            f"Predictions of shapes left out are off by {error.median:.1%} in the median, 95 % of them by at most "
            f"{error.p95:.1%}"
        )
    say(f"Carry it to where the supernet is, and there: nas search --latency-ms MS --device {out.name}")
