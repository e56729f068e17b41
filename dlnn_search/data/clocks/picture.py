"""Draw one clock picture: a scene and a time in, gray pixels out.

One picture at a time keeps every array in a core's own cache (90 kB at 150 px), and makes a
picture's bytes independent of the batch it is drawn in. The camera has no roll, so a plane's depth
and its far axis depend on a pixel's row alone, and the projection costs one product a pixel.

Layers from below: wood, rim, face with print and hands, then light on top. Edges are blended over
the width of a pixel by their distance in pixels.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlnn_search.data.clocks.scene import (
    DIAL_EXTENT_R,
    DIAL_TEXELS,
    WOOD_ACROSS_TEXELS_PER_R,
    WOOD_ALONG_TEXELS_PER_R,
    WOOD_TEXELS,
    Glare,
    Planks,
    Scene,
    dial_ink,
    wood_grain,
)

FloatArray = NDArray[np.floating[Any]]  # float32, twice as fast as float64
IndexArray = NDArray[np.intp]

FRAME_PX150 = 150.0
_RIM_SHADE_R = 0.86  # the rim's shade on the face starts here


@dataclass(frozen=True, slots=True)
class _Plane:
    """A plane parallel to the dial, seen by the camera.

    Attributes:
        x: Rightward coordinate of each pixel's point, face radii, shape (pixels,), row by row.
        y: Far coordinate, likewise.
        radius: Distance from the dial's axis, likewise.
        px150_per_r: Length of a radius across the edge of the unit circle, likewise.
    """

    x: FloatArray
    y: FloatArray
    radius: FloatArray
    px150_per_r: FloatArray


class _Camera:
    """A pinhole that looks at the pivot of the hands, tilted from the dial's axis, without roll."""

    def __init__(self, scene: Scene, centres: FloatArray) -> None:
        self.sin, self.cos = math.sin(scene.tilt_rad), math.cos(scene.tilt_rad)
        self.focal = scene.focal_px150
        # A unit circle's semi-major axis is focal / sqrt(distance^2 - sin(tilt)^2).
        self.distance_r = math.hypot(scene.focal_px150 / scene.face_px150, self.sin)
        self.pivot_x, self.pivot_y = scene.pivot_x_px150, scene.pivot_y_px150
        self._right = (centres - scene.pivot_x_px150) / self.focal
        self._up = ((scene.pivot_y_px150 - centres) / self.focal)[:, None]

    def plane(self, height_r: float) -> _Plane:
        """Return the plane at a height over the dial."""
        distance = self.distance_r - height_r * self.cos
        y = (self._up * distance - height_r * self.sin) / (self.cos - self._up * self.sin)
        depth = distance + y * self.sin
        x = self._right * depth
        y_squared = y * y
        radius = np.sqrt(x * x + y_squared)
        # Beside the axis a radius lies across the line of sight, before and behind it along it.
        across = self.focal / depth
        far = self.focal * (self.cos * distance + height_r * self.sin**2) / depth**2
        share = np.clip(y_squared, 0.0, 1.0)
        px150_per_r = np.sqrt((1 - share) * across**2 + share * far**2)
        flat = x.size
        return _Plane(
            x.reshape(flat),
            np.broadcast_to(y, x.shape).reshape(flat),
            radius.reshape(flat),
            np.broadcast_to(px150_per_r, x.shape).reshape(flat),
        )

    def project(self, x_r: float, y_r: float) -> tuple[float, float]:
        """Return column and row, px150, of a point of the dial's plane."""
        depth = self.distance_r + y_r * self.sin
        return (
            self.pivot_x + self.focal * x_r / depth,
            self.pivot_y - self.focal * y_r * self.cos / depth,
        )


def draw_picture(
    scene: Scene, hour: int, minute: int, image_size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Draw a clock.

    Args:
        scene: What is seen.
        hour: 0 to 11.
        minute: 0 to 59.
        image_size: Side of the picture, pixels.
        rng: Source of the sensor's noise.

    Returns:
        Gray, shape (image_size, image_size).
    """
    pitch = FRAME_PX150 / image_size
    centres = (np.arange(image_size, dtype=np.float32) + 0.5) * pitch - 0.5
    # A small picture looks like a large one averaged, a larger one resolves more.
    softness = math.hypot(
        scene.softness_px150 * min(pitch, 1.0), math.sqrt(max(pitch**2 - 1.0, 0.0))
    )
    camera = _Camera(scene, _resampled(centres, scene.resampling_px150))
    dial = camera.plane(0.0)
    ground = camera.plane(-scene.rim.bottom_r)
    top = camera.plane(scene.rim.top_r)

    # Distances over the outline of the rim, px150: of what stands up at the far side, of what
    # stands on the ground at the near one.
    outline = np.maximum(
        (scene.rim.radius_r - top.radius) * top.px150_per_r,
        (scene.rim.radius_r - ground.radius) * ground.px150_per_r,
    )
    inside = (1.0 - dial.radius) * dial.px150_per_r

    image = np.zeros(image_size * image_size, np.float32)
    at = np.flatnonzero(outline < softness)
    image[at] = _wood(scene.planks, ground, at, pitch, scene.face_px150)
    at = np.flatnonzero((outline > -softness) & (dial.radius > _RIM_SHADE_R))
    rim = _rim_layer(scene, dial, at, outline[at], inside[at])
    cover = np.clip(outline[at] / softness + 0.5, 0.0, 1.0)
    image[at] += cover * (rim - image[at])
    on_face = np.flatnonzero(inside > -softness)
    face = _face(scene, camera, dial, on_face, hour, minute, softness)
    cover = np.clip(inside[on_face] / softness + 0.5, 0.0, 1.0)
    image[on_face] += cover * (face - image[on_face])
    if scene.crescent_gray > 0:
        image[at] += _crescent(scene, dial, at)

    picture = image.reshape(image_size, image_size)
    for spark in scene.sparks:
        column, row = camera.project(
            spark.radius_r * math.cos(spark.angle_rad), spark.radius_r * math.sin(spark.angle_rad)
        )
        size = math.hypot(spark.size_px150, 0.4 * softness)
        gray = spark.gray * (spark.size_px150 / size) ** 2
        picture += gray * _spot(centres, column, row, size)
    if scene.glare is not None:
        _add_glare(picture, scene.glare, camera, centres, pitch)
    _blur(picture, (scene.blur_px150 / max(pitch, 1.0)) ** 2 / 2)
    picture *= scene.contrast
    picture += 128 * (1 - scene.contrast) + scene.brightness_gray
    if scene.noise_gray > 0:
        # Averaging thins noise out.
        noise = scene.noise_gray / max(pitch, 1.0)
        picture += noise * rng.standard_normal(picture.shape, dtype=np.float32)
    np.clip(picture, 0.0, 255.0, out=picture)
    picture += 0.5
    return picture.astype(np.uint8)


def _resampled(centres: FloatArray, pitch_px150: float) -> FloatArray:
    """Return where pixels look that were picked from a finer picture's, not averaged.

    The real pictures are: their straight edges are jagged and their grain shows moire.
    """
    if pitch_px150 < 0.05:
        return centres
    picked: FloatArray = np.rint(centres / pitch_px150) * pitch_px150
    return picked


def _wood(
    planks: Planks,
    ground: _Plane,
    at: IndexArray,
    pitch: float,
    face_px150: float,
) -> FloatArray:
    x, y = ground.x[at], ground.y[at]
    cos, sin = math.cos(planks.direction_rad), math.sin(planks.direction_rad)
    along = x * cos + y * sin
    across = y * cos - x * sin

    place = (across + planks.gap_across_r) / planks.width_r
    nearest = np.rint(place)
    to_gap = np.abs(place - nearest) * planks.width_r
    which = nearest.astype(np.intp) % len(planks.gap_depths)
    gap_half = np.array(planks.gap_half_widths_r, np.float32)[which]
    gap_depth = np.array(planks.gap_depths, np.float32)[which]
    px_per_r = face_px150 / max(pitch, 0.6)
    gap = np.clip((gap_half - to_gap) * px_per_r + 0.5, 0.0, 1.0)
    gap *= np.minimum(2 * gap_half * px_per_r, 1.0) * gap_depth

    plank = np.floor(place)
    which = plank.astype(np.intp) % len(planks.plank_grays)
    gray = np.array(planks.plank_grays, np.float32)[which]
    blur_r = 0.45 * math.sqrt(max(pitch**2 - 1.0, 0.0)) / face_px150
    grain = wood_grain(planks.kind, blur_r * planks.grain_scale)
    scale = planks.grain_scale
    u = (across + planks.offset_across_r) * (scale * WOOD_ACROSS_TEXELS_PER_R)
    v = (along + planks.offset_along_r) * (scale * WOOD_ALONG_TEXELS_PER_R)
    # No two planks are cut from the same place.
    v += plank * 179.0
    texel = (u.astype(np.intp) & (WOOD_TEXELS - 1)) * WOOD_TEXELS
    texel += v.astype(np.intp) & (WOOD_TEXELS - 1)
    gray += grain[texel].astype(np.float32) * (planks.grain_gray / 32)
    gray += planks.gray + planks.slope_right_gray * x + planks.slope_far_gray * y

    shade_x, shade_y = x - planks.shadow_x_r, y - planks.shadow_y_r
    shade = np.sqrt(shade_x * shade_x + shade_y * shade_y)
    shade = np.clip((1.1 - shade) / planks.shadow_reach_r + 1, 0.0, 1.0)
    gray *= 1 - planks.shadow * shade * shade
    gray *= 1 - gap
    return gray


def _towards(dial: _Plane, at: IndexArray, angle_rad: float) -> tuple[FloatArray, FloatArray]:
    """Return radius and cosine of the angle from a direction of the dial's plane, by pixel."""
    radius = dial.radius[at]
    leaning = dial.x[at] * math.cos(angle_rad) + dial.y[at] * math.sin(angle_rad)
    return radius, leaning / radius


def _rim_layer(
    scene: Scene, dial: _Plane, at: IndexArray, outline: FloatArray, inside: FloatArray
) -> FloatArray:
    rim = scene.rim
    facing = _towards(dial, at, rim.dark_rad)[1]
    outward = np.clip(-inside / np.maximum(outline - inside, 0.5), 0.0, 1.0)
    roll = np.clip((outward - rim.crease) / rim.crease_width + 0.5, 0, 1)
    roll *= roll * (3 - 2 * roll)
    bevel_gray = rim.bevel_gray - rim.bevel_swing_gray * facing
    roll_gray = rim.roll_gray + rim.roll_swing_gray * facing
    # Light falls off round the roll.
    outward *= outward
    outward *= outward
    roll_gray += rim.edge_gray * outward
    bevel_gray += roll * (roll_gray - bevel_gray)
    return bevel_gray


def _face(
    scene: Scene,
    camera: _Camera,
    dial: _Plane,
    at: IndexArray,
    hour: int,
    minute: int,
    softness: float,
) -> FloatArray:
    x, y = dial.x[at], dial.y[at]
    dark_x, dark_y = math.cos(scene.rim.dark_rad), math.sin(scene.rim.dark_rad)
    leaning = x * dark_x + y * dark_y
    face = scene.face_gray - scene.face_slope_gray * leaning
    if scene.face_shade_gray > 0:
        edge = np.maximum(dial.radius[at] - _RIM_SHADE_R, 0)
        edge *= 1 / (1 - _RIM_SHADE_R)
        edge *= edge
        face -= scene.face_shade_gray * edge * edge * np.maximum(leaning + 0.2, 0)

    cos, sin = math.cos(scene.azimuth_rad), math.sin(scene.azimuth_rad)
    per_r = DIAL_TEXELS / (2 * DIAL_EXTENT_R)
    middle = DIAL_TEXELS / 2
    column = x * (cos * per_r) - y * (sin * per_r) + middle
    row = middle - x * (sin * per_r) - y * (cos * per_r)
    texel = row.astype(np.intp) * DIAL_TEXELS + column.astype(np.intp)
    # Beyond the table there is only rim.
    np.clip(texel, 0, DIAL_TEXELS**2 - 1, out=texel)
    ink = dial_ink(0.38 * softness / (scene.face_px150 * math.sqrt(camera.cos)))
    printed = ink[texel].astype(np.float32)
    printed *= scene.ink * (1 - scene.hand_grays[0] / scene.face_gray) / 255
    face *= 1 - printed

    hour_rad = math.radians(30 * hour + 0.5 * minute) + scene.azimuth_rad
    minute_rad = math.radians(6 * minute) + scene.azimuth_rad
    for i, angle in enumerate((hour_rad, minute_rad)):
        _draw_hand(face, scene, camera, x, y, angle, i, softness)
    return face


def _draw_hand(
    face: FloatArray,
    scene: Scene,
    camera: _Camera,
    x: FloatArray,
    y: FloatArray,
    angle_rad: float,
    which: int,
    softness: float,
) -> None:
    length, half = scene.hand_lengths_r[which], scene.hand_widths_r[which] / 2
    right, far = math.sin(angle_rad), math.cos(angle_rad)
    along = x * right + y * far
    across = np.abs(x * far - y * right)
    # How many edge widths a radius measures along and across the hand, at its middle.
    depth = camera.distance_r + 0.4 * far * camera.sin
    wide = camera.focal / (depth * softness)
    deep = wide * camera.cos * camera.distance_r / depth
    per_along = math.hypot(right * wide, far * deep)
    per_across = wide * deep / per_along
    cover = np.clip((half - across) * per_across + 0.5, 0.0, 1.0)
    np.minimum(cover, min(1.0, 2 * half * per_across), out=cover)
    # Square ends: distance from the middle of tail and tip.
    middle, reach = (length - scene.tail_r) / 2, (length + scene.tail_r) / 2
    ends = np.abs(along - middle)
    cover *= np.clip((reach - ends) * per_along + 0.5, 0.0, 1.0)
    gray = along * (scene.hand_slope_gray / length) + scene.hand_grays[which]
    face += cover * (gray - face)


def _crescent(scene: Scene, dial: _Plane, at: IndexArray) -> FloatArray:
    radius, facing = _towards(dial, at, scene.rim.dark_rad + math.pi)
    light = np.maximum(facing, 0)
    light *= light * scene.crescent_gray
    fall = (radius - 0.99) * (1 / 0.035)
    light *= np.maximum(1 - fall * fall, 0)
    return light


def _blur(picture: FloatArray, share: float) -> None:
    """Give each neighbour of a pixel a share of it, in place; borders keep what would leave.

    The real pictures are jagged and soft at once: blurred after they were thinned out.
    """
    spill = share
    for along in (picture, picture.T):
        flow = spill * (along[1:] - along[:-1])
        along[:-1] += flow
        along[1:] -= flow


def _spot(centres: FloatArray, column: float, row: float, size: float) -> FloatArray:
    right = np.exp(-(((centres - column) / size) ** 2) / 2)
    down = np.exp(-(((centres - row) / size) ** 2) / 2)
    spot: FloatArray = down[:, None] * right
    return spot


def _add_glare(
    picture: FloatArray, glare: Glare, camera: _Camera, centres: FloatArray, pitch: float
) -> None:
    light = np.zeros_like(picture)
    for size, strength in zip(glare.sizes_px150, glare.strengths, strict=True):
        light += strength * _spot(
            centres,
            camera.pivot_x + glare.x_px150,
            camera.pivot_y + glare.y_px150,
            math.hypot(size, 0.3 * pitch),
        )
    np.minimum(light, 1.0, out=light)
    # The camera compresses highlights: what is dark gains more.
    picture += light * (255 - picture)
