"""What varies from one clock picture to the next, and how much.

Lengths are in face radii ("R") or in pixels of a 150 px picture ("px150"); gray levels run from 0
to 255. The ranges were measured on 35 real pictures (facts, "The clock data set"), on seven of
them with the camera solved for: every one fits a pinhole camera with a 41 degree field of view that
circles the clock, looking at its axis.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from dlnn_search.data.clocks.clock_textures import WOODS

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
