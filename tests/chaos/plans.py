"""Random plans: lines, fans, diamonds and what lies between, the same for the same dice."""

from __future__ import annotations

import random
from typing import Any

from tests.harness import plan_of


def plan(dice: random.Random, most: int) -> dict[str, Any]:
    """A plan of 1 to `most` planner tasks; each needs some of those before it, the shape decides how many."""
    count = min(most, dice.choice((1, 2, 3, 4, 5, 6, 7, 9)))
    shape = dice.choice(("line", "fan", "diamond", "mixed", "mixed"))
    tasks: list[dict[str, Any]] = []
    for number in range(count):
        before = [task["id"] for task in tasks]
        needs: list[str] = []
        if before and shape == "line":
            needs = before[-1:]
        elif before and shape == "fan":
            needs = before[:1]
        elif before and shape == "diamond":
            needs = before[1:] if number == count - 1 and count > 2 else before[:1]
        elif before:
            needs = sorted(dice.sample(before, dice.randint(0, min(3, len(before)))))
        tasks.append({"id": f"s{number}", "depends_on": needs})
    return plan_of(tasks, title=f"{shape} of {count}")
