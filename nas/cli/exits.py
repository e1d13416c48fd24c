"""``nas exits``: a task model that stops where it knows enough."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import options
from nas.cli.outcome import print_json, resumable, say, verb


@verb
def exits(
    model: Annotated[str, typer.Argument(help="Task model of this task, or an encoder, which is fine-tuned first.")],
    task: options.Task,
    out: Annotated[Path, typer.Option(help="Folder for the model folders and the report.")],
    method: Annotated[str, typer.Option(help="dact, pabee, confidence, several with commas between, or all.")] = "all",
    tau: Annotated[str, typer.Option(help="DACT's price of a layer; a model for each, commas between.")] = "0.1,0.3",
    epochs: Annotated[float, typer.Option(help="Times the exits are taught every text.")] = 4,
    batch_size: options.TextsAStep = 32,
    lr: options.LearningRate = 5e-5,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    seq_len: options.Cut = None,
    pooling: Annotated[
        str, typer.Option(help="What early exits read: mean (over tokens) or first (position).")
    ] = "mean",
    timed: Annotated[int, typer.Option(help="How many texts are timed; 0 for none.")] = 60,
    seed: options.Seed = 0,
    resume: options.Resume = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Teach a task model to stop early: DACT, PABEE patience and calibrated confidence, side by side.

    Example: nas exits my-task-model --task reviews.csv --tau 0.05,0.1 --out my-exits
    """
    from nas import api
    from nas.progress import choose_progress

    with resumable():
        result = api.exits(
            model,
            task=task,
            out=out,
            methods=_words(method),
            taus=_numbers(tau),
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            text=text,
            text_pair=text_pair,
            label=label,
            seq_len=seq_len,
            pooling=pooling,
            timed=timed,
            seed=seed,
            resume=resume,
            progress=choose_progress(quiet=quiet),
        )
    if as_json:
        print_json(result.to_dict())
        return
    for line in result.sentences():
        print(line)
    print(f"The models and report.html are in {out}.")
    say(f"Next: nas predict {out / result.made[0].name} < texts")


def _words(given: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in given.split(",") if word.strip()))


def _numbers(given: str) -> tuple[float, ...]:
    from nas.errors import InvalidInputError

    try:
        return tuple(float(word) for word in _words(given))
    except ValueError as error:
        raise InvalidInputError(f"--tau must be a number or several with commas between, got {given[:60]!r}") from error
