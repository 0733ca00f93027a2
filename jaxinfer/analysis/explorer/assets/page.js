"use strict";
// The page: one state, or two side by side; every change computes all figures again and draws them.

if (typeof document !== "undefined") start();

async function start() {
  const catalog = await unpacked(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const defaults = { ...DEFAULTS, ...catalog.start };
  const app = { a: defaults, b: null, side: "a", sort: { key: "order", down: false }, chosen: null };
  const form = at("controls"), widths = {}; // read before anything is drawn: the browser lays out once
  form.innerHTML = formOf(catalog);

  const readLink = () => {
    [app.a, app.b] = fromHash(location.hash, defaults);
    if (!app.b) app.side = "a";
  };
  const nameOf = (one) => `${one.stage} ${one.name}`;
  const remember = () => {
    try {
      history.replaceState(null, "", `#${toHash(app.a, app.b, defaults)}`);
    } catch {
      // a frame of a notebook has no address
    }
  };
  const analysisOf = (state) => new Analysis(catalog, catalog.models[state.model], deviceOf(catalog, state), settingOf(catalog, state));

  // Figures of a state, kept until it changes: sorting and looking at an operator compute nothing.
  const figures = (state) => {
    const analysis = analysisOf(state);
    return { state, analysis, ...figuresOf(analysis, state.stage) };
  };

  function refresh() {
    const began = performance.now();
    const states = app.b ? [app.a, app.b] : [app.a];
    const problems = states.flatMap((state, i) => problemsOf(catalog, state).map(([key, line]) => [key, line, "ab"[i]]));
    fill(form, catalog, app[app.side], problems.filter(([, , side]) => side === app.side));
    at("problems").hidden = !problems.length;
    at("problems").textContent = problems.map(([, line, side]) => (app.b ? `${side.toUpperCase()}: ${line}` : line)).join(". ");
    at("figures").classList.toggle("stale", problems.length > 0);
    at("sides").hidden = !app.b;
    for (const legend of document.querySelectorAll(".ab")) legend.hidden = !app.b;
    at("compare").setAttribute("aria-pressed", String(Boolean(app.b)));
    for (const tab of at("sides").children) tab.setAttribute("aria-pressed", String(tab.dataset.side === app.side));
    if (!problems.length) {
      app.sides = states.map((state, i) => ({ side: "ab"[i], ...figures(state) }));
      draw();
    }
    document.documentElement.dataset.milliseconds = (performance.now() - began).toFixed(1);
  }

  function draw() {
    for (const id of ["roofline", "over-batch", "over-prompt"]) widths[id] = Math.max(260, Math.floor(at(id).getBoundingClientRect().width));
    const shown = app.sides.find(({ side }) => side === app.side), { state, analysis } = shown, { stage } = state;
    at("summary").textContent = summaryOf(state, analysis, stage, shown);
    at("digest").textContent = `${state.model} · ${state.hardware} · ${STAGE_NAMES[stage]} · batch ${state.batch}`;
    at("cards").innerHTML = cardsOf(analysis, stage, shown);
    at("comparison").hidden = !app.b;
    if (app.b) at("comparison").innerHTML = comparisonOf([app.a, app.b], app.sides);
    const model = analysis.model;
    at("network-title").textContent = stage === "generation" ? "Network, in all decode steps" : "Network";
    at("shape").textContent = [`${model.layers} layers`, `width ${units.count(model.width)}`, `${model.heads} heads, ${model.kv_heads} of keys and values`, model.experts ? `${model.experts} experts` : "", `vocabulary ${units.count(model.vocabulary)}`].filter(Boolean).join(" · ");
    look();
    drawCurves();
    at("note").textContent = `A roofline is a bound: the longer of operations over the peak rate and bytes over the bandwidth, operator after operator. Real programs take longer. ${analysis.setting.compat ? "Counted as LLM-Viewer does, with its constants of devices." : ""}`;
  }

  // What depends on the operator that is looked at, and on the order of the table.
  function look() {
    const shown = app.sides.find(({ side }) => side === app.side), { state, analysis, rows, whole } = shown;
    const ordered = [shown, ...app.sides.filter((one) => one !== shown)].map((one, i) => ({ ...one, side: "ab"[i] }));
    const place = rows.findIndex((one) => nameOf(one) === app.chosen), chosen = place < 0 ? null : place;
    const stages = new Set(rows.filter((one) => one.ops && one.bytes).map((one) => `${one.stage} ${one.bound}`));
    const legend = ["prefill", "decode"].flatMap((stage) => ["memory", "compute"].filter((bound) => stages.has(`${stage} ${bound}`)).map((bound) => `<li><i class="${bound} ${stage === "prefill" ? "ring" : ""}"></i>${stage}, ${bound}-bound</li>`));
    at("roofline").innerHTML = `<ul class="legend">${legend.join("")}<li>the larger a point, the more of the time${app.b ? "; dashed: the other side" : ""}</li></ul>${rooflinePlot(ordered, chosen, widths.roofline)}`;
    const graph = state.stage === "generation" ? rows.filter((one) => one.stage === "decode") : rows;
    at("network").innerHTML = networkGraph(graph, whole, { parallel: analysis.model.parallel, compat: analysis.setting.compat, chosen });
    at("detail").innerHTML = detailOf(rows[chosen ?? graph.reduce((best, one) => (one.total > best.total ? one : best)).index], whole);
    at("operators").innerHTML = tableOf(shown, state.stage, app.sort, chosen);
  }

  function drawCurves() {
    for (const [id, key] of [["over-batch", "batch"], ["over-prompt", "prompt"]]) {
      const found = app.sides.map(({ side, state, analysis, capacity }) => ({ side, state, capacity, points: pointsOf(analysis, state.stage, key) }));
      const columns = Math.max(1, Math.floor((widths[id] + 24) / 274)), width = Math.floor((widths[id] - 24 * (Math.min(columns, 3) - 1)) / Math.min(columns, 3));
      const own = found.find(({ side }) => side === app.side), now = own.points.find(({ x }) => x === Number(own.state[key]));
      at(id).innerHTML = [["Throughput, tok/s", "rate", units.tokens, bare], ["Time", "seconds", units.seconds, units.plainSeconds], ["Memory a device", "memory", units.bytes, units.bytes]]
        .map(([label, name, write, tick]) => {
          const series = found.map(({ side, points }) => ({ side, points: points.map((point) => ({ ...point, y: point[name] })) }));
          const here = Object.fromEntries(found.map(({ side, state }) => [side, Number(state[key])]));
          const limit = name === "memory" ? own.capacity : null;
          return `<div><h3>${label}<b>${now ? write(now[name]) : ""}</b></h3>${lineChart({ label, series, here, limit, write, tick, xName: key }, width)}</div>`;
        })
        .join("");
    }
  }

  function change(key, value) {
    const next = { ...app[app.side], [key]: value };
    if (key === "hardware") for (const constant in OVERRIDES) next[constant] = "";
    if (key === "model" && next.mode === "llm-viewer" && !catalog.models[value]["llm-viewer"]) next.mode = "default";
    app[app.side] = next;
    remember();
    refresh();
  }

  form.addEventListener("input", ({ target }) => {
    const slides = target.dataset.slides;
    if (slides) change(slides, String(Math.round(2 ** Number(target.value))));
    else if (target.name) change(target.name, target.value.trim());
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  at("compare").addEventListener("click", () => {
    [app.b, app.side] = app.b ? [null, "a"] : [{ ...app.a }, "b"];
    remember();
    refresh();
  });
  at("sides").addEventListener("click", ({ target }) => {
    if (!target.dataset.side) return;
    app.side = target.dataset.side;
    refresh();
  });
  at("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      at("copy").textContent = "Copied";
    } catch {
      at("copy").textContent = "The address is the link";
    }
    setTimeout(() => (at("copy").textContent = "Copy link"), 1500);
  });
  at("figures").addEventListener("click", ({ target }) => {
    const sort = target.closest("[data-sort]")?.dataset.sort;
    if (sort) app.sort = { key: sort, down: app.sort.key === sort ? !app.sort.down : !["name", "stage", "bound"].includes(sort) };
    const row = target.closest("[data-operator]");
    if (row) choose(row);
    if (sort || row) again(target);
  });
  at("figures").addEventListener("keydown", (event) => {
    if (event.target.matches("circle[data-operator]") && ["Enter", " "].includes(event.key)) {
      event.preventDefault();
      choose(event.target);
      again(event.target);
    }
  });

  // An operator is known by its name, so that it stays chosen while the setting changes.
  function choose(element) {
    const name = nameOf(app.sides.find(({ side }) => side === app.side).rows[Number(element.dataset.operator)]);
    app.chosen = app.chosen === name ? null : name;
  }

  // Draws again, and leaves the focus where it was.
  function again(target) {
    const held = target.closest("button, circle"), home = held?.closest("[id]")?.id;
    const mark = held?.dataset.sort ? `[data-sort="${held.dataset.sort}"]` : held ? `${held.tagName}[data-operator="${held.dataset.operator}"]` : null;
    at("tip").hidden = true;
    look();
    if (home && mark) at(home).querySelector(mark)?.focus({ preventScroll: true });
  }

  const tip = ({ target }) => {
    const text = target.closest?.("[data-tip]")?.dataset.tip, box = target.closest?.("[data-tip]")?.getBoundingClientRect();
    at("tip").hidden = !text;
    if (!text) return;
    at("tip").textContent = text;
    const { width, height } = at("tip").getBoundingClientRect();
    const x = Math.min(Math.max(8, box.left + box.width / 2 - width / 2), innerWidth - width - 8);
    at("tip").style.left = `${x}px`;
    at("tip").style.top = `${box.top - height - 8 > 0 ? box.top - height - 8 : box.bottom + 8}px`;
  };
  document.addEventListener("pointerover", tip);
  document.addEventListener("focusin", tip);
  document.addEventListener("scroll", () => (at("tip").hidden = true), { passive: true });
  document.querySelector("[data-skip]").addEventListener("click", (event) => {
    event.preventDefault();
    at("figures").focus();
  });

  const narrow = matchMedia("(max-width: 860px)");
  const unfold = () => (at("settings").open = !narrow.matches);
  narrow.addEventListener("change", unfold);
  unfold();
  let last = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== last && app.sides) requestAnimationFrame(draw);
    last = innerWidth;
  });
  addEventListener("hashchange", () => {
    readLink();
    refresh();
  });
  readLink();
  refresh();
  document.documentElement.dataset.ready = "";
}

// The points of the curves: powers of two and what lies between, and the setting itself.
function pointsOf(analysis, stage, key) {
  const { data } = analysis.setting, here = analysis.setting[key];
  const [first, last] = key === "batch" ? [0, 11] : [7, Math.max(17, Math.ceil(Math.log2(analysis.model.positions)))];
  const unit = key === "batch" ? data : 1, xs = new Set([here]);
  for (let power = first; power <= last; power++) {
    xs.add(unit * 2 ** power);
    if (power && power < last) xs.add(unit * 1.5 * 2 ** power);
  }
  return [...xs].sort((p, q) => p - q).map((x) => {
    const one = analysis.with({ [key]: x }), memory = one.peakMemory().total;
    return { x, memory, fits: memory <= one.hardware.memory, ...speedOf(one, stage) };
  });
}

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (x) => x.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}
