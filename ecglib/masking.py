"""Which patches are hidden: BEiT's blocks, or uniformly drawn patches; the same for one image and epoch."""

import math

import numpy as np

from ecglib.errors import EcglibError

KINDS = ("blockwise", "uniform")
ATTEMPTS = 10  # to place one block, as in BEiT


def blockwise(
    rng: np.random.Generator,
    target: int = 78,
    grid: int = 14,
    min_block: int = 16,
    min_aspect: float = 0.3,
) -> np.ndarray:
    """BEiT's blockwise mask (Bao et al., algorithm 1): bool (grid, grid), True = hidden.

    Rectangles of at least `min_block` patches (fewer once less than that is left to hide), with height to
    width from `min_aspect` to 1 / `min_aspect`, are laid over each other until `target` patches are hidden
    or no further rectangle fits: never more than `target`, often a few less. As no rectangle leaves the
    grid, the centre is hidden far more often than the edge. Where not even one fits (tiny grids), the mask
    is uniform. Raises EcglibError for a target outside the grid.
    """
    _check_target(target, grid)
    mask = np.zeros((grid, grid), dtype=bool)
    hidden = 0
    while hidden < target:
        block = _draw_block(rng, mask, target - hidden, min_block, min_aspect)
        if block is None:
            break
        mask[block] = True
        hidden = int(np.count_nonzero(mask))
    return mask if hidden else uniform(rng, target, grid)


def _draw_block(
    rng: np.random.Generator, mask: np.ndarray, most: int, min_block: int, min_aspect: float
) -> tuple[slice, slice] | None:
    """A rectangle that hides between 1 and `most` new patches, or None after ten attempts."""
    grid = len(mask)
    for _ in range(ATTEMPTS):
        # One call for all four numbers: the calls take most of the time.
        area, aspect, row, column = rng.random(4).tolist()
        area = min_block + area * (most - min_block)
        root_aspect = min_aspect ** (0.5 - aspect)  # the logarithm of the aspect ratio is uniform
        height, width = round(math.sqrt(area) * root_aspect), round(math.sqrt(area) / root_aspect)
        if height >= grid or width >= grid:
            continue
        top, left = int(row * (grid - height + 1)), int(column * (grid - width + 1))
        block = slice(top, top + height), slice(left, left + width)
        if 0 < height * width - np.count_nonzero(mask[block]) <= most:
            return block
    return None


def uniform(rng: np.random.Generator, target: int = 78, grid: int = 14) -> np.ndarray:
    """A mask of exactly `target` patches, each as likely as any other: bool (grid, grid), True = hidden."""
    _check_target(target, grid)
    mask = np.zeros(grid * grid, dtype=bool)
    mask[rng.permutation(grid * grid)[:target]] = True
    return mask.reshape(grid, grid)


def _check_target(target: int, grid: int) -> None:
    if not 1 <= target <= grid * grid:
        raise EcglibError(
            f"the mask's target must be 1 to {grid * grid} patches (the whole image), not {target}"
        )


def draw_masks(
    kind: str,
    seed: int,
    epoch: int | np.ndarray,
    image_ids: np.ndarray,
    target: int = 78,
    grid: int = 14,
) -> np.ndarray:
    """One mask for each image: bool (n, grid * grid), True = hidden, none empty.

    image_ids: int (n,); epoch: one for all or int (n,). A mask depends on seed, epoch and image id alone, so
    it is the same in any batch, order or process.
    Raises EcglibError for an unknown kind or an impossible target.
    """
    if kind not in KINDS:
        raise EcglibError(f"mask {kind!r} is unknown: choose one of {', '.join(KINDS)}")
    draw = blockwise if kind == "blockwise" else uniform
    epochs = np.broadcast_to(epoch, len(image_ids))
    masks = np.empty((len(image_ids), grid * grid), dtype=bool)
    for i, (an_epoch, image_id) in enumerate(zip(epochs.tolist(), image_ids.tolist(), strict=True)):
        masks[i] = draw(np.random.default_rng((seed, an_epoch, image_id)), target, grid).ravel()
    return masks
