"""`streamingcnn report`: the page of a run, from what its folder has."""

from __future__ import annotations

import argparse
from pathlib import Path

from streamingcnn.training.report import write_run_report

__all__ = ["add_parser"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `streamingcnn`."""
    parser = subparsers.add_parser(
        "report",
        help="the page of a run: curves, metrics, heatmaps, worst and bad cases, settings",
        description="Write report.html into the folder of a run, from what is there by now; `evaluate` does it too. "
        "It is read without a network.",
    )
    parser.add_argument("run_folder", metavar="RUN", nargs="+", type=Path, help="the folder of a run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the reports."""
    for folder in args.run_folder:
        print(write_run_report(folder).resolve())
    return 0
