"use strict";
// The roofline plot and the curves, as text of SVG: both axes are logarithmic.

const ROOFS = { 32: "float32", 16: "16 bits", 8: "8 bits", 4: "4 bits" };
const bare = (x) => scaled(x, "", 1e-12).trim();

function axis(low, high, start, end) {
  const [a, b] = [Math.log10(low), Math.log10(high)];
  return (x) => start + ((Math.log10(x) - a) / (b - a || 1)) * (end - start);
}

// Round numbers between two: powers of ten, with those between where there are few of them.
function ticksOf(low, high, most) {
  for (const steps of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1, 3], [1], [1e3], [1e6]]) {
    const found = [], every = steps[0] > 1 ? Math.log10(steps[0]) : 1;
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const step of steps[0] > 1 ? [1] : steps) {
        const tick = step * 10 ** power;
        if (tick >= low * 0.999 && tick <= high * 1.001 && power % every === 0) found.push(tick);
      }
    }
    if (found.length <= most) return found;
  }
  return [];
}

function frame(x, y, [left, right, top, bottom], write) {
  let text = "";
  for (const tick of ticksOf(...x.range, x.most)) {
    text += `<path class="grid" d="M${x.at(tick).toFixed(1)} ${top}V${bottom}"/><text x="${x.at(tick).toFixed(1)}" y="${bottom + 16}" text-anchor="middle">${write.x(tick)}</text>`;
  }
  for (const tick of ticksOf(...y.range, y.most)) {
    text += `<path class="grid" d="M${left} ${y.at(tick).toFixed(1)}H${right}"/><text x="${left - 6}" y="${(y.at(tick) + 4).toFixed(1)}" text-anchor="end">${write.y(tick)}</text>`;
  }
  return text;
}

function tipOf(one, share) {
  return `${one.name} (${one.stage}), ${one.bound}-bound\n${units.ops(one.ops)}, ${units.bytes(one.bytes)}\n${units.intensity(one.intensity)} op/B, at most ${units.rate(one.rate)}\n${units.seconds(one.seconds)} a layer, ${units.percent(share)} of the time`;
}

// sides: [{analysis, rows, side}], A first. chosen: key of the operator that is looked at.
function rooflinePlot(sides, chosen, width) {
  const height = Math.round(Math.min(420, Math.max(270, width * 0.46))), [left, right, top, bottom] = [52, width - 10, 24, height - 42];
  const drawn = sides.flatMap(({ rows, side }) => rows.map((one, i) => ({ one, i, side })).filter(({ one }) => one.ops && one.bytes));
  const { hardware } = sides[0].analysis, { bandwidth } = hardware;
  const used = Math.max(...drawn.filter(({ side }) => side === "a").map(({ one }) => one.bits));
  const peaks = new Map(); // one line a rate, named after the operands in use or else the widest
  const own = [4, 8, 16, 32].find((bits) => bits >= used);
  for (const bits of [own, 32, 16, 8, 4]) {
    const peak = sides[0].analysis.peak(bits);
    if (!peaks.has(peak)) peaks.set(peak, bits);
  }
  const highest = Math.max(...peaks.keys(), ...drawn.map(({ one }) => one.peak));
  const intensities = [...drawn.map(({ one }) => one.intensity), highest / bandwidth];
  const ranges = [[Math.min(...intensities) / 2, Math.max(...intensities) * 4], [Math.min(...drawn.map(({ one }) => one.rate)) / 2, highest * 2]];
  const [across, down] = [axis(...ranges[0], left, right), axis(...ranges[1], bottom, top)];
  let text = frame({ range: ranges[0], at: across, most: width / 60 }, { range: ranges[1], at: down, most: 8 }, [left, right, top, bottom], { x: digits, y: bare });
  text += `<text x="${(left + right) / 2}" y="${height - 6}" text-anchor="middle">operations a byte</text><text x="0" y="12">FLOP/s</text>`;
  for (const [peak, bits] of peaks) text += roofOf(peak, bits, own, sides[0].analysis.peak(own), bandwidth, ranges[0][0], across, down, [right, bottom]);
  if (sides[1]) {
    const other = sides[1].analysis, peak = other.peak(Math.max(...drawn.filter(({ side }) => side === "b").map(({ one }) => one.bits)));
    if (other.hardware.bandwidth !== bandwidth || !peaks.has(peak)) {
      text += `<path class="roof dashed" d="M${across(ranges[0][0])} ${down(ranges[0][0] * other.hardware.bandwidth)}L${across(peak / other.hardware.bandwidth)} ${down(peak)}H${right}"><title>roof of B</title></path>`;
    }
  }
  const sums = Object.fromEntries(sides.map(({ rows, side }) => [side, rows.reduce((sum, one) => sum + one.total, 0)]));
  const taken = [];
  let names = "";
  for (const { one, i, side } of drawn.sort((p, q) => q.one.total / sums[q.side] - p.one.total / sums[p.side])) {
    const share = one.total / sums[side], [x, y] = [across(one.intensity), down(one.rate)];
    const classes = `point ${one.stage} ${one.bound} ${side}${side === "a" && chosen === i ? " chosen" : ""}`;
    text += `<circle class="${classes}" ${side === "a" ? `data-operator="${i}" tabindex="0" role="button"` : ""} cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="${(3.5 + 9 * Math.sqrt(share)).toFixed(1)}" aria-label="${escaped(one.name)}" data-tip="${escaped((sides[1] ? `${side.toUpperCase()}: ` : "") + tipOf(one, share))}"/>`;
    const box = [x + 6 + 9 * Math.sqrt(share), y + 4, one.name.length * 6.6];
    const free = box[0] + box[2] < right && taken.every(([a, b, c]) => box[0] > a + c || box[0] + box[2] < a || Math.abs(box[1] - b) > 13);
    if (side === "a" && share > 0.01 && free && taken.length < 8) {
      taken.push(box);
      names += `<text class="name" x="${box[0].toFixed(1)}" y="${box[1].toFixed(1)}" pointer-events="none">${escaped(one.name)}</text>`;
    }
  }
  return `<svg viewBox="0 0 ${width} ${height}" role="group" aria-label="Roofline plot">${text}${names}</svg>`;
}

// A roof: of the operands in use in full, of others dashed. Its name stands where no point can lie.
function roofOf(peak, bits, own, highest, bandwidth, start, across, down, [right, bottom]) {
  const ridge = peak / bandwidth, x = across(ridge).toFixed(1), y = down(peak).toFixed(1);
  const slope = bits === own ? `M${across(start).toFixed(1)} ${down(start * bandwidth).toFixed(1)}L${x} ${y}` : `M${x} ${y}`;
  const place = peak > highest ? `x="${right}" y="${y - 5}"` : `x="${x - 9}" y="${Number(y) + 4}"`;
  let text = `<path class="roof${bits === own ? "" : " dashed"}" d="${slope}H${right}"/><text ${place} text-anchor="end">${ROOFS[bits]}: ${units.rate(peak)}</text>`;
  if (bits === own) text += `<path class="ridge" d="M${x} ${y}V${bottom}"/><text x="${Number(x) + 5}" y="${bottom - 7}">ridge ${units.intensity(ridge)}</text>`;
  return text;
}

// series: [{side, points: [{x, y, fits}]}]; here: the x of the setting; limit: a line across; write and tick: how y is written,
// alone and on its axis.
function lineChart({ label, series, here, limit, write, tick, xName }, width) {
  const height = 168, [left, right, top, bottom] = [58, width - 8, 8, height - 24];
  const all = series.flatMap(({ points }) => points), xs = all.map(({ x }) => x), ys = all.map(({ y }) => y);
  if (limit) ys.push(limit);
  const ranges = [[Math.min(...xs), Math.max(...xs)], [Math.min(...ys) / 1.3, Math.max(...ys) * 1.3]];
  const [across, down] = [axis(...ranges[0], left, right), axis(...ranges[1], bottom, top)];
  let text = frame({ range: ranges[0], at: across, most: 6 }, { range: ranges[1], at: down, most: 5 }, [left, right, top, bottom], { x: bare, y: tick });
  if (limit) text += `<path class="limit" d="M${left} ${down(limit).toFixed(1)}H${right}"/>`;
  for (const { side, points } of series) {
    const path = (kept) => kept.map(({ x, y }, i) => `${i ? "L" : "M"}${across(x).toFixed(1)} ${down(y).toFixed(1)}`).join("");
    const count = points.findIndex(({ fits }) => !fits), cut = count < 0 ? points.length : count;
    text += `<path class="line ${side}" d="${path(points.slice(0, cut))}"/><path class="line over ${side}" d="${path(points.slice(Math.max(0, cut - 1)))}"/>`;
    const now = points.find(({ x }) => x === here[side]);
    if (now) text += `<circle class="here ${side}" cx="${across(now.x).toFixed(1)}" cy="${down(now.y).toFixed(1)}" r="4.5"/>`;
    for (const { x, y, fits } of points) {
      const tip = `${series.length > 1 ? `${side.toUpperCase()}: ` : ""}${xName} ${units.count(x)}\n${write(y)}${fits ? "" : "\ndoes not fit"}`;
      text += `<circle class="hit" cx="${across(x).toFixed(1)}" cy="${down(y).toFixed(1)}" r="9" data-tip="${escaped(tip)}"/>`;
    }
  }
  const spoken = `${label} over ${xName}: from ${write(all[0].y)} at ${units.count(all[0].x)} to ${write(all.at(-1).y)} at ${units.count(all.at(-1).x)}`;
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(spoken)}">${text}</svg>`;
}
