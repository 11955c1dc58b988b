"use strict";
// Pictures of numbers: the tree and its mask, what steps cost, where the bytes are.
function treeFigure(tree) {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "LR", nodesep: 6, ranksep: 26, marginx: 4, marginy: 4 });
  graph.setDefaultEdgeLabel(() => ({}));
  const label = (i) => (tree.labels ? tree.labels[i] : i ? `${Math.round(100 * tree.chances[i])} %` : "root");
  const wide = tree.labels ? Math.max(...tree.labels.map((l) => textWidth(l, 10.5))) + 14 : 46;
  tree.parents.forEach((parent, i) => {
    graph.setNode(String(i), { width: wide, height: 18 });
    if (parent >= 0) graph.setEdge(String(parent), String(i));
  });
  dagre.layout(graph);
  const { width, height } = graph.graph();
  const edges = graph.edges().map((e) => svg("path", { d: `M${graph.edge(e).points.map((p) => `${p.x} ${p.y}`).join("L")}` }));
  const boxes = tree.parents.map((_, i) => {
    const at = graph.node(String(i));
    const told = tree.chances ? `row ${i}, accepted with a chance of ${tree.chances[i]}` : `row ${i}`;
    return svg("g", { class: tree.accepted?.includes(i) ? "accepted" : null, transform: `translate(${at.x} ${at.y})` },
      svg("title", {}, told),
      svg("rect", { x: -wide / 2, y: -9, width: wide, height: 18, rx: 5 }),
      svg("text", { "text-anchor": "middle", y: 4, style: { "font-size": "10.5px" } }, label(i)));
  });
  const named = `Tree of ${tree.parents.length} rows`;
  return el("figure", {}, el("div", { class: "scroll" }, svg("svg", { class: "tree", width, height, role: "img", "aria-label": named }, ...edges, ...boxes)),
    el("figcaption", {}, tree.labels ? tree.told : `${tree.told}: ${tree.parents.length} rows with the root, each with the chance, as first believed, that it is accepted.`));
}

function maskFigure(parents) {
  const size = Math.max(5, Math.min(14, Math.floor(320 / parents.length))), past = 26;
  const sees = parents.map((_, row) => {
    const seen = new Set();
    for (let at = row; at >= 0; at = parents[at]) seen.add(at);
    return seen;
  });
  const cells = parents.flatMap((_, row) => [
    svg("rect", { class: "mask-past", x: 0, y: row * size, width: past, height: size - 1 }),
    ...parents.map((__, column) => svg("rect", { class: sees[row].has(column) ? "mask-on" : "mask-off", x: past + 4 + column * size, y: row * size, width: size - 1, height: size - 1 })),
  ]);
  const width = past + 4 + parents.length * size;
  return el("figure", {}, el("div", { class: "scroll" }, svg("svg", { width, height: parents.length * size, role: "img", "aria-label": "Mask of the tree" }, ...cells)),
    el("figcaption", {}, "Its mask: each row (a token) sees all that is committed (grey), itself and what is above it in the tree (blue), and no other branch."));
}

// Lines over rows on a logarithmic axis; series: [{name, points: [[rows, y]], dot}].
function lineChart(series, unit, label) {
  const width = 560, height = 260, left = 52, bottom = 34, top = 12, right = 130;
  const points = series.flatMap((s) => s.points);
  const most = Math.max(...points.map((p) => p[1])) * 1.06, widest = Math.max(2, ...points.map((p) => p[0]));
  const x = (rows) => left + (Math.log2(rows) / Math.log2(widest)) * (width - left - right);
  const y = (value) => top + (1 - value / most) * (height - top - bottom);
  const ticks = [1, 2, 4, 8, 16, 32, 64, 128, 256].filter((t) => t <= widest);
  const marks = ticks.map((t) => svg("text", { x: x(t), y: height - 16, "text-anchor": "middle" }, String(t)));
  const levels = [0, 0.25, 0.5, 0.75, 1].map((s) => (s * most) / 1.06);
  const grid = levels.flatMap((v) => [svg("line", { class: "axis", x1: left, x2: width - right, y1: y(v), y2: y(v) }), svg("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, significant(v))]);
  const ends = series.map((s) => y(s.points[s.points.length - 1][1])).map((at, i) => ({ at, i })).sort((a, b) => a.at - b.at);
  ends.forEach((e, k) => { if (k && e.at < ends[k - 1].at + 13) e.at = ends[k - 1].at + 13; });
  const names = new Map(ends.map((e) => [e.i, e.at]));
  const lines = series.flatMap((s, i) => {
    const style = { "--c": `var(--p${i % 10})` }, last = s.points[s.points.length - 1];
    return [svg("path", { style, d: s.points.map((p, k) => `${k ? "L" : "M"}${x(p[0])} ${y(p[1])}`).join("") }),
      ...(s.points.length < 16 ? s.points : []).map((p) => svg("circle", { style, cx: x(p[0]), cy: y(p[1]), r: 2.6 }, svg("title", {}, `${s.name}, ${p[0]} rows: ${significant(p[1])} ${unit}`))),
      s.dot ? svg("circle", { style, cx: x(s.dot[0]), cy: y(s.dot[1]), r: 5 }, svg("title", {}, `chosen: ${s.dot[0]} rows`)) : null,
      svg("text", { x: x(last[0]) + 8, y: names.get(i) + 4 }, s.name)];
  });
  const axis = svg("text", { x: left, y: height - 2 }, "rows of a step");
  return el("div", { class: "scroll" }, svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...grid, ...marks, axis, ...lines.filter(Boolean)));
}

// Rectangles of areas as given, as square as can be (Bruls, Huizing and van Wijk 2000).
function squarified(items, x, y, width, height) {
  const total = items.reduce((sum, one) => sum + one.value, 0);
  if (!items.length || !total) return [];
  const scale = (width * height) / total, left = [...items].sort((a, b) => b.value - a.value), placed = [];
  const worst = (row, side) => {
    const sum = row.reduce((s, one) => s + one.value * scale, 0), areas = row.map((one) => one.value * scale);
    return Math.max((side * side * Math.max(...areas)) / (sum * sum), (sum * sum) / (side * side * Math.min(...areas)));
  };
  while (left.length) {
    const side = Math.min(width, height), row = [left.shift()];
    while (left.length && worst([...row, left[0]], side) <= worst(row, side)) row.push(left.shift());
    const sum = row.reduce((s, one) => s + one.value * scale, 0), thick = sum / side;
    let at = 0;
    for (const one of row) {
      const long = (one.value * scale) / thick;
      placed.push(width >= height ? { one, x, y: y + at, width: thick, height: long } : { one, x: x + at, y, width: long, height: thick });
      at += long;
    }
    if (width >= height) { x += thick; width -= thick; } else { y += thick; height -= thick; }
  }
  return placed;
}

function treemap(weights) {
  const width = 1100, height = 420, groups = new Map();
  for (const row of weights) {
    const found = /(?:^|\.)(\d+)\./.exec(row[0]), name = found ? `block ${found[1]}` : row[0];
    if (!groups.has(name)) groups.set(name, { name, value: 0, rows: [] });
    const group = groups.get(name);
    group.value += row[3];
    group.rows.push({ value: row[3], row });
  }
  const types = [...new Set(weights.map((row) => row[1]))];
  const cells = squarified([...groups.values()], 0, 0, width, height).flatMap((box) => [
    ...squarified(box.one.rows, box.x, box.y, box.width, box.height).map((cell) => svg("rect", { class: "cell", x: cell.x, y: cell.y, width: Math.max(cell.width, 0), height: Math.max(cell.height, 0), style: { "--c": `var(--p${types.indexOf(cell.one.row[1]) % 10})` } },
      svg("title", {}, `${cell.one.row[0]}: ${cell.one.row[1]} ${cell.one.row[2]}, ${bytes(cell.one.value)}, ${cell.one.row[4]}`))),
    box.width > 52 && box.height > 20 ? svg("text", { x: box.x + 6, y: box.y + 16, style: { "font-size": "11px", "font-weight": 600 } }, shortened(box.one.name, Math.floor(box.width / 7))) : null,
  ]);
  const legend = el("div", { class: "legend" }, types.map((type, i) => el("span", {}, el("span", { class: "swatch", style: { "--c": `var(--p${i % 10})` } }), type)));
  const total = weights.reduce((sum, row) => sum + row[3], 0);
  return el("figure", {}, legend, svg("svg", { width: "100%", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Weights by size" }, ...cells.filter(Boolean)),
    el("figcaption", {}, `${weights.length} weights of the graphs above, ${bytes(total)}, each once; areas are bytes. Point at one for its name, shape and file.`));
}
