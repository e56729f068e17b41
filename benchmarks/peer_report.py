"""What peers.py found: tables as Markdown, and the curves as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OURS = "dlnn-search"
PEERS = ("keras-tuner-random", "keras-tuner-hyperband", "keras-tuner-bayesian", "optuna", "ray")
COLORS = dict(
    zip(
        (OURS, *PEERS),
        ("#d62728", "#aec7e8", "#1f77b4", "#17becf", "#2ca02c", "#9467bd"),
        strict=True,
    )
)


@dataclass(frozen=True)
class Run:
    """One run of one system.

    Attributes:
        kind: `search`, or `work`: trials of one config.
        seconds: That it had, on its clock.
        clock: `wall` or `processor`: of its own processes, all together.
        wall_seconds: What that was by the wall.
        trace: The steps of the best validation accuracy: (wall seconds since its command,
            processor seconds used by then, value).
        ends: When trials came to the last epoch: (wall seconds, processor seconds).
        epochs: Trained in all trials together.
        test: Accuracy on the test split of the best epoch's weights on the disk.
        tested_validation: Of these weights: the newest epoch's may not have been on the disk.
        pictures: Hash of the validation split.
        images: That were trained on, None: all of the set's.
        load: Of the machine, mean over five minutes at the end.
    """

    kind: str
    system: str
    task: str
    seed: int
    seconds: float
    clock: str
    wall_seconds: float
    trace: list[tuple[float, float, float]]
    ends: list[tuple[float, float]]
    epochs: int
    test: float | None
    tested_validation: float | None
    pictures: str | None
    images: int | None
    peak_memory_mb: float
    processor_seconds: float
    load: float
    machine: str

    @classmethod
    def read(cls, line: dict[str, Any]) -> Run:
        """Return the run that a line of the output holds."""
        values: dict[str, Any] = {one.name: line.get(one.name) for one in fields(cls)}
        values["trace"] = [(wall, used, value) for wall, used, value in line["trace"]]
        values["ends"] = [(wall, used) for wall, used in line["ends"]]
        return cls(**values)

    @property
    def key(self) -> tuple[str, str, str, int, float, str, int | None]:
        """What it is a run of."""
        return self.kind, self.system, self.task, self.seed, self.seconds, self.clock, self.images

    @property
    def best(self) -> float:
        """The best validation accuracy, 0 without an epoch."""
        return self.trace[-1][2] if self.trace else 0.0

    def time_to(self, value: float, clock: int) -> float | None:
        """Return when it had that value, by wall (0) or processor (1); None: not in its time."""
        return next((point[clock] for point in self.trace if point[2] >= value), None)

    def budget(self, clock: int) -> float:
        """Return what it had in all, by wall (0) or processor (1)."""
        return self.processor_seconds if clock else self.wall_seconds

    def value_at(self, at: NDArray[np.float64], clock: int) -> NDArray[np.float64]:
        """Return the best value by then, by wall (0) or processor (1), NaN before the first."""
        times = np.array([point[clock] for point in self.trace])
        values = np.array([np.nan] + [point[2] for point in self.trace])
        return np.asarray(values[np.searchsorted(times, at, side="right")])


def report(runs: Sequence[Run], picture: Path | None) -> str:
    """Return all tables, and draw the curves if a place is given for them."""
    searches = [one for one in runs if one.kind == "search"]
    parts = []
    for group in groups(searches):
        parts.append(found_table(group))
        parts.append(speed_table(group))
    work = [one for one in runs if one.kind == "work"]
    if work:
        parts.append(work_table(work))
    if picture is not None:
        draw(searches, picture)
    return "\n".join(parts)


def groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs that can be compared: of one task, with the same time and images."""
    found: dict[tuple[str, str, float, int | None], list[Run]] = {}
    for one in runs:
        found.setdefault((one.task, one.clock, one.seconds, one.images), []).append(one)
    return list(found.values())


def title(run: Run) -> str:
    """Return what was searched, on how many images."""
    images = "" if run.images is None else f" on {run.images:,} images"
    return f"task1-fashion-{run.task}{images}"


def found_table(runs: Sequence[Run]) -> str:
    """Return what each system found in its time."""
    first = runs[0]
    marks = {one.pictures for one in runs if one.pictures}
    lines = [
        f"\n**{title(first)}**, {first.seconds:.0f} s by the {first.clock}, "
        f"{first.machine}, load "
        f"{min(one.load for one in runs)} to {max(one.load for one in runs)}, validation images "
        f"{', '.join(sorted(marks))}\n",
        "| system | runs | best validation | test | epochs | wall, s | processor, s "
        "| peak memory, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for system in (OURS, *PEERS):
        mine = [one for one in runs if one.system == system]
        if mine:
            lines.append(
                f"| {system} | {len(mine)} | {spread([one.best for one in mine])} "
                f"| {spread([one.test for one in mine if one.test is not None])} "
                f"| {statistics.mean(one.epochs for one in mine):.0f} "
                f"| {statistics.mean(one.wall_seconds for one in mine):.0f} "
                f"| {statistics.mean(one.processor_seconds for one in mine):.0f} "
                f"| {max(one.peak_memory_mb for one in mine):,.0f} |"
            )
    return "\n".join(lines)


def speed_table(runs: Sequence[Run]) -> str:
    """Return who is how much sooner where the other ends."""
    lines = [
        "\n| against | its best after, s | ours there after, s | times faster | the same by "
        "processor time | its time to ours' best, times ours |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    ours = [one for one in runs if one.system == OURS]
    for system in PEERS:
        theirs = [one for one in runs if one.system == system]
        if not theirs or not ours:
            continue
        pairs = [(peer, mine) for peer in theirs for mine in ours]
        lines.append(
            f"| {system} | {times([one.trace[-1][0] for one in theirs if one.trace])} "
            f"| {reached([mine.time_to(peer.best, 0) for peer, mine in pairs])} "
            f"| {factors([ratio(peer, mine, 0) for peer, mine in pairs])} "
            f"| {factors([ratio(peer, mine, 1) for peer, mine in pairs])} "
            f"| {factors([ratio(mine, peer, 0, inverse=True) for peer, mine in pairs])} |"
        )
    return "\n".join(lines)


def ratio(goal: Run, other: Run, clock: int, *, inverse: bool = False) -> tuple[float, bool] | None:
    """Return how many times faster `other` has what `goal` has after its whole time.

    Args:
        goal: Whose best value it is; it took until its trace's last step.
        other: Who shall reach it.
        clock: Wall (0) or processor (1).
        inverse: How many times slower instead.

    Returns:
        The ratio, and whether `other` got there: if not, its whole time stands for that, and the
        truth lies beyond. None where `goal` found nothing.
    """
    if not goal.trace:
        return None
    took = other.time_to(goal.best, clock)
    spent = other.budget(clock) if took is None else took
    found = goal.trace[-1][clock] / max(spent, 1e-9)
    return (1 / found if inverse else found), took is not None


def factors(found: Sequence[tuple[float, bool] | None]) -> str:
    """Return median and range of ratios over pairs of seeds, and in how many it was reached."""
    known = [one for one in found if one is not None]
    if not known:
        return "it found nothing"
    values = [value for value, _ in known]
    n_reached = sum(is_reached for _, is_reached in known)
    words = f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"
    if n_reached == 0:
        return f"beyond {words}: not reached"
    return words if n_reached == len(known) else f"{words}; reached in {n_reached} of {len(known)}"


def reached(found: Sequence[float | None]) -> str:
    """Return median and range of times."""
    known = [at for at in found if at is not None]
    return times(known) if known else "not reached"


def times(values: Sequence[float]) -> str:
    """Return median and range in seconds."""
    if not values:
        return "-"
    return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


def spread(values: Sequence[float]) -> str:
    """Return mean and range of accuracies."""
    if not values:
        return "-"
    return f"{statistics.mean(values):.4f} ({min(values):.4f}-{max(values):.4f})"


def work_table(runs: Sequence[Run]) -> str:
    """Return trials an hour of one config, from the end of the first trial to that of the last."""
    lines = [
        "\n**Trials an hour at equal work**\n",
        "| system | task | trials | trials an hour | ours, times | processor seconds a trial "
        "| ours, times | first trial after, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task in dict.fromkeys(one.task for one in runs):
        of_task = [one for one in runs if one.task == task]
        ours = [one for one in of_task if one.system == OURS]
        for system in (OURS, *PEERS):
            mine = [one for one in of_task if one.system == system and len(one.ends) > 1]
            if not mine:
                continue
            wall, used = (statistics.median(pace(one, clock) for one in mine) for clock in (0, 1))
            own = [statistics.median(pace(one, clock) for one in ours) for clock in (0, 1)]
            lines.append(
                f"| {system} | {task} | {sum(len(one.ends) for one in mine)} | {3600 / wall:.0f} "
                f"| {wall / own[0]:.1f} | {used:.1f} | {used / own[1]:.1f} "
                f"| {statistics.median(one.ends[0][0] for one in mine):.0f} |"
            )
    return "\n".join(lines)


def pace(run: Run, clock: int) -> float:
    """Return seconds a trial after the first, by wall (0) or processor (1)."""
    return (run.ends[-1][clock] - run.ends[0][clock]) / (len(run.ends) - 1)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw the best value against the time, a panel a task: each run thin, the mean thick."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels_of = groups(runs)
    figure, panels = pyplot.subplots(
        1, len(panels_of), figsize=(6.5 * len(panels_of), 4.5), squeeze=False, layout="constrained"
    )
    for group, panel in zip(panels_of, panels[0], strict=True):
        first = group[0]
        clock = ("wall", "processor").index(first.clock)
        at = np.arange(0.0, first.seconds + 1e-9, 0.5)
        for system in (OURS, *PEERS):
            mine = [one for one in group if one.system == system and one.trace]
            curves = [one.value_at(at, clock) for one in mine]
            for curve in curves:
                panel.plot(at, curve, color=COLORS[system], linewidth=0.7, alpha=0.45)
            if curves:
                mean = np.mean(curves, axis=0)
                panel.plot(at, mean, color=COLORS[system], linewidth=2.2, label=system)
        best, worst = (chosen(one.best for one in group) for chosen in (max, min))
        panel.set_ylim(max(worst, best - 0.3) - 0.02, best + 0.005)
        panel.set_title(title(first))
        panel.set_xlabel(f"{first.clock} seconds since the command")
        panel.set_ylabel("best validation accuracy so far")
        panel.grid(alpha=0.3)
    shown: dict[str, Any] = {}  # a system may have runs of one task alone
    for panel in panels[0]:
        shown |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=len(shown), fontsize=8)
    figure.savefig(path, dpi=110)
