// Tables sort and filter; points and bars say their figures in the line below. Without this script all can be read.
"use strict";
const POWERS = { k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, m: 1e-3, "µ": 1e-6 };

function figure(text) {
  const found = text.trim().match(/^([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)\s*([kMGTPmµ])?/);
  if (!found) return null;
  return parseFloat(found[1].replaceAll(",", "")) * (found[2] ? POWERS[found[2]] : 1);
}

function compare(one, other) {
  const a = figure(one), b = figure(other);
  if (a !== null && b !== null) return a - b || one.localeCompare(other);
  if (a !== null || b !== null) return a !== null ? -1 : 1;
  return one.localeCompare(other);
}

function sort(table, index) {
  const heads = [...table.tHead.rows[0].cells];
  const up = heads[index].getAttribute("aria-sort") === "descending" || (index === 0 && !heads[0].hasAttribute("aria-sort"));
  heads.forEach(head => head.removeAttribute("aria-sort"));
  heads[index].setAttribute("aria-sort", up ? "ascending" : "descending");
  const empty = text => text === "-" || text === "n/a" || text === "";
  const rows = [...table.tBodies[0].rows].map((row, place) => [row.cells[index].textContent, place, row]);
  rows.sort(([a, i], [b, j]) => empty(a) - empty(b) || (up ? compare(a, b) : compare(b, a)) || i - j);
  table.tBodies[0].append(...rows.map(([, , row]) => row));
}

function filter(table, words, count) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  let left = 0;
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !wanted.every(word => text.includes(word));
    left += !row.hidden;
  }
  count.textContent = wanted.length ? `${left} of ${table.tBodies[0].rows.length}` : "";
}

for (const table of document.querySelectorAll("table")) {
  const size = table.tBodies[0].rows.length;
  if (size < 2) continue;
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, index));
    head.append(button);
  });
  if (size < 4) continue;
  const box = document.createElement("label"), input = document.createElement("input"), count = document.createElement("output");
  box.className = "filter";
  input.type = "search";
  input.placeholder = "Filter rows";
  input.setAttribute("aria-label", "Filter rows");
  input.addEventListener("input", () => filter(table, input.value, count));
  box.append(input, count);
  table.closest(".scroll").before(box);
}

function tell(event) {
  const mark = event.target.closest?.("figure [role=img][tabindex]");
  const line = mark?.closest("figure")?.querySelector(".readout");
  if (!line) return;
  line.textContent = mark.getAttribute("aria-label");
  document.querySelectorAll(".pointed").forEach(one => one.classList.remove("pointed"));
  mark.classList.add("pointed");
}
for (const name of ["pointerover", "focusin", "click"]) document.addEventListener(name, tell);
for (const line of document.querySelectorAll(".readout")) line.textContent = "Point at a mark for its figures.";
