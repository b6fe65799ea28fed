"""How many steps a budget of time is, and how many it is when the machine becomes slower or faster along the run.

`Plan` says it as a function of the step alone, so that a run which was killed follows what it had decided, bit for bit;
`Pace` looks at the clock and decides. Nothing here writes files: what is decided is recorded by the caller before it
takes effect.

Schedules are functions of the step and of the number of steps in all. When that number changes at step r, from T to T',
the progress p goes on from where it is, in a straight line to the new end:

    p(s) = p(r) + (1 - p(r)) (s - r) / (T' - r)        for r <= s <= T'

and schedules are given s / p(s) for the number of steps, so that no rate, weight or share jumps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

TRIAL_STEPS = 20  # timed before a budget becomes a number of steps,
TRIAL_SHARE, TRIAL_LEAST = 0.1, 2  # or as many as fit into so much of the budget, but at least two
LOOKS = 20  # at the clock, evenly over the budget, besides those after checks
WINDOW = 5  # steps at least whose mean is the pace
SOONEST, LATEST = 0.9, 1.0  # of the budget: where the end is to be expected, or the number of steps changes
TARGET = 0.95  # of the budget: where it then ends
FOR_CHECKS = 0.02  # of the budget, for all checks, until one has been timed
MOST_FOR_CHECKS = (
    0.25  # of what is left of the budget, where the number of steps changes: fewer checks, not steps alone
)
TOLERANCE = 0.1  # of the budget, by which a run may miss it without a word


@dataclass(frozen=True)
class Decision:
    """How many steps a run is to make."""

    step: int
    """Steps done when it was decided; 0: before the first."""
    total: int
    """Steps in all."""
    seconds: float = 0.0
    """Of the budget that were spent then; for people."""
    checks: int | None = None
    """How many are left after this step; None: as before."""


@dataclass(frozen=True)
class Plan:
    """The decisions of a run, in their order; none while the first steps are being timed."""

    decisions: tuple[Decision, ...] = ()

    @classmethod
    def of(cls, steps: int | None) -> Plan:
        """A number of steps that was known from the start."""
        return cls(() if steps is None else (Decision(0, steps),))

    @property
    def last(self) -> int:
        """The step of the last decision, -1 before there is any."""
        return self.decisions[-1].step if self.decisions else -1

    def total(self, step: int) -> int | None:
        """Steps in all, as it is known when `step` of them are done; None while it is not."""
        known = [decision.total for decision in self.decisions if decision.step <= step]
        return known[-1] if known else None

    def progress(self, step: int) -> Fraction:
        """p: 0 before the first step, 1 after the last. The first decision holds for the steps before it too."""
        first, *later = self.decisions
        start, done, total = 0, Fraction(0), first.total
        for decision in later:
            if decision.step >= step:
                break
            done += (1 - done) * Fraction(decision.step - start, total - start)
            start, total = decision.step, decision.total
        return done + (1 - done) * Fraction(step - start, total - start)

    def share(self, step: int, since: int) -> Fraction:
        """Of what was left after step `since`, how much is done."""
        before = self.progress(since)
        return (self.progress(step) - before) / (1 - before)

    def decided_checks(self, step: int) -> tuple[int, int] | None:
        """The last step before this one at which a number of checks was decided on, and that number; None if never."""
        found = [(one.step, one.checks) for one in self.decisions if one.checks is not None and one.step < step]
        return found[-1] if found else None

    def horizon(self, step: int) -> float | None:
        """The number of steps that schedules are given for 0-based `step`: an int until the plan has changed."""
        total = self.total(step)
        if total is None or step == 0:
            return total
        steps = step / self.progress(step)
        return int(steps) if steps.denominator == 1 else float(steps)

    def with_total(self, step: int, total: int, seconds: float, checks: int | None = None) -> Plan:
        """The plan with one more decision."""
        return Plan((*self.decisions, Decision(step, total, seconds, checks)))


@dataclass(frozen=True)
class Record:
    """What a run remembers of its budget."""

    plan: Plan = Plan()
    seconds: float = 0.0
    """Of the budget that are spent, over all processes that have worked on the run so far."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"seconds": self.seconds, "decisions": [asdict(decision) for decision in self.plan.decisions]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """The reverse. Raises `TypeError`, `LookupError` or `ValueError` for something else."""
        decisions = [_decision(each) for each in values["decisions"]]
        steps = [decision.step for decision in decisions]
        if steps != sorted(set(steps)) or any(decision.total <= decision.step for decision in decisions[:-1]):
            raise ValueError("decisions out of order")
        return cls(Plan(tuple(decisions)), float(values["seconds"]))


def _decision(values: Mapping[str, Any]) -> Decision:
    checks = values.get("checks")  # of records of earlier versions there is none
    number = None if checks is None else int(checks)
    return Decision(int(values["step"]), int(values["total"]), float(values["seconds"]), number)


@dataclass(frozen=True)
class Costs:
    """What is left to pay for, in seconds."""

    step: float
    """A step, and what comes after it but for checks."""
    check: float
    """A check, with the pictures and the checkpoint that come with it."""

    def of(self, steps: int, checks: int) -> float:
        """So many steps, and so many checks, of which one may be due before the first of them."""
        return steps * self.step + min(checks, steps + 1) * self.check

    def fitting(self, seconds: float, checks: int) -> int:
        """How many steps come closest to taking so long, with so many checks among them."""
        steps = (seconds - checks * self.check) / self.step
        return round(steps if steps >= checks else seconds / (self.step + self.check))

    def affordable(self, seconds: float) -> int:
        """How many checks may be among them, so that most of the time is left for steps."""
        return int(MOST_FOR_CHECKS * seconds / max(self.check, 1e-9))


class Pace:
    """The clock of a run, in this process; only rank 0's counts.

    Arguments:
        batch: images a step.
        budget: seconds that the run may take; None for a run whose number of steps is given.
        spent: seconds of the budget that were spent before.
    """

    def __init__(self, batch: int, budget: float | None, spent: float = 0.0) -> None:
        self.batch, self.budget = batch, budget
        self.started = time.monotonic() - spent
        self.looked = time.monotonic()
        self.updates, self.steps = list[float](), list[float]()
        self.check: float | None = None
        self._ended: float | None = None  # the last update
        self._checked = False  # whether a check came after it

    def timed(self, step: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The figures of a step, and its speed."""
        before = time.monotonic()
        self._close(before)
        figures = step()
        self._ended = time.monotonic()
        self.updates.append(self._ended - before)
        self.steps.append(self._ended - before)
        return figures | {"images_per_second": self.batch / max(statistics.median(self.updates[-20:]), 1e-9)}

    def checked(self) -> None:
        """What comes until the next step is a check."""
        self._checked = True

    def _close(self, now: float) -> None:
        """What came after the last update is over."""
        if self._ended is None:
            return
        if self._checked:
            self.check = now - self._ended
            self.looked = -float("inf")  # so that the clock is looked at after the next step
        else:
            self.steps[-1] += now - self._ended
        self._checked = False

    @property
    def spent(self) -> float:
        """Seconds of the budget, until now."""
        return time.monotonic() - self.started

    def record(self, plan: Plan) -> Record | None:
        """What the run is to remember; nothing where no budget was given."""
        return None if self.budget is None else Record(plan, self.spent)

    def due(self, step: int, plan: Plan) -> bool:
        """Whether to decide anew when `step` steps are done; never before the steps that were decided on already."""
        if self.budget is None or plan.last >= step or plan.total(step) == step:
            return False
        if not plan.decisions:
            enough = len(self.steps) >= TRIAL_LEAST and self.spent >= TRIAL_SHARE * self.budget
            return enough or len(self.steps) >= TRIAL_STEPS or self.spent >= TARGET * self.budget
        return time.monotonic() - self.looked >= self.budget / LOOKS

    def planned(self, step: int, plan: Plan, checks: int, *, due: bool) -> Plan:
        """The plan when `step` steps are done, a new one where the end is not to be expected within the budget.

        Arguments:
            checks: how many of them are left if the plan stays, with one that is due now.
            due: whether one is; it stays, as does the one at the end.
        """
        assert self.budget is not None
        self.looked, spent = time.monotonic(), self.spent
        left, total = TARGET * self.budget - spent, plan.total(step)
        if total is None:
            trial = Costs(statistics.median(self.steps), 0.0)
            return plan.with_total(step, step + max(trial.fitting(left - FOR_CHECKS * self.budget, 0), 0), spent)
        costs = self._costs(checks, plan.progress(step))
        if SOONEST * self.budget <= spent + costs.of(total - step, checks) <= LATEST * self.budget:
            return plan
        kept = min(checks, max(costs.affordable(left), due + 1))
        steps = step + max(costs.fitting(left, kept), 1)
        fewer = kept - due if kept < checks else None
        return plan if (steps, fewer) == (total, None) else plan.with_total(step, steps, spent, fewer)

    def _costs(self, checks: int, progress: Fraction) -> Costs:
        assert self.budget is not None
        untimed = FOR_CHECKS * self.budget * float(1 - progress) / max(checks, 1)
        return Costs(self._pace(), untimed if self.check is None else self.check)

    def _pace(self) -> float:
        """Mean seconds of the last steps: those since about the last look, and `WINDOW` at least."""
        assert self.budget is not None
        count, seconds = 0, 0.0
        for duration in reversed(self.steps):
            if count >= WINDOW and seconds >= self.budget / LOOKS:
                break
            count, seconds = count + 1, seconds + duration
        return max(seconds / count, 1e-9)

    # -- in words ------------------------------------------------------------------------------------------------------

    def changed(self, before: Plan, after: Plan, step: int) -> list[str]:
        """What to say of a new plan; nothing of the first."""
        old, new, left = before.total(step), after.total(step), after.decisions[-1].checks if after != before else None
        if old is None or (old == new and left is None):
            return []
        checks = "" if left is None else f", of whose checks {left} {'is' if left == 1 else 'are'} left"
        return [f"{new} steps instead of {old}{checks}, to end within {self._asked}: {self._rates()}"]

    def missed(self) -> list[str]:
        """At the end of a run, what to say where it has not ended within `TOLERANCE` of the budget."""
        if self.budget is None or abs(self.spent - self.budget) <= TOLERANCE * self.budget:
            return []
        self._close(time.monotonic())  # the last check is one of the reasons, if not the reason
        return [f"took {self.spent / 60:.3g} min, not {self._asked}: {self._rates()}"]

    @property
    def _asked(self) -> str:
        assert self.budget is not None
        return f"{self.budget / 60:.3g} min"

    def _rates(self) -> str:
        """What decides when a run ends."""
        first = statistics.median(self.steps[:TRIAL_STEPS])
        check = "" if self.check is None else f", a check {self.check:.3g} s"
        return f"a step takes {self._pace():.3g} s, at first {first:.3g} s{check}"
