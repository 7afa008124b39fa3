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

  // As in leaderboard/layout.py: without siunitx, numbers are set as text.
  const PREAMBLE = [
    "% Needs \\usepackage{booktabs}. With \\usepackage{siunitx} that sets the numbers; without, the first line does.",
    "\\providecommand{\\num}[2][]{\\ensuremath{#2}}",
    "\\providecommand{\\firstbest}[1]{\\textbf{\\boldmath\\num[detect-all]{#1}}}",
    "\\providecommand{\\secondbest}[1]{\\underline{\\num{#1}}}",
  ];

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
    return { section, columns: bench.shownColumns(), lines: bench.board.rows(), costs: state.costs ? bench.costs() : [] };
  }

  /** Which numbers of these columns a row lacks and why, as `singer-bench table --format csv` says it. */
  function missing(row, cells, columns) {
    if (row.reported) return "";
    const lacking = columns.filter(({ place }) => typeof cells[place] === "string");
    return lacking.map((column) => `${column.title} ${column.metric}: ${cells[column.place]}`).join("; ");
  }

  function csv() {
    const { section, columns, lines, costs } = view();
    const trials = section.has_trials;
    const heads = ["pair", "label", "method", "kind", "origin", "source", "seeds", ...(trials ? ["trials"] : []), "avg_rank"];
    for (const column of columns) {
      const name = `${column.title} ${column.metric} (${column.own_unit})`;
      heads.push(`${name} mean`, `${name} std`, `${name} n`);
    }
    heads.push(...costs.map((one) => one.key), "missing");
    const text = [heads.map(csvName)];
    for (const { row, cells } of lines) {
      const line = [section.title, row.label, row.method, row.kind, origin(row), row.source].map(csvName);
      line.push(row.seeds ?? "", ...(trials ? [row.trials ?? ""] : []), row.rank ?? "");
      for (const { place } of columns) {
        const cell = cells[place];
        line.push(...(typeof cell === "string" ? ["", "", 0] : [cell[0], cell[1] ?? "", cell[2]]));
      }
      line.push(...costs.map((one) => bench.costOf(row, one)?.[0] ?? ""), csvName(missing(row, cells, columns)));
      text.push(line);
    }
    return text.map((line) => line.join(",")).join("\n") + "\n";
  }

  function origin(row) {
    return row.reported ? "reported" : "measured";
  }

  /** \num{1.5}; powers of ten stand outside, where they look the same with siunitx and without. */
  function latexNumber(text, command) {
    const parts = /^([<-]?\d+(?:\.\d+)?)(?:e([+-]\d+))?$/.exec(text);
    if (!parts) return latexName(text);
    return `\\${command}{${parts[1]}}${parts[2] ? `$\\times10^{${Number(parts[2])}}$` : ""}`;
  }

  function latexScore(cell, row) {
    if (typeof cell === "string") return latexName(bench.WHYS[cell]);
    const [, , , text, spread, mark] = cell;
    const tail = bench.tail(cell, row);
    return latexNumber(text, ["num", "secondbest", "firstbest"][mark]) + (spread ? ` $\\pm$ ${latexNumber(spread, "num")}` : "")
      + (tail ? ` ${latexName(tail)}` : "");
  }

  function latex() {
    const { section, columns, lines, costs } = view();
    const [trials, ranks] = [section.has_trials, section.has_ranks];
    const heads = ["method", "seeds", ...(trials ? ["trials"] : []), ...(ranks ? ["avg. rank"] : []),
      ...columns.map((column) => `${column.title} ${bench.metricName(column)}`), ...costs.map((one) => `${one.title} (${one.unit})`)];
    const body = lines.map(({ row, cells }) => {
      const label = latexName(row.label + (row.reported ? " (reported)" : ""));
      const found = [bench.isBound(row) ? `\\emph{${label}}` : label, latexName(bench.seedsText(row))];
      if (trials) found.push(row.trials === null ? "--" : String(row.trials));
      if (ranks) found.push(latexName(row.rank_text));
      found.push(...columns.map((column) => latexScore(cells[column.place], row)));
      found.push(...costs.map((one) => latexName(bench.costOf(row, one)?.[1] ?? "–")));
      return `${found.join(" & ")} \\\\`;
    });
    const notes = section.legend.map(latexName).join("\\\\\n");
    return [...PREAMBLE, "\\begin{table}[t]", "\\centering", `\\caption{${latexName(section.title)}}`,
      `\\begin{tabular}{l${"r".repeat(heads.length - 1)}}`, "\\toprule", `${heads.map(latexName).join(" & ")} \\\\`, "\\midrule",
      ...body, "\\bottomrule", "\\end{tabular}", "", "\\smallskip", "\\begin{minipage}{\\linewidth}\\footnotesize", notes,
      "\\end{minipage}", "\\end{table}"].join("\n") + "\n";
  }

  function json() {
    const { section, columns, lines, costs } = view();
    const rows = lines.map(({ row, cells }) => ({
      label: row.label, method: row.method, kind: row.kind, origin: origin(row), seeds: row.seeds, asked: row.asked,
      trials: row.trials, average_rank: row.rank, source: row.source,
      cells: columns.map(({ place }) => {
        const cell = cells[place];
        return typeof cell === "string" ? { missing: cell } : { mean: cell[0], std: cell[1], n: cell[2] };
      }),
      costs: costs.map((one) => bench.costOf(row, one)?.[0] ?? null),
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
    setTimeout(() => URL.revokeObjectURL(address), 60_000); // some browsers read it only when asked where to
  }

  for (const button of document.querySelectorAll("[data-download]")) {
    button.setAttribute("aria-label", `Download this view as ${button.textContent}`);
    button.addEventListener("click", () => download(button.dataset.download));
  }

  return { csv, latex, json, latexName, csvName };
})();
