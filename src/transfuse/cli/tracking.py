"""`--track`: cells and verdicts to an experiment tracker as well; losing it costs a warning, never a cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from transfuse.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from transfuse.study.store import Cell

TRACKERS = ("mlflow",)


class Tracking:
    """The tracker that was asked for, or none.

    Args:
        name: one of `TRACKERS`.

    Raises:
        UserError: the tracker is unknown, not installed, or does not answer.
    """

    def __init__(self, name: str | None) -> None:
        self.tracker = None
        if name is None:
            return
        if name not in TRACKERS:
            raise UserError(f"--track {name!r}", f"one of {', '.join(TRACKERS)}", did_you_mean(name, TRACKERS))
        from transfuse.study.track_mlflow import MlflowTracker

        self.tracker = MlflowTracker()

    def cell(self, cell: Cell) -> None:
        """A cell was run and stored."""
        self._tell("cell", cell)

    def verdicts(self, summary: Mapping[str, Any]) -> None:
        """A study was judged."""
        self._tell("verdicts", summary)

    def _tell(self, what: str, value: Any) -> None:
        if self.tracker is None:
            return
        try:
            getattr(self.tracker, what)(value)
        except Exception as error:  # a server of somebody else's may fail in any way; the cell is already kept
            self.tracker = None
            line = " ".join(str(error).split())
            typer.echo(f"warning: tracking ended ({type(error).__name__}: {line}); cells are kept", err=True)
