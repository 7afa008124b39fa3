// Charts of what the table shows, by Chart.js. Under each stand its numbers, for those who cannot see it.
"use strict";

bench.charts = (() => {
  const { data, el, state } = bench;
  const MOST = 6; // students in a radar chart: more cannot be told apart
  const AXES = 12; // of a radar chart
  const [quality, price] = ["scatter-quality", "scatter-cost"].map((id) => document.getElementById(id));
  const SHAPES = ["circle", "rect", "triangle", "rectRot", "star", "crossRot"];
  const drawn = new Map(); // the place of a chart -> the chart
  let waiting = 0;

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  }

  function series(i) {
    return colour(`series-${i % MOST}`);
  }

  /** A chart with a sentence below it, or "", and its numbers as a table. */
  function put(place, config, label, said, heads, lines) {
    forget(place);
    const canvas = el("canvas", { role: "img", "aria-label": label });
    const numbers = el("details", {}, el("summary", {}, "Numbers of this chart"), bench.details.table(heads, lines));
    numbers.open = place.querySelector("details")?.open || false;
    place.replaceChildren(el("div", { class: "canvas" }, canvas), said ? el("p", { class: "hint" }, said) : "", numbers);
    drawn.set(place, new Chart(canvas, config));
  }

  function none(place, text) {
    forget(place);
    place.replaceChildren(el("p", {}, text));
  }

  function forget(place) {
    drawn.get(place)?.destroy();
    drawn.delete(place);
  }

  /** Charts that are on the page no more would be kept, and watched for their size, for ever. */
  function clear() {
    for (const place of [...drawn.keys()].filter((one) => !one.isConnected)) forget(place);
  }

  function axis(title, logarithmic, grace) {
    const ink = colour("muted");
    return {
      type: logarithmic ? "logarithmic" : "linear",
      title: { display: true, text: title, color: colour("ink") },
      ticks: { color: ink, maxTicksLimit: 8 },
      grid: { color: colour("line") },
      border: { color: colour("line") },
      grace,
    };
  }

  function legend(display) {
    return { display, position: "bottom", labels: { color: colour("ink"), usePointStyle: true, boxHeight: 7 } };
  }

  const common = { animation: false, responsive: true, maintainAspectRatio: false };

  /** Names beside their points, left out where they would cover another. */
  const names = {
    id: "names",
    afterDatasetsDraw(chart) {
      const { ctx, chartArea } = chart;
      const taken = [];
      ctx.save();
      ctx.font = "12px system-ui, sans-serif";
      ctx.textBaseline = "middle";
      ctx.fillStyle = colour("ink");
      chart.data.datasets.forEach((set, k) => set.data.forEach((point, i) => {
        const { x, y } = chart.getDatasetMeta(k).data[i].getProps(["x", "y"], true);
        const text = point.label.length > 28 ? `${point.label.slice(0, 27)}…` : point.label;
        const wide = ctx.measureText(text).width;
        for (const left of [x + 8, x - 8 - wide]) {
          const box = [left, y - 8, left + wide, y + 8];
          const inside = box[0] >= chartArea.left && box[2] <= chartArea.right && box[1] >= chartArea.top;
          if (inside && !taken.some((one) => one[0] < box[2] && box[0] < one[2] && one[1] < box[3] && box[1] < one[3])) {
            taken.push(box);
            ctx.fillText(text, left, y);
            break;
          }
        }
      }));
      ctx.restore();
    },
  };

  function mean(cell) {
    return typeof cell === "string" ? null : cell[0];
  }

  function scatter() {
    const place = document.getElementById("scatter");
    const columns = bench.shownColumns();
    const column = columns.find((one) => one.key === quality.value);
    const cost = data.costs.find((one) => one.key === price.value);
    document.getElementById("scatter-pickers").hidden = !column || !cost;
    if (!column || !cost) return none(place, column ? "No costs were recorded." : "No column is shown.");
    const scale = cost.unit === "M" ? 1e-6 : 1;
    const points = bench.board.rows()
      .filter(({ row, cells }) => bench.competes(row) && bench.costOf(row, cost) && mean(cells[column.place]) !== null)
      .map(({ row, cells }) => ({
        x: bench.costOf(row, cost)[0] * scale, y: cells[column.place][0] * bench.factor(column), label: row.label,
        text: [row.label, bench.costOf(row, cost)[1], `${cells[column.place][3]}${cells[column.place][4] ? ` ± ${cells[column.place][4]}` : ""}`],
      }));
    if (!points.length) return none(place, "No student that is shown has both numbers.");
    const xs = points.map((point) => point.x);
    const logarithmic = Math.min(...xs) > 0 && Math.max(...xs) > 20 * Math.min(...xs);
    const titles = [`${cost.title} (${cost.unit}${logarithmic ? ", logarithmic" : ""})`, `${column.title} ${bench.metricName(column)}`];
    put(place, {
      type: "scatter",
      data: { datasets: [{ data: points, pointRadius: 5, pointHoverRadius: 7, backgroundColor: series(0), borderColor: colour("paper") }] },
      options: {
        ...common,
        scales: { x: axis(titles[0], logarithmic, "6%"), y: axis(titles[1], false, "8%") },
        plugins: { legend: legend(false), tooltip: { callbacks: { label: (item) => item.raw.text.join(", ") } } },
      },
      plugins: [names],
    }, `${titles[1]} against ${titles[0]} of ${bench.plural(points.length, "student")}`, `${cost.title}: ${cost.about}.`, ["method", titles[0], titles[1]], points.map((p) => p.text));
  }

  /** Each axis from the worst of the table's students to the best; the best is outside whatever the direction. */
  function radar() {
    const place = document.getElementById("radar");
    const students = bench.board.rows().filter(({ row }) => bench.competes(row));
    const known = bench.shownColumns().filter((column) => students.some((line) => mean(line.cells[column.place]) !== null));
    const axes = known.slice(0, AXES);
    const complete = students.filter((line) => axes.every((column) => mean(line.cells[column.place]) !== null));
    const chosen = complete.slice(0, MOST);
    if (axes.length < 3) return none(place, "A radar chart needs three columns: choose more tasks or metrics.");
    if (!chosen.length) return none(place, "No student that is shown has a number in every column.");
    const ends = axes.map((column) => {
      const every = students.map((line) => mean(line.cells[column.place])).filter((value) => value !== null);
      const [low, high] = [Math.min(...every), Math.max(...every)];
      return column.up ? [low, high] : [high, low];
    });
    const share = (value, [worst, best]) => (worst === best ? 1 : (value - worst) / (best - worst));
    const sets = chosen.map(({ row, cells }, i) => ({
      label: row.label, data: axes.map((column, j) => share(mean(cells[column.place]), ends[j])),
      borderColor: series(i), backgroundColor: "transparent", pointBackgroundColor: series(i), pointStyle: SHAPES[i], borderWidth: 2,
    }));
    const left = [];
    if (chosen.length < complete.length) left.push(`the first ${MOST} of ${complete.length} students`);
    if (axes.length < known.length) left.push(`the first ${AXES} of ${known.length} columns`);
    if (complete.length < students.length) left.push(`only students with a number in each of these columns`);
    const said = "Outside is the best student that the table shows, the middle the worst."
      + (left.length ? ` Here: ${left.join("; ")}.` : "");
    const heads = axes.map((column) => `${column.title} ${bench.metricName(column)}`);
    const ink = colour("ink");
    const narrow = place.clientWidth < 520;
    const cut = (text) => (text.length > 13 ? `${text.slice(0, 12)}…` : text);
    const labels = axes.map((column) => (narrow ? [cut(column.title), cut(column.metric)] : [column.title, bench.metricName(column)]));
    put(place, {
      type: "radar",
      data: { labels, datasets: sets },
      options: {
        ...common,
        scales: {
          r: {
            min: 0, max: 1, ticks: { display: false, stepSize: 0.25 }, grid: { color: colour("line") },
            angleLines: { color: colour("line") }, pointLabels: { color: ink, font: { size: 11 } },
          },
        },
        plugins: {
          legend: legend(true),
          tooltip: { callbacks: { label: (item) => `${item.dataset.label}: ${chosen[item.datasetIndex].cells[axes[item.dataIndex].place][3]}` } },
        },
      },
    }, `${bench.plural(chosen.length, "student")} over ${axes.length} columns: ${chosen.map(({ row }) => row.label).join(", ")}`,
    said, ["method", ...heads], chosen.map(({ row, cells }) => [row.label, ...axes.map((column) => cells[column.place][3])]));
  }

  /** One line a seed. */
  function curves(place, runs, term) {
    const known = runs.filter((run) => run.curve[term]);
    const sets = known.map((run, i) => ({
      label: `seed ${run.seed}`, data: run.curve.step.map((step, k) => ({ x: step, y: run.curve[term][k] })),
      borderColor: series(i), backgroundColor: series(i), pointRadius: 0, borderWidth: 2, pointStyle: SHAPES[i % MOST],
    }));
    const values = sets.flatMap((set) => set.data.map((point) => point.y)).filter((value) => value !== null);
    const logarithmic = values.length > 0 && Math.min(...values) > 0 && Math.max(...values) > 30 * Math.min(...values);
    const ends = known.map((run) => [String(run.seed), String(run.curve[term][0]), String(run.curve[term].at(-1))]);
    put(place, {
      type: "line",
      data: { datasets: sets },
      options: {
        ...common, parsing: false,
        scales: { x: axis("step", false, 0), y: axis(term + (logarithmic ? ", logarithmic" : ""), logarithmic, 0) },
        plugins: { legend: legend(known.length > 1) },
      },
    }, `${term} over ${bench.plural(known.length, "training")}`, "", ["seed", `${term}, first`, "last"], ends);
  }

  /** The wanted one is chosen where it is there, the first one elsewhere. */
  function options(select, wanted, pairs) {
    select.replaceChildren(...pairs.map(([value, text]) => el("option", { value }, text)));
    if (pairs.some(([value]) => value === wanted)) select.value = wanted;
  }

  function draw() {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => {
      const columns = bench.shownColumns();
      options(quality, state.quality, columns.map((one) => [one.key, `${one.title} ${bench.metricName(one)}`]));
      options(price, state.cost, bench.costs().map((cost) => [cost.key, `${cost.title} (${cost.unit})`]));
      scatter();
      radar();
    });
  }

  for (const [select, name] of [[quality, "quality"], [price, "cost"]]) select.addEventListener("change", () => {
    state[name] = select.value;
    bench.keepLink();
    scatter();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    draw();
    for (const select of document.querySelectorAll("#curve-term")) select.dispatchEvent(new Event("change"));
  });

  return { draw, curves, clear };
})();
