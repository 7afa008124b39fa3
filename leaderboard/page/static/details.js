// What stands behind a row or a cell: runs, seeds, protocol, configuration, environment, curves, maps.
"use strict";

bench.details = (() => {
  const { data, el, state } = bench;
  const dialog = document.getElementById("details");
  const body = document.getElementById("details-body");
  const loaded = new Map();
  const MISSING = "missing";

  /** Called by a row's file, which is a script since a page without a server may not read other files. */
  bench.detail = (name, text) => loaded.set(name, JSON.parse(text));

  function load(name) {
    if (loaded.has(name)) return Promise.resolve(loaded.get(name));
    return new Promise((resolve, reject) => {
      const script = el("script", { src: `details/${name}.js` });
      script.onload = () => resolve(loaded.get(name));
      script.onerror = () => reject(new Error(MISSING));
      document.head.append(script);
    });
  }

  function table(heads, lines) {
    const row = (cells, tag) => el("tr", {}, ...cells.map((cell) => el(tag, tag === "th" ? { scope: "col" } : {}, cell)));
    return el("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": heads.join(", ") },
      el("table", {}, el("thead", {}, row(heads, "th")), el("tbody", {}, ...lines.map((line) => row(line, "td")))));
  }

  function json(value) {
    return el("pre", { tabindex: "0" }, typeof value === "string" ? value : JSON.stringify(value, null, 2));
  }

  function folded(title, ...children) {
    return el("details", {}, el("summary", {}, title), ...children);
  }

  function number(value, digits) {
    return value === undefined || value === null ? "–" : String(Number(value.toPrecision(digits)));
  }

  function runs(detail, column) {
    const heads = ["seed", ...(column ? [`${column.title} ${bench.metricName(column)}`] : []), "own training (s)",
      "teacher's passes (s)", "measured (UTC)", "run"];
    return table(heads, detail.runs.map((run) => [
      String(run.seed), ...(column ? [number(scaled(run.values[column.key], column), 6)] : []), number(run.cost.own_s, 4),
      run.cost.teacher_s === undefined ? "–" : `${number(run.cost.teacher_s, 4)}${shared(run.cost.group_size)}`,
      measured(run, column).created.replace("T", " ").slice(0, 16) || "–", el("code", {}, run.id),
    ]));
  }

  function scaled(value, column) {
    return value === undefined ? value : value * bench.factor(column);
  }

  function shared(students) {
    return students > 1 ? `, shared by ${students}` : "";
  }

  /** When and where the number in a column was measured; without one, or without a record there, the latest. */
  function measured(run, column) {
    const id = column && data.protocols[column.protocol].id;
    return (id && run.evaluations.find((one) => one.task_id === id)) || run.evaluations.at(-1);
  }

  function settings(values) {
    const names = Object.keys(values);
    if (!names.length) return el("p", {}, "No hyperparameters.");
    const made = table(["hyperparameter", "value"], names.map((name) => {
      return [name, typeof values[name] === "string" ? values[name] : JSON.stringify(values[name])];
    }));
    made.classList.add("wraps");
    return made;
  }

  /** Runs of the same text stand together. */
  function together(list, of) {
    const found = new Map();
    for (const run of list) {
      const text = JSON.stringify(of(run), null, 2);
      found.set(text, [...(found.get(text) || []), run.seed]);
    }
    return [...found].map(([text, seeds]) => folded(`Seed${seeds.length > 1 ? "s" : ""} ${seeds.join(", ")}`, json(text)));
  }

  function curves(detail) {
    const known = detail.runs.filter((run) => run.curve);
    if (!known.length) return [];
    const terms = [...new Set(known.flatMap((run) => Object.keys(run.curve)))].filter((term) => term !== "step");
    if (!terms.length) return [];
    const select = el("select", { id: "curve-term" }, ...terms.map((term) => el("option", { value: term }, term)));
    const place = el("div", { class: "chart" });
    const draw = () => bench.charts.curves(place, known, select.value);
    select.addEventListener("change", draw);
    requestAnimationFrame(draw);
    return [el("h3", {}, "Training"), el("div", { class: "pickers" }, el("label", {}, "Curve ", select)), place];
  }

  function pictures(detail) {
    const every = detail.runs.flatMap((run) => run.pictures.map((picture) => ({ ...picture, seed: run.seed })));
    if (!every.length) return [];
    return [el("h3", {}, "Maps"), ...every.map((one) => el("figure", {},
      el("img", { src: one.file, alt: `${one.kind} of ${detail.label} beside its teacher`, loading: "lazy" }),
      el("figcaption", {}, `${one.kind}, seed ${one.seed}. ${one.text}`)))];
  }

  function fill(detail, row, column, cell) {
    const found = [];
    if (column) {
      const said = typeof cell === "string" ? `no number: ${cell}`
        : `${cell[3]}${cell[4] ? ` ± ${cell[4]}` : ""} ${column.unit} ${bench.tail(cell, row)}`;
      found.push(el("p", { class: "lead" }, `${column.title} ${column.metric}: `, el("strong", {}, said.trim()),
        column.up ? ", higher is better" : ", lower is better"));
    }
    if (row.reported) found.push(el("p", {}, `Reported by ${detail.source || "a publication"}, under its own protocol; not measured here.`));
    if (detail.borrowed) found.push(el("p", {}, "Measured on the same model outside this condition."));
    for (const [seed, why] of detail.failures) found.push(el("p", {}, `Seed ${seed} failed ${why}.`));
    if (detail.runs.length) found.push(el("h3", {}, "Runs"), runs(detail, column));
    found.push(...curves(detail), ...pictures(detail));
    if (column && !row.reported) {
      const protocol = data.protocols[column.protocol];
      found.push(el("h3", {}, "Protocol"), el("p", {}, protocol.summary || "No summary.", " ", el("code", {}, protocol.id)),
        folded("In full", json(protocol.text)));
    }
    if (detail.runs.length) {
      found.push(el("h3", {}, "Configuration"), settings(detail.hyperparameters),
        ...together(detail.runs, (run) => ({ ...run.spec, seed: undefined })),
        el("h3", {}, "Environment"), ...together(detail.runs, (run) => detail.environments[measured(run, column).environment]));
    }
    body.replaceChildren(...found);
  }

  /** Open what the state names, or close. */
  async function show() {
    const section = bench.section();
    const asked = state.open;
    const i = asked ? section.rows.findIndex((row) => bench.rowKey(row) === asked[0]) : -1;
    if (i < 0) {
      state.open = null;
      if (dialog.open) dialog.close();
      return;
    }
    const row = section.rows[i];
    const place = section.columns.findIndex((column) => column.key === asked[1]);
    const [column, cell] = place < 0 ? [null, null] : [section.columns[place], section.cells[i][place]];
    document.getElementById("details-title").textContent = bench.rowKey(row);
    body.replaceChildren(el("p", {}, "Reading …"));
    if (!dialog.open) dialog.showModal();
    try {
      const detail = await load(row.detail);
      if (state.open === asked) fill(detail, row, column, cell);
    } catch (error) {
      if (error.message !== MISSING) throw error;
      if (state.open === asked) body.replaceChildren(el("p", {}, "The file with these runs is not beside this page any more: reload it."));
    }
  }

  dialog.addEventListener("close", () => {
    state.open = null;
    body.replaceChildren();
    bench.charts.clear();
    bench.keepLink();
  });
  // Beside the dialog, not on its edge, and not where a selection of its text ends.
  const beside = ({ clientX: x, clientY: y, target }) => {
    const { left, right, top, bottom } = dialog.getBoundingClientRect();
    return target === dialog && (x < left || x > right || y < top || y > bottom);
  };
  let pressed = false;
  dialog.addEventListener("pointerdown", (event) => (pressed = beside(event)));
  dialog.addEventListener("click", (event) => pressed && beside(event) && dialog.close());
  document.getElementById("close").addEventListener("click", () => dialog.close());

  return { show, table };
})();
