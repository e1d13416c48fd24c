"""``nas train``: one supernet, from which every later search is answered."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import options
from nas.cli.outcome import print_json, resumable, say, verb


@verb
def train(
    corpus: options.Corpus,
    out: Annotated[Path, typer.Option(help="Folder for the supernet.")],
    teacher: Annotated[
        str | None, typer.Option(help="BERT-like encoder to distil from: a folder or hub id. None starts afresh.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer where there is no teacher: a folder or hub id.")
    ] = None,
    space: Annotated[str, typer.Option(help="Search space: a preset's name or a TOML file.")] = "stock",
    objective: Annotated[
        str | None,
        typer.Option(help="distil, mlm or kd (AutoTinyBERT's). By default distil with a teacher, mlm without."),
    ] = None,
    narrow: Annotated[bool, typer.Option("--narrow", help="Train narrow layers (NarrowBERT) too.")] = False,
    partitions: Annotated[
        int, typer.Option(help="Split the space into so many parts with weights of their own after a third.")
    ] = 1,
    shrink: Annotated[
        bool,
        typer.Option("--shrink/--no-shrink", help="Confine the training of chains to the best blocks of every size."),
    ] = True,
    candidates: Annotated[
        int, typer.Option(help="Blocks of chains that are scored for each place and each of ten sizes; ten are kept.")
    ] = 40,
    latency_on: Annotated[
        str | None,
        typer.Option(
            help="Measure the operations of chains on this device first, and leave out blocks slow for their size."
        ),
    ] = None,
    steps: options.Steps = None,
    minutes: options.Minutes = None,
    batch_size: options.TextsABatch = 32,
    seq_len: options.MostTokens = 64,
    lr: options.LearningRate = 5e-4,
    accumulate: options.Accumulate = 1,
    precision: options.Precision = "auto",
    strategy: Annotated[
        str | None,
        typer.Option(help="Which subnets a step trains: sandwich, or uniform (the default for AutoTinyBERT's)."),
    ] = None,
    num_random: Annotated[int, typer.Option(help="Random subnets a step.")] = 2,
    in_place: Annotated[
        bool, typer.Option(help="Smaller subnets learn from the largest of a step, not from the teacher.")
    ] = True,
    sort: Annotated[bool, typer.Option(help="Sort the teacher's units by importance before slicing.")] = True,
    layers: Annotated[str, typer.Option(help="Layers that shallow subnets take: alternate or first.")] = "alternate",
    loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WEIGHT",
            help="Loss and its weight: hidden, pooled, relation, attention, output, mlm; may be repeated.",
        ),
    ] = None,
    mask_rate: Annotated[float, typer.Option(help="Share of tokens masked, or of positions kept narrow.")] = 0.15,
    narrow_cls: Annotated[bool, typer.Option(help="Masked-token training with narrow layers labels [CLS] too.")] = True,
    seed: options.Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a supernet: by distillation from a teacher, or on masked tokens.

    Example: nas train --teacher DIR --corpus text.txt --minutes 60 --out my-supernet
    """
    from nas import api
    from nas.progress import choose_progress

    with resumable():
        folder = api.train(
            out,
            corpora=corpus,
            teacher=teacher,
            tokenizer=tokenizer,
            space=space,
            objective=objective,
            narrow=narrow,
            partitions=partitions,
            shrink=shrink,
            candidates=candidates,
            latency_on=latency_on,
            steps=steps,
            minutes=minutes,
            batch_size=batch_size,
            seq_len=seq_len,
            lr=lr,
            accumulate=accumulate,
            precision=precision,
            strategy=strategy,
            num_random=num_random,
            in_place=in_place,
            sort=sort,
            layers=layers,
            losses=read_losses(loss or []),
            mask_rate=mask_rate,
            narrow_cls=narrow_cls,
            seed=seed,
            resume=resume,
            progress=choose_progress(quiet=quiet),
        )
    if as_json:
        print_json({"supernet": str(folder)})
        return
    print(f"The supernet is in {folder}.")
    say(f"Next: nas search --latency-ms 10 --supernet {folder}")


def read_losses(given: list[str]) -> dict[str, float] | None:
    """The weights named by ``--loss``; None where none was given."""
    from nas.errors import InvalidInputError

    weights = {}
    for entry in given:
        name, _, weight = entry.partition("=")
        try:
            weights[name.strip()] = float(weight or 1)
        except ValueError as error:
            raise InvalidInputError(f"--loss must be NAME=WEIGHT such as hidden=1, got {entry!r}") from error
    return weights or None
