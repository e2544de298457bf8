"""Which patches are hidden: BEiT's blocks, single patches or runs along leads; and the batches that result.

Masks and order depend on the seed, the epoch and the image only, never on batch size or process.
"""

import math
from functools import lru_cache

import numpy as np

from ecglib.errors import EcglibError
from ecglib.records import LEADS_8
from ecglib.shards import ImageStore, JoinedImages

PATCH_SIZE = 16  # pixels
KINDS = ("blockwise", "uniform", "lead_balanced")
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


def lead_balanced(rng: np.random.Generator, target: int = 78, grid: int = 14) -> np.ndarray:
    """A run of time hidden in every lead, exactly `target` patches: bool (grid, grid), True = hidden.

    In turns, in an order drawn anew for each mask, each lead loses one more column from a start of its own; a
    run that leaves at the right comes back at the left, so no time is favoured. A column of a lead is hidden
    with all patches that its band touches, 2 or 3 of 14, else it could be read off the patch below. So all
    leads are hidden equally often (by area; see `lead_patch_rows`), but patches that two leads share more
    often, .52, than those of one, .31. EcglibError for a target outside the grid.
    """
    _check_target(target, grid)
    n_leads = len(LEADS_8)
    # One call for all numbers: the leads' starts and turns, and which patches of the last column are hidden.
    starts, turns, order = np.split(rng.random(2 * n_leads + grid * grid), [n_leads, 2 * n_leads])
    rounds = (np.arange(grid) - (starts * grid).astype(int)[:, None]) % grid
    hidden_at = n_leads * rounds + turns.argsort()[:, None]  # (leads, grid): a whole number for each column
    touched = lead_patch_rows(grid) > 0
    first = np.where(touched[:, :, None], hidden_at[:, None], n_leads * grid).min(axis=0)
    mask = np.zeros(grid * grid, dtype=bool)
    mask[(first.ravel() + order).argpartition(target - 1)[:target]] = True
    return mask.reshape(grid, grid)


@lru_cache
def lead_patch_rows(grid: int = 14) -> np.ndarray:
    """Share of each lead's band that lies in each row of patches: float (8, grid), rows sum to 1.

    With 14 rows a band is 1.75 patches high: rows 1, 3, 5, 8, 10 and 12 belong to two leads each.
    """
    edges = np.arange(grid + 1) * len(LEADS_8) / grid  # of the rows, in bands
    leads = np.arange(len(LEADS_8))[:, None]
    shares = np.diff(edges.clip(leads, leads + 1), axis=1)
    shares.flags.writeable = False  # it is handed out again
    return shares


def lead_mask(lead: str, grid: int = 14) -> np.ndarray:
    """Hide a whole lead of LEADS_8: bool (grid * grid,), every patch that its band touches."""
    return np.repeat(lead_patch_rows(grid)[LEADS_8.index(lead)] > 0, grid)


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
    draw = {"blockwise": blockwise, "uniform": uniform, "lead_balanced": lead_balanced}[kind]
    epochs = np.broadcast_to(epoch, len(image_ids))
    masks = np.empty((len(image_ids), grid * grid), dtype=bool)
    for i, (an_epoch, image_id) in enumerate(zip(epochs.tolist(), image_ids.tolist(), strict=True)):
        masks[i] = draw(np.random.default_rng((seed, an_epoch, image_id)), target, grid).ravel()
    return masks


class MaskedCorpus:
    """Images with tokens, as an endless stream of masked batches: each image once an epoch, order new."""

    def __init__(
        self,
        store: ImageStore | JoinedImages,
        tokens: np.ndarray,
        rows: np.ndarray,
        vocab_size: int,
        *,
        kind: str,
        target: int,
        batch_size: int,
        seed: int,
    ) -> None:
        """Learn from the images at positions `rows`; tokens: uint16 (len(store), patches).

        Raises EcglibError where there is no image, or tokens do not fit the images or the vocabulary.
        """
        if len(rows) == 0:
            raise EcglibError("there is no image to pretrain on: the training part is empty")
        self.store, self.tokens, self.rows = store, tokens, np.asarray(rows)
        self.kind, self.target, self.batch_size, self.seed = kind, target, batch_size, seed
        self.image_size = store.pixels(self.rows[:1]).shape[-1]
        self.grid = self.image_size // PATCH_SIZE
        expected = len(store), self.grid**2
        if tokens.shape != expected:
            raise EcglibError(f"tokens {tokens.shape} do not fit the images' {expected}: make them again")
        highest = max(tokens[part].max() for part in np.array_split(self.rows, 1 + len(rows) // 65536))
        if highest >= vocab_size:
            raise EcglibError(f"token {highest} is not below vocab_size {vocab_size}: make the tokens again")
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self.commonest = self._commonest_hidden_token()

    def _commonest_hidden_token(self) -> int:
        """The best single guess, from the first 1,024 images of the stream.

        Counted under the masks: blocks seldom hide the rim, whose tokens may be the commonest of all.
        """
        rows, epochs = self._stream(0, 1024)
        masks = draw_masks(self.kind, self.seed, epochs, rows, self.target, self.grid)
        return int(np.bincount(self.tokens[rows][masks]).argmax())

    def _draw_order(self, epoch: int) -> np.ndarray:
        # Four numbers, the last not zero: another stream than any mask's.
        return np.random.default_rng((self.seed, epoch, 0, 1)).permutation(self.rows)

    def _stream(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and epochs (n,) of the stream's images from place `first` on."""
        epochs, places = np.divmod(np.arange(first, first + n), len(self.rows))
        parts = [self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(parts), epochs

    def rows_at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and epochs (batch_size,) of the step's images; an epoch's last batch runs into the next."""
        return self._stream(step * self.batch_size, self.batch_size)

    def batch(
        self, step: int, rank: int = 0, n_processes: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A process's part: images (n, h, w) uint8, masks (n, patches), hidden tokens (n_masked,) int64."""
        rows, epochs = (of_all[rank::n_processes] for of_all in self.rows_at(step))
        masks = draw_masks(self.kind, self.seed, epochs, rows, self.target, self.grid)
        return self.store.pixels(rows), masks, self.tokens[rows][masks].astype(np.int64)
