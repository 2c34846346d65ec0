"""Linear head of any size: loss, predictions and statistics of rows, never holding all logits.

`linear_cross_entropy` is the loss; `predict` and `top_k` need no targets. `Statistic` describes
what the loss can return beside itself for each row.
"""

from softmax_jax.data.targets import SparseTargets as SparseTargets
from softmax_jax.head.linear import HeadOutput as HeadOutput
from softmax_jax.head.linear import linear_cross_entropy as linear_cross_entropy
from softmax_jax.head.plan import MOST_LOGITS as MOST_LOGITS
from softmax_jax.head.plan import STRATEGIES as STRATEGIES
from softmax_jax.head.scoring import TopK as TopK
from softmax_jax.head.scoring import predict as predict
from softmax_jax.head.scoring import top_k as top_k
from softmax_jax.head.statistics import Part as Part
from softmax_jax.head.statistics import Statistic as Statistic
from softmax_jax.head.statistics import Tile as Tile
from softmax_jax.head.statistics import Whole as Whole
from softmax_jax.head.table import EXTRAS as EXTRAS
