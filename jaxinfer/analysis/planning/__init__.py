"""Planning a service: which slice, mesh, formats and batch meet a goal at the lowest cost, predicted and then proved.

    from jaxinfer.analysis.planning import Goal, plan
    found = plan("llama-3-70b", "v5e", Goal(prompt=1024, output=256, tpot=0.05))
    found.by_cost[0].mesh, found.by_cost[0].cost

Times and bytes are the roofline's (`analysis/roofline/meshes.py`), so they are bounds. What is proved is that the
compiler for the target makes the programs and that they fit; nothing of it is measured.
"""

from jaxinfer.analysis.planning.goal import Goal
from jaxinfer.analysis.planning.option import Option, Plan, Proof
from jaxinfer.analysis.planning.planner import plan
from jaxinfer.analysis.planning.proving import Prover
from jaxinfer.analysis.planning.slices import FAMILIES, Family, family

__all__ = ["FAMILIES", "Family", "Goal", "Option", "Plan", "Proof", "Prover", "family", "plan"]
