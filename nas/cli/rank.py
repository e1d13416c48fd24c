"""``nas rank``: can a supernet be trusted?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli import options
from nas.cli.outcome import Interrupted, command_line, is_given, print_json, say, verb

if TYPE_CHECKING:
    from nas.search.ranking import RankResult

_BESIDE_RESUME = {"resume", "as_json", "quiet"}


@verb
def rank(
    context: typer.Context,
    supernet: Annotated[
        Path | None, typer.Option(help="Folder that nas train made; the shipped one by default.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="The teacher that it learned from: a folder or hub id.")] = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="Text that each subnet is trained on; may be repeated.", show_default=False)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="File or hub id with text (or text pair) and label, or words and tags: judge by a figure on it after "
            "fine-tuning."
        ),
    ] = None,
    kind: options.Kind = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    num_subnets: Annotated[int, typer.Option(help="How many subnets to train alone.")] = 15,
    band: Annotated[
        str | None, typer.Option(help="Only subnets of so many million encoder parameters, such as 1.2,2.2.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each subnet.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes of each subnet.")] = None,
    batch_size: options.TextsABatch = 32,
    seq_len: options.MostTokens = 64,
    lr: Annotated[float, typer.Option(help="Peak learning rate of the distillation.")] = 5e-4,
    seed: options.Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for what is found; runs/<time> by default.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of a ranking to go on with.")] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Tell whether a supernet ranks its subnets as training each of them alone would.

    Example: nas rank --supernet my-supernet --teacher DIR --corpus text.txt --minutes 2

    Example: nas rank --task reviews.csv --num-subnets 20 --band 1.2,2.2
    """
    from nas import api
    from nas.errors import InvalidInputError
    from nas.progress import choose_progress
    from nas.rundir import RUN_FILE, fresh_path

    given = sorted(name for name in context.params if is_given(context, name) and name not in _BESIDE_RESUME)
    if resume is not None and given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InvalidInputError(f"--resume takes everything from the folder; leave out {named}")
    folder = resume or out or fresh_path()
    try:
        result = api.rank(
            None if resume else folder,
            supernet=supernet,
            teacher=teacher,
            corpora=corpus or (),
            task=task,
            kind=kind,
            text=text,
            text_pair=text_pair,
            label=label,
            num_subnets=num_subnets,
            band=None if band is None else options.band_of("--band", band),
            steps=steps,
            minutes=minutes,
            batch_size=batch_size,
            seq_len=seq_len,
            lr=lr,
            seed=seed,
            resume=resume,
            command=command_line(context),
            progress=choose_progress(quiet=quiet),
        )
    except KeyboardInterrupt as interruption:
        how = f"continue with: nas rank --resume {folder}" if (folder / RUN_FILE).exists() else "nothing was written"
        raise Interrupted(how) from interruption
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)


def _print(result: "RankResult") -> None:
    from rich.table import Table

    from nas.cli.tables import console
    from nas.search.ranking import HEAD, PAGE, table_rows

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(HEAD):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in table_rows(result):
        table.add_row(*row)
    console().print(table)
    console().print(f"truth: {result.truth_name}; inherited: {result.inherited_name}; 90 % intervals", markup=False)
    console().print(result.verdict, markup=False, soft_wrap=True)
    say(f"The ranks as figures: {result.folder / PAGE}")
