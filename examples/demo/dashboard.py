"""The live view of a run in a terminal; plain lines where the output is not a terminal."""

from __future__ import annotations

import statistics
from types import TracebackType

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from story import Event, Story

COLORS = {"kill": "bold red", "failure": "bold red", "join": "bold green", "retry": "yellow", "done": "cyan"}
SPARKS = "▁▂▃▄▅▆▇█"
EVENTS_SHOWN = 9
PLAIN_EVERY = 10  # steps per line where there is no terminal


class Dashboard:
    """A context manager; show() draws the story as it stands."""

    def __init__(self, story: Story, steps: int) -> None:
        self._story = story
        self._steps = steps
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._told = 0  # events printed so far, when there is no terminal
        self._printed = -1

    def __enter__(self) -> Dashboard:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.show()
        if self._live is not None:
            self._live.stop()

    def show(self) -> None:
        """Draws the newest state."""
        if self._live is not None:
            self._live.update(self._draw(), refresh=True)
        else:
            self._print_news()

    def _draw(self) -> Panel:
        figures = Columns([self._figures(), self._peers()], padding=(0, 4))
        events = Text("\n").join(event_line(event) for event in self._story.events[-EVENTS_SHOWN:])
        bar = ProgressBar(total=self._steps, completed=self._story.newest + 1, width=76)
        body = Group(bar, Text(), figures, Text(), Text(self._curve(), style="cyan"), Text(), events)
        return Panel(body, title="pccl: training that outlives its peers", width=100)

    def _figures(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column(justify="right", min_width=9)
        for name, value in self._rows():
            table.add_row(name, value)
        return table

    def _rows(self) -> list[tuple[str, str]]:
        step = self._story.steps.get(self._story.newest)
        if step is None:
            return [("step", "starting"), ("seconds", f"{self._story.now:.0f}")]
        validations = list(self._story.validations().values())
        return [
            ("step", f"{self._story.newest + 1} / {self._steps}"),
            ("loss", f"{step.loss:.3f}"),
            ("validation loss", f"{validations[-1]:.3f}" if validations else "-"),
            ("peers", str(step.peers)),
            ("epoch", str(step.epoch)),
            ("all-reduce", f"{self._recent_rate():.0f} MB/s"),
            ("retries", str(self._story.retries)),
            ("seconds", f"{self._story.now:.0f}"),
        ]

    def _recent_rate(self) -> float:
        """Median of the last steps: in one step alone it depends on who shares the processor."""
        recent = [step.mb_per_s for _, step in sorted(self._story.steps.items())[-PLAIN_EVERY:]]
        return statistics.median(recent)

    def _peers(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name in sorted(self._story.reached):
            dead = name in self._story.killed
            state = Text("killed", style="bold red") if dead else Text(f"step {self._story.reached[name] + 1}")
            table.add_row(Text("✗" if dead else "●", style="red" if dead else "green"), name, state)
        return table

    def _curve(self) -> str:
        losses = [step.loss for _, step in sorted(self._story.steps.items())]
        if not losses:
            return ""
        width = min(76, len(losses))
        points = [losses[i * len(losses) // width] for i in range(width)]
        low, high = min(points), max(points)
        scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
        return "".join(SPARKS[round((point - low) * scale)] for point in points)

    def _print_news(self) -> None:
        for event in self._story.events[self._told :]:
            self._console.print(event_line(event), soft_wrap=True)
        self._told = len(self._story.events)
        newest = self._story.newest
        if newest // PLAIN_EVERY > self._printed // PLAIN_EVERY:
            self._printed = newest
            self._console.print("  ".join(f"{name} {value}" for name, value in self._rows()), soft_wrap=True)


def event_line(event: Event) -> Text:
    """One event as a line."""
    return Text(f"{event.seconds:6.1f} s  step {event.step + 1:>3}  {event.text}", style=COLORS.get(event.kind, ""))
