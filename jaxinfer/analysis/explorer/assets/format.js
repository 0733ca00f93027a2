"use strict";
// Numbers as people read them: three digits, a unit, and no more.

const PREFIXES = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"]];

const WRITERS = [0, 1, 2, 3].map((most) => new Intl.NumberFormat("en-US", { maximumFractionDigits: most }));
const whole = (x) => WRITERS[0].format(x);

function digits(x) {
  const size = Math.abs(x);
  return WRITERS[size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3].format(x);
}

// A number with the prefix that leaves one to three digits before the point.
function scaled(x, unit, least = 1e-9) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return "∞";
  if (x === 0) return `0 ${unit}`;
  const [size, prefix] = PREFIXES.find(([size]) => size >= least && Math.abs(x) >= size * 0.9995) ?? [least, PREFIXES.find(([size]) => size === least)[1]];
  return `${digits(x / size)} ${prefix}${unit}`;
}

const units = {
  seconds: (x) => (x >= 120 ? `${digits(x / 60)} min` : scaled(x, "s")),
  plainSeconds: (x) => (x >= 1 ? `${digits(x)} s` : scaled(x, "s")),
  bytes: (x) => scaled(x, "B", 1),
  ops: (x) => scaled(x, "FLOP", 1),
  rate: (x) => scaled(x, "FLOP/s", 1),
  bandwidth: (x) => scaled(x, "B/s", 1),
  tokens: (x) => `${digits(x)} tok/s`,
  intensity: (x) => digits(x),
  joules: (x) => scaled(x, "J", 1e-3),
  count: (x) => (x >= MOST ? "no limit" : whole(x)),
  percent: (x) => (x === 0 ? "0 %" : x < 0.0005 ? "< 0.1 %" : x > 0.9995 ? "100 %" : `${(100 * x).toFixed(1)} %`),
};

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = (text) => String(text).replace(/[&<>"']/g, (x) => ESCAPES[x]);
