"""Tell which part of the model an instruction belongs to, from the path of scopes and modules in its metadata.

    jit(prefill)/Transformer/while/body/closed_call/segment_0/layer_0/attention/attention/q/dot_general -> q_proj

The names of operators are those of LLM-Viewer (Yuan et al. 2024) where it has one, so that figures stand beside those
of a roofline.
"""

import re
from collections.abc import Callable

from jaxinfer.analysis.hlo.parse import Computation, Instruction, Module

Scope = Callable[[str], str]
"""Gives the group that a path of scopes belongs to."""

OTHER = "other"
_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_NORMS = {
    "attention_norm": "attn_norm",
    "attention_post_norm": "attn_norm",
    "mlp_norm": "mlp_norm",
    "mlp_post_norm": "mlp_norm",
    "final_norm": "final_norm",
    "q_norm": "qk_norm",
    "k_norm": "qk_norm",
}
_STAGES = {"propose": "propose", "verify": "sampling", "commit": "commit", "embed": "embed", "logits": "lm_head"}
_WITHIN = {"rope": "rope", "qk_matmul": "qk_matmul", "softmax": "softmax", "sv_matmul": "sv_matmul"}
_MOVES = ("bitcast", "reshape", "transpose", "copy", "convert", "get-tuple-element", "opt-barrier")


def operator(path: str) -> str:
    """Name the operator of the Transformer that a path belongs to; `other` for what is none of it."""
    parts = path.split("/")
    for part in parts:
        if part in _NORMS:
            return _NORMS[part]
    stage = next((_STAGES[part] for part in parts if part in _STAGES), None)
    block = next((i for i, part in enumerate(parts) if part in ("attention", "mlp")), None)
    if block is None:
        return stage or OTHER
    inner = parts[block + 1 :]
    if parts[block] == "attention":
        return _of_attention(inner)
    if "moe" in inner:
        return _of_experts(inner[inner.index("moe") + 1 :])
    named = next((_MLP[part] for part in inner if part in _MLP), None)
    return named or ("mlp_act" if inner[:1] == ["mlp"] else "mlp_add")


def _of_attention(inner: list[str]) -> str:
    if inner[:1] == ["mixer"]:
        return "mixer"
    if inner[:1] != ["attention"]:
        return "attn_add"
    for part in inner[1:]:
        if part in _PROJECTIONS:
            return _PROJECTIONS[part]
        if part in _WITHIN:
            return _WITHIN[part]
        if "->" in part:  # an einsum's own name, where the program on disk was compiled without these scopes
            return {"bkrs": "qk_matmul", "bkrh": "sv_matmul"}.get(part.partition("->")[2], "attention")
        if part.startswith(("pallas_call", "mosaic")):
            return "fused_attention"
    return "attention"


def _of_experts(inner: list[str]) -> str:
    if "router" in inner:
        return "router"
    return "shared_expert" if any(part.startswith("shared") for part in inner) else "experts"


def layer_of(path: str) -> str:
    """Name the place of a layer in the network, `segment_0/layer_0`; "" outside of the layers."""
    found = re.search(r"segment_\d+/layer_\d+", path)
    return found.group() if found else ""


def path_of(module: Module, where: Computation, instruction: Instruction, caller: str = "") -> str:
    """Give an instruction's path of scopes, or one that it may be taken to have.

    XLA drops the path of products that it rewrites; the bitcast after them still has it. Where nothing near says more,
    the path is that of the loop, the conditional or the call around it, `caller`.
    """
    return instruction.op_name or _inside(module, instruction) or _after(module, where, instruction) or caller


def _inside(module: Module, instruction: Instruction) -> str:
    if instruction.opcode != "fusion" or not (inner := module.called(instruction)):
        return ""
    names = [x.op_name for x in inner[0].instructions.values() if x.op_name and x.opcode not in ("constant", "iota")]
    return inner[0].root.op_name or (names[-1] if names and inner[0].root.opcode != "dot" else "")


def _after(module: Module, where: Computation, instruction: Instruction, depth: int = 4) -> str:
    """Follow a value into what only moves it, into fusions too, as far as one that has a path."""
    for user in where.users.get(instruction.name, ()):
        if user.opcode in _MOVES:
            found = user.op_name or (_after(module, where, user, depth - 1) if depth else "")
        elif user.opcode == "fusion" and (inner := module.called(user)):
            place = user.operands.index(instruction.name)
            taken = inner[0].parameters[place : place + 1]
            found = _after(module, inner[0], taken[0], depth - 1) if taken and depth else ""
        else:
            found = ""
        if found:
            return found
    return ""
