// The table: a real <table> that DataTables sorts and filters; one cell of it is in the tab order, arrows move.
"use strict";

bench.board = (() => {
  const { el, escaped, state, WHYS } = bench;
  let table = null;
  let definitions = [];

  // Where there is no number, a row stands below the others in both directions.
  const order = DataTable.ext.type.order;
  const last = (one, other) => (one === null) - (other === null);
  order["score-asc"] = (one, other) => (one === null || other === null ? last(one, other) : one - other);
  order["score-desc"] = (one, other) => (one === null || other === null ? last(one, other) : other - one);
  const names = new Intl.Collator("en", { numeric: true }); // method_2 before method_10, everywhere alike
  order["name-asc"] = (one, other) => names.compare(one, other);
  order["name-desc"] = (one, other) => names.compare(other, one);

  function hidden(text) {
    return `<span class="hidden">${escaped(text)}</span>`;
  }

  /** What stands behind a mean: its spread, and of how many seeds it is. */
  function behind(cell, row) {
    return [cell[4] && `± ${cell[4]}`, bench.tail(cell, row)].filter(Boolean).join(" ");
  }

  /** The longest of a column: where there is less behind a number its room is left, so that digits stand in line. */
  function widest(column) {
    const { rows, cells } = bench.section();
    const texts = cells.map((line, i) => (typeof line[column.place] === "string" ? "" : behind(line[column.place], rows[i])));
    return texts.reduce((one, other) => (other.length > one.length ? other : one), "");
  }

  function scoreHtml(cell, row, room) {
    if (typeof cell === "string") return `<span class="none">${WHYS[cell]}</span>${WHYS[cell] === "–" ? hidden(` ${cell}`) : ""}`;
    const [, , , text, , mark] = cell;
    const mean = ["", "second", "best"][mark];
    const found = mark ? `<span class="${mean}">${escaped(text)}</span>${hidden(mark === 2 ? " best" : " second best")}` : escaped(text);
    if (!room) return found;
    const said = behind(cell, row);
    const left = room.slice(said.length);
    return `${found} <span class="spread">${escaped(said)}${left && `<span class="ghost" aria-hidden="true">${escaped(left)}</span>`}</span>`;
  }

  function nameHtml(row) {
    const name = bench.isBound(row) ? `<i>${escaped(row.label)}</i>` : escaped(row.label);
    return name + (row.reported ? ' <span class="tag">reported</span>' : "");
  }

  /** Every column of the table: how it is called, what is sorted by, what is shown, what a click means. */
  function columnsOf() {
    const found = [
      { key: "method", head: ["", "method"], sort: (line) => line.row.label, html: (line) => nameHtml(line.row), name: true },
      { key: "seeds", head: ["", "seeds"], sort: (line) => line.row.seeds, html: (line) => escaped(bench.seedsText(line.row)) },
    ];
    if (bench.section().has_trials) {
      found.push({ key: "trials", head: ["", "trials"], sort: (line) => line.row.trials, html: (line) => escaped(line.row.trials ?? "–") });
    }
    if (bench.section().has_ranks) {
      found.push({
        key: "rank", head: ["avg.", "rank"], sort: (line) => line.row.rank, up: false,
        html: (line) => escaped(line.row.rank_text),
      });
    }
    for (const column of bench.shownColumns()) {
      const room = widest(column);
      found.push({
        key: column.key, column, head: [column.title, bench.metricName(column)], up: column.up,
        sort: (line) => (typeof line.cells[column.place] === "string" ? null : line.cells[column.place][0]),
        html: (line) => scoreHtml(line.cells[column.place], line.row, room),
      });
    }
    if (state.costs) {
      for (const cost of bench.costs()) {
        const of = (line) => bench.costOf(line.row, cost);
        found.push({
          key: cost.key, cost, head: [cost.title, cost.unit], up: false,
          sort: (line) => of(line) && of(line)[0], html: (line) => escaped(of(line) ? of(line)[1] : "–"),
        });
      }
    }
    return found;
  }

  function head(definition) {
    const [over, under] = definition.head;
    const parts = over ? [el("span", { class: "over" }, over), " ", el("span", {}, under)] : [el("span", {}, under)];
    return el("th", { scope: "col" }, ...parts);
  }

  function startingOrder() {
    const wanted = state.sort && definitions.findIndex((one) => one.key === state.sort[0]);
    return state.sort && wanted >= 0 ? [[wanted, state.sort[1]]] : [];
  }

  function build() {
    if (table) table.destroy(true);
    const section = bench.section();
    definitions = columnsOf();
    const made = el("table", { id: "board", role: "grid", "aria-describedby": "keys" },
      el("caption", { class: "hidden" }, section.title),
      el("thead", {}, el("tr", {}, ...definitions.map(head))));
    document.getElementById("table").replaceChildren(made);
    table = new DataTable(made, {
      data: section.rows.map((row, i) => ({ row, cells: section.cells[i] })),
      columns: definitions.map((one) => ({
        data: (line, type) => (type === "display" ? one.html(line) : type === "filter" ? "" : one.sort(line)),
        type: one.name ? "name" : "score",
        cellType: one.name ? "th" : "td",
        className: one.name ? "name" : "number",
        ariaTitle: one.head.join(" ").trim(),
        orderSequence: one.up ? ["desc", "asc", ""] : ["asc", "desc", ""],
      })),
      createdRow: (tr, line) => {
        tr.firstElementChild.setAttribute("scope", "row");
        if (bench.isBound(line.row)) tr.classList.add("bound");
        if (line.row.reported) tr.classList.add("reported");
      },
      order: startingOrder(),
      orderMulti: false, // a link holds one column
      paging: false, info: false, autoWidth: false, layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
      language: { zeroRecords: "No method has this name.", emptyTable: "There are no records yet." },
    });
    table.search.fixed("shown", (text, line) => bench.isShown(line.row));
    table.on("order", () => {
      const [first] = table.order();
      state.sort = first && first[1] ? [definitions[first[0]].key, first[1]] : null;
      bench.keepLink();
    });
    table.on("draw", drawn);
    table.draw();
  }

  function rows() {
    return table.rows({ order: "current", search: "applied" }).data().toArray();
  }

  /** After sorting or filtering: one cell that Tab reaches, the count, the charts. */
  function drawn() {
    const body = table.table().body();
    if (!body.querySelector('[tabindex="0"]')) {
      const first = body.querySelector("th, td");
      if (first) first.tabIndex = 0;
    }
    const shown = rows().length;
    const total = bench.section().rows.length;
    const rowsOf = bench.plural(total, "row");
    document.getElementById("count").textContent = shown === total ? rowsOf : `${shown} of ${rowsOf}`;
    bench.charts.draw();
  }

  function focusCell(cell) {
    for (const other of table.table().body().querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    cell.tabIndex = 0;
    cell.focus();
  }

  const MOVES = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], PageDown: [10, 0], PageUp: [-10, 0] };

  function keyed(event) {
    const cell = event.target.closest("tbody th, tbody td");
    if (!cell || event.altKey || event.metaKey) return;
    const body = cell.closest("tbody");
    const lines = [...body.rows];
    let [i, j] = [lines.indexOf(cell.parentElement), cell.cellIndex];
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      return opened(cell);
    }
    if (event.key === "Home") [i, j] = event.ctrlKey ? [0, 0] : [i, 0];
    else if (event.key === "End") [i, j] = event.ctrlKey ? [lines.length - 1, 1e9] : [i, 1e9];
    else if (MOVES[event.key] && !event.ctrlKey) [i, j] = [i + MOVES[event.key][0], j + MOVES[event.key][1]];
    else return;
    event.preventDefault();
    const line = lines[Math.max(0, Math.min(lines.length - 1, i))];
    focusCell(line.cells[Math.max(0, Math.min(line.cells.length - 1, j))]);
  }

  function opened(cell) {
    const line = table.row(cell.parentElement).data();
    if (!line) return;
    const { column } = definitions[cell.cellIndex];
    focusCell(cell);
    state.open = [bench.rowKey(line.row), column ? column.key : null];
    bench.keepLink();
    bench.details.show();
  }

  const place = document.getElementById("table");
  place.addEventListener("keydown", keyed);
  place.addEventListener("click", (event) => {
    const cell = event.target.closest("tbody th, tbody td");
    if (cell && !cell.classList.contains("dt-empty")) opened(cell);
  });

  return { build, rows, redraw: () => table.draw(), definitions: () => definitions };
})();
