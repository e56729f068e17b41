"""Rendered clocks: what a picture shows, and that the same seed gives the same bytes."""

import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dlnn_search.data.clocks.renderer import render_clocks, render_times

N_TIMES = 720
MIDDLE_PX = 74.5  # at difficulty 0 the dial stands upright in the middle of 150 px ...
FACE_PX = 62.0  # ... with this radius

TIMES = [(0, 0), (1, 50), (3, 0), (4, 35), (6, 10), (8, 20), (9, 45), (11, 5)]


Rendered = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def one_of_each() -> Rendered:
    """A picture of each time, drawn in this process."""
    return render_clocks(1, image_size=32, seed=3, processes=1)


def easy(
    times: list[tuple[int, int]] = TIMES, azimuths: list[float] | None = None, size: int = 150
) -> NDArray[np.uint8]:
    hours, minutes = zip(*times, strict=True)
    return render_times(
        hours,
        minutes,
        image_size=size,
        azimuth_spread=0.0,
        difficulty=0.0,
        seed=1,
        azimuths=azimuths,
    )


def gray_at(image: NDArray[np.uint8], angle_deg: float, radius: float) -> float:
    """Gray at a clock angle from the top and a share of the face radius, nearest pixel."""
    x = MIDDLE_PX + radius * FACE_PX * math.sin(math.radians(angle_deg))
    y = MIDDLE_PX - radius * FACE_PX * math.cos(math.radians(angle_deg))
    return float(image[round(y), round(x)])


def dark_angles(image: NDArray[np.uint8], radius: float) -> set[int]:
    """Whole degrees at which a circle round the pivot is as dark as a hand."""
    return {a for a in range(360) if gray_at(image, a, radius) < 110}


def angle_between(a_deg: float, b_deg: float) -> float:
    return abs((a_deg - b_deg + 180) % 360 - 180)


def test_pictures_are_sorted_by_time_with_the_same_number_of_each() -> None:
    images, labels = render_clocks(2, image_size=32, processes=1)
    assert images.shape == (2 * N_TIMES, 32, 32) and images.dtype == np.uint8
    assert labels.shape == (2 * N_TIMES, 2) and labels.dtype == np.uint8
    assert np.array_equal(labels.astype(int) @ (60, 1), np.arange(1440) // 2)
    assert not np.array_equal(images[0], images[1])


def test_any_number_of_processes_gives_the_same_bytes_and_another_seed_others(
    one_of_each: Rendered,
) -> None:
    one, labels = one_of_each
    many, _ = render_clocks(1, image_size=32, seed=3, processes=3)
    assert np.array_equal(one, many)
    other = render_times(
        labels[:50, 0],
        labels[:50, 1],
        image_size=32,
        azimuth_spread=math.pi,
        difficulty=1.0,
        seed=4,
    )
    assert np.all(np.any(one[:50] != other, axis=(1, 2)))


def test_a_list_of_times_is_drawn_as_in_the_whole_data_set(one_of_each: Rendered) -> None:
    images, labels = one_of_each
    listed = render_times(
        labels[:9, 0],
        labels[:9, 1],
        image_size=32,
        azimuth_spread=math.pi,
        difficulty=1.0,
        seed=3,
    )
    assert np.array_equal(images[:9], listed)


def test_a_script_without_a_main_guard_may_render_into_a_memmap(
    tmp_path: Path, one_of_each: Rendered
) -> None:
    script = tmp_path / "render.py"
    script.write_text(
        "import numpy as np\n"
        "from dlnn_search.data.clocks.renderer import render_clocks\n"
        "out = np.lib.format.open_memmap('images.npy', 'w+', np.uint8, (720, 32, 32))\n"
        "done = []\n"
        "images, _ = render_clocks(1, image_size=32, seed=3, processes=2,\n"
        "                          out=out, on_progress=done.append)\n"
        "assert images is out and sum(done) == 720 and min(done) > 0\n"
        "out.flush()\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        check=True,
        timeout=60,
    )
    assert np.array_equal(np.load(tmp_path / "images.npy"), one_of_each[0])


def test_an_error_of_the_caller_leaves_no_process_behind() -> None:
    class InterruptedByCallerError(Exception):
        pass

    def interrupt(n_images: int) -> None:
        raise InterruptedByCallerError

    n_threads = threading.active_count()
    with pytest.raises(InterruptedByCallerError):
        render_clocks(1, image_size=32, processes=2, on_progress=interrupt)
    assert threading.active_count() == n_threads


@pytest.mark.parametrize("azimuth_deg", [0, 90, -137])
def test_the_hands_point_where_the_time_says(azimuth_deg: int) -> None:
    images = easy(azimuths=[math.radians(azimuth_deg)] * len(TIMES))
    for image, (hour, minute) in zip(images, TIMES, strict=True):
        minute_deg = azimuth_deg + 6 * minute
        hour_deg = azimuth_deg + 30 * hour + minute / 2
        inner, outer = dark_angles(image, 0.45), dark_angles(image, 0.655)
        assert outer and all(angle_between(a, minute_deg) < 4 for a in outer)
        for a in inner:
            assert min(angle_between(a, minute_deg), angle_between(a, hour_deg)) < 6
        assert any(angle_between(a, hour_deg) < 2 for a in inner)


def test_both_hands_are_dark_from_the_pivot_to_their_tips() -> None:
    for image, (hour, minute) in zip(easy(), TIMES, strict=True):
        for angle, length in ((30 * hour + minute / 2, 0.615), (6 * minute, 0.74)):
            reach = np.arange(0.0, length - 0.04, 0.02)
            assert max(gray_at(image, angle, r) for r in reach) < 110


def test_the_numerals_turn_with_the_dial_and_are_never_mirrored() -> None:
    upright = easy([(6, 0)])[0].astype(float)
    # Quarter turns of an upright frontal dial are quarter turns of the picture's face.
    y, x = np.mgrid[:150, :150]
    face = np.hypot(x - MIDDLE_PX, y - MIDDLE_PX) < 0.95 * FACE_PX
    for quarter in range(4):
        turned = easy([(6, 0)], azimuths=[quarter * math.pi / 2])[0].astype(float)
        expected = np.rot90(upright, -quarter)
        mirrored = np.rot90(upright[:, ::-1], -quarter)
        assert np.abs(turned - expected)[face].mean() < 0.5
        assert np.abs(turned - mirrored)[face].mean() > 1.5

    # Two strokes stand at 11 o'clock, one at 1 o'clock.
    def ink(angle_deg: float) -> float:
        centre_x = MIDDLE_PX + 0.74 * FACE_PX * math.sin(math.radians(angle_deg))
        centre_y = MIDDLE_PX - 0.74 * FACE_PX * math.cos(math.radians(angle_deg))
        near = np.hypot(x - centre_x, y - centre_y) < 0.11 * FACE_PX
        return float((upright[near].max() - upright[near]).sum())

    assert ink(-30 + 4) > 1.5 * ink(30)


def test_the_spread_bounds_the_azimuth() -> None:
    hours, minutes = np.full(12, 5), np.full(12, 25)

    def drawn(spread: float, azimuths: NDArray[np.float64] | None = None) -> NDArray[np.uint8]:
        return render_times(
            hours,
            minutes,
            image_size=64,
            azimuth_spread=spread,
            difficulty=0.5,
            seed=2,
            azimuths=azimuths,
        )

    assert np.array_equal(drawn(0.0), drawn(0.0, np.zeros(12)))
    assert not np.array_equal(drawn(math.pi), drawn(0.0))
    easy_turned = render_times(
        np.zeros(40), np.zeros(40), image_size=150, azimuth_spread=0.5, difficulty=0.0, seed=9
    )
    turns = []
    for image in easy_turned:
        dark = sorted((a + 180) % 360 - 180 for a in dark_angles(image, 0.5))
        turns.append(math.radians(float(np.mean(dark))))
    assert max(turns) < 0.52 and min(turns) > -0.52
    assert max(turns) > 0.3 and min(turns) < -0.3


def test_gray_levels_lie_where_the_real_pictures_have_them() -> None:
    rng = np.random.default_rng(0)
    images = render_times(
        rng.integers(12, size=120),
        rng.integers(60, size=120),
        image_size=150,
        azimuth_spread=math.pi,
        difficulty=1.0,
        seed=0,
    ).astype(float)
    y, x = np.mgrid[:150, :150]
    radius = np.hypot((x - 73.5) / 62, (y - 78) / 54)
    face = np.median(images[:, radius < 0.6], axis=1)
    wood = np.median(images[:, radius > 1.55], axis=1)
    hands = np.percentile(images[:, radius < 0.6], 2, axis=1)
    assert 185 < np.median(face) < 210 and face.min() > 165
    assert 95 < np.median(wood) < 118 and wood.min() > 65 and wood.max() < 160
    assert 45 < np.median(hands) < 95
    saturated = np.mean(images[:, (radius < 0.95) & (y < 78)] > 250, axis=1) > 0.006
    assert 0.25 < saturated.mean() < 0.65
    contrast = images[:, radius > 1.55].std(axis=1)
    assert 15 < np.median(contrast) < 33


def test_difficulty_grows_without_jumps() -> None:
    def drawn(difficulty: float) -> NDArray[np.float64]:
        times = np.arange(20) % 12
        return render_times(
            times, times, image_size=64, azimuth_spread=1.0, difficulty=difficulty, seed=6
        ).astype(float)

    plain, nearly_plain, hard = drawn(0.0), drawn(0.004), drawn(1.0)
    assert np.abs(nearly_plain - plain).mean() < 2.0
    assert np.abs(hard - plain).mean() > 15.0
    corners = plain[:, :6, :6]
    assert corners.max() == corners.min()


@pytest.mark.parametrize("size", [32, 64, 96])
def test_a_small_picture_looks_like_a_large_one_averaged(size: int) -> None:
    times = [(10, 8)] * 4
    large = easy(times, size=3 * size).astype(float)
    small = easy(times, size=size).astype(float)
    averaged = large.reshape(4, size, 3, size, 3).mean(axis=(2, 4))
    assert np.abs(small - averaged).mean() < 3.0


@pytest.mark.parametrize("size", [32, 301 - 1])
def test_the_smallest_and_the_largest_size_render(size: int) -> None:
    assert easy(TIMES[:2], size=size).shape == (2, size, size)


@pytest.mark.parametrize("size", [31, 301])
def test_a_size_out_of_range_is_refused_with_what_was_expected_and_came(size: int) -> None:
    with pytest.raises(ValueError, match=rf"32 to 300 px, got {size}"):
        render_clocks(1, image_size=size)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images_per_time of 1 or more, got 0"):
        render_clocks(0)
    with pytest.raises(ValueError, match=r"0 to pi radians, got 4\.0"):
        render_clocks(1, azimuth_spread=4.0)
    with pytest.raises(ValueError, match=r"difficulty of 0 to 1, got 1\.5"):
        render_clocks(1, difficulty=1.5)
    with pytest.raises(ValueError, match=r"seed of 0 or more, got -1"):
        render_clocks(1, seed=-1)
    with pytest.raises(ValueError, match=r"processes of 1 or more, got 0"):
        render_clocks(1, processes=0)


def test_an_array_of_another_shape_or_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(720, 32, 32\) and type uint8, got shape \(1,"):
        render_clocks(1, image_size=32, out=np.empty((1, 32, 32), np.uint8))
    with pytest.raises(ValueError, match=r"type float32"):
        render_clocks(1, image_size=32, out=np.empty((720, 32, 32), np.float32))
    with pytest.raises(ValueError, match=r"one shape \(n,\), got \(2,\) and \(1,\)"):
        render_times([1, 2], [3], image_size=32, azimuth_spread=0.0, difficulty=0.0, seed=0)
    with pytest.raises(ValueError, match=r"azimuths of shape \(1,\), got \(2,\)"):
        easy([(1, 2)], azimuths=[0.0, 1.0])
    with pytest.raises(ValueError, match=r"hours of 0 to 11"):
        easy([(12, 2)])
