"""The flat surfaces of the clock scene as lookup tables: what is printed on the dial, and wood.

Everything here is drawn from numbers in this file, so that a fresh machine without fonts or
pictures renders the same bytes. Tables are computed once in a process, when first asked for.
"""

import math
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

DIAL_TEXELS: Final = 1024
"""Side of the dial's table. At 300 px a pixel of the dial is 4 texels, so the nearest is enough."""
DIAL_EXTENT_R: Final = 1.08
"""The table covers [-1.08, 1.08] face radii, a little more than the face."""
WOOD_TEXELS: Final = 512
WOOD_ACROSS_TEXELS_PER_R: Final = 150.0
WOOD_ALONG_TEXELS_PER_R: Final = 56.0
WOODS: Final = ((3.4, 0.8, 0.35), (6.0, 0.55, 0.6), (9.0, 0.7, 0.4), (2.7, 0.35, 0.9))
"""Period of the grooves in texels (2.4 are a pixel of a 150 px picture), share of the grooves,
share of the streaks. The finest are near the pixel pitch: real planks show such moire."""

# Measured on the mean of seven real dials, each rectified by its own camera. In face radii.
_NUMERAL_RADIUS_R: Final = 0.744
_NUMERAL_RISE_R: Final = 0.018
_NUMERAL_HEIGHT_R: Final = 0.122  # of the strokes' middle lines
_NUMERAL_STROKE_R: Final = 0.019
_HOUR_TICK_R: Final = (0.867, 0.957)
_HOUR_TICK_WIDTH_R: Final = 0.026
_MINUTE_TICK_R: Final = (0.889, 0.931)
_MINUTE_TICK_WIDTH_R: Final = 0.014
_INK_NUMERAL: Final = 0.62
_INK_HOUR_TICK: Final = 0.82
_INK_MINUTE_TICK: Final = 0.46

_BLUR_STEP: Final = 1.2
_FINEST_BLUR_R: Final = 0.002

Polyline = list[tuple[float, float]]


def _arc(
    x: float, y: float, radius_x: float, radius_y: float, start_deg: float, end_deg: float
) -> Polyline:
    angles = np.radians(np.linspace(start_deg, end_deg, 25))
    return [(x + radius_x * math.cos(a), y + radius_y * math.sin(a)) for a in angles]


def _glyphs() -> dict[str, tuple[float, list[Polyline]]]:
    """Return each digit's width and strokes, in digit heights, the origin at its lower left."""
    six: list[Polyline] = [
        _arc(0.30, 0.30, 0.30, 0.30, 0, 360),
        [(0.01, 0.36), (0.05, 0.53), (0.13, 0.70), (0.25, 0.86), (0.42, 1.0)],
    ]
    nine = [[(0.60 - x, 1.0 - y) for x, y in line] for line in six]
    return {
        "0": (0.66, [_arc(0.33, 0.50, 0.33, 0.50, 0, 360)]),
        "1": (0.0, [[(0.0, 0.0), (0.0, 1.0)]]),
        "2": (0.56, [[*_arc(0.27, 0.74, 0.25, 0.26, 165, -38), (0.0, 0.0), (0.56, 0.0)]]),
        "3": (
            0.50,
            [
                _arc(0.20, 0.765, 0.24, 0.235, 135, -90),
                _arc(0.19, 0.265, 0.30, 0.265, 90, -140),
            ],
        ),
        "4": (0.62, [[(0.62, 0.28), (0.0, 0.28), (0.46, 1.0), (0.46, 0.0)]]),
        "5": (
            0.52,
            [[(0.48, 1.0), (0.12, 1.0), (0.09, 0.56), *_arc(0.20, 0.31, 0.31, 0.31, 110, -135)]],
        ),
        "6": (0.60, six),
        "7": (0.56, [[(0.0, 1.0), (0.56, 1.0), (0.16, 0.0)]]),
        "8": (
            0.58,
            [
                _arc(0.29, 0.765, 0.235, 0.235, 0, 360),
                _arc(0.29, 0.265, 0.29, 0.265, 0, 360),
            ],
        ),
        "9": (0.60, nine),
    }


def _numeral_strokes() -> list[Polyline]:
    """Return the strokes of 1 to 12 in dial coordinates, face radii, y towards 12."""
    glyphs = _glyphs()
    height = _NUMERAL_HEIGHT_R
    strokes: list[Polyline] = []
    for hour in range(1, 13):
        angle = math.radians(30 * hour)
        x = _NUMERAL_RADIUS_R * math.sin(angle)
        bottom = _NUMERAL_RADIUS_R * math.cos(angle) + _NUMERAL_RISE_R - height / 2
        # On the real dial 10 and 11 hang on their first digit; 12 stands in the middle.
        centres = {10: (x, x + 0.115), 11: (x, x + 0.113), 12: (-0.060, 0.058)}
        for digit, centre in zip(str(hour), centres.get(hour, (x,)), strict=True):
            width, lines = glyphs[digit]
            left = centre - width * height / 2
            strokes += [[(left + height * u, bottom + height * v) for u, v in s] for s in lines]
    return strokes


def _stroke(ink: FloatArray, line: Polyline, width_r: float, strength: float) -> None:
    """Draw a polyline into ``ink`` (texels, texels), with an edge one texel soft."""
    per_r = DIAL_TEXELS / (2 * DIAL_EXTENT_R)
    points = np.array(line) * (1.0, -1.0) * per_r + DIAL_TEXELS / 2 - 0.5
    half = width_r * per_r / 2
    first = np.floor(points.min(axis=0) - half - 2).astype(int)
    last = np.ceil(points.max(axis=0) + half + 3).astype(int)
    x, y = np.meshgrid(np.arange(first[0], last[0]), np.arange(first[1], last[1]))
    nearest = np.full(x.shape, np.inf)
    for (ax, ay), (bx, by) in pairwise(points):
        along_x, along_y = bx - ax, by - ay
        share = ((x - ax) * along_x + (y - ay) * along_y) / (along_x**2 + along_y**2)
        share = np.clip(share, 0.0, 1.0)
        nearest = np.minimum(nearest, np.hypot(x - ax - share * along_x, y - ay - share * along_y))
    covered = (strength * np.clip(half + 0.5 - nearest, 0.0, 1.0)).astype(np.float32)
    window = ink[first[1] : last[1], first[0] : last[0]]
    np.maximum(window, covered, out=window)


@lru_cache(maxsize=1)
def _dial_spectrum() -> NDArray[np.complex128]:
    ink = np.zeros((DIAL_TEXELS, DIAL_TEXELS), np.float32)
    for line in _numeral_strokes():
        _stroke(ink, line, _NUMERAL_STROKE_R, _INK_NUMERAL)
    for minute in range(60):
        is_hour = minute % 5 == 0
        width = _HOUR_TICK_WIDTH_R if is_hour else _MINUTE_TICK_WIDTH_R
        inner, outer = _HOUR_TICK_R if is_hour else _MINUTE_TICK_R
        # The stroke's round ends reach half its width further.
        inner, outer = inner + width / 2, outer - width / 2
        x, y = math.sin(math.radians(6 * minute)), math.cos(math.radians(6 * minute))
        _stroke(
            ink,
            [(inner * x, inner * y), (outer * x, outer * y)],
            width,
            _INK_HOUR_TICK if is_hour else _INK_MINUTE_TICK,
        )
    return np.fft.rfft2(ink)


def _blurred(
    spectrum: NDArray[np.complex128], sigma_rows: float, sigma_columns: float
) -> NDArray[np.float64]:
    """Return the picture of a spectrum after a Gaussian blur, standard deviations in texels."""
    n_rows = spectrum.shape[0]
    n_columns = 2 * (spectrum.shape[1] - 1)
    rows = np.exp(-2 * (np.pi * np.fft.fftfreq(n_rows) * sigma_rows) ** 2)
    columns = np.exp(-2 * (np.pi * np.fft.rfftfreq(n_columns) * sigma_columns) ** 2)
    picture: NDArray[np.float64] = np.fft.irfft2(
        spectrum * rows[:, None] * columns, s=(n_rows, n_columns)
    )
    return picture


@lru_cache(maxsize=24)
def _dial_ink_at(level: int) -> NDArray[np.uint8]:
    sigma = _FINEST_BLUR_R * _BLUR_STEP**level * DIAL_TEXELS / (2 * DIAL_EXTENT_R)
    ink = _blurred(_dial_spectrum(), sigma, sigma)
    return np.clip(np.rint(255 * ink), 0, 255).astype(np.uint8).ravel()


def dial_ink(blur_r: float) -> NDArray[np.uint8]:
    """Return the print of the dial: twelve numerals and sixty ticks.

    Args:
        blur_r: Standard deviation of a pixel's footprint in face radii; the nearest of a ladder
            of tables is returned, so that small pictures are not aliased.

    Returns:
        Ink, 0 (bare face) to 255 (as dark as a hand), flat, row by row from 12 o'clock down,
        length ``DIAL_TEXELS ** 2``.
    """
    return _dial_ink_at(max(0, round(math.log(blur_r / _FINEST_BLUR_R, _BLUR_STEP))))


@lru_cache(maxsize=1)
def _wood_spectra() -> tuple[NDArray[np.complex128], ...]:
    """Return the spectra of the woods, before the blur of small pictures."""
    rng = np.random.default_rng(20190611)
    size = WOOD_TEXELS
    across = np.arange(size)[:, None]
    along = np.broadcast_to(np.arange(size), (size, size))
    frequency = np.abs(np.fft.fftfreq(size))[:, None]

    def unit(picture: FloatArray) -> FloatArray:
        standard: FloatArray = (picture - picture.mean()) / picture.std()
        return standard

    def noise(sigma_across: float, sigma_along: float) -> FloatArray:
        white = np.fft.rfft2(rng.standard_normal((size, size)))
        return unit(_blurred(white, sigma_across, sigma_along))

    def grooves(period: float, length: float) -> FloatArray:
        white = np.fft.rfft2(rng.standard_normal((size, size)))
        band = np.exp(-(((frequency * period - 1) / 0.22) ** 2) / 2)
        return unit(_blurred(white * band, 0.0, length))

    spectra = []
    for period, groove_share, streak_share in WOODS:
        # Grooves show in some places and not in others.
        where = np.clip(0.9 + 0.6 * noise(14.0, 22.0), 0.1, 2.2)
        wood = (
            groove_share * where * grooves(period, 14.0)
            + streak_share * noise(1.6, 20.0)
            + 0.45 * where * noise(0.6, 1.2)
            + 0.30 * noise(12.0, 40.0)
        )
        # Rings bend round knots that were there: shift whole streaks sideways, slowly.
        bend = np.rint(6.0 * noise(50.0, 70.0)).astype(int)
        wood = wood[(across + bend) % size, along]
        # Wood is darker in its pores than it is lighter between them.
        spectra.append(np.fft.rfft2(unit(-np.exp(-0.3 * unit(wood)))))
    return tuple(spectra)


@lru_cache(maxsize=24)
def _wood_grain_at(kind: int, level: int) -> NDArray[np.int8]:
    blur_r = 0.0 if level == 0 else _FINEST_BLUR_R * _BLUR_STEP**level
    grain = _blurred(
        _wood_spectra()[kind],
        blur_r * WOOD_ACROSS_TEXELS_PER_R,
        blur_r * WOOD_ALONG_TEXELS_PER_R,
    )
    return np.clip(np.rint(32 * grain), -127, 127).astype(np.int8).ravel()


def wood_grain(kind: int, blur_r: float) -> NDArray[np.int8]:
    """Return a wood that repeats at its borders.

    Args:
        kind: Which of `WOODS`.
        blur_r: Standard deviation of the blur in face radii, 0 for none.

    Returns:
        Gray, 32 a standard deviation before the blur, mean 0; flat, length ``WOOD_TEXELS ** 2``,
        rows across the grain and columns along it.
    """
    if blur_r < _FINEST_BLUR_R:
        return _wood_grain_at(kind, 0)
    return _wood_grain_at(kind, max(1, round(math.log(blur_r / _FINEST_BLUR_R, _BLUR_STEP))))
