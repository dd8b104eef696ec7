"""``rawgrad report``: all that is known of a run in one HTML file, and six panels of it in a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..engine.train import Look, Outcome, SeenDigits
from ..engine.train.distributions import Distribution
from ..engine.train.looks import thinned
from ..engine.weights import write_atomically
from ..kernels._errors import ArgumentError, DataError
from . import page, panels
from .curves import figure
from .pictures import draw_digits
from .runs import Run, read_run
from .tables import duration, number, shown
from .watching import draw_test_digits, draw_the_confusion, outcome_of, reader_of

#: So many looks are drawn at most.
_MOST = 120
_KINDS = {
    "weights": "as each step left them",
    "biases": "as each step left them",
    "gradients": "of the loss, as the step used them",
    "activations": "what each layer gives for inputs of the step, in evaluation mode",
}


class Report:
    """A run and what is to be shown of it.

    Args:
        run: from :func:`read_run`.
        data_dir: where MNIST is, for a run that was not watched: its test images are read again.

    Attributes:
        run: as given.
        looks: what was seen, the first and the last and evenly spread between.
        outcome: of the test, or the reason why there is none.

    Raises:
        CheckpointError: what was seen is damaged.
    """

    def __init__(self, run: Run, data_dir: Path | None = None) -> None:
        self.run = run
        self.looks = [run.looks.load(step) for step in thinned(run.looks.steps(), _MOST)]
        self.outcome = _outcome(run, data_dir)

    @property
    def steps(self) -> list[int]:
        """When it was looked."""
        return [look.step for look in self.looks]

    def distributions(self, kind: str) -> dict[str, list[Distribution]]:
        """What was seen of a kind, by name; of what is not in every look nothing."""
        names = list(self.looks[0].distributions.get(kind, ())) if self.looks else []
        inside = [name for name in names if all(name in look.distributions.get(kind, ()) for look in self.looks)]
        return {name: [look.distributions[kind][name] for look in self.looks] for name in inside}

    def _not_watched(self) -> str:
        program = "`rawgrad train PROGRAM --watch`"
        return f"Not watched: {program} keeps what is shown here."

    # ---------------------------------------------------------------- the page

    def html(self) -> str:
        """The page."""
        run, settings = self.run, self.run.settings
        what = f"{settings.get('network')} on {settings.get('data')}"
        state = "" if run.finished else ": not finished, as it was at its newest checkpoint"
        parts = [
            page.heading(run.name, 1),
            page.text(f"{what}, {_counted(run)}{state}", "soft"),
            page.grid("tiles", [page.tile(value, name) for name, value in self.figures()]),
            page.heading("Curves"),
            page.grid("panels", self.curves()),
            page.heading("Weights and biases"),
            page.text(
                "Between the edges of the shades lie 38 %, 68 %, 86 % and all of the values, what is very far out "
                "beyond the edge of the picture; the line is the median."
            ),
            page.grid("panels", [self._all(kind) for kind in ("weights", "biases")]),
            page.heading("Digits"),
            page.grid("panels", [*self._digits_of_steps(), self._test_digits(), self._confusion()]),
            *self.layers(),
            page.heading("Settings"),
            page.facts([(name.replace("_", " "), shown(value)) for name, value in settings.items()]),
            *self._epochs(),
            page.heading("Machine"),
            page.facts(_made(run.result.get("made"))),
        ]
        return page.document(f"{run.name}: rawgrad report", parts)

    def figures(self) -> list[tuple[str, str]]:
        """The final figures, by name."""
        run = self.run
        epochs = run.history.epochs
        found: list[tuple[str, str]] = []
        if isinstance(self.outcome, Outcome):
            count, right = self.outcome.count, self.outcome.right
            found += [("test accuracy", f"{100 * right / count:.2f} %"), ("test mistakes", f"{count - right:,}")]
        elif (accuracy := run.figure("test", "accuracy")) == accuracy:
            found += [("test accuracy", f"{100 * accuracy:.2f} %")]
        if (loss := run.figure("test", "loss")) == loss:
            found += [("test loss", f"{loss:.4f}")]
        if best := max((e.validation_accuracy for e in epochs if e.validation_accuracy > 0), default=0.0):
            found += [("best validation accuracy", f"{100 * best:.2f} %")]
        found += [("steps", f"{len(run.history.steps):,}"), ("epochs", f"{len(epochs)}")]
        if epochs:
            seconds = sum(epoch.seconds for epoch in epochs)
            speed = sorted(epoch.samples_per_second for epoch in epochs)[len(epochs) // 2]
            waited = sum(epoch.waiting for epoch in epochs)
            found += [("of training", duration(seconds)), ("images a second", f"{speed:,.0f}")]
            if waited == waited:
                found += [("of it waiting for data", f"{100 * waited / max(seconds, 1e-9):.1f} %")]
        return found

    def curves(self) -> list[str]:
        """Accuracy, loss, learning rate, time."""
        history = self.run.history
        lines = "Lines: training batches, means of short stretches; dots: the validation set after each epoch."
        shown: list[tuple[str, Callable[..., None], str]] = [
            ("Accuracy", panels.accuracy, lines),
            (str(self.run.settings.get("loss", "loss")).capitalize(), panels.loss, lines),
            ("Learning rate", panels.learning_rate, ""),
            ("Time of an epoch", panels.times, _held_back(self.run)),
        ]
        return [page.panel(title, page.svg(_of(draw, history), title), note) for title, draw, note in shown]

    def _all(self, kind: str) -> str:
        title = f"All {kind}"
        found = self.distributions(kind).get("all")
        if found is None:
            return page.panel(title, page.missing(self._not_watched() if not self.looks else f"It has no {kind}."))
        count = f"{found[-1].count:,} of them, {_KINDS[kind]}."
        return page.panel(title, page.svg(lambda axes: panels.bands(axes, self.steps, found), title), count)

    def layers(self) -> list[str]:
        """What was seen of each layer."""
        if not self.looks:
            titles = ("Gradients", "Activations", "Each layer")
            missing = [page.panel(title, page.missing(self._not_watched())) for title in titles]
            return [page.heading("Layers"), page.grid("panels", missing)]
        parts = []
        for kind in ("activations", "gradients", "weights", "biases"):
            rows = {name: found for name, found in self.distributions(kind).items() if name != "all"}
            if rows:
                parts += [
                    page.heading(f"{kind.capitalize()} by layer"),
                    page.text(f"{_KINDS[kind].capitalize()}."),
                    page.grid("small", [self._layer(kind, name, found) for name, found in rows.items()]),
                ]
        return parts

    def _layer(self, kind: str, name: str, found: Sequence[Distribution]) -> str:
        last = found[-1]
        note = f"{last.zeros / max(last.seen, 1):.0%} zeros" if last.zeros > last.seen / 100 else ""
        if any(each.not_finite for each in found):
            first = next(look.step for look, each in zip(self.looks, found, strict=True) if each.not_finite)
            note = f"NaN or infinite from step {first:,}"

        def draw(axes: Any) -> None:
            panels.bands(axes, self.steps, found, small=True)

        return page.panel(name, page.svg(draw, f"{kind} of {name}", 2.5, 1.6), note)

    def _digits_of_steps(self) -> list[str]:
        shown = self._with_digits()
        if not shown:
            why = "The inputs are no pictures of one channel." if self.looks else self._not_watched()
            return [page.panel("Digits of a step", page.missing(why))]
        parts = []
        for look, digits in shown:
            right = int((digits.truth == digits.read).sum())
            title = f"Digits of step {look.step:,}"
            note = f"{right} of {len(digits.truth)} read right; wrong ones are red, with what they were read as."
            parts.append(page.panel(title, _sheet(title, _draw_step, digits, digits, 1), note))
        return parts

    def _with_digits(self) -> list[tuple[Look, SeenDigits]]:
        """The first look with digits and the last with as many as there are at most, the same one once."""
        shown = [(look, look.digits) for look in self.looks if look.digits is not None]
        most = max((len(digits.truth) for _, digits in shown), default=0)
        full = [pair for pair in shown if len(pair[1].truth) == most]
        return shown[:1] + [pair for pair in full[-1:] if pair[0] is not shown[0][0]]

    def _test_digits(self) -> str:
        title, outcome = "Test digits, errors first", self.outcome
        if not isinstance(outcome, Outcome):
            return page.panel(title, page.missing(outcome))
        wrong = outcome.count - outcome.right
        note = f"{wrong:,} of {outcome.count:,} are read wrong; of these the highest loss first."
        return page.panel(title, _sheet(title, draw_test_digits, outcome, outcome.digits, 2), note)

    def _confusion(self) -> str:
        title, outcome = "Confusion matrix", self.outcome
        if not isinstance(outcome, Outcome):
            return page.panel(title, page.missing(outcome))
        return page.panel(title, page.picture(_of(draw_the_confusion, outcome), title, 6.0, 5.6), "of the test images.")

    def _epochs(self) -> list[str]:
        epochs = self.run.history.epochs
        if not epochs:
            return []
        head = ["epoch", "loss", "accuracy", "validation loss", "validation accuracy", "seconds", "images a second"]
        rows = [
            [
                str(e.epoch + 1), number(e.loss, ".4f"), number(100 * e.accuracy, ".2f"),
                number(e.validation_loss, ".4f"), number(100 * e.validation_accuracy, ".2f"),
                number(e.seconds, ".1f"), number(e.samples_per_second, ",.0f"),
            ]
            for e in epochs
        ]  # fmt: skip
        return [page.heading("Epochs"), page.table(head, rows)]

    # ---------------------------------------------------------------- the picture

    def draw(self) -> Any:
        """The six panels as a figure of matplotlib."""
        made, axes = figure(3, 6.6, rows=2, width=4.2)
        history = self.run.history
        panels.accuracy(axes[0], history)
        panels.loss(axes[1], history)
        titles = ["accuracy", str(self.run.settings.get("loss", "loss"))]
        for place, kind in ((axes[3], "weights"), (axes[4], "biases")):
            found = self.distributions(kind).get("all")
            if found is None:
                _say(place, f"{kind}: not watched")
            else:
                panels.bands(place, self.steps, found)
        step = "digits of a step"
        if shown := self._with_digits():
            look, digits = shown[0]
            step = f"digits of step {look.step:,}, errors on red"
            _draw_step(axes[2], digits)
        else:
            _say(axes[2], "not watched")
        test = "test digits, errors first"
        if isinstance(self.outcome, Outcome):
            test += f": {self.outcome.count - self.outcome.right:,} of {self.outcome.count:,}"
            draw_test_digits(axes[5], self.outcome)
        else:
            _say(axes[5], "no test")
        for place, title in zip(axes, [*titles, step, "weights", "biases", test], strict=True):
            place.set_title(title, fontsize=10, color=panels.INK)
        return made


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=panels.INK)
    axes.axis("off")


def _of(draw: Callable[..., None], what: Any) -> Callable[[Any], None]:
    return lambda axes: draw(axes, what)


def _draw_step(axes: Any, digits: SeenDigits, columns: int = 10) -> None:
    draw_digits(axes, digits.images / 255, digits.truth, digits.read, columns=columns)


def _sheet(name: str, draw: Callable[..., None], what: Any, digits: SeenDigits, lines: int) -> str:
    """Digits for a page, eight in a row, so that they can be read on a phone; with so many lines below each."""
    row = 6 / (1.12 * 8) * (1.1 + 0.32 * lines)  # inches, as ``draw_digits`` places them
    return page.picture(lambda axes: draw(axes, what, columns=8), name, 6.0, row * -(-len(digits.truth) // 8) + 0.1)


def _outcome(run: Run, data_dir: Path | None) -> Outcome | str:
    """What the test gave, or gives again; else why not."""
    kept = run.looks.outcome()
    if kept is not None:
        return kept
    weights = run.folder / "weights.safetensors"
    if not weights.exists():
        return "There are no weights yet." if not run.finished else "There are no weights in the folder."
    from .training import DATA, limited, load_model

    model, info = load_model(weights)
    data = DATA.get(str(run.settings.get("data")))
    if data is None:
        return f"The data set {run.settings.get('data')!r} is unknown here."
    try:
        split = data.splits()["test"] if data_dir is None and data is DATA["digits"] else None
        if split is None:
            split = data.splits(data_dir, download=False)["test"]
        limit = run.settings.get("limit")
        split = limited(split, limit if type(limit) is int and limit > 0 else None)
        return outcome_of(model, split, reader_of(str(info.extra.get("loss"))), info.classes)
    except DataError as error:
        return f"The test images are not here ({error}); --data-dir DIR names their folder."


def _counted(run: Run) -> str:
    return f"{len(run.history.steps):,} steps, {len(run.history.epochs)} epochs"


def _held_back(run: Run) -> str:
    seconds = sum(epoch.seconds for epoch in run.history.epochs)
    waited = sum(epoch.waiting for epoch in run.history.epochs)
    if not seconds or waited != waited:
        return "How long training waited for data was not recorded."
    share = waited / seconds
    what = "reading the data" if share > 0.5 else "computing"
    return f"{what.capitalize()} held the run back: it waited {waited:.2f} s of {seconds:.1f} s for data ({share:.1%})."


def _made(made: Any) -> list[tuple[str, str]]:
    """Command, machine and versions, of what is known."""
    if not isinstance(made, dict):
        return [("not recorded", "the run is not finished, or was made by an older version")]
    rows = [(name, made[name]) for name in ("command", "date", "commit") if isinstance(made.get(name), str)]
    machine, versions = (made[name] if isinstance(made.get(name), dict) else {} for name in ("machine", "versions"))
    for name, value in machine.items():
        if value is not None:
            size = name in ("last_level_cache", "memory") and isinstance(value, int)
            rows.append((name.replace("_", " "), f"{value / 2**30:.1f} GiB" if size else shown(value)))
    rows += [(name, shown(value)) for name, value in versions.items() if value not in (None, [])]
    return rows


def report(folder: Path, out: Path | None = None, picture: Path | None = None, data_dir: Path | None = None) -> int:
    """Write the report of the run in ``folder``, and its picture beside it.

    Args:
        folder: of a run.
        out: the HTML file; by default ``report.html`` in the run.
        picture: the PNG; by default beside the page, of the same name.
        data_dir: see :class:`Report`.
    """
    out = folder / "report.html" if out is None else out
    if out.suffix not in (".html", ".htm"):
        raise ArgumentError(f"report: --out must end with .html; got {out}")
    picture = out.with_suffix(".png") if picture is None else picture
    if picture.suffix != ".png":
        raise ArgumentError(f"report: --picture must end with .png; got {picture}")
    run = read_run(folder)
    files: list[tuple[Path, Callable[[Report], bytes]]] = [
        (out, lambda made: made.html().encode()),
        (picture, lambda made: page.png(made.draw(), 100)),
    ]
    try:
        for path, _ in files:
            path.parent.mkdir(parents=True, exist_ok=True)
        made = Report(run, data_dir)
        for path, content in [(path, make(made)) for path, make in files]:
            write_atomically(path, content)
            print(f"{path}: {len(content) / 1000:,.0f} kB")
    except OSError as error:
        raise DataError(f"report: cannot write {path}: {error.strerror}") from error
    return 0
