"""The certificate never promises too much: against minima found by dense Newton in 40 digits."""

import mpmath
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from softmax_jax import solvers

pytestmark = pytest.mark.exact
# A few shapes, as each is compiled: n, d, q; d > n among them.
SHAPES = [(12, 3, 3), (10, 16, 2), (24, 5, 4)]


def random_problem(seed, shape):
    """A small problem with the troubles of real ones, some of them at once."""
    n, d, q = shape
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-3, 3)
    if rng.random() < 0.3:
        x = x * 10.0 ** rng.uniform(-1.5, 1.5, size=d)
    if rng.random() < 0.3:
        x[:, 1] = x[:, 0]
    if rng.random() < 0.3:
        x[:, -1] = rng.normal() * 10
    if rng.random() < 0.3:
        x += rng.normal() * 100 * np.abs(x).max()
    if rng.random() < 0.4:
        y = rng.dirichlet(np.full(q, 10.0 ** rng.uniform(-1, 1)), size=n)
    else:
        y = rng.integers(q, size=n)
        if rng.random() < 0.4:  # a rare class, or an absent one
            y = np.where(rng.random(n) < 0.9, 0, y)
        y[:2] = 0, 1
        y = np.eye(q)[y]
    weights = rng.exponential(size=n) if rng.random() < 0.5 else np.ones(n)
    if rng.random() < 0.3:
        weights[2 + rng.integers(n - 2)] = 0
    offset = rng.normal(size=(n, q)) if rng.random() < 0.3 else None
    l2 = 10.0 ** rng.uniform(-6, 1)
    return x, y, weights, offset, l2


def objective_in_mpmath(w, b, x, y, weights, offset, l2):
    with mpmath.workdps(40):
        loss = mpmath.mpf(0)
        for i in range(len(x)):
            if weights[i] == 0:
                continue
            o = [
                mpmath.fsum(mpmath.mpf(x[i, j]) * mpmath.mpf(w[j, c]) for j in range(x.shape[1]))
                + mpmath.mpf(b[c])
                + mpmath.mpf(offset[i, c])
                for c in range(len(b))
                if np.isfinite(b[c])
            ]
            target = [mpmath.mpf(v) for v in y[i][np.isfinite(b)]]
            total = mpmath.fsum(target)
            lse = mpmath.log(mpmath.fsum(mpmath.exp(v) for v in o))
            inner = mpmath.fsum(t * v for t, v in zip(target, o, strict=True)) / total
            loss += mpmath.mpf(weights[i]) * (lse - inner)
        loss /= mpmath.fsum(map(mpmath.mpf, weights))
        return loss + mpmath.mpf(l2) / 2 * mpmath.fsum(mpmath.mpf(v) ** 2 for v in w.ravel())


def minimiser(x, y, weights, offset, l2):
    """Damped Newton on the standardised problem, dense and in float64: an independent oracle."""
    x, y, weights, offset = (a[weights > 0] for a in (x, y, weights, offset))
    present = weights @ y > 0
    y, offset = y[:, present] / y[:, present].sum(1, keepdims=True), offset[:, present]
    n, d = x.shape
    q = present.sum()
    s = weights / weights.sum()
    mean = s @ x
    z = np.concatenate([np.ones((n, 1)), x - mean], axis=1)
    ridge = np.concatenate([[0.0], np.full(d, l2)])
    theta = np.zeros((d + 1, q))

    def value(theta):
        o = z @ theta + offset
        loss = scipy.special.logsumexp(o, axis=1) - (y * o).sum(1)
        return s @ loss + 0.5 * (ridge[:, None] * theta**2).sum()

    for _ in range(200):
        p = scipy.special.softmax(z @ theta + offset, axis=1)
        g = z.T @ (s[:, None] * (p - y)) + ridge[:, None] * theta
        h = np.zeros((q, d + 1, q, d + 1))
        for a in range(q):
            for c in range(q):
                curve = s * (p[:, a] * (a == c) - p[:, a] * p[:, c])
                h[a, :, c, :] = z.T @ (z * curve[:, None])
            h[a, :, a, :] += np.diag(ridge)
        # Flat along one number for all biases.
        h[:, 0, :, 0] += 1.0
        h = h.reshape(q * (d + 1), -1)
        size = 1 / np.sqrt(np.diag(h))
        step = -size * np.linalg.solve(h * size[:, None] * size, size * g.T.ravel())
        step = step.reshape(q, d + 1).T
        t = 1.0
        while value(theta + t * step) > value(theta) + 1e-15 and t > 1e-12:
            t /= 2
        theta = theta + t * step
        if np.abs(step).max() <= 1e-14 * np.abs(theta).max():
            break
    w, b = np.zeros((d, len(present))), np.full(len(present), -np.inf)
    w[:, present], b[present] = theta[1:], theta[0] - mean @ theta[1:]
    return w, b


@pytest.mark.parametrize("tol", [1e-1, 1e-5])
@pytest.mark.parametrize(
    "shape", [SHAPES[0], *(pytest.param(s, marks=pytest.mark.slow) for s in SHAPES[1:])], ids=str
)
@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_gap_is_never_below_the_true_distance(shape, tol, part):
    # 2 tolerances x 3 shapes x 2 parts x 17 = 204 problems.
    for seed in range(17 * part, 17 * (part + 1)):
        seed = seed + round(1 / tol)
        x, y, weights, offset, l2 = random_problem(seed, shape)
        solution = solvers.fit(
            x, y, l2=l2, sample_weight=weights, offset=offset, tol=tol, max_passes=400
        )
        a = np.zeros(y.shape) if offset is None else offset
        w, b = solution.params
        reached = objective_in_mpmath(w, b, x, y, weights, a, l2)
        least = objective_in_mpmath(*minimiser(x, y, weights, a, l2), x, y, weights, a, l2)
        assert float(reached - least) <= solution.gap, (seed, l2)
        assert float(reached) == pytest.approx(solution.objective, rel=1e-12), seed
        shares = weights @ y / weights.sum()
        floor = 1e-6 * -np.sum(shares[shares > 0] * np.log(shares[shares > 0]))
        assert solution.relative_gap == pytest.approx(
            solution.gap / max(solution.objective, floor), rel=1e-12
        )
        if solution.status == solvers.Status.CERTIFIED:
            assert solution.relative_gap <= tol
            assert float(reached - least) <= tol * float(reached)
        assert solution.status == solvers.Status.CERTIFIED, (seed, solution.reason)
