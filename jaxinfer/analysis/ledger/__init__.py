"""The ledger of a setting: what physics allows, what the compiler made, what the clock said, and where the rest goes.

found = ledger(jaxinfer.load("smollm2-135m"), prompt=128, batch=1)
print(found.sentence); found.table(); found.as_dict()
"""

from jaxinfer.analysis.ledger.losses import Loss
from jaxinfer.analysis.ledger.measuring import ledger, ledger_of, room
from jaxinfer.analysis.ledger.record import Compiler, Ledger, Stage

__all__ = ["Compiler", "Ledger", "Loss", "Stage", "ledger", "ledger_of", "room"]
