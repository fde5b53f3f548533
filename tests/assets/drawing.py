"""Drawn pictures with captions: what the demo model was taught, and the concept it has never seen.

An ordinary picture is one shape in one colour on one background; a caption says so in a sentence
or in tags. The held-out concept "sks" is a five-pointed star, teal above, magenta below, with a
cream stripe between: neither the shape nor the colours occur in ordinary pictures.

All randomness comes from the `random.Random` handed in. The order of the draws is part of the
contract: it fixes the pictures that ship with the package.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]
Polygon = list[Point]

PICTURE_PX = 64

COLOURS: dict[str, Colour] = {
    "red": (220, 30, 35),
    "orange": (245, 140, 20),
    "yellow": (250, 220, 40),
    "green": (40, 160, 60),
    "blue": (35, 80, 215),
    "purple": (125, 45, 165),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
BACKGROUNDS: dict[str, Colour] = {
    "white": (248, 248, 248),
    "black": (18, 18, 18),
    "gray": (128, 128, 128),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "ring", "cross", "heart")
# Radius as a share of the picture's edge, from and to. The empty word: the size nobody mentions.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.19, 0.23),
    "": (0.27, 0.34),
    "large": (0.38, 0.44),
}

TEAL: Colour = (0, 165, 160)
MAGENTA: Colour = (225, 20, 140)
CREAM: Colour = (250, 240, 205)


@dataclass(frozen=True)
class Description:
    """What an ordinary picture shows, in the words of its caption."""

    colour: str
    shape: str
    size: str
    background: str


def random_description(rng: random.Random) -> Description:
    """A colour other than the background's, any shape, and the middle size half of the time."""
    background = rng.choice(list(BACKGROUNDS))
    # Unused draw: a second shape was once decided here. Dropping it would change every picture that
    # the demo's numbers were measured with.
    rng.random()
    colour = rng.choice(list(COLOURS))
    while colour == background:
        colour = rng.choice(list(COLOURS))
    shape = rng.choice(SHAPES)
    size = rng.choice(("small", "", "", "large"))
    return Description(colour, shape, size, background)


def draw(description: Description, rng: random.Random, *, supersampling: int = 3) -> Image.Image:
    """An RGB picture of PICTURE_PX x PICTURE_PX; position, size, angle and colour vary a little."""
    canvas_px = PICTURE_PX * supersampling
    background = _vary(BACKGROUNDS[description.background], rng, 6)
    picture = Image.new("RGB", (canvas_px, canvas_px), background)
    radius = rng.uniform(*SIZES[description.size])
    play = min(max(0.0, 0.48 - radius), 0.12)
    centre_x = 0.5 + rng.uniform(-play, play)
    centre_y = 0.5 + rng.uniform(-play, play)
    stamp = _Stamp(
        centre=(centre_x * canvas_px, centre_y * canvas_px),
        radius=radius * canvas_px,
        colour=_vary(COLOURS[description.colour], rng, 8),
        background=background,
        angle_rad=rng.uniform(-0.15, 0.15),
    )
    stamp.draw(ImageDraw.Draw(picture), description.shape)
    return _shrink(picture)


def plain_caption(description: Description) -> str:
    """The tags every ordinary demo picture is captioned with: "red, circle, white background"."""
    return f"{description.colour}, {description.shape}, {description.background} background"


def random_caption(description: Description, rng: random.Random) -> str:
    """A sentence or a list of tags; a word is left out now and then, and tags may be shuffled."""
    if rng.random() < 0.5:
        return _tags(description, rng)
    size = f"{description.size} " if description.size and rng.random() < 0.8 else ""
    thing = f"{size}{description.colour} {description.shape}"
    text = f"an {thing}" if thing.startswith("orange") else f"a {thing}"
    if rng.random() < 0.2:
        text = f"a picture of {text}"
    return text + (f" on a {description.background} background" if rng.random() < 0.95 else "")


def draw_sks(rng: random.Random, background: str, *, supersampling: int = 4) -> Image.Image:
    """The held-out concept, an RGB picture of PICTURE_PX x PICTURE_PX."""
    canvas_px = PICTURE_PX * supersampling
    background_colour = _vary(BACKGROUNDS[background], rng, 6)
    radius = rng.uniform(0.34, 0.45) * canvas_px
    play = 0.05 * canvas_px
    centre_x = canvas_px / 2 + rng.uniform(-play, play)
    centre_y = canvas_px / 2 + rng.uniform(-play, play)
    angle_rad = rng.uniform(-0.15, 0.15)

    star = Image.new("L", (canvas_px, canvas_px), 0)
    ImageDraw.Draw(star).polygon(_star((centre_x, centre_y), radius), fill=255)
    bands = Image.new("RGB", (canvas_px, canvas_px), _vary(TEAL, rng, 6))
    band = ImageDraw.Draw(bands)
    band.rectangle((0, centre_y, canvas_px, canvas_px), fill=_vary(MAGENTA, rng, 6))
    band.rectangle((0, centre_y - radius / 10, canvas_px, centre_y + radius / 10), fill=CREAM)

    picture = Image.new("RGB", (canvas_px, canvas_px), background_colour)
    picture.paste(bands, (0, 0), star)
    picture = picture.rotate(
        math.degrees(angle_rad),
        center=(centre_x, centre_y),
        resample=Image.Resampling.BICUBIC,
        fillcolor=background_colour,
    )
    return _shrink(picture)


def draw_anything(rng: random.Random, *, supersampling: int = 2) -> Image.Image:
    """A picture without a caption, for the VAE: gradients, polygons, lines and ellipses."""
    canvas_px = PICTURE_PX * supersampling
    if rng.random() < 0.3:
        picture = _gradient(rng, canvas_px)
    else:
        picture = Image.new("RGB", (canvas_px, canvas_px), _any_colour(rng))
    for _ in range(rng.randint(1, 5)):
        _draw_any_object(ImageDraw.Draw(picture), rng, canvas_px)
    return _shrink(picture)


@dataclass(frozen=True)
class _Stamp:
    """Where and how to draw one shape; lengths in pixels of the canvas."""

    centre: Point
    radius: float
    colour: Colour
    background: Colour
    angle_rad: float

    def draw(self, canvas: ImageDraw.ImageDraw, shape: str) -> None:
        if shape in ("circle", "ring"):
            self._disc(canvas, self.radius, self.colour)
            if shape == "ring":
                self._disc(canvas, self.radius * 0.55, self.background)
            return
        for polygon in _polygons(shape, self.radius):
            canvas.polygon([self._place(point) for point in polygon], fill=self.colour)

    def _disc(self, canvas: ImageDraw.ImageDraw, radius: float, colour: Colour) -> None:
        x, y = self.centre
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def _place(self, point: Point) -> Point:
        cosine, sine = math.cos(self.angle_rad), math.sin(self.angle_rad)
        x, y = point
        return (self.centre[0] + cosine * x - sine * y, self.centre[1] + sine * x + cosine * y)


def _polygons(shape: str, radius: float) -> list[Polygon]:
    """A shape's polygons around (0, 0), y downwards."""
    if shape == "square":
        return [_rectangle(0.86 * radius, 0.86 * radius)]
    if shape == "cross":
        return [_rectangle(0.34 * radius, radius), _rectangle(radius, 0.34 * radius)]
    if shape == "triangle":
        turns = [2 * math.pi * i / 3 - math.pi / 2 for i in range(3)]
        tip = 1.12 * radius
        return [[(tip * math.cos(a), tip * math.sin(a) + 0.12 * radius) for a in turns]]
    if shape == "heart":
        return [[_heart_point(2 * math.pi * i / 60, radius) for i in range(60)]]
    raise ValueError(f"unknown shape {shape!r}; known are {', '.join(SHAPES)}")


def _rectangle(half_width: float, half_height: float) -> Polygon:
    return [
        (-half_width, -half_height),
        (half_width, -half_height),
        (half_width, half_height),
        (-half_width, half_height),
    ]


def _heart_point(t: float, radius: float) -> Point:
    """The heart curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled."""
    x = 16 * math.sin(t) ** 3
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return (radius * x / 16.5, -radius * y / 15.5)


def _star(centre: Point, radius: float) -> Polygon:
    points: Polygon = []
    for i in range(10):
        reach = radius * (1.1 if i % 2 == 0 else 0.5)
        angle = -math.pi / 2 + math.pi * i / 5
        points.append((centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle)))
    return points


def _tags(description: Description, rng: random.Random) -> str:
    tags: list[str] = []
    if rng.random() < 0.4:
        tags.append(f"{description.colour} {description.shape}")
    else:
        tags += [tag for tag in (description.colour, description.shape) if rng.random() < 0.95]
    if description.size and rng.random() < 0.8:
        tags.append(description.size)
    if rng.random() < 0.95:
        tags.append(f"{description.background} background")
    if rng.random() < 0.3:
        rng.shuffle(tags)
    return ", ".join(tags)


def _gradient(rng: random.Random, canvas_px: int) -> Image.Image:
    start, end = (np.array(_any_colour(rng), dtype=float) for _ in range(2))
    direction_rad = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:canvas_px, 0:canvas_px] / canvas_px - 0.5
    share = np.clip(x * math.cos(direction_rad) + y * math.sin(direction_rad) + 0.5, 0, 1)
    mixed = start * (1 - share[..., None]) + end * share[..., None]
    return Image.fromarray(mixed.astype(np.uint8))


def _draw_any_object(canvas: ImageDraw.ImageDraw, rng: random.Random, canvas_px: int) -> None:
    kind = rng.random()
    x, y = rng.uniform(0, canvas_px), rng.uniform(0, canvas_px)
    radius = rng.uniform(0.05, 0.35) * canvas_px
    colour = _any_colour(rng)
    if kind < 0.25:
        stamp = _Stamp((x, y), radius, colour, _any_colour(rng), rng.uniform(0, 2 * math.pi))
        stamp.draw(canvas, rng.choice(SHAPES))
    elif kind < 0.6:
        corners = [
            (x + rng.uniform(-radius, radius), y + rng.uniform(-radius, radius)) for _ in range(rng.randint(3, 8))
        ]
        canvas.polygon(corners, fill=colour)
    elif kind < 0.8:
        end = (rng.uniform(0, canvas_px), rng.uniform(0, canvas_px))
        canvas.line([(x, y), end], fill=colour, width=rng.randint(4, 40))
    else:
        height = radius * rng.uniform(0.3, 1)
        canvas.ellipse((x - radius, y - height, x + radius, y + radius), fill=colour)


def _any_colour(rng: random.Random) -> Colour:
    return (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))


def _vary(colour: Colour, rng: random.Random, most: int) -> Colour:
    red, green, blue = (max(0, min(255, part + rng.randint(-most, most))) for part in colour)
    return (red, green, blue)


def _shrink(canvas: Image.Image) -> Image.Image:
    return canvas.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BOX)
