"""A finished grid of 24 rows, as rows.jsonl holds it, with ledgers and figures of quality: made up, for its looks."""

import random

MODELS = {"float32": (538e6, 4), "int8": (171e6, 1), "int4": (103e6, 0.56)}
METHODS = {"greedy": 1.0, "lookup": 1.7, "speculative": 1.35, "eagle": 2.0}
BANDWIDTH, PEAK = 18.4e9, 142e9
FAILURES = [
    {"name": "int4 / mtp / batch 1", "error": "this model has no multi-token-prediction modules; attach some"},
    {"name": "int4 / eagle / batch 8", "error": "MemoryError: 9.2 GB asked for"},
]
OPERATORS = {  # operations of a token, bytes of weights in float32; both over all layers
    "q_proj": (19.9e6, 39.8e6),
    "k_proj": (6.6e6, 13.3e6),
    "v_proj": (6.6e6, 13.3e6),
    "out_proj": (19.9e6, 39.8e6),
    "up_proj": (53.1e6, 106.2e6),
    "gate_proj": (53.1e6, 106.2e6),
    "down_proj": (53.1e6, 106.2e6),
    "lm_head": (56.6e6, 113.2e6),
    "qk_matmul": (4.4e6, 5.9e6),
    "sv_matmul": (4.4e6, 5.9e6),
    "attention_norm": (0.1e6, 0.15e6),
}
LAYERS = 30


def grid(passes=5, seed=0):
    """Three weight formats, four methods, two batch sizes."""
    chance = random.Random(seed)
    cells = [(w, m, b) for w in MODELS for m in METHODS for b in (1, 8)]
    return [row(chance, *cell, passes) for cell in cells]


def row(chance, weights, method, batch, passes):
    """One row, as `passes.measure` makes it, with the keys that a grid adds."""
    size, bits = MODELS[weights]
    speed = METHODS[method] * batch**0.8 * 22 * (4 / bits) ** 0.55
    base = [speed / METHODS[method] * chance.uniform(0.93, 1.07) for _ in range(passes)]
    rates = base if method == "greedy" else [one * METHODS[method] * chance.uniform(0.97, 1.03) for one in base]
    labels = {"weights": weights, "batch": str(batch), "method": method}
    return {
        "name": f"{weights} / {method} / batch {batch}",
        "axes": labels,
        "method": {"name": method},
        "policy": None,
        "sampling": None,
        "constraint": None,
        "prompts": [prompt(i, weights, method) for i in range(6)],
        "dtype": "float32",
        "weights": weights,
        "decode_rates": rates,
        "baseline_rates": base,
        "prefill_rates": [speed * 9 for _ in range(passes)],
        "bandwidths": [BANDWIDTH * 0.7] * passes,
        "tokens_per_step": METHODS[method],
        "compile_seconds": chance.uniform(3, 9),
        "weight_bytes": int(size),
        "cache_bytes": 11_800_000 * batch,
        "temp_bytes": 460_000 * batch,
        "peak_rss_bytes": 1_200_000_000,
        "quality": {"kl": {"float32": 0.0, "int8": 0.0021, "int4": 0.061}[weights], "agreement": 0.98},
        "ledger": ledger(chance, bits / 4, batch),
    }


def prompt(index, weights, method):
    """Make the record of one prompt: other words under int4."""
    words = ["It", "shifts", "as", "the", "sun", "sinks,", "since", "its", "light", "crosses", "far", "more", "air"]
    out = words[: 8 if weights == "int4" and index % 2 else 13]
    return {
        "family": ("question", "code", "summary")[index % 3],
        "prompt": f"Why does the sky change its colour at dusk? ({index})",
        "output": " ".join(out),
        "tokens": list(range(len(out))),
        "steps": round(len(out) / METHODS[method]),
        "emitted": len(out),
    }


def ledger(chance, scale, batch, device="this-machine"):
    """The three figures of both stages; losses add up to the clock's time without the bound."""
    stages = {"prefill": stage(chance, scale, 128 * batch), "decode": stage(chance, scale, batch)}
    decode = stages["decode"]
    worst = max(decode["losses"], key=lambda loss: loss["milliseconds"])
    return {
        "hardware": device,
        "setting": {"batch": batch, "prompt": [128] * batch, "bandwidth": BANDWIDTH},
        "stages": stages,
        "sentence": f"A step takes {1e3 * decode['clock']['seconds']:.2f} ms. The largest loss is {worst['name']}.",
    }


def stage(chance, scale, tokens):
    """One stage whose weights are read once for so many tokens."""
    operators, clock = [], []
    for name, (ops, size) in OPERATORS.items():
        layers = 1 if name == "lm_head" else LAYERS
        ops, size = ops * tokens / layers, (size * scale + ops * tokens * 0.02) / layers
        rate = min(PEAK, ops / size * BANDWIDTH)
        seconds = max(ops / PEAK, size / BANDWIDTH)
        bound = "memory" if ops / size < PEAK / BANDWIDTH else "compute"
        figures = {"ops": ops, "bytes": size, "intensity": ops / size, "bound": bound, "rate": rate, "seconds": seconds}
        operators.append({"name": name, "kind": "matmul", "layers": layers, **figures})
        clock.append({"name": name, "seconds": seconds * layers * chance.uniform(1.1, 1.9)})
    total = {key: sum(one[key] * one["layers"] for one in operators) for key in ("ops", "bytes", "seconds")}
    between = total["seconds"] * 0.11
    taken = sum(one["seconds"] for one in clock) + between
    bounds = {one["name"]: one["seconds"] * one["layers"] for one in operators}
    losses = [
        {"name": one["name"], "milliseconds": 1e3 * (one["seconds"] - bounds[one["name"]]), "why": "reads at 11.2 GB/s"}
        for one in clock
    ]
    losses.append({"name": "loop and dispatch", "milliseconds": 1e3 * between, "why": "412 instructions, 4.1 us each"})
    return {
        "physics": {**total, "bound": "memory" if tokens < 64 else "compute", "operators": operators},
        "compiler": {
            "ops": total["ops"] * 1.02,
            "bytes": total["bytes"] * 1.17,
            "fusions": 118,
            "kernels": 3,
            "copies": 1,
            "unaliased": 0,
            "temp_bytes": 460_000,
            "peak_bytes": 560_000_000,
        },
        "clock": {
            "seconds": taken,
            "mbu": total["bytes"] / BANDWIDTH / taken,
            "mfu": total["ops"] / PEAK / taken,
            "operators": clock,
        },
        "losses": sorted(losses, key=lambda loss: -loss["milliseconds"]),
    }
