"""Checks at the door: of arrays, class ids, rows and options; messages name place and remedy."""

from softmax_jax.checks.arrays import as_array as as_array
from softmax_jax.checks.arrays import as_real as as_real
from softmax_jax.checks.arrays import checked_real as checked_real
from softmax_jax.checks.arrays import dense as dense
from softmax_jax.checks.arrays import exceeds_float32 as exceeds_float32
from softmax_jax.checks.arrays import exceeds_jax as exceeds_jax
from softmax_jax.checks.arrays import is_known as is_known
from softmax_jax.checks.arrays import is_real as is_real
from softmax_jax.checks.arrays import is_sparse as is_sparse
from softmax_jax.checks.arrays import on_device as on_device
from softmax_jax.checks.ids import as_ids as as_ids
from softmax_jax.checks.ids import checked_ids as checked_ids
from softmax_jax.checks.ids import known_ids as known_ids
from softmax_jax.checks.ids import refuse_ids_out_of_range as refuse_ids_out_of_range
from softmax_jax.checks.options import checked_count as checked_count
from softmax_jax.checks.options import checked_names as checked_names
from softmax_jax.checks.options import checked_strength as checked_strength
from softmax_jax.checks.options import per_feature as per_feature
from softmax_jax.checks.options import refuse_other_than_utf8 as refuse_other_than_utf8
from softmax_jax.checks.rows import as_rows as as_rows
from softmax_jax.checks.rows import checked_features as checked_features
from softmax_jax.checks.rows import checked_weights as checked_weights
from softmax_jax.checks.rows import dense_rows as dense_rows
from softmax_jax.checks.rows import refuse_no_weight as refuse_no_weight
from softmax_jax.checks.rows import refuse_not_finite as refuse_not_finite
from softmax_jax.checks.rows import (
    refuse_other_than_probabilities as refuse_other_than_probabilities,
)
from softmax_jax.checks.rows import rounding_of_probabilities as rounding_of_probabilities
