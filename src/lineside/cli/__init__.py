"""The command line: a file a group of verbs. They only read the command line and call the verb.

Imports no torch: a verb is imported when it is called.
"""

from lineside.cli.command import app, explain, main

from lineside.cli import frames, labels, training, judging, serving, outcomes, models, registry, trials  # isort: skip  # the order of --help

__all__ = [
    "app", "explain", "frames", "judging", "labels", "main", "models", "outcomes", "registry", "serving", "training",
    "trials",
]  # fmt: skip
