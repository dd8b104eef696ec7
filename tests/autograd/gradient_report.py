"""Write the gradient-check report over all operations::

python tests/autograd/gradient_report.py docs/gradient-checks.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from cases import CASES, Case

from rawgrad.autograd import Report, gradcheck, gradgradcheck

Reports = dict[Case, tuple[Report, Report]]

_HEAD = """# Gradient checks

Every differentiable operation, its gradient ("first") and the gradient of its gradient ("second") against central
differences in float64: element by element and along random directions. *Compared* counts the numbers, *worst* is the
largest share of the tolerance that any of them used; the tolerance is `1e-7 + 1e-5 · max |differences|` for each
Jacobian, and above 100 % the check fails. `tests/autograd/test_gradients.py` runs the same checks; the table of
operations is `tests/autograd/cases.py`. Written by

```
python tests/autograd/gradient_report.py docs/gradient-checks.md
```

| operation | case | shapes | compared | worst, first | worst, second |
|---|---|---|---:|---:|---:|
"""


def check(case: Case, device: str = "cpu") -> tuple[Report, Report]:
    """The checks of first and second order; a failed one is returned, not raised."""
    first = gradcheck(case.function, case.tensors(device), raise_exception=False)
    second = gradgradcheck(case.function, case.tensors(device), raise_exception=False)
    return first, second


def summary(reports: Reports) -> str:
    """One line over all operations."""
    worst = max(reports, key=lambda case: max(r.budget_used for r in reports[case]))
    first, second = (max(r[order].budget_used for r in reports.values()) for order in (0, 1))
    compared = sum(report.compared for pair in reports.values() for report in pair)
    operations = len({case.operation for case in reports})
    return (
        f"{operations} operations in {len(reports)} cases, {compared} numbers; largest share of the tolerance: first "
        f"order {100 * first:.2g} %, second order {100 * second:.2g} % (worst case: {worst.name})"
    )


def table(reports: Reports) -> str:
    """The whole report in Markdown."""
    rows = []
    for case, (first, second) in sorted(reports.items(), key=lambda item: item[0].operation):
        shares = [f"{100 * r.budget_used:.2g} %" if r else f"**{100 * r.budget_used:.2g} %**" for r in (first, second)]
        compared = first.compared + second.compared
        rows.append(f"| {case.operation} | {case.variant} | {case.shapes} | {compared} | {shares[0]} | {shares[1]} |")
    return _HEAD + "\n".join(rows) + f"\n\n{summary(reports)}\n"


if __name__ == "__main__":
    text = table({case: check(case) for case in CASES})
    Path(sys.argv[1]).write_text(text) if len(sys.argv) > 1 else print(text)
