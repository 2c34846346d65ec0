"""Calibration: whether, of all cases given probability c, the share c comes true.

Cases are compared in bins of similar confidence, and of each bin only sums are kept (`Bins`). They
merge over batches and hosts by `metrics.merge` and `metrics.total`, and every error is computed
from them::

    confidence, outcome = calibration.top_label(logits, labels)
    bins = calibration.reliability(confidence, outcome, calibration.equal_width_edges(15))
    calibration.expected_error(bins), calibration.debiased_squared_error(bins)

A confidence and its outcome are those of the predicted class (`top_label`), of a given class
(`of_class`), or of each class (`class_wise`); then all have an axis of classes. Logits are
calibrated by `fit_temperature` and `fit_vector_scaling`. A model that answers only where it is
confident enough has a `risk_coverage`.
"""

from softmax_jax.calibration.bins import Bins as Bins
from softmax_jax.calibration.bins import equal_mass_edges as equal_mass_edges
from softmax_jax.calibration.bins import equal_width_edges as equal_width_edges
from softmax_jax.calibration.bins import reliability as reliability
from softmax_jax.calibration.errors import Brier as Brier
from softmax_jax.calibration.errors import brier as brier
from softmax_jax.calibration.errors import debiased_expected_error as debiased_expected_error
from softmax_jax.calibration.errors import debiased_squared_error as debiased_squared_error
from softmax_jax.calibration.errors import expected_error as expected_error
from softmax_jax.calibration.errors import maximum_error as maximum_error
from softmax_jax.calibration.errors import rms_error as rms_error
from softmax_jax.calibration.pairs import class_wise as class_wise
from softmax_jax.calibration.pairs import of_class as of_class
from softmax_jax.calibration.pairs import top_label as top_label
from softmax_jax.calibration.resampling import Band as Band
from softmax_jax.calibration.resampling import Consistency as Consistency
from softmax_jax.calibration.resampling import bootstrap_band as bootstrap_band
from softmax_jax.calibration.resampling import consistency as consistency
from softmax_jax.calibration.scaling import Scaling as Scaling
from softmax_jax.calibration.scaling import Temperature as Temperature
from softmax_jax.calibration.scaling import fit_temperature as fit_temperature
from softmax_jax.calibration.scaling import fit_vector_scaling as fit_vector_scaling
from softmax_jax.calibration.selective import RiskCoverage as RiskCoverage
from softmax_jax.calibration.selective import risk_coverage as risk_coverage
from softmax_jax.calibration.selective import threshold_for_risk as threshold_for_risk
