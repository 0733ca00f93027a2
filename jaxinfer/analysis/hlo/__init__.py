"""Say what the compiler made of a program: operations, bytes, fusions, kernels, collectives, memory.

report(compiled)    a `jax.stages.Compiled`, or the text of one, of any XLA backend: figures and findings
diff(one, other)    what two reports differ in
programs(model)     the compiled prefill, decode step and decode loop that `generate` runs
saving_of(program)  bytes and time beside the same program without fusion
watch()             how often functions are traced and compiled
"""

from jaxinfer.analysis.hlo.count import Cost, Count, count
from jaxinfer.analysis.hlo.fusion import Saving, saving, saving_of
from jaxinfer.analysis.hlo.parse import Module, parse
from jaxinfer.analysis.hlo.programs import ModelProgram, Programs, programs
from jaxinfer.analysis.hlo.report import Difference, Memory, Report, diff, report
from jaxinfer.analysis.hlo.retraces import watch

__all__ = [
    "Cost",
    "Count",
    "Difference",
    "Memory",
    "ModelProgram",
    "Module",
    "Programs",
    "Report",
    "Saving",
    "count",
    "diff",
    "parse",
    "programs",
    "report",
    "saving",
    "saving_of",
    "watch",
]
