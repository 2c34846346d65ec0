"""The ends of members: the last step and why it was the last, or what to do if all diverged."""

from collections.abc import Iterable, Sequence

from runs import programs
from runs.group import Progress
from runs.plan import Plan
from runs.scores import End
from softmax_jax import model


def of_group(plan: Plan, progress: Progress, members: int) -> list[End]:
    """Returns the members of a group at their end.

    The parameters are of the best step where there are validation data, or of the last one.
    """
    ends, best = [], progress.best
    for i, state in enumerate(programs.unstacked(progress.state, members)):
        at, params = int(progress.diverged[i]), model.Params(*state.params)
        last, why, best_step = plan.total, f"the duration of {plan.config.duration} is over", None
        if best is not None and best.step[i] > 0:
            best_step = int(best.step[i])
            params = model.Params(*(a[i] for a in best.params))
        if best is not None and best.stopped[i] >= 0:
            last = int(best.stopped[i])
            why = f"no lower validation loss in {plan.patience} evaluations"
        if at >= 0:
            last, why = at, "it diverged"
        ends.append(End(params, at if at >= 0 else None, last, why, best_step))
    return ends


def explain(plan: Plan, ends: Sequence[End]) -> str:
    """Says what to do where all members have diverged."""
    step = min(end.last_step for end in ends)
    who = "training" if len(ends) == 1 else f"all {len(ends)} members"

    def lowest(values: Iterable[float]) -> str:
        first, *others = sorted(set(values))
        return f"{first:g} and more" if others else f"{first:g}"

    rate = lowest(member.learning_rate for member in plan.members)
    return (
        f"{who} diverged: the loss is no finite number at step {step} (epoch "
        f"{step // plan.epoch + 1}), with learning rate {rate}, of which schedule "
        f"{plan.config.schedule} takes {float(plan.share(step)):.3g} there, and l2 "
        f"{lowest(member.l2 for member in plan.members)}; try a third of the learning rate and "
        "another --workdir"
    )
