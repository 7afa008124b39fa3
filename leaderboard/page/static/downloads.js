// The shown view as a file: the rows and columns of the table in their order.
"use strict";

bench.downloads = (() => {
  const { el, state } = bench;

  // Behind these a spreadsheet would calculate: with a quote before, it is text.
  const FORMULA = /^'*[=+\-@＝＋－＠]/;
  const LATEX = {
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}",
    "|": "\\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}", '"': "\\char34{}", "±": "$\\pm$", "↑": "$\\uparrow$", "↓": "$\\downarrow$",
    "→": "$\\to$", "−": "$-$", "–": "--", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", _: "\\_", "{": "\\{", "}": "\\}",
  };

  function csvName(text) {
    return quoted(FORMULA.test(text) ? `'${text}` : text);
  }

  function quoted(text) {
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function latexName(text) {
    const apart = text.replace(/([-,'`])(?=\1)|[?!](?=`)/g, "$&\0"); // two signs of which LaTeX would make another one
    return [...apart].map((sign) => LATEX[sign] ?? sign).join("").replaceAll("\0", "{}");
  }

  function view() {
    const section = bench.section();
    return { section, columns: bench.shownColumns(), lines: bench.board.rows(), costs: state.costs ? bench.data.costs : [] };
  }

  function cost(row, one) {
    return Object.hasOwn(row.costs, one.key) ? row.costs[one.key] : null;
  }

  function csv() {
    const { section, columns, lines, costs } = view();
    const heads = ["pair", "label", "method", "kind", "origin", "seeds", "avg_rank"];
    for (const column of columns) {
      const name = `${column.title} ${column.metric} (${column.own_unit})`;
      heads.push(`${name} mean`, `${name} std`, `${name} n`);
    }
    heads.push(...costs.map((one) => one.key));
    const text = [heads.map(csvName)];
    for (const { row, cells } of lines) {
      const line = [section.title, row.label, row.method, row.kind, row.reported ? "reported" : "measured"].map(csvName);
      line.push(row.seeds ?? "", row.rank ?? "");
      for (const column of columns) {
        const cell = cells[column.place];
        line.push(...(typeof cell === "string" ? ["", "", 0] : [cell[0], cell[1] ?? "", cell[2]]));
      }
      line.push(...costs.map((one) => (cost(row, one) ? cost(row, one)[0] : "")));
      text.push(line);
    }
    return text.map((line) => line.join(",")).join("\n") + "\n";
  }

  function latexScore(cell) {
    if (typeof cell === "string") return latexName(bench.WHYS[cell]);
    const [, , , text, spread, mark] = cell;
    const mean = latexName(text);
    const marked = mark === 2 ? `\\textbf{${mean}}` : mark === 1 ? `\\underline{${mean}}` : mean;
    return marked + (spread ? ` $\\pm$ ${latexName(spread)}` : "");
  }

  function latex() {
    const { section, columns, lines, costs } = view();
    const ranks = section.rows.some((row) => row.rank !== null);
    const heads = ["method", "seeds", ...(ranks ? ["avg. rank"] : []),
      ...columns.map((column) => `${column.title} ${bench.metricName(column)}`), ...costs.map((one) => `${one.title} (${one.unit})`)];
    const body = lines.map(({ row, cells }) => {
      const label = latexName(row.label + (row.reported ? " (reported)" : ""));
      const found = [bench.isBound(row) ? `\\emph{${label}}` : label, row.seeds === null ? "--" : String(row.seeds)];
      if (ranks) found.push(row.rank === null ? "--" : row.rank.toFixed(2));
      found.push(...columns.map((column) => latexScore(cells[column.place])));
      found.push(...costs.map((one) => (cost(row, one) ? latexName(cost(row, one)[1]) : "--")));
      return `${found.join(" & ")} \\\\`;
    });
    return ["% Needs \\usepackage{booktabs}.", "\\begin{table}[t]", "\\centering", `\\caption{${latexName(section.title)}}`,
      `\\begin{tabular}{l${"r".repeat(heads.length - 1)}}`, "\\toprule", `${heads.map(latexName).join(" & ")} \\\\`, "\\midrule",
      ...body, "\\bottomrule", "\\end{tabular}", "\\end{table}"].join("\n") + "\n";
  }

  function json() {
    const { section, columns, lines, costs } = view();
    const rows = lines.map(({ row, cells }) => ({
      label: row.label, method: row.method, kind: row.kind, origin: row.reported ? "reported" : "measured", seeds: row.seeds,
      average_rank: row.rank, source: row.source,
      cells: columns.map(({ place }) => {
        const cell = cells[place];
        return typeof cell === "string" ? { missing: cell } : { mean: cell[0], std: cell[1], n: cell[2] };
      }),
      costs: costs.map((one) => (cost(row, one) ? cost(row, one)[0] : null)),
    }));
    const heads = columns.map(({ title, metric, own_unit: unit, up, protocol }) => ({
      title, metric, unit, direction: up ? "up" : "down", protocol: bench.data.protocols[protocol].id,
    }));
    return JSON.stringify({ pair: section.title, columns: heads, costs: costs.map((one) => one.key), rows }, null, 2) + "\n";
  }

  const FORMATS = { csv: [csv, "text/csv", "csv"], latex: [latex, "text/x-tex", "tex"], json: [json, "application/json", "json"] };

  function download(format) {
    const [make, type, suffix] = FORMATS[format];
    const address = URL.createObjectURL(new Blob([make()], { type: `${type};charset=utf-8` }));
    const link = el("a", { href: address, download: `results.${suffix}` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  for (const button of document.querySelectorAll("[data-download]")) {
    button.setAttribute("aria-label", `Download this view as ${button.textContent}`);
    button.addEventListener("click", () => download(button.dataset.download));
  }

  return { csv, latex, json, latexName, csvName };
})();
