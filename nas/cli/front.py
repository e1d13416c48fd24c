"""``nas front``: what a search found."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import options
from nas.cli.outcome import print_json, verb


@verb
def front(
    run: Annotated[Path, typer.Argument(help="Run folder of a search.")],
    as_json: options.AsJson = False,
) -> None:
    """Show the Pareto front of a search, finished or not, and write report.html and front.csv anew."""
    from nas import api

    result = api.front(run)
    if as_json:
        print_json(result.to_dict())
        return
    from nas.cli.tables import print_result

    print_result(result)
