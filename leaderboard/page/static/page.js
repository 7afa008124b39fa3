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

  const START = { pair: "", columns: "main", find: "", bounds: true, reported: true, costs: false };
  const state = { ...START, sort: null, open: null, live: false };

  /** The view as the part of an address behind its #. */
  function toHash() {
    const found = new URLSearchParams();
    if (state.pair !== data.sections[0].key) found.set("pair", state.pair);
    if (state.columns !== "main") {
      if (state.columns === "all") found.set("metrics", "all");
      else for (const key of state.columns) found.append("column", key);
    }
    if (state.find) found.set("find", state.find);
    for (const name of ["bounds", "reported"]) if (!state[name]) found.set(name, "0");
    for (const name of ["costs", "live"]) if (state[name]) found.set(name, "1");
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

  /** The view of an address. What it names and the page has not is left out. */
  function fromHash(hash) {
    const found = new URLSearchParams(hash.replace(/^#/, ""));
    const pair = found.get("pair");
    state.pair = data.sections.some((one) => one.key === pair) ? pair : data.sections[0].key;
    const known = new Set(section().columns.map((column) => column.key));
    const chosen = found.getAll("column").filter((key) => known.has(key));
    state.columns = found.get("metrics") === "all" ? "all" : chosen.length ? new Set(chosen) : "main";
    state.find = found.get("find") || "";
    state.bounds = found.get("bounds") !== "0";
    state.reported = found.get("reported") !== "0";
    state.costs = found.get("costs") === "1";
    state.live = found.get("live") === "1" && document.body.dataset.stamp !== "";
    state.sort = found.has("sort") ? [found.get("sort"), found.get("direction") === "desc" ? "desc" : "asc"] : null;
    state.open = found.has("row") ? [found.get("row"), found.get("cell")] : null;
  }

  let ours = null;
  function keepLink() {
    const hash = toHash();
    ours = hash;
    history.replaceState(null, "", hash ? `#${hash}` : "#");
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

  return {
    data, el, escaped, state, toHash, fromHash, keepLink, section, shownColumns, isBound, competes, isShown, metricName,
    WHYS, isOurs: (hash) => hash.replace(/^#/, "") === ours,
  };
})();
