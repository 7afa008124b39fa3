// What the page holds and what of it is shown. Names come from users' files: they become text nodes, never markup.
"use strict";

var bench = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const WHYS = {
    "not run": "–",
    failed: "failed",
    "no value": "n/a",
    "not reported": "–",
  };

  /** An element with attributes and children; strings become text. */
  function el(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  /** A text as the markup that shows it. */
  function escaped(text) {
    return String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
  }

  function plural(count, what) {
    return `${count} ${what}${count === 1 ? "" : "s"}`;
  }

  // columns: "main", "all" or a set of keys. quality, cost: of the scatter chart, "" for its first. sort: key and
  // direction. open: a row's key and a column's key or null.
  const state = {
    pair: "", columns: "main", find: "", bounds: true, reported: true, costs: false, live: false,
    quality: "", cost: "", sort: null, open: null,
  };

  /** The view as the part of an address behind its #. */
  function toHash() {
    const found = new URLSearchParams();
    found.set("pair", state.pair); // of a single one too: tomorrow another may be the first
    if (state.columns !== "main") {
      if (state.columns === "all") found.set("metrics", "all");
      else if (!state.columns.size) found.set("metrics", "none");
      else for (const key of state.columns) found.append("column", key);
    }
    if (state.find) found.set("find", state.find);
    for (const name of ["bounds", "reported"]) if (!state[name]) found.set(name, "0");
    for (const name of ["costs", "live"]) if (state[name]) found.set(name, "1");
    for (const name of ["quality", "cost"]) if (state[name]) found.set(name, state[name]);
    if (state.sort) {
      found.set("sort", state.sort[0]);
      found.set("direction", state.sort[1]);
    }
    if (state.open) {
      found.set("row", state.open[0]);
      if (state.open[1]) found.set("cell", state.open[1]);
    }
    return found.toString();
  }

  /** Factor from a column's own unit to the one that is shown. */
  function factor(column) {
    return column.own_unit === "fraction" ? 100 : 1;
  }

  /** Take the view of an address. What it names and the page has not is left out, and returned in words. */
  function fromHash(hash) {
    const found = new URLSearchParams(hash.replace(/^#/, ""));
    const lost = [];
    /** What an address gives for a name, or null where it is not among what is known. */
    const known = (name, what, every) => {
      const given = found.get(name) || null;
      if (given === null || every.includes(given)) return given;
      lost.push(what(given));
      return null;
    };
    const pair = known("pair", () => "the teacher and student", data.sections.map((one) => one.key));
    state.pair = pair ?? data.sections[0].key;
    const { rows, columns } = section();
    const keys = columns.map((column) => column.key);
    const costKeys = data.costs.map((one) => one.key);
    const asked = found.getAll("column");
    const chosen = asked.filter((key) => keys.includes(key));
    lost.push(...asked.filter((key) => !keys.includes(key)).map((key) => `the column ${key}`));
    const metrics = found.get("metrics");
    state.columns = metrics === "all" ? "all" : chosen.length || metrics === "none" ? new Set(chosen) : "main";
    state.find = found.get("find") || "";
    state.bounds = found.get("bounds") !== "0";
    state.reported = found.get("reported") !== "0";
    state.costs = found.get("costs") === "1";
    state.live = found.get("live") === "1" && document.body.dataset.stamp !== "";
    state.quality = known("quality", (key) => `the column ${key}`, keys) ?? "";
    state.cost = known("cost", (key) => `the cost ${key}`, costKeys) ?? "";
    const sort = known("sort", (key) => `the column ${key}`, ["method", "seeds", "trials", "rank", ...keys, ...costKeys]);
    state.sort = sort === null ? null : [sort, found.get("direction") === "desc" ? "desc" : "asc"];
    const row = known("row", (key) => `the row ${key}`, rows.map(rowKey));
    state.open = row === null ? null : [row, known("cell", (key) => `the column ${key}`, keys)];
    return [...new Set(lost)];
  }

  let ours = null;
  let later = 0;
  /** Only where it has changed: browsers throw where an address changes too often, Safari at 100 times in 30 s. */
  function keepLink() {
    ours = toHash();
    if (`#${ours}` === (location.hash || "#")) return;
    clearTimeout(later);
    try {
      history.replaceState(null, "", `#${ours}`);
    } catch {
      later = setTimeout(keepLink, 1000);
    }
  }

  function section() {
    return data.sections.find((one) => one.key === state.pair) || data.sections[0];
  }

  /** The columns that are shown, with their places. */
  function shownColumns() {
    const every = section().columns.map((column, place) => ({ ...column, place }));
    const wanted = state.columns;
    if (wanted === "all") return every;
    return every.filter((column) => (wanted === "main" ? column.main : wanted.has(column.key)));
  }

  /** What links call a row: a publication's may have the label of one that was measured. */
  function rowKey(row) {
    return row.reported ? `${row.label} (reported)` : row.label;
  }

  function isBound(row) {
    return row.kind !== "student";
  }

  function competes(row) {
    return row.kind === "student" && !row.reported;
  }

  /** Whether a row is among those that are looked for: every word is in its name or its method's. */
  function isShown(row) {
    if (!state.bounds && isBound(row)) return false;
    if (!state.reported && row.reported) return false;
    const name = `${row.label} ${row.method}`.toLowerCase();
    return state.find.toLowerCase().split(/\s+/).every((word) => name.includes(word));
  }

  function metricName(column) {
    return `${column.metric}${column.unit ? ` (${column.unit})` : ""} ${column.up ? "↑" : "↓"}`;
  }

  function seedsText(row) {
    if (row.seeds === null) return WHYS["not reported"];
    return (row.asked || 0) > row.seeds ? `${row.seeds} of ${row.asked}` : String(row.seeds);
  }

  /** What stands behind a number that not all of its row's seeds have. */
  function tail(cell, row) {
    return row.reported || cell[2] === row.seeds ? "" : `(${cell[2]} of ${row.seeds})`;
  }

  /** The costs of which something is known in this section. */
  function costs() {
    return data.costs.filter((cost) => section().rows.some((row) => costOf(row, cost)));
  }

  function costOf(row, cost) {
    return Object.hasOwn(row.costs, cost.key) ? row.costs[cost.key] : null;
  }

  return {
    data, el, escaped, plural, state, fromHash, keepLink, section, shownColumns, rowKey, isBound, competes, isShown,
    metricName, factor, seedsText, tail, costs, costOf, WHYS, isOurs: (hash) => hash.replace(/^#/, "") === ours,
  };
})();
