"use strict";
// The form: what can be chosen, and how it follows the state.

const SLIDERS = { batch: 12, prompt: 17, generate: 14 }; // the largest power of two that a slider reaches
const BITS_OF_ACTIVATIONS = { 32: "float32", 16: "16 bits", 8: "8 bits" };

const option = (value, label) => `<option value="${escaped(value)}">${escaped(label)}</option>`;
const field = (key, label, inner, wide = false) => `<div class="field${wide ? " wide" : ""}" data-field="${key}"><label for="c-${key}">${label}</label>${inner}</div>`;
const select = (key, label, options, wide) => field(key, label, `<select id="c-${key}" name="${key}">${options.map(([value, text]) => option(value, text)).join("")}</select>`, wide);
const number = (key, label, { wide = false, step = "1", least = "1", hint = "" } = {}) =>
  field(key, label, `<input id="c-${key}" name="${key}" type="number" inputmode="decimal" min="${least}" step="${step}" placeholder="${hint}">`, wide);
const segments = (key, label, options) =>
  `<div class="field wide" data-field="${key}" role="radiogroup" aria-label="${label}"><span>${label}</span><div class="segments">${options
    .map(([value, text]) => `<label><input type="radio" name="${key}" value="${value}">${text}</label>`)
    .join("")}</div></div>`;
const load = (key, label) =>
  `<div class="field wide load" data-field="${key}"><label for="c-${key}">${label}</label><input type="range" data-slides="${key}" min="0" max="${SLIDERS[key]}" step="0.5" aria-label="${label}, powers of two"><input id="c-${key}" name="${key}" type="number" inputmode="numeric" min="1" step="1"></div>`;
const group = (name, inner) => `<fieldset><legend>${name}</legend>${inner}</fieldset>`;

// Options of models, those of a family together.
function familiesOf(models) {
  const families = new Map();
  for (const [name, { family }] of Object.entries(models)) families.set(family, [...(families.get(family) ?? []), name]);
  return [...families].map(([family, names]) => `<optgroup label="${escaped(family)}">${names.map((name) => option(name, name)).join("")}</optgroup>`).join("");
}

function formOf(catalog) {
  const labels = (choices, label) => Object.entries(choices).map(([name, one]) => [name, label(one, name)]);
  return [
    group("Model and device",
      field("model", "Model", `<select id="c-model" name="model">${familiesOf(catalog.models)}</select>`, true) +
      select("hardware", "Device", labels(catalog.hardware, (one) => one.title), true) +
      `<details class="constants"><summary>Its constants and their sources</summary><div class="grid" id="constants"></div><ul class="sources" id="sources"></ul></details>`),
    group("Load",
      segments("stage", "Stage", [["prefill", "Prefill"], ["decode", "Decode"], ["generation", "Whole"]]) +
      load("batch", "Batch, rows") + load("prompt", "Prompt, tokens") + load("generate", "New tokens")),
    group("Formats",
      select("weights", "Weights", labels(catalog.weights, (one) => one.label), true) +
      select("activations", "Activations", Object.entries(BITS_OF_ACTIVATIONS).reverse()) +
      select("kv", "Keys and values", labels(catalog.kv, (one) => one.label)) +
      segments("attention", "Attention", [["flash", "Flash"], ["plain", "Plain"]])),
    group("Decoding",
      select("method", "Method", [["greedy", "greedy: a token a step"], ["guesses", "speculative: draft and verify"]], true) +
      number("width", "Scored a step") + number("acceptance", "Acceptance", { step: "0.05", least: "0" }) +
      number("draft", "Draft cost, steps", { step: "0.05", least: "0" }) + number("budget", "Slots kept a layer", { hint: "all" })),
    group("Mesh", number("tensor", "Tensor") + number("pipeline", "Pipeline") + number("data", "Data") + number("expert", "Expert")),
    group("Arithmetic", select("mode", "Counted as", [["default", "the analyzer does"], ["llm-viewer", "LLM-Viewer does"]], true)),
  ].join("");
}

const CONSTANT_LABELS = { bandwidth: "Bandwidth, GB/s", memory: "Memory, GB", link: "Links, GB/s" };

function constantsOf(device) {
  const keys = ["bandwidth", "memory", ...Object.keys(device.flops), ...(device.link === null ? [] : ["link"])];
  const inputs = keys.map((key) => number(key, CONSTANT_LABELS[key] ?? `${key}, TFLOP/s`, { step: "any", least: "0", hint: digits((device.flops[key] ?? device[key]) / OVERRIDES[key]) }));
  const sources = Object.entries(device.sources).map(([name, text]) => `<li>${escaped(name)}: ${escaped(text)}</li>`);
  return [inputs.join(""), sources.join("")];
}

// Makes the form say what the state says. What is being typed in is left alone.
function fill(form, catalog, state, problems) {
  const device = catalog.hardware[state.hardware], compat = state.mode === "llm-viewer";
  const shown = `${state.hardware} ${compat}`;
  if (device && form.dataset.device !== shown) {
    const there = compat ? { ...device, ...device["llm-viewer"] } : device;
    [form.querySelector("#constants").innerHTML, form.querySelector("#sources").innerHTML] = constantsOf(there);
    form.dataset.device = shown;
  }
  const wrong = new Map(problems);
  for (const input of form.elements) {
    if (!input.name) continue;
    if (input.type === "radio") input.checked = state[input.name] === input.value;
    else if (input !== document.activeElement || input.tagName === "SELECT") input.value = state[input.name];
    input.toggleAttribute("disabled", compat && ["method", "width", "acceptance", "draft", "budget", "tensor", "pipeline", "data", "expert"].includes(input.name));
    if (wrong.has(input.name)) input.setAttribute("aria-invalid", "true"); else input.removeAttribute("aria-invalid");
  }
  for (const slider of form.querySelectorAll("[data-slides]")) {
    if (slider !== document.activeElement) slider.value = Math.log2(Math.max(1, Number(state[slider.dataset.slides]) || 1));
  }
  for (const key of ["width", "acceptance", "draft"]) form.querySelector(`[data-field=${key}]`).hidden = state.method === "greedy";
  for (const choice of form.querySelectorAll("[name=mode] option[value=llm-viewer]")) choice.disabled = !catalog.models[state.model]?.["llm-viewer"];
}
