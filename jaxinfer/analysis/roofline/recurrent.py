"""The operators of layers that carry a state of fixed size in place of a cache of tokens."""

from collections.abc import Iterator

from jaxinfer.analysis.roofline.arithmetic import Number
from jaxinfer.analysis.roofline.call import Call
from jaxinfer.analysis.roofline.operator import Operator
from jaxinfer.config import SSM, LayerKind, LinearAttention

STATE_BYTES = 4  # states are float32
UPDATE_OPS = 4  # a number of a state and token: product and sum into it, product and sum off it
DECAY_OPS = 2  # a rate and token: product with the step size, exponential; a number of a state is then multiplied by it


def mixer(call: Call, kind: LayerKind, layers: Number) -> Iterator[Operator]:
    """Give the operators of a state space or of linear attention, whose states are read and written once a call."""
    d, tensor = call.config.d_model, call.setting.tensor
    if isinstance(kind.mixer, LinearAttention):
        n, h = call.config.n_heads, call.config.head_dim
        yield call.linear("q_proj", layers, d, n * h, tensor)
        yield call.linear("k_proj", layers, d, call.config.n_kv_heads * h, tensor)
        yield call.linear("v_proj", layers, d, call.config.n_kv_heads * h, tensor)
        state = n * (h + 1) * h
        yield _scan(call, layers, state, UPDATE_OPS * state, 0, n * h)
        yield call.linear("out_proj", layers, n * h, d, tensor, out="partial")
        return
    ssm = kind.mixer
    assert isinstance(ssm, SSM)
    if ssm.version == 1:
        channels, inward = ssm.width, 2 * ssm.width
    else:
        channels = ssm.width + 2 * ssm.groups * ssm.state
        inward = ssm.width + channels + ssm.heads
    yield call.linear("in_proj", layers, d, inward, tensor)
    yield _conv(call, layers, channels, ssm.conv)
    if ssm.version == 1:
        yield call.linear("select_proj", layers, ssm.width, ssm.dt_rank + 2 * ssm.state, tensor, out="partial")
        yield call.linear("dt_proj", layers, ssm.dt_rank, ssm.width, tensor)
    state = ssm.width * ssm.state
    rates = state if ssm.version == 1 else ssm.heads  # Mamba-2 has one a head
    ops = DECAY_OPS * rates + ssm.width + (1 + UPDATE_OPS) * state  # each channel times its step size, too
    yield _scan(call, layers, state, ops, rates, ssm.width)
    yield call.each("gate", layers, ssm.width / tensor, 5, read=2)
    yield call.linear("out_proj", layers, ssm.width, d, tensor, out="partial")


def _conv(call: Call, layers: Number, channels: Number, span: int) -> Operator:
    """Give the short convolution over the last `span` tokens; it carries span - 1 of them."""
    share = channels / call.setting.tensor
    numbers = call.rows * call.tokens * share
    carried = call.rows * share * (span - 1) * STATE_BYTES
    moved = numbers * call.activation
    return Operator(
        "conv", "scan", layers, 2 * span * numbers, 4 * share * span, moved, moved, carried, carried, bits=call.bits
    )


def _scan(call: Call, layers: Number, state: int, ops: int, rates: int, width: int) -> Operator:
    """Give the recurrence, of so many operations a token: every token changes every number of the state.

    The rates of its decay are float32 weights.
    """
    tensor, tokens = call.setting.tensor, call.rows * call.tokens
    held = call.rows * state * STATE_BYTES / tensor
    moved = tokens * width * call.activation / tensor
    done, weights = ops * tokens / tensor, 4 * rates / tensor
    return Operator("scan", "scan", layers, done, weights, 2 * moved, moved, held, held, bits=call.bits)
