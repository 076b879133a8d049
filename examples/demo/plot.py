"""The loss curve of a run as a picture, with every change of the membership marked."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from story import Event, Story

MARKED = {"kill": "#c0392b", "join": "#1e8449"}
CURVE, VALIDATION, GREY = "#2c5f8a", "#d98018", "#7f8c8d"


def plot(story: Story, path: Path) -> None:
    """Writes the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(10, 6), sharex=True, height_ratios=[4, 1], layout="constrained", dpi=130
    )
    outcome = "state equal on all of them, bit for bit" if story.equal else "not all of them ended with the same state"
    figure.suptitle(f"A small GPT trained by peers that come and go: {outcome}", fontsize=12)
    _draw_losses(top, story)
    _draw_peers(bottom, story)
    for event in story.events:
        if event.kind in MARKED:
            _mark(top, bottom, event)
    figure.savefig(path)
    pyplot.close(figure)


def _draw_losses(axes: Axes, story: Story) -> None:
    numbers = sorted(story.steps)
    axes.plot(numbers, [story.steps[number].loss for number in numbers], color=CURVE, linewidth=1.4, label="training")
    validations = story.validations()
    axes.plot(list(validations), list(validations.values()), "o", color=VALIDATION, markersize=4, label="validation")
    axes.set_ylabel("loss (nats per byte)")
    axes.legend(loc="upper right", frameon=False)
    _tidy(axes)


def _draw_peers(axes: Axes, story: Story) -> None:
    numbers = sorted(story.steps)
    peers = [story.steps[number].peers for number in numbers]
    axes.fill_between(numbers, peers, step="post", color=GREY, alpha=0.35, linewidth=0)
    axes.step(numbers, peers, where="post", color=GREY)
    axes.set_ylim(0, max(peers, default=1) + 0.6)
    axes.set_yticks(range(max(peers, default=1) + 1))
    axes.set_ylabel("peers")
    axes.set_xlabel("step")
    _tidy(axes)


def _mark(top: Axes, bottom: Axes, event: Event) -> None:
    color = MARKED[event.kind]
    for axes in (top, bottom):
        axes.axvline(event.step, color=color, linestyle="--", linewidth=1)
    label = event.text.replace(": ", ":\n", 1)
    height = 0.62 if event.kind == "kill" else 0.45
    place = (event.step, height)
    text = top.annotate(label, place, (6, 0), xycoords=top.get_xaxis_transform(), textcoords="offset points")
    text.set(color=color, fontsize=8, va="top", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
