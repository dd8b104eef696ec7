"""Training: :func:`fit`, a loop of modest size, and what can be added to it.

Nothing here is special: it is the loop that a user would write with the same pieces, with a record of every
step, validation after each epoch, callbacks, and its state saved now and then.

``loop.py``            the loop
``records.py``         steps, epochs, and where a run stands
``evaluation.py``      loss and accuracy without training
``callback.py``        what is told of a training, and by what it can end it
``progress.py``        a bar, and lines of JSON
``early_stopping.py``  ending what does not get better
``nonfinite.py``       NaN and infinity: where they come from, and that one step again
``checks.py``          what often goes wrong, and what to try
``saving.py``          checkpoints now and then, and a proper end when one is wished
``watching.py``        looks at weights, gradients, activations and digits now and then
``distributions.py``   many numbers in few
``looks.py``           what was seen, and the folder that keeps it
``tensorboard.py``     all of it in TensorBoard
"""

from ..checkpoint import Checkpoint, Checkpoints, Interval, restore, states_of
from ..stopping import Interrupted, Terminated
from .callback import Callback, Training
from .checks import Checks, Limits, Trouble
from .early_stopping import EarlyStopping
from .evaluation import Evaluation, evaluate, predictions_of
from .looks import Look, Looks, Outcome, SeenDigits
from .loop import fit
from .nonfinite import NonFiniteGuard, Replay, replay
from .progress import JSONLines, ProgressBar
from .records import Epoch, History, Progress, Step
from .tensorboard import TensorBoard
from .watching import Kept, Watched, Watcher

__all__ = [
    "Callback",
    "Checkpoint",
    "Checkpoints",
    "Checks",
    "EarlyStopping",
    "Epoch",
    "Evaluation",
    "History",
    "Interrupted",
    "Interval",
    "JSONLines",
    "Kept",
    "Limits",
    "Look",
    "Looks",
    "NonFiniteGuard",
    "Outcome",
    "Progress",
    "ProgressBar",
    "Replay",
    "SeenDigits",
    "Step",
    "TensorBoard",
    "Terminated",
    "Training",
    "Trouble",
    "Watched",
    "Watcher",
    "evaluate",
    "fit",
    "predictions_of",
    "replay",
    "restore",
    "states_of",
]
