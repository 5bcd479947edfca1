"""How much of the true neighbours each representation finds, measured on a sample of the user's vectors.

Every representation ranks the whole sample for every query; where the true neighbours come in that order
gives recall at every oversampling at once. The graph's own loss is not part of it.

A PCA finds more among the vectors that its axes were laid through than among others: in vectors of LSA, PCA
to 256 of 768 dimensions had recall@10 of 0.804 among the 2,700 of the fit and 0.749 among fresh ones. So
where the sample is but a part of the collection, it is measured on vectors that had no part in the fit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import axes, codes
from .checks import LONGEST, SHORTEST
from .errors import DimensionMismatch, InputError, VectorError
from .evidence import MOST, Curve, Evidence
from .ranking import shares, together
from .recall import mean_recall
from .types import Metric, Progress, Shorten

if TYPE_CHECKING:
    from .types import Element, Floats

Array: TypeAlias = NDArray[Any]

# what is kept of the sample, at most
_BYTES = 2**28
# what is worked on at once: bytes that a cache holds
_BLOCK = 2**22
# floats of the principal axes, at most
_AXES = 2**25
# rows of a sample that anything can be said of, and queries below which nothing is said
_FEWEST = 50
_FEWEST_QUERIES = 10
# dimensions that vectors are shortened to; 2,000 is what an index of pgvector takes in full precision
_GRID = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 2000)
# a smaller part of the sample says nothing of a trend
_FEWEST_ROWS = 250
# of the parts that candidates are taken from: with fewer rows for each, luck finds much of the truth
_ROWS_PER_CANDIDATE = 16
_FEWEST_MISSES = 30
# a collection that is so many times as large as the sample consists of other vectors, mostly
_MANY = 1.5
# the share of the base that a PCA is measured on, where it is not fitted on it
_FRESH = 3
_TURBO: tuple[tuple[Element, int], ...] = (("turbo4", 4), ("turbo2", 2), ("turbo1", 1))


def measure(
    sample: ArrayLike,
    *,
    metric: Metric = "cosine",
    rows: int | None = None,
    nested: Sequence[int] = (),
    queries: ArrayLike | None = None,
    k: int = 10,
    seed: int = 0,
    most_rows: int = 20_000,
    held_out: int = 500,
    progress: Progress | None = None,
) -> Evidence:
    """Recall@k of every representation, as Evidence.

    `sample`: floats (n, d), in memory or a numpy memmap; of more than `most_rows` rows, or 256 MB in float32,
    so many are chosen by `seed`, and only these are read. `queries`: floats (m, d), of more than `held_out`
    as many are chosen; None leaves a tenth of the sample, at least 10 and at most `held_out` rows, out of the
    rest. `nested`: sizes of prefixes to measure beside the usual ones.

    `rows`: how many there will be. Up to half more than are taken of the sample, the collection is the
    sample, and a PCA is fitted on the rows that it is measured among. Of more, as where None says that
    nobody knows, most have no part in a fit: it is made on two thirds of the rows and measured among the
    last third, as the `rows` of its curves say; where fewer than 50 or 2 k + 10 are left, not at all.
    Queries are never part of a fit.

    Memory beyond the sample: a copy of the rows that are taken, 5 matrices of queries × rows, and 5 squares
    of the smaller of rows and dimensions. Measured: 0.5 GB for 10,000 rows of 3,584 dimensions.

    Raises InputError, naming the row, for what cannot be measured.
    """
    started = perf_counter()
    if metric not in get_args(Metric):
        raise InputError(f"expected a metric of {', '.join(get_args(Metric))}, got {metric!r}")
    if k < 1 or most_rows < 1 or held_out < 1:
        raise InputError(
            f"expected k, most_rows and held_out of 1 or more, got {k}, {most_rows} and {held_out}"
        )
    if rows is not None and rows < 0:
        raise InputError(f"expected the number of rows planned for, 0 or more, got {rows}")
    matrix = _matrix(sample, "a sample")
    dim = matrix.shape[1]
    fewest = max(_FEWEST, 2 * k + _FEWEST_QUERIES)
    generator = np.random.default_rng(seed)
    asked = None if queries is None else _matrix(queries, "queries")
    if asked is not None and asked.shape[1] != dim:
        raise DimensionMismatch(
            f"expected queries of {dim} dimensions as the sample has them, got {asked.shape[1]}"
        )
    for size in nested:
        if not 1 <= size <= dim:
            raise InputError(f"expected nested sizes of 1 to {dim}, got {size}")
    base = _taken(matrix, min(most_rows, max(_BYTES // (4 * dim), fewest)), metric, generator, "sample")
    if len(base) < fewest:
        raise InputError(
            f"recall@{k} needs a sample of at least {fewest} vectors, got {len(base)}; "
            f"1,000 to 20,000 tell the most"
        )
    fresh = rows is None or rows > _MANY * len(base)
    if asked is None:
        out = min(held_out, max(len(base) // 10, _FEWEST_QUERIES))
        wanted, base = base[:out], base[out:]
    else:
        wanted = _taken(asked, held_out, metric, generator, "queries")
        if not len(wanted):
            raise InputError("expected at least one query, got none; leave queries out to hold some rows out")
    scene = _Scene(base, wanted, metric, k)
    unseen = len(base) // _FRESH if fresh else 0
    work = _Work(scene, dim, nested, seed, progress, unseen=unseen, fewest=fewest)
    curves = tuple(work.curves())
    return Evidence(
        k=k,
        rows=len(base),
        queries=len(wanted),
        dim=dim,
        held_out=asked is None,
        seed=seed,
        curves=curves,
        spectrum=work.spectrum,
        mean_energy=work.mean_energy,
        seconds=perf_counter() - started,
        asymmetric_bit=work.asymmetric_bit,
        at_the_door=tuple(work.at_the_door),
    )


class _Scene:
    """The base in random order, the queries, and which rows of each part of the base are right answers."""

    def __init__(self, base: Floats, queries: Floats, metric: Metric, k: int) -> None:
        self.base, self.queries, self.metric, self.k = base, queries, metric, k
        # distances do not change when all is moved, and are computed from smaller numbers near the mean
        self.mean = base.mean(axis=0, dtype=np.float64)
        self.origin = self.mean.astype(np.float32) if metric == "l2" else None
        asked = queries if self.origin is None else queries - self.origin

        def exact(block: Floats) -> Floats:
            near = block if self.origin is None else block - self.origin
            return codes.nearness(asked, near, metric=metric)

        self._truth = self.scored(exact)
        if metric == "l2":
            np.sqrt(np.maximum(-self._truth, 0), out=self._truth)
            self._truth *= -1
        # sums in another order differ by this much; a score is as exact as the scores are large
        self._scale = 1.0 if metric == "cosine" else np.median(np.abs(self._truth), axis=1)
        self._part(halvings=3)

    def _part(self, *, halvings: int) -> None:
        sizes = [len(self.base) // 2**times for times in range(halvings + 1)]
        self.parts = [size for place, size in enumerate(sizes) if place == 0 or size >= _FEWEST_ROWS]
        self._right = []
        for part in self.parts:
            count = min(self.k, part)
            last = np.partition(self._truth[:, :part], part - count, axis=1)[:, part - count]
            floors = (last - 1e-5 * np.maximum(self._scale, np.abs(last))).astype(np.float32)
            self._right.append(self._truth[:, :part] >= floors[:, None])

    def among(self, rows: slice, *, halvings: int = 3) -> _Scene:
        """The same with only these rows of the base, in parts of down to an eighth of them."""
        some = copy.copy(self)
        some.base, some._truth = self.base[rows], self._truth[:, rows]
        some._part(halvings=halvings)
        return some

    def scored(self, score: Callable[[Floats], Floats]) -> Floats:
        """Scores (m, n) of all of the base, block by block."""
        found = np.empty((len(self.queries), len(self.base)), dtype=np.float32)

        def add(at: slice) -> None:
            found[:, at] = score(self.base[at])

        together(add, self.blocks())
        return found

    def blocks(self) -> Iterator[slice]:
        step = max(1, _BLOCK // (4 * self.base.shape[1]))
        for start in range(0, len(self.base), step):
            yield slice(start, min(start + step, len(self.base)))

    def curve(self, element: Element, shorten: Shorten | None, scores: Floats) -> Curve:
        """What is found when candidates are those of the highest `scores` (m, n)."""
        each = shares(scores, self._right, k=self.k, most=MOST)
        found = tuple(mean_recall(column.tolist(), self.k) for column in each[0].T)
        means = [share.mean(axis=0) for share in each]
        return Curve(element, shorten, found, self._trend(means), len(self.base))

    def _trend(self, means: list[Array]) -> tuple[float, ...]:
        trend: list[float] = []
        trials, misses = len(self.queries) * self.k, _FEWEST_MISSES
        for oversample in range(1, MOST + 1):
            enough = _ROWS_PER_CANDIDATE * self.k * oversample
            used = [place for place, part in enumerate(self.parts) if part >= enough]
            if len(used) < 2 or (trend and means[0][oversample - 1] > 1 - misses / trials):
                # a few misses tell no trend; that of a narrower search is the nearest that was measured
                trend.append(trend[-1] if trend else 0.0)
                continue
            counts = np.array([self.parts[place] for place in used], dtype=np.float64)
            seen = np.array([means[place][oversample - 1] for place in used])
            trend.append(slope(counts, seen, trials=trials))
        return tuple(trend)


def slope(rows: Array, shares: Array, *, trials: int) -> float:
    """By how much the logit of a share changes when rows double, by least squares.

    `rows`, `shares`: float64 (j,), j ≥ 2. Each share counts as much as `trials` of it tell of its logit; 0
    and 1, which have none, are taken as half a trial away.
    """
    edge = 0.5 / trials
    kept = np.clip(shares, edge, 1 - edge)
    weights = kept * (1 - kept)
    logits = np.log(kept / (1 - kept))
    doublings = np.log2(rows)
    along = doublings - np.average(doublings, weights=weights)
    return float((weights * along * logits).sum() / (weights * along * along).sum())


class _Work:
    """The representations, one after the other."""

    def __init__(
        self,
        scene: _Scene,
        dim: int,
        nested: Sequence[int],
        seed: int,
        progress: Progress | None,
        *,
        unseen: int,
        fewest: int,
    ) -> None:
        self._scene, self._dim, self._seed, self._progress = scene, dim, seed, progress
        self._unseen = unseen
        self._prefixes = sorted({size for size in (*_grid(dim), *nested) if size < dim})
        # half of the rows at most: vectors of the base would be kept by axes that were laid through them
        most = min(len(scene.base) // 2, _AXES // dim) if not unseen or unseen >= fewest else 0
        self._projections = [size for size in self._prefixes if size <= most]
        kinds = 2 if scene.metric == "cosine" else 1
        self._total = 7 + len(self._prefixes) + kinds * len(self._projections)
        self._done = 0
        self.spectrum: tuple[float, ...] = ()
        self.asymmetric_bit: Curve | None = None
        self.at_the_door: list[Curve] = []
        squares = sum(float((scene.base[at].astype(np.float64) ** 2).sum()) for at in scene.blocks())
        whole = len(scene.base) * float(scene.mean @ scene.mean)
        self.mean_energy = min(whole / squares, 1.0) if squares > 0 else 0.0

    def curves(self) -> Iterator[Curve]:
        scene = self._scene
        base, queries, metric = scene.base, scene.queries, scene.metric
        halves = max(float(np.abs(one).max()) for one in (base, queries)) <= codes.HALF_MOST
        if halves:
            half = codes.Half(queries, metric=metric, origin=scene.origin)
            yield self._curve("float16", scene.scored(half.scores))
        whole = codes.Int8(queries, sample=base, metric=metric, seed=self._seed)
        yield self._curve("int8", scene.scored(whole.scores))
        turbo = codes.Turbo(queries, sample=base, metric=metric, seed=self._seed)
        found = {bits: np.empty((len(queries), len(base)), dtype=np.float32) for _, bits in _TURBO}

        def add(at: slice) -> None:
            rotated = turbo.rotation.apply(base[at])
            for bits, scores in found.items():
                scores[:, at] = turbo.scores(rotated, bits=bits)

        together(add, scene.blocks())
        for element, bits in _TURBO:
            yield self._curve(element, found.pop(bits))
        finer = codes.Signs(queries, asymmetric=True)
        self.asymmetric_bit = self._curve("bit", scene.scored(finer.scores))
        signs = codes.Signs(queries, asymmetric=False)
        yield self._curve("bit", scene.scored(signs.scores))
        yield from self._shortened(
            scene.curve,
            "truncate",
            self._prefixes,
            lambda block, at: block[:, at],
            halves=halves,
            centred=False,
        )
        yield from self._projected(halves)

    def _projected(self, halves: bool) -> Iterator[Curve]:
        scene = self._scene
        most = max(self._projections, default=0)
        if not most:
            return
        fitted = scene.base[self._unseen :]
        kinds: tuple[axes.Axes, ...]
        if scene.metric == "cosine":
            kinds = axes.both(fitted, most, seed=self._seed)
        else:
            kinds = (axes.principal(fitted, most, centred=scene.metric == "l2", seed=self._seed),)
        curve = scene.curve
        if self._unseen:
            unseen, seen = slice(self._unseen), slice(self._unseen, None)
            # a fit finds too much among its own rows, but with more of them as much less as among others
            fresh, own = scene.among(unseen, halvings=0), scene.among(seen)

            def curve(element: Element, shorten: Shorten | None, scores: Floats) -> Curve:
                trend = own.curve(element, shorten, scores[:, seen]).trend
                return replace(fresh.curve(element, shorten, scores[:, unseen]), trend=trend)

        self.spectrum = tuple(kinds[0].energy.tolist())
        for found, centred in zip(kinds, (False, True), strict=False):
            offset = found.basis.astype(np.float64) @ found.mean if centred else np.zeros(most)

            def project(
                block: Floats, at: slice, basis: Floats = found.basis, offset: Array = offset
            ) -> Floats:
                return block @ basis[at].T - offset[at].astype(np.float32)

            yield from self._shortened(
                curve, "pca", self._projections, project, halves=halves, centred=centred
            )

    def _shortened(
        self,
        curve: Callable[[Element, Shorten | None, Floats], Curve],
        method: str,
        sizes: Sequence[int],
        part: Callable[[Floats, slice], Floats],
        *,
        halves: bool,
        centred: bool,
    ) -> Iterator[Curve]:
        """Curves of ascending sizes: each adds the products of its own components to those before.

        Rounded to half before they are scaled to length, which a store does after: the error is as large.
        An index on a prefix holds it as it is, in every store; what is cut at the door is scaled back to the
        length of the whole vector, and so is a projection but for l2. Under cosine it makes no difference.
        """
        scene = self._scene
        rows, asked = len(scene.base), len(scene.queries)
        dots = np.zeros((asked, rows), dtype=np.float32)
        squares, query_squares = np.zeros(rows), np.zeros(asked)
        lengths, query_lengths = _lengths(scene.base), _lengths(scene.queries)
        rounded = codes.half if halves else np.asarray
        scaled = scene.metric == "cosine" or (method == "pca" and scene.metric == "ip")
        scores = np.empty_like(dots) if scaled else dots
        before = 0
        for size in sizes:
            at = slice(before, size)
            short = rounded(part(scene.queries, at))
            query_squares += _lengths(short) ** 2

            def add(block: slice, at: slice = at, short: Floats = short) -> None:
                here = rounded(part(scene.base[block], at))
                squares[block] += _lengths(here) ** 2
                dots[:, block] += short @ here.T
                if scaled:
                    factor = _ratio(lengths[block], squares[block]).astype(np.float32)
                    np.multiply(dots[:, block], factor, out=scores[:, block])

            together(add, scene.blocks())
            before = size
            shorten = Shorten("pca", size, centred) if method == "pca" else Shorten("truncate", size)
            ranked = 2 * dots - squares.astype(np.float32) if scene.metric == "l2" else scores
            yield self._told(curve("float16", shorten, ranked))
            if method == "truncate" and scene.metric != "cosine":
                ranked = dots * _ratio(lengths, squares).astype(np.float32)
                if scene.metric == "l2":
                    query_factor = _ratio(query_lengths, query_squares)
                    ranked *= 2 * query_factor[:, None].astype(np.float32)
                    ranked -= np.where(squares > 0, lengths**2, 0).astype(np.float32)
                self.at_the_door.append(scene.curve("float16", shorten, ranked))

    def _curve(self, element: Element, scores: Floats) -> Curve:
        return self._told(self._scene.curve(element, None, scores))

    def _told(self, curve: Curve) -> Curve:
        self._done += 1
        if self._progress is not None:
            self._progress("measuring", self._done, self._total)
        return curve


def _grid(dim: int) -> Iterator[int]:
    """Sizes worth measuring: none so small that nothing can be left."""
    return (size for size in _GRID if dim / 64 <= size < dim)


def _matrix(value: ArrayLike, what: str) -> Array:
    try:
        # a memmap stays one: only the rows that are taken are read
        matrix = value if isinstance(value, np.ndarray) else np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"expected {what} as a float array (n, d), got {type(value).__name__}") from error
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise InputError(f"expected {what} as a float array of shape (n, d), got shape {matrix.shape}")
    if matrix.dtype.kind not in "fiu":
        raise InputError(f"expected {what} as a float array (n, d), got dtype {matrix.dtype}")
    return matrix


def _taken(matrix: Array, most: int, metric: Metric, generator: np.random.Generator, what: str) -> Floats:
    """Up to `most` rows in random order, float32 and checked, of unit length under cosine."""
    rows, dim = matrix.shape
    if rows > most:
        chosen = np.sort(generator.choice(rows, most, replace=False, shuffle=False))
    else:
        chosen = np.arange(rows)
    places = generator.permutation(len(chosen))
    taken = np.empty((len(chosen), dim), dtype=np.float32)
    step = max(1, _BLOCK // (4 * dim))
    for start in range(0, len(chosen), step):
        at = chosen[start : start + step]
        # numbers beyond float32 become infinite, and are refused as such
        with np.errstate(over="ignore"):
            block = np.asarray(matrix[at]).astype(np.float32)
        taken[places[start : start + step]] = _checked(block, at, metric, what)
    return taken


def _checked(block: Floats, rows: Array, metric: Metric, what: str) -> Floats:
    bad = ~np.isfinite(block).all(axis=1)
    if bad.any():
        raise VectorError(
            f"row {rows[bad][0]:,} of the {what} holds NaN, infinity or a number beyond float32; leave it out"
        )
    lengths = _lengths(block)
    if (long := lengths > LONGEST).any():
        raise VectorError(
            f"row {rows[long][0]:,} of the {what} has length {lengths[long][0]:.3g}; expected at most "
            f"{LONGEST:.0e}, whose square float32 can hold; scale the vectors down"
        )
    if metric == "cosine":
        if (short := lengths < SHORTEST).any():
            raise VectorError(
                f"row {rows[short][0]:,} of the {what} has length {lengths[short][0]:.3g}, which has no "
                f"direction to compare under cosine; leave it out"
            )
        return (block / lengths[:, None]).astype(np.float32)
    return block


def _ratio(lengths: Array, squares: Array) -> Array:
    """What scales vectors back to the lengths they had: those that have nothing left stay at zero."""
    own = np.sqrt(squares)
    return np.divide(lengths, own, out=np.zeros(len(own)), where=own > 0)


def _lengths(vectors: Floats) -> Array:
    lengths: Array = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return lengths
