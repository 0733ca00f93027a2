"use strict";
// What the controls say: defaults, the link that holds it, and the setting that it means.

const DEFAULTS = {
  model: "", hardware: "", mode: "default", stage: "decode", batch: "1", prompt: "2048", generate: "256",
  weights: "bfloat16", activations: "16", kv: "bfloat16", attention: "flash",
  method: "greedy", width: "5", acceptance: "0.7", draft: "0.1", budget: "",
  tensor: "1", pipeline: "1", data: "1", expert: "1",
  bandwidth: "", memory: "", float32: "", bfloat16: "", int8: "", fp8: "", int4: "", fp4: "", link: "",
};
// Constants of the device that may be edited, and the unit that they are edited in.
const OVERRIDES = { bandwidth: 1e9, memory: 1e9, float32: 1e12, bfloat16: 1e12, int8: 1e12, fp8: 1e12, int4: 1e12, fp4: 1e12, link: 1e9 };
const GREEDY = { width: 1, tokens: 1, draft: 0 };
const ALONE = { ...GREEDY, budget: null, tensor: 1, pipeline: 1, data: 1, expert: 1 };

// The text of a link: what differs from the defaults, and of B what differs from A.
function toHash(a, b, defaults) {
  const link = new URLSearchParams();
  for (const key in defaults) if (a[key] !== defaults[key]) link.set(key, a[key]);
  if (b) {
    link.set("compare", "1");
    for (const key in defaults) if (b[key] !== a[key]) link.set(`b.${key}`, b[key]);
  }
  return link.toString();
}

// The states of a link: [A, B or null]. Keys that are not known are left out.
function fromHash(text, defaults) {
  const link = new URLSearchParams(text.replace(/^#/, ""));
  const read = (base, prefix) => Object.fromEntries(Object.keys(defaults).map((key) => [key, link.get(prefix + key) ?? base[key]]));
  const a = read(defaults, "");
  return [a, link.has("compare") ? read(a, "b.") : null];
}

// The device of a state, with the constants that were edited.
function deviceOf(catalog, state) {
  const device = catalog.hardware[state.hardware];
  const changed = { ...device, ...(state.mode === "llm-viewer" ? device["llm-viewer"] : {}) };
  changed.flops = { ...changed.flops };
  for (const [key, unit] of Object.entries(OVERRIDES)) {
    const value = Number(state[key]) * unit;
    if (!(value > 0) || !Number.isFinite(value)) continue;
    if (key in changed.flops) changed.flops[key] = value;
    else if (key in changed) changed[key] = value;
  }
  return changed;
}

function settingOf(catalog, state) {
  const weights = catalog.weights[state.weights], compat = state.mode === "llm-viewer";
  const width = Number(state.width), drafting = state.method !== "greedy";
  return {
    batch: Number(state.batch), prompt: Number(state.prompt), generate: Number(state.generate),
    weight: weights.within, outside: weights.outside, kv: catalog.kv[state.kv].within, activations: Number(state.activations),
    operands: weights.operands ?? Math.max(weights.within[0], Number(state.activations)),
    flash: state.attention === "flash", budget: state.budget === "" ? null : Number(state.budget),
    ...(drafting ? { width, tokens: tokensPerStep(width, Number(state.acceptance)), draft: Number(state.draft) } : GREEDY),
    tensor: Number(state.tensor), pipeline: Number(state.pipeline), data: Number(state.data), expert: Number(state.expert),
    ...(compat ? ALONE : {}), compat,
  };
}

const WHOLE = {
  batch: "Batch", prompt: "Prompt", generate: "New tokens", width: "Tokens scored a step", budget: "Slots kept",
  tensor: "Tensor", pipeline: "Pipeline", data: "Data", expert: "Expert",
};

// What is wrong with a state: pairs of control and line.
function problemsOf(catalog, state) {
  const found = [];
  for (const [key, choices] of Object.entries({ model: catalog.models, hardware: catalog.hardware, weights: catalog.weights, kv: catalog.kv })) {
    if (!Object.hasOwn(choices, state[key])) found.push([key, `“${state[key]}” is not on this page`]);
  }
  const [drafting, compat] = [state.method !== "greedy", state.mode === "llm-viewer"];
  for (const [key, label] of Object.entries(WHOLE)) {
    if ((key === "budget" && state[key] === "") || (key === "width" && !drafting)) continue;
    const value = Number(state[key]);
    if (!Number.isInteger(value) || value < 1 || value >= 2 ** 40) found.push([key, `${label} must be a whole number from 1`]);
  }
  if (drafting && !(state.acceptance !== "" && Number(state.acceptance) >= 0 && Number(state.acceptance) <= 1)) found.push(["acceptance", "Acceptance must be from 0 to 1"]);
  if (drafting && !(state.draft !== "" && Number(state.draft) >= 0 && Number(state.draft) < 1e9)) found.push(["draft", "Draft cost must be a number from 0"]);
  for (const key in OVERRIDES) {
    if (state[key] !== "" && !(Number(state[key]) > 0 && Number(state[key]) < 1e12)) found.push([key, `${key} must be a number above 0`]);
  }
  if (found.length) return found;
  const model = catalog.models[state.model], device = deviceOf(catalog, state);
  if (compat) return model["llm-viewer"] ? found : [["mode", "LLM-Viewer has arithmetic for Llama’s layers alone"]];
  const { tensor, pipeline, data, expert } = settingOf(catalog, state);
  if (model.heads % tensor) found.push(["tensor", `Tensor ${tensor} does not divide ${model.heads} heads`]);
  if (model.layers % pipeline) found.push(["pipeline", `Pipeline ${pipeline} does not divide ${model.layers} layers`]);
  if (expert > 1 && (!model.experts || model.experts % expert)) {
    found.push(["expert", model.experts ? `Expert ${expert} does not divide ${model.experts} experts` : "Expert must be 1: the model has none"]);
  }
  if (Number(state.batch) % data) found.push(["batch", `Batch must be a multiple of data ${data}`]);
  if (tensor * pipeline * expert > 1 && device.link === null) found.push(["tensor", `${device.title} has no links to other devices`]);
  return found;
}
