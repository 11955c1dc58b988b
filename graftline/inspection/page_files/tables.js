"use strict";
// The parts of the page below the graph; each returns its content, or null where there is none.
const STRUCTURAL = ["typed", "wellformed", "interface", "alike"];
const owned = (owner, text) => (owner === "target" ? text : `${owner}: ${text}`);

const PARTS = {
  overview: ["Overview", (page) => page.overview && table(["", ""], page.overview.map(([k, v]) => [k, el("span", { class: "mono" }, v)]), true)],
  pipeline: ["Passes", (page) => {
    if (!page.passes?.length) return null;
    const most = Math.max(...page.passes.map((p) => p[4]));
    return table(["pass", "nodes#", "seconds#", "", "added", "why"], page.passes.map((p) => [
      el("strong", {}, owned(p[0], p[1])), `${p[2]} → ${p[3]}`, p[4].toFixed(2),
      el("div", { class: "track" }, el("div", { class: "bar", style: { width: `${(100 * p[4]) / most}%` } })), p[5], p[6]]), true);
  }],
  laws: ["Laws", (page) => {
    if (!page.laws?.length) return null;
    const rows = (laws) => table(["after", "law", "status", "what was compared", "value#", "limit#"], laws.map((w) => [owned(w[0], w[1]), w[2], status(w[3]), w[4], significant(w[5]), w[6] === null && w[5] !== null ? "nothing bounds it" : significant(w[6])]), true);
    const checks = page.laws.filter((w) => STRUCTURAL.includes(w[2])), others = page.laws.filter((w) => !STRUCTURAL.includes(w[2]));
    return el("div", {}, el("p", {}, page.laws_told), rows(others),
      el("details", {}, el("summary", {}, `${checks.length} checks on the whole graph, after each pass (${STRUCTURAL.join(", ")})`), rows(checks)));
  }],
  assumptions: ["Assumptions", (page) => page.assumptions && (page.assumptions.length
    ? el("ul", {}, page.assumptions.map((line) => el("li", {}, line)))
    : el("p", { class: "soft" }, "None: no input of the export was replaced."))],
  exactness: ["Exactness", (page) => page.exactness?.length && table(["stage", "rows alone", "worst#", "all agree from", "bits however cut", "difference by rows"], page.exactness.map((e) => [
    e[0], el("span", { class: e[1] ? "good" : "warn" }, e[1] ? "yes" : "no"), significant(e[2]), e[3] === null ? "never" : `${e[3]} rows`, e[4] === null ? "not tried, or no" : `from ${e[4]} rows`,
    e[5].map(([rows, worst]) => `${rows}: ${significant(worst)}`).join(", ")]), true)],
  ports: ["Ports, taps and heads", (page) => page.ports?.length && el("div", {}, [...new Set(page.ports.map((p) => p[0]))].map((stage) => el("details", {}, el("summary", {}, stage),
    table(["", "role", "type and shape", "of", "keeps", "after block", "names"], page.ports.filter((p) => p[0] === stage).map((p) => p.slice(1).map((c, i) => (i > 4 ? el("span", { class: "mono" }, c) : c))), true))))],
  tree: ["The tree and its mask", (page) => {
    if (page.tree === undefined) return null;
    if (page.tree === null) return el("p", { class: "soft" }, "Drafts of this recipe have no fixed shape, and no step costs are measured here; graftline run BUNDLE PROMPT --explain shows those of an answer.");
    return el("div", { class: "columns" }, treeFigure(page.tree), maskFigure(page.tree.parents));
  }],
  costs: ["What a step costs, and what is chosen", (page) => {
    if (!page.costs) return null;
    if (!page.costs.length) return el("p", { class: "soft" }, "Not measured yet; the first graftline run on a machine does, and keeps it in the bundle.");
    return el("div", {}, page.costs.map(costsPart));
  }],
  weights: ["Weights", (page) => page.weights.length && treemap(page.weights)],
  files: ["Files", (page) => page.files?.length && table(["file", "size#", "sha256"], page.files.map(([rel, size, digest]) => [rel, bytes(size), el("span", { class: "mono" }, digest.slice(0, 16))]))],
};

function costsPart(one) {
  const series = Object.entries(one.tables).map(([name, points]) => ({ name, points }));
  const sizes = [...new Set(Object.values(one.tables).flatMap((t) => t.map((p) => p[0])))].sort((a, b) => a - b);
  const at = (points, rows) => (points.find((p) => p[0] === rows) || [0, null])[1];
  const costs = el("figure", {}, lineChart(series, "ms", "Milliseconds of a step by rows"), el("figcaption", {}, "Milliseconds of one step by the rows of each sequence: a chain, a tree, a chain behind 1,024 positions (far), several sequences."),
    el("details", {}, el("summary", {}, "as a table"), table(["rows#", ...series.map((s) => `${s.name}#`)], sizes.map((rows) => [String(rows), ...series.map((s) => significant(at(s.points, rows)))]))));
  const gains = one.expected.map((e) => {
    const plain = e.rows[0][2], points = e.rows.map(([rows, tokens, ms]) => [rows, (tokens / ms) * plain]);
    return { name: `class ${e.signal}`, points, dot: [e.chosen, points[Math.min(e.chosen, points.length) - 1][1]] };
  });
  const chosen = one.expected.length ? el("figure", {}, lineChart(gains, "times plain", "Expected speed-up by rows"), el("figcaption", {}, "What the controller expects of each class of proposals before it has seen any, over steps without drafts; the dot is what it chooses."),
    table(["class#", "rows chosen#", "tokens a step#", "times plain#"], one.expected.map((e) => [String(e.signal), String(e.chosen), significant(e.tokens), significant(e.speedup)]))) : el("p", { class: "soft" }, "Drafts of this recipe are made by an engine, or there are none: what they are worth is learned while it runs (graftline run --explain).");
  return el("div", {}, el("h3", {}, one.key + (one.here ? " (this machine)" : "")), el("div", { class: "columns" }, costs, chosen));
}
