"""Rendered pictures of an analog wall clock, in the form of the course's clock data set.

A fixed number of pictures for each of the 720 times, sorted by time. They are drawn on all cores by
fresh processes that know nothing but this package and answer through a pipe: a fork could copy a
TensorFlow that has threads, and `multiprocessing`'s other start methods run the caller's script
again. A picture depends on the seed and its own number alone, so any number of processes gives the
same bytes.
"""

import json
import math
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dlnn_search.data.clocks.picture import draw_picture
from dlnn_search.data.clocks.scene import draw_scene

N_TIMES: Final = 720
SMALLEST_IMAGE_SIZE: Final = 32
LARGEST_IMAGE_SIZE: Final = 300

_CHUNK_IMAGES: Final = 64
"""Pictures asked of a process at a time: 1.4 MB at 150 px, a fifth of a second."""
_WORKER: Final = "from dlnn_search.data.clocks.renderer import _answer; _answer()"
_STOP_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Order:
    """What all pictures of one call have in common; travels to the processes as JSON."""

    images_per_time: int
    image_size: int
    azimuth_spread: float
    difficulty: float
    seed: int

    def __post_init__(self) -> None:
        if self.images_per_time < 1:
            raise ValueError(f"Expected images_per_time of 1 or more, got {self.images_per_time}.")
        if not SMALLEST_IMAGE_SIZE <= self.image_size <= LARGEST_IMAGE_SIZE:
            raise ValueError(
                f"Expected an image_size of {SMALLEST_IMAGE_SIZE} to {LARGEST_IMAGE_SIZE} px, "
                f"got {self.image_size}."
            )
        if not 0.0 <= self.azimuth_spread <= math.pi:
            raise ValueError(
                f"Expected an azimuth_spread of 0 to pi radians, got {self.azimuth_spread}."
            )
        if not 0.0 <= self.difficulty <= 1.0:
            raise ValueError(f"Expected a difficulty of 0 to 1, got {self.difficulty}.")
        if self.seed < 0:
            raise ValueError(f"Expected a seed of 0 or more, got {self.seed}.")

    @property
    def n_images(self) -> int:
        return N_TIMES * self.images_per_time

    def draw(self, number: int, hour: int, minute: int, azimuth: float | None) -> NDArray[np.uint8]:
        rng = np.random.default_rng([self.seed, number])
        scene = draw_scene(rng, self.azimuth_spread, self.difficulty)
        if azimuth is not None:
            scene = replace(scene, azimuth_rad=azimuth)
        return draw_picture(scene, hour, minute, self.image_size, rng)

    def draw_chunk(self, first: int) -> NDArray[np.uint8]:
        """Draw pictures ``first`` to ``first + _CHUNK_IMAGES``, or to the last one."""
        pictures = []
        for number in range(first, min(first + _CHUNK_IMAGES, self.n_images)):
            hour, minute = divmod(number // self.images_per_time, 60)
            pictures.append(self.draw(number, hour, minute, None))
        return np.stack(pictures)


def render_clocks(
    images_per_time: int = 25,
    *,
    image_size: int = 150,
    azimuth_spread: float = math.pi,
    difficulty: float = 1.0,
    seed: int = 0,
    processes: int | None = None,
    out: NDArray[np.uint8] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render a clock data set.

    Args:
        images_per_time: Pictures of each of the 720 times; the course's data set has 25.
        image_size: Side of the pictures in pixels, 32 to 300.
        azimuth_spread: Dials are turned by at most this, in radians, uniformly to both sides; 0 for
            all upright, pi for the full circle.
        difficulty: 0 for a plain background, a frontal view, and neither glare nor shadow nor
            noise; 1 for all the variety of the real pictures; continuous between them.
        seed: The same seed gives the same bytes.
        processes: How many processes draw; by default one for each core this process may use.
        out: Where to write the pictures, such as a ``np.memmap``, shape
            (720 * images_per_time, image_size, image_size).
        on_progress: Told how many further pictures are done, in the calling thread.

    Returns:
        Pictures, shape (n, image_size, image_size), ``out`` if given; and labels, shape (n, 2),
        hour 0 to 11 and minute 0 to 59. Both uint8 and sorted by time.

    Raises:
        ValueError: If an argument is out of its range, or ``out`` has another shape or type.
        RuntimeError: If a drawing process dies.

    Source: measured on the course's own pictures; see ``clock_scene``.
    """
    order = _Order(
        int(images_per_time), int(image_size), float(azimuth_spread), float(difficulty), int(seed)
    )
    shape = (order.n_images, order.image_size, order.image_size)
    images = np.empty(shape, np.uint8) if out is None else out
    if images.shape != shape or images.dtype != np.uint8:
        raise ValueError(
            f"Expected out of shape {shape} and type uint8, got shape {images.shape} and type "
            f"{images.dtype}."
        )
    n_processes = _usable_cores() if processes is None else processes
    if n_processes < 1:
        raise ValueError(f"Expected processes of 1 or more, got {n_processes}.")

    firsts = range(0, order.n_images, _CHUNK_IMAGES)
    n_processes = min(n_processes, len(firsts))
    drawn = (
        _draw_here(order, firsts) if n_processes == 1 else _draw_apart(order, firsts, n_processes)
    )
    # Closed at once when on_progress raises or the user interrupts, so that no process is left.
    with closing(drawn):
        for first, pictures in drawn:
            images[first : first + len(pictures)] = pictures
            if on_progress is not None:
                on_progress(len(pictures))

    times = np.repeat(np.arange(N_TIMES), order.images_per_time)
    return images, np.stack(np.divmod(times, 60), axis=1).astype(np.uint8)


def render_times(
    hours: ArrayLike,
    minutes: ArrayLike,
    *,
    image_size: int = 150,
    azimuth_spread: float = math.pi,
    difficulty: float = 1.0,
    seed: int = 0,
    azimuths: ArrayLike | None = None,
) -> NDArray[np.uint8]:
    """Render clocks that show given times.

    Args:
        hours: 0 to 11, shape (n,).
        minutes: 0 to 59, shape (n,).
        image_size: As in `render_clocks`.
        azimuth_spread: As in `render_clocks`.
        difficulty: As in `render_clocks`.
        seed: As in `render_clocks`, which draws the same pictures for the same list of times.
        azimuths: How far each dial is turned clockwise, radians, shape (n,), instead of drawn.

    Returns:
        Pictures, shape (n, image_size, image_size).

    Raises:
        ValueError: If shapes differ or a value is out of its range.
    """
    order = _Order(1, int(image_size), float(azimuth_spread), float(difficulty), int(seed))
    hour, minute = np.asarray(hours), np.asarray(minutes)
    if hour.ndim != 1 or hour.shape != minute.shape:
        raise ValueError(
            f"Expected hours and minutes of one shape (n,), got {hour.shape} and {minute.shape}."
        )
    if np.any((hour < 0) | (hour > 11)) or np.any((minute < 0) | (minute > 59)):
        raise ValueError("Expected hours of 0 to 11 and minutes of 0 to 59, got others.")
    turns: Sequence[float | None] = [None] * len(hour)
    if azimuths is not None:
        given = np.asarray(azimuths, np.float64)
        if given.shape != hour.shape:
            raise ValueError(f"Expected azimuths of shape {hour.shape}, got {given.shape}.")
        turns = given.tolist()
    images = np.empty((len(hour), order.image_size, order.image_size), np.uint8)
    for i, turn in enumerate(turns):
        images[i] = order.draw(i, int(hour[i]), int(minute[i]), turn)
    return images


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _draw_here(
    order: _Order, firsts: range
) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
    for first in firsts:
        yield first, order.draw_chunk(first)


def _draw_apart(
    order: _Order, firsts: range, n_processes: int
) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
    """Yield chunks as processes finish them, each process served by a thread of its own."""
    to_draw: queue.SimpleQueue[int] = queue.SimpleQueue()
    for first in firsts:
        to_draw.put(first)
    # Bounded, so that a slow disk behind a memmap does not pile pictures up in memory.
    drawn: queue.Queue[tuple[int, NDArray[np.uint8]] | Exception] = queue.Queue(4 * n_processes)
    stopped = threading.Event()

    def serve(worker: subprocess.Popen[bytes]) -> None:
        try:
            while not stopped.is_set():
                try:
                    first = to_draw.get_nowait()
                except queue.Empty:
                    return
                drawn.put((first, _ask(worker, order, first)))
        except Exception as error:  # handed to the caller's thread, which raises it
            drawn.put(error)

    with ExitStack() as stack:
        workers: list[subprocess.Popen[bytes]] = []
        threads: list[threading.Thread] = []
        stack.callback(_stop, workers, threads, stopped, drawn)
        for _ in range(n_processes):
            workers.append(_start(order))
            threads.append(threading.Thread(target=serve, args=(workers[-1],), daemon=True))
            threads[-1].start()
        for _ in firsts:
            item = drawn.get()
            if isinstance(item, Exception):
                raise item
            yield item


def _start(order: _Order) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        # Without -P a module in the current folder could stand in for the standard library's.
        [sys.executable, "-P", "-c", _WORKER, json.dumps(asdict(order))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )


def _ask(worker: subprocess.Popen[bytes], order: _Order, first: int) -> NDArray[np.uint8]:
    assert worker.stdin is not None and worker.stdout is not None
    n_images = min(_CHUNK_IMAGES, order.n_images - first)
    n_bytes = n_images * order.image_size**2
    try:
        worker.stdin.write(b"%d\n" % first)
        worker.stdin.flush()
        answer = worker.stdout.read(n_bytes)
    except BrokenPipeError:
        answer = b""
    if len(answer) != n_bytes:
        raise RuntimeError(
            f"A process that draws clocks ended with exit code {worker.wait()} before it had drawn "
            f"pictures {first} to {first + n_images}; its error stands above. Try fewer processes."
        )
    return np.frombuffer(answer, np.uint8).reshape(n_images, order.image_size, order.image_size)


def _stop(
    workers: list[subprocess.Popen[bytes]],
    threads: list[threading.Thread],
    stopped: threading.Event,
    drawn: "queue.Queue[tuple[int, NDArray[np.uint8]] | Exception]",
) -> None:
    """End processes and threads, whether all is drawn or the caller was interrupted."""
    stopped.set()
    for worker in workers:
        worker.kill()
    for thread in threads:
        while thread.is_alive():
            # A thread may be waiting for room in the queue.
            try:
                drawn.get_nowait()
            except queue.Empty:
                thread.join(timeout=0.01)
    for worker in workers:
        assert worker.stdin is not None and worker.stdout is not None
        with suppress(BrokenPipeError):
            worker.stdin.close()
        worker.stdout.close()
        worker.wait(_STOP_SECONDS)


def _answer() -> None:
    """Draw the chunks asked for on standard input until it closes: a drawing process's life."""
    order = _Order(**json.loads(sys.argv[1]))
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(order.draw_chunk(int(line)).tobytes())
        sys.stdout.buffer.flush()
