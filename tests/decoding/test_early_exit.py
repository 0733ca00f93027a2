"""Early exit against a slow loop in numpy, which keeps what every layer read and computes everything anew."""

import numpy as np
import pytest

from jaxinfer import EarlyExit, InputError, LayerKind, Model, Segment, Window
from jaxinfer.analysis.exits import calibrate, passes, train_classifier
from jaxinfer.config import SSM
from jaxinfer.network.layerwise import states

DEPTH, NEW = 6, 14


@pytest.fixture(scope="module")
def model(tiny_llama):
    return Model.random(tiny_llama.config.replace(segments=(Segment((LayerKind(),), DEPTH),)), seed=5)


@pytest.fixture(scope="module")
def classifier(model):
    return train_classifier(model, np.random.default_rng(1).integers(0, 97, (4, 60)))


def normed(x, scale):
    return x / np.sqrt(np.mean(x * x) + 1e-5) * scale


def rotated(x, position):
    half = x.shape[-1] // 2
    angle = position * 10_000.0 ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


class Slow:
    """One text, token by token. `read[layer]` holds the state that each token came to that layer with."""

    def __init__(self, model, confidence, exits):
        self.p = model.params
        self.block = {
            name: {k: np.asarray(x["kernel" if "kernel" in x else "scale"], np.float64) for k, x in part.items()}
            for name, part in self.p["segment_0"]["layer_0"].items()
            if name in ("attention", "mlp")
        }
        self.norms = [
            np.asarray(self.p["segment_0"]["layer_0"][n]["scale"], np.float64) for n in ("attention_norm", "mlp_norm")
        ]
        self.embedding = np.asarray(self.p["embed"]["embedding"], np.float64)
        self.head = np.asarray(self.p["head"]["kernel"], np.float64)
        self.final = np.asarray(self.p["final_norm"]["scale"], np.float64)
        self.read = [[] for _ in range(DEPTH)]
        self.confidence, self.exits = confidence, exits

    def layer(self, n):
        """What layer n makes of the newest token that has come to it."""
        attention, mlp = self.block["attention"], self.block["mlp"]
        seen = [normed(x, self.norms[0][n]) for x in self.read[n]]
        q = rotated(attention["q"][n] @ seen[-1], len(seen) - 1) / 4
        keys = np.array([rotated(attention["k"][n] @ x, i) for i, x in enumerate(seen)])
        values = np.array([attention["v"][n] @ x for x in seen])
        heads = [softmax(keys[:, h // 3] @ q[h]) @ values[:, h // 3] for h in range(6)]
        x = self.read[n][-1] + np.einsum("dnh,nh->d", attention["o"][n], np.array(heads))
        y = normed(x, self.norms[1][n])
        gate = mlp["gate"][n] @ y
        return x + mlp["down"][n] @ (gate / (1 + np.exp(-gate)) * (mlp["up"][n] @ y))

    def step(self, token, may_leave):
        """The logits behind a token, and how many layers it went through."""
        x, left, layers = self.embedding[token], False, 0
        for n in range(DEPTH):
            self.read[n].append(x)
            if left:
                continue
            before, x, layers = x, self.layer(n), layers + 1
            left = may_leave and n + 1 < DEPTH and n + 1 in self.exits and self.confidence(self, before, x)
        return self.logits(x), layers

    def logits(self, x):
        return self.head @ normed(x, self.final)

    def text(self, prompt, new):
        for token in prompt[:-1]:
            self.step(token, may_leave=False)
        token, said, total = prompt[-1], [], 0
        for _ in range(new):
            logits, layers = self.step(token, may_leave=True)
            token, total = int(np.argmax(logits)), total + layers
            said.append(token)
        return said, total


def measured(measure, classifier):
    def confidence(slow, before, behind):
        if measure == "softmax":
            top = np.sort(softmax(slow.logits(behind)))
            return top[-1] - top[-2]
        if measure == "saturation":
            return before @ behind / np.linalg.norm(before) / np.linalg.norm(behind)
        return 1 / (1 + np.exp(-normed(behind, slow.final) @ classifier["weight"] - classifier["bias"]))

    return confidence


@pytest.mark.parametrize(
    ("measure", "threshold", "exits"),
    [("softmax", 0.07, ()), ("saturation", 0.8, (2, 3, 5)), ("classifier", 0.15, ())],
)
def test_as_a_slow_loop(model, classifier, ragged, measure, threshold, exits):
    prompts, of = ragged((1, 5, 23, 40)), measured(measure, classifier)
    method = EarlyExit(threshold, measure, exits)
    result = model.attach(exit_classifier=classifier).generate(
        prompts, max_new_tokens=[NEW, 3, NEW, NEW], method=method
    )
    counts = result.stats.figures["layers"]
    for prompt, tokens, count in zip(prompts, result.tokens, counts, strict=True):
        slow = Slow(model, lambda *x: of(*x) > threshold, exits or range(1, DEPTH))
        assert (tokens, count) == slow.text(prompt, len(tokens))
    tokens = sum(map(len, result.tokens))
    assert 1.2 * tokens < sum(counts) < (DEPTH - 0.2) * tokens  # else it shows nothing


def test_a_threshold_of_one_is_the_whole_network(model, ragged):
    prompts = ragged((1, 5, 23, 40))
    whole = model.generate(prompts, max_new_tokens=NEW).tokens
    result = model.generate(prompts, max_new_tokens=NEW, method=EarlyExit(1.0, "saturation"))
    assert result.tokens == whole
    assert result.stats.figures == {"layers": [DEPTH * NEW] * 4}
    least = model.generate(prompts, max_new_tokens=NEW, method=EarlyExit(0.0, "saturation", (2,)))
    assert least.stats.figures == {"layers": [2 * NEW] * 4}


def test_two_kinds_of_layers_in_two_segments(tiny_segments, ragged):
    """Places, exits and stores stay in order: nothing leaves, and all is as without."""
    prompts = ragged((1, 9, 40))
    whole = tiny_segments.generate(prompts, max_new_tokens=NEW, policy=Window())
    result = tiny_segments.generate(prompts, max_new_tokens=NEW, policy=Window(), method=EarlyExit(1.0, "saturation"))
    assert result.tokens == whole.tokens


def test_a_real_model(smollm2):
    """The first new token follows a prompt that went through all layers: it is what layer 27 says, or the last one."""
    prompt = smollm2.encode("Monday Tuesday Wednesday Thursday Friday Saturday Sunday Monday Tuesday")
    result = smollm2.generate([prompt], max_new_tokens=24, method=EarlyExit(0.9, exits=(27,)))
    assert 27 * 24 < result.stats.figures["layers"][0] < 30 * 24
    _, said = states(smollm2.network, smollm2.placed.params, np.array([prompt]))
    assert result.tokens[0][0] in (said[26, 0, -1], said[29, 0, -1])


def test_the_classifier_tells_right_from_wrong(model, classifier):
    text = np.random.default_rng(2).integers(0, 97, (4, 60))
    hidden, said = (np.asarray(x) for x in states(model.network, model.params, text))
    assert (said[-1] == np.argmax(model.logits(text), axis=-1)).all()
    right = (said[:-1] == said[-1]).ravel()
    score = (hidden[:-1] @ classifier["weight"] + classifier["bias"]).ravel()
    order = np.argsort(np.argsort(score))
    auc = (order[right].sum() - right.sum() * (right.sum() - 1) / 2) / right.sum() / (~right).sum()
    assert auc > 0.6


def test_calibration_takes_the_lowest_threshold_that_agrees(model, ragged):
    prompts = ragged((1, 5, 23, 40))
    found = calibrate(model, prompts, EarlyExit(measure="saturation", exits=(5,)), [0.0, 1.0], 0.99, max_new_tokens=NEW)
    assert [point.threshold for point in found.tried] == [1.0, 0.0]
    assert (found.tried[0].agreement, found.tried[0].layers) == (1.0, DEPTH)
    assert found.tried[1].agreement < 0.99
    assert found.tried[1].layers == 5
    assert found.chosen == found.tried[0]
    sure = calibrate(model, prompts, EarlyExit(measure="saturation", exits=(5,)), [1.0], 0.9, NEW, error=0.05)
    assert sure.chosen.threshold == 1.0
    assert len(sure.tried) == 1
    with pytest.raises(InputError, match=r"agreement=1\.5 must be above 0 and below 1"):
        calibrate(model, prompts, EarlyExit(), [0.5], 1.5)
    with pytest.raises(InputError, match="at least one threshold"):
        calibrate(model, prompts, EarlyExit(), [], 0.9)


def test_the_bound_holds_as_often_as_it_says():
    """Of sets whose expectation is just too low, at most a share `error` passes; many good ones do."""
    rng = np.random.default_rng(0)
    low, high = (rng.binomial(1, p, (2000, 300)).mean(axis=1) for p in (0.899, 0.99))
    assert np.mean([passes(x, 0.9, 300, 0.1) for x in low]) <= 0.1
    assert np.mean([passes(x, 0.9, 300, 0.1) for x in high]) > 0.9
    assert passes(1.0, 0.9, 150, 0.05)
    assert not passes(1.0, 0.9, 149, 0.05)


def test_what_it_refuses(model, tiny_llama):
    with pytest.raises(InputError, match="threshold=nan must be a finite number"):
        EarlyExit(float("nan"))
    for threshold in (-0.1, 1.1):
        with pytest.raises(InputError, match=f"threshold={threshold} must be between 0 and 1"):
            EarlyExit(threshold)
    with pytest.raises(InputError, match="measure='size' must be 'softmax', 'saturation' or 'classifier'"):
        EarlyExit(measure="size")
    with pytest.raises(InputError, match="exits: 6 must be between 1 and 5, for random has 6 layers"):
        model.generate([[1]], method=EarlyExit(exits=(2, 6)))
    with pytest.raises(InputError, match="EarlyExit needs exit_classifier"):
        model.generate([[1]], method=EarlyExit(measure="classifier"))
    wrong = {"weight": np.zeros(3), "bias": np.zeros(())}
    with pytest.raises(InputError, match="exit_classifier must be"):
        model.attach(exit_classifier=wrong).generate([[1]], method=EarlyExit(measure="classifier"))
    state = Segment((LayerKind("state", mixer=SSM(1, 32, 4)),), 2)
    with pytest.raises(InputError, match="recurrent layers"):
        Model.random(tiny_llama.config.replace(segments=(state,))).generate([[1]], method=EarlyExit())
