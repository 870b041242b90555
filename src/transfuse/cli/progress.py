"""What a run says while it works: one bar in a terminal, a line a cell elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

import typer

from transfuse.cli.forecast import Forecast
from transfuse.cli.tables import count, duration
from transfuse.cli.verdict_table import verdict_table

if TYPE_CHECKING:
    from rich.console import Console

    from transfuse.study.launch import Outcome


class Reporter(Protocol):
    """Told about everything that happens in a run, in order."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def cell(self, outcome: Outcome, seconds: float | None) -> None:
        """A cell ended; `seconds` is None if it failed."""

    def verdicts(self, summary: Mapping[str, Any]) -> None:
        """The last cell of a study is in."""


def failure_line(outcome: Outcome) -> str:
    """One line for stderr."""
    return f"failed: {outcome.spec}: {' '.join(outcome.error.split())}"


class Lines:
    """A line a cell, for logs."""

    def __init__(self, forecast: Forecast) -> None:
        self.forecast, self.done = forecast, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def cell(self, outcome: Outcome, seconds: float | None) -> None:
        self.done += 1
        if seconds is None:
            typer.echo(failure_line(outcome), err=True)
            return
        left = duration(self.forecast.left())
        typer.echo(
            f"[{self.done}/{len(self.forecast.expected)}] {outcome.spec}: {duration(seconds)}, about {left} left"
        )

    def verdicts(self, summary: Mapping[str, Any]) -> None:
        typer.echo(f"\n{verdict_table(summary)}\n")


class Bar:
    """One bar over all cells with the time left; verdicts appear above it."""

    def __init__(self, forecast: Forecast, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
        from rich.text import Text

        class TimeLeft(ProgressColumn):
            def render(self, task: Any) -> Text:
                return Text(f"about {duration(forecast.left())} left")

        self.forecast, self.done = forecast, 0
        self.console = console or Console(highlight=False, markup=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeLeft(),
            console=self.console,
            transient=True,
            redirect_stdout=False,  # all that is printed meanwhile goes through the console
        )
        self.task = self.bar.add_task(self._text(), total=1.0)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def cell(self, outcome: Outcome, seconds: float | None) -> None:
        self.done += 1
        self.bar.update(self.task, completed=self.forecast.share, description=self._text())
        if seconds is None:
            self.console.print(failure_line(outcome), soft_wrap=True)

    def verdicts(self, summary: Mapping[str, Any]) -> None:
        from rich.text import Text

        self.console.print(Text.from_ansi(f"\n{verdict_table(summary)}\n"))

    def _text(self) -> str:
        return f"{self.done} of {count(len(self.forecast.expected), 'cell')}"


class JsonLines:
    """One JSON object a line on stdout."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def cell(self, outcome: Outcome, seconds: float | None) -> None:
        spec = outcome.spec
        line = {
            "event": "failed" if seconds is None else "cell",
            "study": spec.study,
            "scale": spec.scale,
            "seed": spec.seed,
        }
        if seconds is None:
            self.line({**line, "error": outcome.error})
        else:
            self.line({**line, "path": str(outcome.path), "wall_s": seconds})

    def verdicts(self, summary: Mapping[str, Any]) -> None:
        self.line({"event": "verdicts", **summary})

    @staticmethod
    def line(values: Mapping[str, Any]) -> None:
        """Print one event."""
        typer.echo(json.dumps(values, allow_nan=False))
