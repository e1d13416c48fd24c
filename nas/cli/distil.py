"""``nas distil``: a chosen model, trained further by itself."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import options
from nas.cli.outcome import command_line, print_json, resumable, say, verb
from nas.cli.train import read_losses


@verb
def distil(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Folder of an exported model.")],
    teacher: Annotated[str, typer.Option(help="BERT-like encoder with the same tokenizer: a folder or hub id.")],
    corpus: options.Corpus,
    out: Annotated[Path, typer.Option(help="Folder for the new model; must be absent or empty.")],
    steps: options.Steps = None,
    minutes: options.Minutes = None,
    batch_size: options.TextsABatch = 32,
    seq_len: options.MostTokens = 64,
    lr: options.LearningRate = 2e-4,
    accumulate: options.Accumulate = 1,
    precision: options.Precision = "auto",
    loss: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=WEIGHT", help="Loss and its weight: hidden, pooled, output; may be repeated."),
    ] = None,
    keep_rate: Annotated[float, typer.Option(help="Share of positions that narrow layers update in a step.")] = 0.15,
    seed: options.Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.training.")] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train an exported model further, by itself, and export it again.

    Example: nas distil my-model --teacher DIR --corpus text.txt --minutes 30 --out my-better-model
    """
    from nas import api
    from nas.progress import choose_progress

    with resumable():
        distilled = api.distil(
            model,
            out,
            corpora=corpus,
            teacher=teacher,
            steps=steps,
            minutes=minutes,
            batch_size=batch_size,
            seq_len=seq_len,
            lr=lr,
            accumulate=accumulate,
            precision=precision,
            losses=read_losses(loss or []),
            keep_rate=keep_rate,
            seed=seed,
            resume=resume,
            command=command_line(context),
            progress=choose_progress(quiet=quiet),
        )
    if as_json:
        print_json(distilled.to_dict())
        return
    print(f"{distilled.key} is in {distilled.model_dir} after {distilled.steps:,} steps.")
    shares = f"{distilled.after:.3f} unexplained, {distilled.before:.3f} before"
    print(f"Of the teacher's states on held-out text it leaves {shares}.")
    say(f"Next: nas measure {distilled.model_dir}")
