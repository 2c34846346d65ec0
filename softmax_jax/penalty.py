r"""The penalty on the weights: an elastic net, on single weights or on those of a feature together.

.. math:: \Omega(W) = \sum_j \frac{\rho_j}{2} \|W_j\|_2^2 + \tau_j \|W_j\|_1,
    \qquad \rho_j = l_2 f_j^2, \qquad \tau_j = l_1 f_j,

with the weights :math:`W_j` of feature :math:`j` for all classes and a factor :math:`f_j`, by
default 1. Grouped, :math:`\|W_j\|_2` takes the place of :math:`\|W_j\|_1`. Biases are free.
Single weights may be penalised more or less than others, by factors :math:`v_{jc}` on both
strengths, and kept between limits :math:`a_{jc} \le 0 \le b_{jc}`.

Everything that optimisation needs of it is a sum over weights, or over features where grouped:
values, gradients, the proximal map, the convex conjugate. They are written here and nowhere else.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import Array, ArrayLike, Bool, Float, Integer, NDArray


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["l2", "l1", "factor", "relative", "lower", "upper"],
    meta_fields=["grouped", "class_axis"],
)
@dataclasses.dataclass(frozen=True)
class Penalty:
    r"""An elastic net :math:`\Omega`, as a pytree whose leaves are the strengths and factors.

    Example:
      >>> penalty = Penalty(l2=2.0, l1=0.5)
      >>> w = jnp.array([[1.0, -2.0], [0.0, 3.0]])  # two features, two classes
      >>> float(penalty.value(w))  # (1 + 4 + 9) + 0.5 * (1 + 2 + 3)
      17.0
      >>> penalty.prox(w, 2.0)  # of 0.5 |u - w|² + Ω(u) / 2
      Array([[ 0.375, -0.875],
             [ 0.   ,  1.375]], dtype=float32)
    """

    l2: ArrayLike
    """Strength of the squared penalty; ``[k]`` for ``k`` problems, whose weights are stacked."""
    l1: ArrayLike = 0.0
    """Strength of the absolute penalty, of the same shape."""
    factor: Float[Array | NDArray, " d"] | None = None
    """``[d]`` positive factors ``f``; None means 1."""
    grouped: bool = False
    """Whether the absolute penalty is on the norm of a feature's weights. Static."""
    class_axis: int = -1
    """Axis of the classes: -1 for weights ``[..., d, q]``, -2 for ``[..., q, d]``. Static."""
    relative: Float[Array | NDArray, "_ _"] | None = None
    """Factors ``v`` on both strengths, 0 or more, that broadcast with W; None means 1.

    Grouped, the same for all classes.
    """
    lower: Float[Array | NDArray, "_ _"] | None = None
    """Least weights, 0 or less, that broadcast with W; None means that there are none."""
    upper: Float[Array | NDArray, "_ _"] | None = None
    """Largest weights, 0 or more, likewise."""

    @property
    def is_plain(self) -> bool:
        """True if all weights are penalised alike, but for the factors, and without limits."""
        return self.relative is None and not self.has_limits

    @property
    def has_limits(self) -> bool:
        """True if there are limits."""
        return not (self.lower is None and self.upper is None)

    @property
    def is_same_for_classes(self) -> bool:
        """True if the penalty of a feature is the same for all classes."""
        relative = self.relative
        return not self.has_limits and (relative is None or relative.shape[self.class_axis] == 1)

    @property
    def ridge(self) -> Float[Array, "*k d_or_1 q_or_1"]:
        r"""Second derivatives :math:`\rho` of the squared part, broadcasting with W."""
        return self._for_weights(self.l2, 2)

    @property
    def threshold(self) -> Float[Array, "*k d_or_1 q_or_1"]:
        r"""Slopes :math:`\tau` of the absolute part, broadcasting with W."""
        return self._for_weights(self.l1, 1)

    def _for_weights(self, strength: ArrayLike, power: int) -> Float[Array, "*k d_or_1 q_or_1"]:
        strength = jnp.asarray(strength)
        if self.factor is None:
            scaled = strength[..., None, None]
        else:
            scaled = strength[..., None] * jnp.broadcast_to(
                self.factor**power, (*strength.shape, *self.factor.shape)
            )
            scaled = jnp.expand_dims(scaled, self.class_axis)
        if self.relative is None:
            return scaled
        shape = np.broadcast_shapes(scaled.shape, self.relative.shape)
        return jnp.broadcast_to(scaled, shape) * jnp.broadcast_to(self.relative, shape)

    def of_features(self, features: Integer[Array | NDArray, " c"]) -> "Penalty":
        """Returns the penalty of these features alone."""
        axis = -1 if self.class_axis == -2 else -2

        def chosen(a):
            alike = a is None or a.shape[axis] == 1
            return a if alike else jnp.take(jnp.asarray(a), features, axis=axis)

        return dataclasses.replace(
            self,
            factor=None if self.factor is None else jnp.asarray(self.factor)[features],
            relative=chosen(self.relative),
            lower=chosen(self.lower),
            upper=chosen(self.upper),
        )

    def clipped(self, w: Float[Array, "*k d q"]) -> Float[Array, "*k d q"]:
        """Returns the weights within the limits."""
        if self.lower is not None:
            w = jnp.maximum(w, jnp.broadcast_to(self.lower, w.shape))
        if self.upper is not None:
            w = jnp.minimum(w, jnp.broadcast_to(self.upper, w.shape))
        return w

    def reach(
        self, direction: Float[Array | NDArray, "*k d q"]
    ) -> Float[Array | NDArray, "*k d q"]:
        """Returns how far weights may go from zero to the side of ``direction``; inf for any."""
        xp = direction.__array_namespace__()
        far = xp.full_like(direction, np.inf)
        above = far if self.upper is None else xp.broadcast_to(self.upper, far.shape)
        below = far if self.lower is None else -xp.broadcast_to(self.lower, far.shape)
        return xp.where(direction > 0, above, below)

    def is_free(
        self, w: Float[Array, "*k d q"], g: Float[Array, "*k d q"]
    ) -> Bool[Array, "*k d q"] | None:
        """Returns which weights a bound of the objective asks to have no gradient.

        They have the factor 0, and are within their limits, or ``-g`` takes them to where there is
        no limit. None means that there are no such factors.
        """
        if self.relative is None:
            return None
        free = jnp.broadcast_to(self.relative == 0, w.shape)
        if not self.has_limits:
            return free
        leaves, returns = jnp.isinf(self.reach(-g)), jnp.isinf(self.reach(g))
        is_inside = (w > -self.reach(-jnp.ones_like(w))) & (w < self.reach(jnp.ones_like(w)))
        return free & (leaves | (returns & is_inside))

    def sizes(
        self, w: Float[Array | NDArray, "*k d q"]
    ) -> Float[Array | NDArray, "*k d_or_1 q_or_1"]:
        """Returns the terms of the absolute part: ``|w|``, or norms of features where grouped."""
        xp = w.__array_namespace__()
        if self.grouped:
            return xp.sqrt(xp.sum(w * w, axis=self.class_axis, keepdims=True))
        return xp.abs(w)

    def value(
        self, w: Float[Array | NDArray, "*k d q"]
    ) -> Float[Array | NDArray | np.floating, "*k"]:
        r"""Returns :math:`\Omega(W)`, one number for each problem; in NumPy for NumPy arrays."""
        if self.factor is None and self.relative is None:
            xp = w.__array_namespace__()
            l2, l1 = xp.asarray(self.l2, dtype=w.dtype), xp.asarray(self.l1, dtype=w.dtype)
            axes = (-2, -1)
            return 0.5 * l2 * xp.sum(w * w, axis=axes) + l1 * xp.sum(self.sizes(w), axis=axes)
        if self.relative is not None:
            sizes = self.sizes(w)
            absolute = jnp.sum(sizes * jnp.broadcast_to(self.threshold, sizes.shape), axis=(-2, -1))
            return self.smooth_value(jnp.asarray(w)) + absolute
        axis = self.class_axis
        ridge, threshold = (jnp.squeeze(a, axis) for a in (self.ridge, self.threshold))
        smooth = jnp.sum(w * w, axis) * ridge / 2
        return jnp.sum(smooth + jnp.sum(self.sizes(w), axis) * threshold, axis=-1)

    def smooth_value(self, w: Float[Array | NDArray, "*k d q"]) -> Float[Array, "*k"]:
        r"""Returns the squared part alone, :math:`\sum \rho W^2 / 2`."""
        return jnp.sum(self.gradient(w) * w, axis=(-2, -1)) / 2

    def gradient(self, w: Float[Array | NDArray, "*k d q"]) -> Float[Array, "*k d q"]:
        r"""Returns the gradient of the squared part, :math:`\rho W`."""
        return jnp.broadcast_to(self.ridge, w.shape).astype(w.dtype) * w

    def subgradient(self, w: Float[Array, "*k d q"]) -> Float[Array, "*k d q"]:
        r"""Returns a subgradient of the absolute part, :math:`\tau W / |W|`, and 0 where W = 0."""
        threshold = jnp.broadcast_to(self.threshold, w.shape).astype(w.dtype)
        if not self.grouped:
            return threshold * jnp.sign(w)
        size = jnp.broadcast_to(self.sizes(w), w.shape)
        return threshold * jnp.where(size > 0, w / jnp.where(size > 0, size, 1), w)

    def smooth_inner(
        self, a: Float[Array, "*k d q"], b: Float[Array, "*k d q"]
    ) -> Float[Array, "*k"]:
        r"""Returns :math:`\sum \rho\, a\, b`, whose half for a = b = W is the squared part."""
        return jnp.sum(jnp.broadcast_to(self.ridge, a.shape) * a * b, axis=(-2, -1))

    def dual_inner(
        self, a: Float[Array, "*k d q"], b: Float[Array, "*k d q"]
    ) -> Float[Array, "*k"]:
        r"""Returns :math:`\sum a\, b / \rho` over what the squared part penalises.

        Its half for a = b = G is the conjugate of the squared part.
        """
        penalised = jnp.where(self.ridge > 0, self.ridge, jnp.inf)
        return jnp.sum(a * b / jnp.broadcast_to(penalised, a.shape), axis=(-2, -1))

    def prox(self, v: Float[Array, "*k d q"], strength: ArrayLike) -> Float[Array, "*k d q"]:
        r"""Returns the minimiser of :math:`\sum \frac{\sigma}{2} (W - V)^2 + \Omega(W)`.

        .. math:: W = \frac{\sigma}{\sigma + \rho} \left(1 - \frac{\tau}{\sigma |V|}\right)_+ V

        with the norm of a feature's weights in the place of :math:`|V|` where grouped, and within
        the limits.

        Args:
          v: weights.
          strength: :math:`\sigma > 0`, which broadcasts with them; the same for all classes.
        """
        strength = jnp.broadcast_to(jnp.asarray(strength, v.dtype), v.shape)
        if self.grouped:
            one = [slice(None)] * v.ndim
            one[self.class_axis] = slice(0, 1)
            group = strength[tuple(one)]
        else:
            group = strength
        size = self.sizes(v)
        ridge = jnp.broadcast_to(self.ridge, v.shape)
        threshold = jnp.broadcast_to(self.threshold, size.shape)
        kept = jnp.maximum(1 - threshold / (group * jnp.where(size > 0, size, 1)), 0)
        kept = jnp.broadcast_to(kept, v.shape)
        return self.clipped(jnp.where(kept > 0, v * kept * strength / (strength + ridge), 0))

    def conjugate(self, g: Float[Array | NDArray, "*k d q"]) -> Float[Array, "*k"]:
        r"""Returns :math:`\Omega^*(G) = \sum (|G| - \tau)_+^2 / (2 \rho)`, one for each problem.

        Infinite where :math:`\rho = 0` and :math:`|G| > \tau`. With limits, terms are
        :math:`(|G| - \tau)_+ u - \rho u^2 / 2` at the largest :math:`u \le (|G| - \tau)_+ / \rho`
        that they allow.
        """
        return jnp.sum(self._conjugates(g), axis=(-2, -1))

    def _conjugates(self, g: Float[Array | NDArray, "*k d q"]) -> Float[Array, "*k d_or_1 q_or_1"]:
        sizes = self.sizes(g)
        excess = jnp.maximum(sizes - jnp.broadcast_to(self.threshold, sizes.shape), 0)
        ridge = jnp.broadcast_to(self.ridge, sizes.shape)
        if self.has_limits:
            furthest = jnp.minimum(jnp.where(excess > 0, excess / ridge, 0), self.reach(g))
            return jnp.where(
                furthest == 0,
                0,
                excess * furthest - jnp.where(ridge > 0, ridge * furthest**2, 0) / 2,
            )
        return jnp.where(excess == 0, 0, excess**2 / (2 * ridge))

    def fenchel_young(
        self, w: Float[Array, "*k d q"], g: Float[Array, "*k d q"]
    ) -> Float[Array, "*k"]:
        r"""Returns :math:`\Omega(W) + \langle W, G \rangle + \Omega^*(-G)`, one for each problem.

        It is at least 0, and 0 where -G is a subgradient at W. Each weight, or group, adds a term
        that is not negative, so that nothing cancels. With l1 = 0 these are
        :math:`(G + \rho W)^2 / (2 \rho)`.
        """
        ridge, threshold = self.ridge, self.threshold
        conjugate = self._conjugates(-g)
        wg, square = w * g, w * w
        if self.grouped:
            wg, square = (jnp.sum(a, self.class_axis, keepdims=True) for a in (wg, square))
        both = (jnp.broadcast_to(a, wg.shape) for a in (ridge, threshold))
        ridges, thresholds = both
        terms = 0.5 * ridges * square + thresholds * self.sizes(w) + wg + conjugate
        if not self.is_plain:
            return jnp.sum(jnp.maximum(terms, 0), axis=(-2, -1))
        full = jnp.broadcast_to(ridge, w.shape)
        smooth = (g + full * w) ** 2 / (2 * full)
        only_l2 = (jnp.asarray(self.l1) == 0) & (jnp.asarray(self.l2) > 0)
        axes = (-2, -1)
        return jnp.where(
            only_l2, jnp.sum(smooth, axis=axes), jnp.sum(jnp.maximum(terms, 0), axis=axes)
        )

    def dual_norm(self, g: Float[Array, "*k d q"]) -> Float[Array, "*k"]:
        r"""Returns :math:`\max |G| / \tau`: at most 1 where the absolute penalty outweighs G.

        Infinite where it does not penalise what has a gradient. Weights that a limit keeps from
        going the way of G do not count.
        """
        sizes = self.sizes(g)
        if self.has_limits:
            sizes = jnp.where(jnp.isinf(self.reach(g)), sizes, 0)
        threshold = jnp.broadcast_to(self.threshold, sizes.shape)
        ratio = sizes / jnp.where(threshold > 0, threshold, 1)
        unbounded = jnp.where(sizes > 0, jnp.inf, 0).astype(ratio.dtype)
        return jnp.max(jnp.where(threshold > 0, ratio, unbounded), axis=(-2, -1))
