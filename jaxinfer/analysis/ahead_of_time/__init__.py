"""Programs compiled for machines that are not here: do they fit, what do they move, what will they take.

    from jaxinfer.analysis.ahead_of_time import Ask, study
    study(Ask(config, "v5e:8x8", MeshShape.of("data=1,tensor=64"), batch=16, context=8192)).fits

The very programs that `generate` runs are lowered with shapes in place of arrays and compiled by the target's own
compiler: no weights, and no such machine.
"""

from jaxinfer.analysis.ahead_of_time.account import Account, Moved, StepAccount
from jaxinfer.analysis.ahead_of_time.ask import STEPS, Ask
from jaxinfer.analysis.ahead_of_time.studying import study

__all__ = ["STEPS", "Account", "Ask", "Moved", "StepAccount", "study"]
