"""Points in the plane, and the class of each: small enough to see every decision of a router."""

import math
import re
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from moe_lessons.support.errors import check_choice, check_positive_int, check_seed, check_whole, shown

NUM_PROTOTYPES, NUM_CLASSES = 24, 8
CLASS_MAP = 96  # places of `class_map` in each direction
PLANE_TASKS = ("blobs", "voronoi", "waves", "checker", "uneven")
# of one's own points: how many, the hundredths of each direction, and the standard deviation by which a draw is moved
MOST_POINTS, PLACES = 500, 201
OWN_NOISE = 0.03
POINTS_ARE = "a text as 'Draw points' writes it, four signs a point"


@dataclass(frozen=True)
class PlaneTask:
    """Points drawn in the square from -1 to 1, in 8 classes. `seed` places blobs and prototypes.

    blobs:   24 Gaussian blobs, pressed into the square; every eighth has the same class.
    voronoi: the cells of 24 prototypes (a point belongs to the nearest), with classes as for the blobs.
    waves:   each class is one of 8 wavy stripes.
    checker: 6 × 6 squares, no two neighbours alike.
    uneven:  the blobs, of which the r-th is drawn with a probability proportional to 1/r (Zipf's law).

    points: one's own, instead (see `read_points`): each draw is one of them, moved a little."""

    name: str = "blobs"
    seed: int = 0
    points: str = ""

    def __post_init__(self):
        check_choice("name", self.name, PLANE_TASKS)
        check_seed(self.seed)
        read_points(self.points)

    @property
    def has_blobs(self) -> bool:
        """Return whether points lie around centres, and not anywhere."""
        return bool(self.points) or self.name in ("blobs", "uneven")

    @property
    def frequency(self) -> Tensor:
        """Say how often each blob is drawn (24,), relative to the first."""
        ranks = torch.arange(1.0, NUM_PROTOTYPES + 1)
        return 1 / ranks if self.name == "uneven" else torch.ones_like(ranks)

    @cached_property
    def classes(self) -> Tensor:
        """Give the class of each blob or cell (24,)."""
        return read_points(self.points)[1] if self.points else torch.arange(NUM_PROTOTYPES) % NUM_CLASSES

    @cached_property
    def prototypes(self) -> Tensor:
        """Place the centres of the blobs or cells (24, 2), apart: each is the farthest of ten candidates."""
        if self.points:
            return read_points(self.points)[0]
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.rand(1, 2, generator=generator) * 1.8 - 0.9
        while len(chosen) < NUM_PROTOTYPES:
            candidates = torch.rand(10, 2, generator=generator) * 1.8 - 0.9
            farthest = torch.cdist(candidates, chosen).min(dim=1).values.argmax()
            chosen = torch.cat([chosen, candidates[farthest][None]])
        return chosen

    def labels(self, x: Tensor) -> Tensor:
        """Give the class of each point: x (T, 2) -> (T,). For blobs, of the nearest centre."""
        if self.has_blobs or self.name == "voronoi":
            return self.classes[torch.cdist(x, self.prototypes).argmin(dim=1)]
        if self.name == "waves":
            height = x[:, 1] + 0.25 * torch.sin(2 * torch.pi * x[:, 0])  # -1.25 to 1.25
            return ((height + 1.25) / 2.5 * NUM_CLASSES).long().clamp(0, NUM_CLASSES - 1)
        column, row = ((x + 1) / 2 * 6).long().clamp(0, 5).unbind(dim=1)  # 6 × 6 squares
        return (column + 3 * row) % NUM_CLASSES

    @cached_property
    def class_map(self) -> Tensor:
        """Give the class of each place of a grid (96, 96), from the bottom left."""
        return self.labels(grid(CLASS_MAP)).view(CLASS_MAP, CLASS_MAP)

    def batch(self, num_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `num_points` (T) points and their classes: x (T, 2), y (T,)."""
        draw = {"generator": generator}
        if not self.has_blobs:
            return self.place(torch.rand(num_points, 2, **draw))
        if self.name == "uneven" and not self.points:
            blob = torch.multinomial(self.frequency, num_points, replacement=True, **draw)
        else:
            blob = torch.randint(len(self.prototypes), (num_points,), **draw)
        return self.place(torch.randn(num_points, 2, **draw), blob)

    def place(self, drawn: Tensor, blob: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Make points and their classes of random numbers (T, 2): uniform ones, or normal ones around `blob` (T,)."""
        if blob is None:
            x = drawn * 2 - 1
            return x, self.labels(x)
        x = self.prototypes[blob] + (OWN_NOISE if self.points else 0.08) * drawn
        return x.clamp(-1, 1), self.classes[blob]


def read_points(points: str) -> tuple[Tensor, Tensor]:
    """Read points (N, 2) and their classes (N,) from what 'Draw points' writes: of each four digits to the base 36, of
    (class · 201 + row) · 201 + column, in hundredths from the bottom left. ValueError for anything else, and for more
    than `MOST_POINTS`.

    >>> read_points("3xy7")
    (tensor([[-0.4800,  0.1100]]), tensor([4]))
    """
    is_read = isinstance(points, str) and re.fullmatch("([0-9a-z]{4})*", points)
    codes = [int(points[i : i + 4], 36) for i in range(0, len(points), 4)] if is_read else [math.inf]
    if max(codes, default=0) >= NUM_CLASSES * PLACES**2:
        raise ValueError(f"points must be {POINTS_ARE}, got {shown(points)}")
    check_whole("points", len(codes), 0, MOST_POINTS, f"at most {MOST_POINTS} points")
    codes = torch.tensor(codes, dtype=torch.int64)
    return torch.stack([codes % PLACES, codes // PLACES % PLACES], dim=1) / 100 - 1, codes // PLACES**2


def grid(resolution: int) -> Tensor:
    """Give the points of a regular grid over the square (resolution², 2), row by row from the bottom left."""
    ticks = torch.linspace(-1, 1, check_positive_int("resolution", resolution))
    return torch.cartesian_prod(ticks, ticks).flip(1)  # x changes fastest


class PlaneClassifier(nn.Module):
    """A transformer block without attention: h = embed(x); logits = head(h + block(h)). x (T, 2) -> logits
    (T, num_classes) and [`Routing`], [] for a dense FFN."""

    input_scale = 3.0  # multiplies the points before they are embedded

    def __init__(self, block: nn.Module, num_classes: int):
        super().__init__()
        self.embed = nn.Linear(2, block.d_model)
        self.block = block
        self.head = nn.Linear(block.d_model, check_positive_int("num_classes", num_classes))

    def forward(self, x: Tensor) -> tuple[Tensor, list]:
        hidden = self.embed(x * self.input_scale)  # (T, D)
        out = self.block(hidden)
        y, routings = (out[0], [out[1]]) if isinstance(out, tuple) else (out, [])
        return self.head(hidden + y), routings

    @torch.no_grad()
    def start_router_at(self, prototypes: Tensor, sharpness: float = 4.0) -> None:
        """Set the router so that each point goes first to the expert of the nearest prototype (E, 2): a linear router
        can say -|x - c|² + |x|² = 2 c·x - |c|² exactly, of h = M·(x, 1). `sharpness` multiplies the logits."""
        embedding = torch.cat([self.embed.weight * self.input_scale, self.embed.bias[:, None]], dim=1)  # M (D, 3)
        target = torch.cat([2 * prototypes, -prototypes.square().sum(dim=1, keepdim=True)], dim=1)  # (E, 3)
        self.block.router.weight.copy_(sharpness * target.to(embedding) @ torch.linalg.pinv(embedding))


def spread_prototypes(task: PlaneTask, num: int, seed: int = 0) -> Tensor:
    """Place prototypes (num, 2) that share the points of a task about evenly (20 rounds of k-means)."""
    points, _ = task.batch(1024, torch.Generator().manual_seed(seed))
    centres = points[:num].clone()
    for _ in range(20):
        nearest = torch.cdist(points, centres).argmin(dim=1)
        for i in nearest.unique():
            centres[i] = points[nearest == i].mean(dim=0)
    return centres
