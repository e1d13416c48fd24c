"""``nas devices``: where latencies can be measured."""

from typing import Annotated

import typer

from nas.cli.outcome import print_json, say, verb


@verb
def devices(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the devices that latencies can be measured on, and how to add one."""
    from nas import api

    known = api.devices()
    if as_json:
        print_json({"devices": [{"name": name, "description": words} for name, words in known.items()]})
        return
    for name, words in known.items():
        print(f"{name}: {words}")
    say(
        "To measure on another machine, install this program there and use --device cpu on it. "
        "A device that is not listed is never replaced by another one: its name ends with exit code 4."
    )
