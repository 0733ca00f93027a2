"use strict";
// Figures of a setting in words, cards, a comparison, a table and the detail of one operator.

const BOUNDS = { memory: "memory", compute: "compute", network: "network", other: "drafting" };
const STAGE_NAMES = { prefill: "prefill", decode: "decode step", generation: "whole generation" };

// Seconds of a stage, and tokens a second over all rows: of the prompt in the prefill, new ones after it otherwise.
function speedOf(analysis, stage) {
  const { batch, prompt, tokens } = analysis.setting;
  if (stage === "prefill") {
    const seconds = analysis.seconds("prefill");
    return { seconds, rate: (batch * prompt) / seconds };
  }
  if (stage === "decode") {
    const seconds = analysis.stepSeconds();
    return { seconds, rate: (batch * tokens) / seconds };
  }
  const { seconds, tokens_per_second: rate } = analysis.generation();
  return { seconds, rate };
}

// The operators of a stage, each with its index; guesses of a draft are one more, of which only the time is known.
function rowsOf(analysis, stage) {
  const rows = stage === "generation" ? analysis.wholeGeneration() : analysis.operators(stage);
  const { draft } = analysis.setting;
  if (draft && stage !== "prefill") {
    const total = rows.filter((one) => one.stage === "decode").reduce((sum, one) => sum + one.total, 0) * draft;
    const calls = stage === "decode" ? 1 : analysis.steps;
    const none = Object.fromEntries([...analysis.catalog.fields, "bytes", "intensity", "rate", "peak"].map((field) => [field, 0]));
    rows.push({ ...none, stage: "decode", name: "drafting", kind: "draft", layers: 1, calls, seconds: total / calls, total, bound: "other" });
  }
  return rows.map((one, index) => ({ ...one, index }));
}

// All that is shown of a setting, but for the curves.
function figuresOf(analysis, stage) {
  const rows = rowsOf(analysis, stage), { seconds, rate } = speedOf(analysis, stage);
  const whole = rows.reduce((sum, one) => sum + one.total, 0);
  const sum = (field) => rows.reduce((total, one) => total + one[field] * one.layers * one.calls, 0);
  const bounds = Object.fromEntries(Object.keys(BOUNDS).map((bound) => [bound, rows.reduce((total, one) => total + (one.bound === bound ? one.total : 0), 0) / whole]));
  const memory = analysis.peakMemory(), { power } = analysis.hardware, { batch, prompt, tokens, generate } = analysis.setting;
  const made = { prefill: batch * prompt, decode: batch * tokens, generation: batch * generate }[stage];
  const [ops, bytes] = [sum("ops"), sum("bytes")];
  return {
    rows, whole, seconds, rate, bounds, ops, bytes, memory, wire: sum("wire"), intensity: ops / bytes, capacity: analysis.hardware.memory,
    fits: analysis.fits, largestBatch: analysis.largestBatch(), longestPrompt: analysis.longestPrompt(),
    joules: power === null ? null : (power * analysis.devices * seconds) / made, token: (seconds * batch) / made, generation: analysis.generation(),
  };
}

function summaryOf(state, analysis, stage, figures) {
  const { title } = analysis.hardware, { devices } = analysis, [bound, share] = Object.entries(figures.bounds).sort((p, q) => q[1] - p[1])[0];
  const where = `${devices > 1 ? `${devices} × ` : ""}${title}`;
  const subject = { prefill: "The prefill", decode: "A decode step", generation: "The whole generation" }[stage];
  const fits = figures.fits ? "" : ` It needs ${units.bytes(figures.memory.total)} a device, and does not fit.`;
  return `${subject} of ${state.model} takes at least ${units.seconds(figures.seconds)} on ${where}: at most ${units.tokens(figures.rate)}. ${units.percent(share)} of the time is bound by ${bound === "network" ? "the network" : BOUNDS[bound]}.${fits}`;
}

function cardsOf(analysis, stage, figures) {
  const { memory, capacity, bounds, generation } = figures, { generate, batch } = analysis.setting;
  const parts = Object.entries(memory).filter(([name, size]) => name !== "total" && size).map(([name, size]) => `${name} ${units.bytes(size)}`);
  const shares = Object.entries(bounds).filter(([, share]) => share > 0);
  const bar = `<div class="bar" role="img" aria-label="Share of the time by bound">${Object.values(bounds).map((share) => `<i style="width:${(100 * share).toFixed(2)}%"></i>`).join("")}</div>`;
  const held = Object.entries(memory).filter(([name]) => name !== "total").map(([, size]) => `<i style="width:${((100 * size) / Math.max(capacity, memory.total)).toFixed(2)}%"></i>`);
  const room = `<div class="bar shades" role="img" aria-label="${units.percent(memory.total / capacity)} of the memory">${held.join("")}</div>`;
  const notes = {
    prefill: ["Time to first token", "of all prompts together"],
    decode: ["Time a step", analysis.setting.tokens !== 1 ? `${digits(analysis.setting.tokens)} tokens a row` : "a token a row"],
    generation: ["Time", `prefill ${units.seconds(figures.seconds - generation.decode_seconds)}, ${units.count(generation.steps)} steps`],
  }[stage];
  const cards = [
    [notes[0], units.seconds(figures.seconds), notes[1]],
    ["Throughput", units.tokens(figures.rate), stage === "prefill" ? "of the prompts" : stage === "generation" ? "new tokens, after the prompts" : "new tokens"],
    ["Bound", shares.length ? BOUNDS[shares.sort((p, q) => q[1] - p[1])[0][0]] : "–", bar, "", true],
    ["Work", units.ops(figures.ops), `${units.bytes(figures.bytes)} moved, ${units.intensity(figures.intensity)} op/B`],
    ["Memory a device", units.bytes(memory.total), `${room}${figures.fits ? "of" : "does not fit into"} ${units.bytes(capacity)}: ${parts.join(", ")}`, figures.fits ? "" : "bad", true],
    ["Largest batch", units.count(figures.largestBatch), "at this length"],
    ["Longest prompt", units.count(figures.longestPrompt), `with ${units.count(generate)} new tokens, batch ${units.count(batch)}`],
    ["Energy a token", figures.joules === null ? "–" : units.joules(figures.joules), figures.joules === null ? "power is not known" : "at the board’s power"],
  ];
  return cards.map(([label, value, note, kind = "", html]) => `<div class="${kind}"><dt>${label}</dt><dd>${value}<small>${html ? note : escaped(note)}</small></dd></div>`).join("");
}

const COMPARED = [
  ["Time", (f) => f.seconds, units.seconds, -1],
  ["Throughput", (f) => f.rate, units.tokens, 1],
  ["Operations", (f) => f.ops, units.ops, -1],
  ["Bytes moved", (f) => f.bytes, units.bytes, -1],
  ["Operations a byte", (f) => f.intensity, units.intensity, 0],
  ["Time bound by memory", (f) => f.bounds.memory, units.percent, 0],
  ["Memory a device", (f) => f.memory.total, units.bytes, -1],
  ["… weights", (f) => f.memory.weights, units.bytes, -1],
  ["… cache", (f) => f.memory.kv, units.bytes, -1],
  ["Largest batch", (f) => f.largestBatch, units.count, 1],
  ["Longest prompt", (f) => f.longestPrompt, units.count, 1],
  ["Energy a token", (f) => f.joules, units.joules, -1],
];

function comparisonOf(states, [a, b]) {
  const changed = Object.keys(states[0]).filter((key) => states[0][key] !== states[1][key]);
  const what = changed.map((key) => `${key} ${states[0][key] || "all"} → ${states[1][key] || "all"}`).join(" · ") || "B is as A: choose B, and change it";
  const rows = COMPARED.map(([label, get, write, better]) => {
    const [x, y] = [get(a), get(b)];
    if (x === null || y === null) return `<tr><th scope="row">${label}</th><td>${x === null ? "–" : write(x)}</td><td>${y === null ? "–" : write(y)}</td><td>–</td><td>–</td></tr>`;
    const ratio = y / x, sign = y > x ? "+" : y < x ? "−" : "";
    const judged = better && x !== y ? ((y > x) === (better > 0) ? "better" : "worse") : "";
    return `<tr><th scope="row">${label}</th><td>${write(x)}</td><td>${write(y)}</td><td>${sign}${write(Math.abs(y - x))}</td><td class="ratio ${judged}">${Number.isFinite(ratio) ? `${digits(ratio)}×` : "–"}</td></tr>`;
  });
  return `<h2>A and B <small>${escaped(what)}</small></h2><div class="scroll"><table><thead><tr><th data-plain></th>${["A", "B", "B − A", "B ÷ A"].map((name) => `<th data-plain scope="col">${name}</th>`).join("")}</tr></thead><tbody>${rows.join("")}</tbody></table></div>`;
}

const COLUMNS = [
  ["name", "Operator", (one) => one.name],
  ["stage", "Stage", (one) => one.stage],
  ["layers", "Layers", (one) => digits(one.layers)],
  ["ops", "Operations", (one) => (one.ops ? units.ops(one.ops) : "–")],
  ["bytes", "Bytes", (one) => (one.wire ? `${units.bytes(one.wire)} sent` : one.bytes ? units.bytes(one.bytes) : "–")],
  ["intensity", "op/B", (one) => (one.bytes ? units.intensity(one.intensity) : "–")],
  ["bound", "Bound", (one) => BOUNDS[one.bound]],
  ["rate", "At most", (one) => (one.rate ? units.rate(one.rate) : "–")],
  ["seconds", "A layer", (one) => units.seconds(one.seconds)],
  ["total", "All layers", (one) => units.seconds(one.total)],
  ["share", "Share", (one, share) => `<span class="share ${one.bound}" style="width:${(40 * share).toFixed(1)}px"></span>${units.percent(share)}`],
];

function tableOf(figures, stage, { key, down }, chosen) {
  const columns = COLUMNS.filter(([name]) => name !== "stage" || stage === "generation");
  const by = key === "share" ? "total" : key;
  const rows = key === "order" ? figures.rows : [...figures.rows].sort((p, q) => (p[by] > q[by] ? 1 : p[by] < q[by] ? -1 : p.index - q.index) * (down ? -1 : 1));
  const head = columns.map(([name, label]) => `<th scope="col" aria-sort="${name === key ? (down ? "descending" : "ascending") : "none"}"><button type="button" data-sort="${name}">${label}${name === key ? (down ? " ↓" : " ↑") : ""}</button></th>`).join("");
  const body = rows.map((one) => {
    const cells = columns.map(([name, , write]) => {
      const text = write(one, one.total / figures.whole);
      if (name === "name") return `<td><button type="button" data-operator="${one.index}">${escaped(text)}</button></td>`;
      return `<td class="${name === "bound" ? one.bound : ""}">${text}</td>`;
    });
    return `<tr data-operator="${one.index}" class="${one.index === chosen ? "chosen" : ""}">${cells.join("")}</tr>`;
  });
  return `<table><thead><tr>${head}</tr></thead><tbody>${body.join("")}</tbody></table>`;
}

function detailOf(one, whole) {
  const pairs = [
    ["Operations", units.ops(one.ops)], ["Weights", units.bytes(one.weights)], ["Activations read", units.bytes(one.read)],
    ["Activations written", units.bytes(one.written)], ["Cache read", units.bytes(one.kv_read)], ["Cache written", units.bytes(one.kv_written)],
    ["Sent to peers", units.bytes(one.wire)], ["Operations a byte", units.intensity(one.intensity)], ["Operands", `${digits(one.bits)} bits`],
    ["Bound", BOUNDS[one.bound]], ["Peak", units.rate(one.peak)], ["Attainable", units.rate(one.rate)],
    ["Time a layer", units.seconds(one.seconds)], ["Layers × calls", `${digits(one.layers)} × ${digits(one.calls)}`], ["Time in all", units.seconds(one.total)], ["Share", units.percent(one.total / whole)],
  ].filter(([, text]) => !/^0 /.test(text));
  return `<h2 class="${one.bound}">${escaped(one.name)} <small>${one.kind}, ${one.stage}; a call in one layer</small></h2><dl>${pairs.map(([name, text]) => `<div><dt>${name}</dt><dd>${text}</dd></div>`).join("")}</dl>`;
}
