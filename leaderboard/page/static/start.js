// The controls, and everything for the first time.
"use strict";

(() => {
  const { data, el, plural, state } = bench;
  const byId = (id) => document.getElementById(id);
  const EVERY_MS = 10_000;

  function changed() {
    byId("lost").textContent = "";
    bench.keepLink();
    chooser();
    section();
    bench.board.build();
  }

  function section() {
    const shown = bench.section();
    const costs = !state.costs ? [] : bench.costs().map((cost) => `${cost.title} (${cost.unit}): ${cost.about}.`);
    byId("legend").replaceChildren(...[...shown.legend, ...costs].map((line) => el("li", {}, line)));
    byId("reported-label").hidden = !shown.rows.some((row) => row.reported);
    const ids = new Set(bench.shownColumns().map((column) => column.protocol));
    byId("protocols").replaceChildren(...data.protocols.filter((_, i) => ids.has(i)).map((one) => el("details", {},
      el("summary", {}, el("strong", {}, one.title), ` ${one.summary || ""} `, el("code", {}, one.id)),
      el("pre", { tabindex: "0" }, one.text))));
    const diagram = shown.diagram;
    const { statements, pairs, method, legend } = shown.differences;
    byId("statistics").hidden = !diagram && !statements.length;
    byId("statements").replaceChildren(el("ul", {}, ...statements.map((line) => el("li", {}, line))),
      ...(pairs.length ? [folded(`${method} against the others, number by number`, () => pairsTable(pairs, legend))] : []));
    byId("diagram").replaceChildren(...(diagram ? [el("figure", {},
      el("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": diagram.kind },
        el("img", { src: diagram.file, alt: diagram.text })),
      el("figcaption", {}, diagram.text))] : []));
  }

  /** What is made when it is first opened: thousands of lines may be behind it. */
  function folded(title, make) {
    const made = el("details", {}, el("summary", {}, title));
    made.addEventListener("toggle", () => made.append(...make()), { once: true });
    return made;
  }

  function pairsTable(pairs, legend) {
    const heads = ["against", "task", "difference", "interval", "seeds", "p over seeds", "p over items"];
    return [bench.details.table(heads, pairs), el("p", { class: "hint" }, legend)];
  }

  function chooser() {
    const columns = bench.section().columns;
    const shown = new Set(bench.shownColumns().map((column) => column.key));
    const words = state.columns === "main" ? "main metrics" : state.columns === "all" ? "all metrics" : "chosen";
    byId("chosen").textContent = `${words}, ${shown.size} of ${plural(columns.length, "column")}`;
    const tasks = new Map();
    for (const column of columns) tasks.set(column.title, [...(tasks.get(column.title) || []), column]);
    byId("columns").replaceChildren(...[...tasks].map(([title, mine]) => {
      const whole = tick(title, mine.every((column) => shown.has(column.key)), mine);
      whole.firstChild.indeterminate = !whole.firstChild.checked && mine.some((column) => shown.has(column.key));
      return el("fieldset", {}, el("legend", {}, whole),
        ...mine.map((column) => tick(bench.metricName(column), shown.has(column.key), [column])));
    }));
  }

  function tick(text, checked, columns) {
    const box = el("input", { type: "checkbox", "data-keys": JSON.stringify(columns.map((column) => column.key)) });
    box.checked = checked;
    return el("label", {}, box, ` ${text}`);
  }

  byId("columns").addEventListener("change", (event) => {
    const keys = JSON.parse(event.target.dataset.keys);
    const shown = new Set(bench.shownColumns().map((column) => column.key));
    for (const key of keys) event.target.checked ? shown.add(key) : shown.delete(key);
    state.columns = shown;
    changed();
    const again = [...byId("columns").querySelectorAll("input")].find((box) => box.dataset.keys === JSON.stringify(keys));
    if (again) again.focus();
  });
  byId("main-columns").addEventListener("click", () => (state.columns = "main", changed()));
  byId("all-columns").addEventListener("click", () => (state.columns = "all", changed()));
  byId("pair").addEventListener("change", (event) => {
    state.pair = event.target.value;
    const keys = new Set(bench.section().columns.map((column) => column.key));
    if (state.columns instanceof Set) {
      const kept = [...state.columns].filter((key) => keys.has(key));
      state.columns = kept.length ? new Set(kept) : "main";
    }
    if (!keys.has(state.quality)) state.quality = "";
    state.open = null;
    changed();
  });
  byId("find").addEventListener("input", (event) => {
    byId("lost").textContent = "";
    state.find = event.target.value;
    bench.keepLink();
    bench.board.redraw();
  });
  for (const name of ["bounds", "reported"]) byId(name).addEventListener("change", (event) => {
    state[name] = event.target.checked;
    bench.keepLink();
    bench.board.redraw();
  });
  byId("costs").addEventListener("change", (event) => (state.costs = event.target.checked, changed()));
  byId("live").addEventListener("change", (event) => (state.live = event.target.checked, bench.keepLink()));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("link").addEventListener("click", async (event) => {
    const button = event.currentTarget;
    bench.keepLink();
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(location.href);
    } catch {
      said = "It is in the address bar";
    }
    button.textContent = byId("heard").textContent = said;
    setTimeout(() => {
      button.textContent = "Copy link";
      byId("heard").textContent = "";
    }, 2000);
  });
  // A jump to #table would take the place of the view in the address.
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("table").focus();
  });

  function fromAddress() {
    const lost = bench.fromHash(location.hash);
    byId("lost").textContent = lost.length ? `This link names what is not on this page: ${lost.join("; ")}.` : "";
    byId("pair").value = state.pair;
    byId("find").value = state.find;
    for (const name of ["bounds", "reported", "costs", "live"]) byId(name).checked = state[name];
    chooser();
    section();
    bench.board.build();
    bench.details.show();
    bench.keepLink();
  }

  // The page's own address changes by history.replaceState, which tells nobody: this is a link or the user.
  addEventListener("hashchange", () => bench.isOurs(location.hash) || fromAddress());

  /** Called by stamp.js, a script since a page without a server may not read other files. */
  bench.newest = (stamp) => stamp !== document.body.dataset.stamp && state.live && location.reload();
  byId("live-label").hidden = document.body.dataset.stamp === "";
  setInterval(() => {
    if (!state.live || byId("details").open) return;
    const script = el("script", { src: `stamp.js?${Date.now()}` });
    script.onload = script.onerror = () => script.remove();
    document.head.append(script);
  }, EVERY_MS);

  const students = data.sections.reduce((sum, one) => sum + one.rows.filter(bench.competes).length, 0);
  byId("about").textContent = `${plural(data.records, "record")}, ${plural(students, "student")} as rows`
    + (data.newest ? `, the newest of ${data.newest.replace("T", " ").slice(0, 16)} UTC` : "");
  byId("pair").append(...data.sections.map((one) => el("option", { value: one.key }, one.title)));
  byId("notes").append(...data.notes.map((line) => el("li", {}, line)));
  byId("notes-section").hidden = !data.notes.length;
  fromAddress();
})();
