"""Starts a recipe: YAML and command line to dataclasses, errors to one line."""

import sys
from collections.abc import Callable
from pathlib import Path

from trl import TrlParser

from popen.errors import one_line_errors


def run(main: Callable, *argument_classes: type) -> None:
    """Parses `--config FILE.yaml` and overrides into the classes and calls `main` with them.

    An unknown key of the YAML or the command line is an error that names it.
    """
    with one_line_errors(Path(sys.argv[0]).name):
        code = main(*TrlParser(argument_classes).parse_args_and_config())
    if code:
        raise SystemExit(code)
