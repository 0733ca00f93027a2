"use strict";
// The network as a graph: one layer of each kind, its operators in order, with the residual stream around them.

const ORDER = ["attn_norm", "q_proj", "k_proj", "v_proj", "qk_matmul", "softmax", "sv_matmul", "fused_attention", "out_proj", "attn_add", "mlp_norm", "gate_proj", "up_proj", "mlp_act", "down_proj", "mlp_add"];
const BESIDE = [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"], ["experts_gate", "experts_up"], ["gate_proj[shared]", "up_proj[shared]"], ["q_proj", "kv_down_proj"]];

// Parts of a name: `up_proj[shared][global]` is up_proj[shared] of the kind global.
function partsOf(name, several) {
  const cut = several ? name.lastIndexOf("[") : -1;
  return cut > 0 ? [name.slice(0, cut), name.slice(cut + 1, -1)] : [name, ""];
}

// Cuts a stage's operators into what comes before the layers, the layers by kind, and what comes after.
function sectionsOf(rows, compat) {
  const outside = (one) => ["embedding", "head", "draft"].includes(one.kind) || ["final_norm", "pipeline_send"].includes(one.name);
  const inside = rows.filter((one) => !outside(one)), kinds = [];
  const several = inside.length > 0 && inside.every((one) => one.name.endsWith("]"));
  for (const one of inside) {
    const [name, kind] = partsOf(one.name, several), last = kinds.at(-1);
    if (!last || last.kind !== kind || last.operators.some((other) => other.plain === name)) kinds.push({ kind, operators: [] });
    kinds.at(-1).operators.push({ ...one, plain: name });
  }
  if (compat) for (const { operators } of kinds) operators.sort((p, q) => ORDER.indexOf(p.plain) - ORDER.indexOf(q.plain));
  return { before: rows.filter((one) => one.kind === "embedding"), kinds, after: rows.filter((one) => outside(one) && one.kind !== "embedding") };
}

function boxOf(one, whole, chosen) {
  const share = one.total / whole, name = one.plain ?? one.name;
  return `<button type="button" class="op ${one.bound} ${chosen === one.index ? "chosen" : ""}" data-operator="${one.index}" data-tip="${escaped(tipOf(one, share))}"><b>${escaped(name)}</b><span>${units.seconds(one.total)}</span><i style="width:${(100 * share).toFixed(2)}%"></i></button>`;
}

function flowOf(operators, whole, chosen) {
  let text = "";
  for (let i = 0; i < operators.length; ) {
    const group = BESIDE.find((names) => names.every((name, j) => operators[i + j]?.plain === name));
    const count = group ? group.length : 1;
    const boxes = operators.slice(i, i + count).map((one) => boxOf(one, whole, chosen)).join("");
    text += count > 1 ? `<div class="row">${boxes}</div>` : boxes;
    i += count;
  }
  return text;
}

// A layer: attention and MLP, each within a residual that its sum closes. Parallel ones read the same residual.
function layerOf({ kind, operators }, whole, parallel, chosen) {
  const blocks = [[]];
  for (const one of operators) {
    blocks.at(-1).push(one);
    if (one.plain.endsWith("_add")) blocks.push([]);
  }
  const text = blocks.filter((block) => block.length).map((block) => `<div class="residual">${flowOf(block, whole, chosen)}</div>`).join("");
  const layers = operators[0].layers, share = operators.reduce((sum, one) => sum + one.total, 0) / whole;
  const title = `${kind ? `${escaped(kind)} layer` : "layer"} × ${digits(layers)}`;
  return `<div class="kind"><h3><span>${title}</span><span>${units.percent(share)} of the time</span></h3><div class="${parallel ? "branches" : ""}">${text}</div></div>`;
}

// rows: those of one stage, with their index. chosen: the index of the operator that is looked at.
function networkGraph(rows, whole, { parallel, compat, chosen }) {
  const { before, kinds, after } = sectionsOf(rows, compat);
  const ends = (list) => (list.length ? `<div class="ends">${list.map((one) => boxOf(one, whole, chosen)).join("")}</div>` : "");
  const layers = kinds.map((kind) => layerOf(kind, whole, parallel, chosen)).join("");
  return `<div class="flow">${ends(before)}<div class="stack">${layers}</div>${ends(after)}</div>`;
}
