"""What varies from one clock picture to the next, and the flat surfaces that are seen in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
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


FACE_PX150: Final = 62.0  # median semi-major axis; 48 to 74 seen
FOCAL_PX150: Final = 200.0  # 189 to 222 in six of seven solved cameras
# Column and row where the hands turn; within 3 px in all seven samples.
PIVOT_PX150: Final = (73.5, 70.3)
CENTRE_PX150: Final = 74.5
TILT_RAD: Final = math.radians(29.5)  # gives the measured median axis ratio of 0.87
HOUR_HAND_R: Final = 0.615  # 0.60 to 0.63
MINUTE_HAND_R: Final = 0.74  # 0.72 to 0.76
TAIL_R: Final = 0.06
FACE_GRAY: Final = 197.0
HAND_GRAY: Final = 58.0
WOOD_GRAY: Final = 104.0  # medians of 83 to 124
RIM_R: Final = 1.13
GLARE_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Glare:
    """A lamp's mirror image in the glass: a saturated core, a halo round it and a wide veil."""

    x_px150: float  # from the pivot, to the right
    y_px150: float  # from the pivot, down
    sizes_px150: tuple[float, float, float]  # standard deviations
    strengths: tuple[float, float, float]  # 1 saturates


@dataclass(frozen=True, slots=True)
class Planks:
    """The wooden ground. Directions are in the ground's plane, counter-clockwise from the right."""

    direction_rad: float
    kind: int
    grain_scale: float
    grain_gray: float  # standard deviation of the grain
    offset_across_r: float
    offset_along_r: float
    width_r: float
    gap_across_r: float  # where one of the gaps lies
    gap_half_widths_r: tuple[float, ...]  # taken in turn
    gap_depths: tuple[float, ...]  # taken in turn; 1 is black
    plank_grays: tuple[float, ...]  # added to the planks, taken in turn
    gray: float
    slope_right_gray: float  # over one radius
    slope_far_gray: float
    shadow: float  # share of the light that is missing beside the rim
    shadow_x_r: float
    shadow_y_r: float
    shadow_reach_r: float


@dataclass(frozen=True, slots=True)
class Rim:
    """The ring round the face: a bevel on the inside, a roll on the outside."""

    radius_r: float
    top_r: float  # height of the outline over the dial
    bottom_r: float  # depth of the ground below the dial
    dark_rad: float  # where the bevel is darkest, counter-clockwise from the right
    bevel_gray: float
    bevel_swing_gray: float
    roll_gray: float
    roll_swing_gray: float
    crease: float  # share of the ring where the bevel ends
    crease_width: float
    edge_gray: float  # added at the outline


@dataclass(frozen=True, slots=True)
class Spark:
    """A small reflection of the lamp on the rim or at the foot of it."""

    angle_rad: float  # counter-clockwise from the right
    radius_r: float
    size_px150: float
    gray: float


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture, but for its time."""

    azimuth_rad: float  # how far 12 o'clock is turned clockwise from the far point of the dial
    tilt_rad: float  # of the camera from the dial's axis
    face_px150: float  # semi-major axis
    focal_px150: float
    pivot_x_px150: float
    pivot_y_px150: float
    softness_px150: float  # width of an edge
    resampling_px150: float  # pitch of the pixels that were thinned out to 150; 0 for none
    blur_px150: float  # standard deviation of the blur after that
    face_gray: float
    face_slope_gray: float  # over one radius, away from the rim's dark side
    face_shade_gray: float  # what the rim's dark side takes from the face beside it
    ink: float  # 1 prints the hour ticks as dark as the table says
    hand_grays: tuple[float, float]  # hour, minute
    hand_slope_gray: float  # from pivot to tip
    hand_lengths_r: tuple[float, float]
    hand_widths_r: tuple[float, float]
    tail_r: float
    crescent_gray: float  # light along the foot of the rim, opposite its dark side
    rim: Rim
    planks: Planks
    glare: Glare | None
    sparks: tuple[Spark, ...]
    noise_gray: float  # standard deviation
    contrast: float
    brightness_gray: float


class _Draws:
    """Random numbers of one scene, each used once, pulled towards a default by ``difficulty``."""

    def __init__(self, rng: np.random.Generator, difficulty: float) -> None:
        self._numbers = iter(rng.random(192).tolist())
        self.difficulty = difficulty

    def uniform(self, low: float, high: float) -> float:
        """Return a number from [low, high), whatever the difficulty."""
        share: float = next(self._numbers)
        return low + (high - low) * share

    def range(self, low: float, high: float, easy: float) -> float:
        """Return a uniform number, at difficulty 0 ``easy``."""
        return easy + self.difficulty * (self.uniform(low, high) - easy)

    def near(self, middle: float, reach: float, easy: float | None = None) -> float:
        """Return a number within ``reach`` of ``middle``, most often close to it."""
        drawn = middle + reach * (self.uniform(0.0, 1.0) + self.uniform(0.0, 1.0) - 1.0)
        easy = middle if easy is None else easy
        return easy + self.difficulty * (drawn - easy)

    def amount(self, low: float, high: float) -> float:
        """Return an amount that is nothing at difficulty 0."""
        return self.difficulty * self.uniform(low, high)


def draw_scene(rng: np.random.Generator, azimuth_spread_rad: float, difficulty: float) -> Scene:
    """Draw a scene.

    Args:
        rng: Source of the random numbers; as many are taken whatever the other arguments are, so
            that the same generator gives the same scene turned less or made easier.
        azimuth_spread_rad: The azimuth is uniform in plus or minus this, radians.
        difficulty: 0 for one plain frontal view, 1 for all that the real pictures show.

    Returns:
        The scene.
    """
    draw = _Draws(rng, difficulty)
    azimuth = draw.uniform(-1.0, 1.0) * azimuth_spread_rad
    has_glare = draw.uniform(0.0, 1.0) < GLARE_SHARE
    glare_rad = math.radians(90 + draw.uniform(-80, 80))
    away_rad = draw.uniform(-1.0, 1.0) * math.pi
    # With the lamp mirrored in the far half of the glass, the near bevel is the dark one; with the
    # lamp elsewhere it can be any, and the bevel opposite it shines.
    dark_rad = glare_rad + math.pi + 0.35 * away_rad if has_glare else away_rad
    face_px = draw.near(FACE_PX150 - 0.5, 14.5, FACE_PX150)
    rim = _draw_rim(draw, dark_rad)
    # Drawn even when not shown, so that what follows is the same either way.
    glare = _draw_glare(draw, glare_rad, face_px)
    return Scene(
        azimuth_rad=azimuth,
        tilt_rad=draw.near(TILT_RAD, math.radians(16), 0.0),
        face_px150=face_px,
        focal_px150=draw.near(FOCAL_PX150, 20),
        pivot_x_px150=draw.near(PIVOT_PX150[0], 2.5, CENTRE_PX150),
        pivot_y_px150=draw.near(PIVOT_PX150[1], 2.5, CENTRE_PX150),
        softness_px150=draw.range(0.4, 1.1, 0.8),
        resampling_px150=draw.amount(0.1, 0.95),
        blur_px150=draw.range(0.42, 0.68, 0.55),
        face_gray=draw.near(FACE_GRAY, 20),
        face_slope_gray=draw.amount(0, 14),
        face_shade_gray=draw.amount(5, 30),
        ink=draw.near(1.0, 0.2),
        hand_grays=(draw.near(HAND_GRAY, 22), draw.near(HAND_GRAY, 22)),
        hand_slope_gray=draw.amount(-12, 12),
        hand_lengths_r=(draw.near(HOUR_HAND_R, 0.022), draw.near(MINUTE_HAND_R, 0.025)),
        hand_widths_r=(draw.near(0.060, 0.009), draw.near(0.053, 0.009)),
        tail_r=draw.near(TAIL_R, 0.015),
        crescent_gray=draw.amount(0, 0.3 if has_glare else 1.0) * 38,
        rim=rim,
        planks=_draw_planks(draw, dark_rad),
        glare=glare if has_glare else None,
        sparks=_draw_sparks(draw, dark_rad, has_glare),
        noise_gray=draw.amount(0.1, 0.8),
        contrast=draw.near(1.0, 0.12),
        brightness_gray=draw.amount(-9, 9),
    )


def _draw_rim(draw: _Draws, dark_rad: float) -> Rim:
    return Rim(
        radius_r=draw.near(RIM_R, 0.018),
        top_r=draw.near(0.085, 0.03),
        bottom_r=draw.near(0.14, 0.035),
        dark_rad=dark_rad,
        bevel_gray=draw.near(66, 18),
        bevel_swing_gray=draw.amount(10, 56),
        roll_gray=draw.near(77, 16),
        roll_swing_gray=draw.amount(-8, 16),
        crease=draw.near(0.42, 0.15),
        crease_width=draw.range(0.06, 0.4, 0.25),
        edge_gray=draw.amount(-26, 14),
    )


def _draw_planks(draw: _Draws, dark_rad: float) -> Planks:
    shadow_reach = draw.range(0.12, 0.4, 0.2)
    shadow_shift = draw.uniform(0.0, 0.16)
    shadow_rad = dark_rad + draw.uniform(-0.8, 0.8)
    return Planks(
        direction_rad=draw.uniform(-math.pi, math.pi),
        kind=int(draw.uniform(0, len(WOODS))),
        grain_scale=draw.uniform(0.7, 1.5),
        grain_gray=draw.amount(12, 32),
        offset_across_r=draw.uniform(0, 8),
        offset_along_r=draw.uniform(0, 18),
        width_r=draw.uniform(0.75, 1.5),
        gap_across_r=draw.uniform(0, 6),
        gap_half_widths_r=tuple(draw.uniform(0.008, 0.045) for _ in range(4)),
        gap_depths=tuple(draw.amount(0.3, 0.75) for _ in range(4)),
        plank_grays=tuple(draw.amount(-10, 10) for _ in range(8)),
        gray=draw.near(WOOD_GRAY, 24),
        slope_right_gray=draw.amount(-13, 13),
        slope_far_gray=draw.amount(-10, 14),
        shadow=draw.amount(0.1, 0.6),
        shadow_x_r=shadow_shift * math.cos(shadow_rad),
        shadow_y_r=shadow_shift * math.sin(shadow_rad),
        shadow_reach_r=shadow_reach,
    )


def _draw_glare(draw: _Draws, glare_rad: float, face_px: float) -> Glare:
    distance = draw.uniform(0.4, 0.95) * face_px
    return Glare(
        x_px150=distance * math.cos(glare_rad),
        # Foreshortened as the far half of the median dial is.
        y_px150=-0.75 * distance * math.sin(glare_rad),
        sizes_px150=(draw.uniform(3.0, 6.5), draw.uniform(9, 16), draw.uniform(24, 42)),
        strengths=(draw.amount(0.4, 1.3), draw.amount(0.25, 0.55), draw.amount(0.08, 0.32)),
    )


def _draw_sparks(draw: _Draws, dark_rad: float, has_glare: bool) -> tuple[Spark, ...]:
    sparks = []
    for i in range(4):
        at_foot = i < 2
        spark = Spark(
            angle_rad=dark_rad + math.pi + draw.uniform(-1.1, 1.1),
            radius_r=draw.uniform(0.985, 1.02) if at_foot else draw.uniform(1.02, 1.1),
            size_px150=draw.uniform(0.4, 1.1),
            gray=draw.amount(20, 190),
        )
        if draw.uniform(0, 1) < (0.3 if has_glare else 0.7):
            sparks.append(spark)
    return tuple(sparks)
