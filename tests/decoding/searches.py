"""Searches from their papers' definitions, in plain Python on transformers' model: no cache, no batch, no padding."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import torch
import transformers

from jaxinfer.checkpoint import save_folder
from jaxinfer.checkpoint.checkpoint import Checkpoint


def in_torch(model, folder):
    """The same model in transformers."""
    save_folder(Checkpoint(model.config, model.params, None, "twin"), folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def stopping(model, *stops):
    """The model with these stop tokens."""
    return dataclasses.replace(model, tokenizer=SimpleNamespace(stop_ids=stops, decode=str, strips_first_space=False))


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def next_logprobs(model, texts):
    """float64[len(texts), V]: texts of one length."""
    with torch.inference_mode():
        return log_softmax(model(torch.tensor(texts), use_cache=False).logits[:, -1].numpy())


def diverse_beams(model, prompt, new, stops, beams, groups, penalty, length_penalty):
    """[(tokens, score)], best first: Algorithm 1 of Vijayakumar et al. 2016 with beam search's own end of a group.

    A group ends once it has W texts and the best beam that runs would be no better than the worst of them.
    """
    width = beams // groups
    running = [[(0.0, [])] for _ in range(groups)]
    ended = [[] for _ in range(groups)]
    is_open = [True] * groups
    for length in range(1, new + 1):
        taken = np.zeros(model.config.vocab_size)
        for g in range(groups):
            if not is_open[g]:
                continue
            found = next_logprobs(model, [prompt + text for _, text in running[g]]) - penalty * taken
            grown = [
                (score + row[token], [*text, token])
                for (score, text), row in zip(running[g], found, strict=True)
                for token in range(len(row))
            ]
            grown.sort(key=lambda pair: -pair[0])
            ends = [pair for pair in grown[:width] if pair[1][-1] in stops or length == new]
            ended[g] += [(score / length**length_penalty, text) for score, text in ends]
            ended[g] = sorted(ended[g], key=lambda pair: -pair[0])[:width]
            running[g] = [pair for pair in grown if pair[1][-1] not in stops][:width]
            for _, text in running[g]:
                taken[text[-1]] += 1
            hope = running[g][0][0] / length**length_penalty
            is_open[g] = len(ended[g]) < width or hope > ended[g][-1][0]
        if not any(is_open):
            break
    return [(text, score) for score, text in sorted(itertools.chain(*ended), key=lambda pair: -pair[0])]


def contrastive(model, prompt, new, stops, k, alpha):
    """Equation 5 of Su et al. 2022: each candidate in a forward of its own over the whole text."""
    text = list(prompt)
    for _ in range(new):
        probs = np.exp(next_logprobs(model, [text])[0])
        best, score = None, -np.inf
        for token in np.argsort(-probs)[:k]:
            with torch.inference_mode():
                hidden = model.model(torch.tensor([[*text, token]]), use_cache=False).last_hidden_state[0]
            hidden = hidden.double().numpy()
            hidden /= np.linalg.norm(hidden, axis=1, keepdims=True)
            found = (1 - alpha) * probs[token] - alpha * (hidden[:-1] @ hidden[-1]).max()
            if found > score:
                best, score = int(token), found
        text.append(best)
        if best in stops:
            break
    return text[len(prompt) :]


def dola(model, prompt, new, stops, layers, alpha, repetition_penalty=1.0):
    """Equations 1 to 5 of Chuang et al. 2024, greedily: the tokens, and the layer that each was contrasted with."""
    text, chosen = list(prompt), []
    for _ in range(new):
        with torch.inference_mode():
            output = model(torch.tensor([text]), use_cache=False, output_hidden_states=True)
            early = [model.lm_head(output.hidden_states[layer][0, -1]).numpy() for layer in layers]
        p = np.exp(log_softmax(output.logits[0, -1].numpy()))
        others = [np.exp(log_softmax(logits)) for logits in early]

        def kl(p, q):
            return np.sum(p * np.log(p / q))

        js = [0.5 * kl(p, (p + q) / 2) + 0.5 * kl(q, (p + q) / 2) for q in others]
        chosen.append(layers[int(np.argmax(js))])
        contrasted = np.where(p >= alpha * p.max(), np.log(p / others[int(np.argmax(js))]), -np.inf)
        for token in set(text):  # Keskar et al. 2019
            contrasted[token] *= repetition_penalty if contrasted[token] < 0 else 1 / repetition_penalty
        text.append(int(np.argmax(contrasted)))
        if text[-1] in stops:
            break
    return text[len(prompt) :], chosen
