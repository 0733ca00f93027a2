"use strict";
// The arithmetic over an analyzer's programs: times, stages, generation, memory, what fits. The formulas of operators
// come from Python; what is here is what jaxinfer/analysis/roofline/analysis.py does with them.

const POINTS = 33; // steps of a generation whose times are computed; the others lie between these
const MOST = 2 ** 40; // rows or tokens that are looked for
const ALL = 2 ** 52; // slots of a budget that is none: an infinite one would make 0 * Infinity in a formula
const STAGES = ["prefill", "decode"];

// Rounds halves to even, as Python does.
function rounded(x) {
  const below = Math.floor(x), rest = x - below;
  return rest < 0.5 || (rest === 0.5 && below % 2 === 0) ? below : below + 1;
}

// The largest whole number that fits, where all below it do.
function most(fits) {
  let low = 0, high = 1;
  while (high < MOST && fits(high)) [low, high] = [high, high * 2];
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (fits(middle)) low = middle; else high = middle;
  }
  return low;
}

// Tokens that a step emits on average, of `width` that it scores, where each guess is right with the same probability
// and none counts after a wrong one (Leviathan et al. 2023, equation 1).
function tokensPerStep(width, acceptance) {
  return acceptance === 1 ? width : (1 - acceptance ** width) / (1 - acceptance);
}

// The steps of a generation that are computed, and how much each counts: those between two lie on a line.
function computedSteps(steps) {
  const places = [...new Set(Array.from({ length: POINTS }, (_, i) => rounded((i * (steps - 1)) / (POINTS - 1))))];
  const weights = places.map(() => 0);
  for (let j = 0; j + 1 < places.length; j++) {
    const n = places[j + 1] - places[j]; // steps places[j] to places[j + 1] - 1
    weights[j] += n - (n - 1) / 2;
    weights[j + 1] += (n - 1) / 2;
  }
  weights[places.length - 1] += 1;
  return places.map((place, j) => [place, weights[j]]);
}

class Analysis {
  // catalog: fields, arguments, memory and bits; model: an entry of its models; hardware: constants of a device;
  // setting: batch, prompt, generate, weight, outside and kv ([bits, scales, rows]), operands, activations, flash, width,
  // tokens, draft, budget, tensor, pipeline, data, expert, compat.
  constructor(catalog, model, hardware, setting) {
    Object.assign(this, { catalog, model, hardware, setting });
    this.peaks = new Map();
  }

  with(changes) {
    return new Analysis(this.catalog, this.model, this.hardware, { ...this.setting, ...changes });
  }

  program(stage) {
    const set = this.model[this.setting.compat ? "llm-viewer" : "default"];
    const one = set[stage + (this.setting.flash ? "-flash" : "")];
    one.run ??= new Function(...this.catalog.arguments, one.source);
    return one;
  }

  values(stage, context = this.setting.prompt) {
    const s = this.setting;
    return this.program(stage).run(
      s.batch, s.prompt, s.generate, context, s.width, s.budget ?? ALL,
      ...s.weight, ...s.outside, ...s.kv,
      s.operands, s.activations, s.tensor, s.pipeline, s.data, s.expert, this.hardware.on_chip,
    );
  }

  // Operations/s with operands of so many bits: the best of all types of as many or more.
  peak(bits) {
    let found = this.peaks.get(bits);
    if (found === undefined) {
      const { flops } = this.hardware;
      found = Math.max(...Object.keys(flops).filter((name) => this.catalog.bits[name] >= bits).map((name) => flops[name]));
      this.peaks.set(bits, found);
    }
    return found;
  }

  // Seconds of one call of the operator whose figures start at `at`.
  secondsAt(values, at) {
    const wire = values[at + 7];
    if (wire) return wire / this.hardware.link;
    const bytes = values[at + 2] + values[at + 3] + values[at + 4] + values[at + 5] + values[at + 6];
    return Math.max(values[at + 1] / this.peak(values[at + 8]), bytes / this.hardware.bandwidth);
  }

  secondsOf(values) {
    const width = this.catalog.fields.length, end = values.length - this.catalog.memory.length;
    let total = 0;
    for (let at = 0; at < end; at += width) total += this.secondsAt(values, at) * values[at];
    return total;
  }

  seconds(stage) {
    return this.secondsOf(this.values(stage));
  }

  stepSeconds(context = this.setting.prompt) {
    return this.secondsOf(this.values("decode", context)) * (1 + this.setting.draft);
  }

  // The operators of a stage, with their times.
  operators(stage, context) {
    return this.rows(stage, this.values(stage, context));
  }

  rows(stage, values) {
    const { names, kinds } = this.program(stage), { fields } = this.catalog;
    return names
      .map((name, i) => {
        const one = { stage, name, kind: kinds[i], calls: 1 };
        fields.forEach((field, j) => (one[field] = values[i * fields.length + j]));
        one.seconds = this.secondsAt(values, i * fields.length);
        return this.bounded(one);
      })
      .filter((one) => one.layers && (one.ops || one.bytes || one.wire));
  }

  bounded(one) {
    const { bandwidth } = this.hardware;
    one.bytes = one.weights + one.read + one.written + one.kv_read + one.kv_written;
    one.intensity = one.bytes ? one.ops / one.bytes : 0;
    one.peak = this.peak(one.bits);
    one.rate = one.wire ? 0 : Math.min(one.peak, one.intensity * bandwidth);
    one.bound = one.wire ? "network" : one.intensity < one.peak / bandwidth ? "memory" : "compute";
    one.total = one.seconds * one.layers * one.calls;
    return one;
  }

  // The sums over all layers of a stage.
  totals(stage) {
    const found = {};
    const all = this.operators(stage);
    for (const field of ["ops", "bytes", "weights", "read", "written", "kv_read", "kv_written", "wire"]) {
      found[field] = all.reduce((sum, one) => sum + one[field] * one.layers, 0);
    }
    found.intensity = found.ops / found.bytes;
    found.seconds = all.reduce((sum, one) => sum + one.total, 0);
    return found;
  }

  get steps() {
    return Math.ceil(this.setting.generate / this.setting.tokens);
  }

  // The contexts of the steps that are computed, and how many steps each stands for.
  contexts() {
    if (this.setting.compat) return [[this.setting.prompt, this.steps]];
    const { prompt, tokens } = this.setting;
    return computedSteps(this.steps).map(([place, weight]) => [Math.trunc(prompt + place * tokens), weight]);
  }

  generation() {
    const { batch, generate, compat } = this.setting;
    const prefill = this.seconds("prefill");
    let decode = 0;
    for (const [context, weight] of this.contexts()) {
      decode += weight * (compat ? this.seconds("decode") : this.stepSeconds(context));
    }
    const seconds = prefill + decode, made = batch * generate;
    const found = { steps: this.steps, seconds, decode_seconds: decode, tokens_per_second: made / decode };
    if (this.hardware.power !== null) found.joules_per_token = (this.hardware.power * this.devices * seconds) / made;
    return found;
  }

  // The operators of a whole generation: those of the prefill, and those of the steps with means over them.
  wholeGeneration() {
    const decode = [], steps = this.steps;
    const means = ["ops", "weights", "read", "written", "kv_read", "kv_written", "wire", "seconds"];
    for (const [context, weight] of this.contexts()) {
      this.operators("decode", context).forEach((one, i) => {
        decode[i] ??= { ...one, calls: steps, ...Object.fromEntries(means.map((field) => [field, 0])) };
        for (const field of means) decode[i][field] += (one[field] * weight) / steps;
      });
    }
    return [...this.operators("prefill"), ...decode.map((one) => this.bounded(one))];
  }

  get devices() {
    const { tensor, pipeline, data, expert } = this.setting;
    return tensor * pipeline * data * expert;
  }

  memory(stage) {
    const { memory } = this.catalog, values = this.values(stage);
    const start = values.length - memory.length;
    return Object.fromEntries(memory.map((name, i) => [name, values[start + i]]));
  }

  // The memory of the stage that needs more.
  peakMemory() {
    const [prefill, decode] = STAGES.map((stage) => this.memory(stage));
    return decode.total > prefill.total ? decode : prefill;
  }

  get fits() {
    return this.peakMemory().total <= this.hardware.memory;
  }

  largestBatch() {
    const { data } = this.setting;
    return data * most((rows) => this.with({ batch: rows * data }).fits);
  }

  longestPrompt() {
    return most((prompt) => this.with({ prompt }).fits);
  }
}
