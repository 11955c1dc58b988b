"use strict";
// An answer, step by step: what each cost, what was expected of it, and why it had that size.
const page = JSON.parse(document.getElementById("data").textContent);
const steps = page.steps, main = document.getElementById("main");
const KINDS = ["plain", "chain", "tree", "paid"];
const colour = (step) => (step.kind === "plain" ? "var(--host)" : `var(--p${KINDS.indexOf(step.kind) - 1})`);
const detail = el("section", { id: "step", "aria-live": "polite" });
const current = [];

function choose(at) {
  const step = steps[at];
  chosen = at;
  current.forEach(([made, i]) => (i === at ? made.setAttribute("aria-current", "step") : made.removeAttribute("aria-current")));
  const expected = step.expected === null ? "nothing was expected" : `expected ${significant(step.expected)} tokens in ${significant(step.expected_milliseconds)} ms`;
  const parts = [el("h2", {}, `Step ${at + 1} of ${steps.length}`),
    el("p", {}, `${step.kind}, ${step.parents.length} rows behind ${step.past} positions, of ${step.proposed} proposed (class ${step.signal}): ${expected}; it gave ${step.fresh.length} in ${significant(step.milliseconds)} ms.`),
    el("p", {}, el("strong", {}, "Why: "), step.why)];
  const figures = [treeFigure({ parents: step.parents, labels: step.labels, accepted: step.path, told: "What was scored; green is what was accepted." }), maskFigure(step.parents)];
  if (step.considered.length > 1) {
    const points = step.considered.map(([rows, tokens, ms]) => [rows, tokens / ms * 1000]);
    figures.push(el("figure", {}, lineChart([{ name: "expected", points, dot: nearest(points, step.parents.length) }], "tokens/s", "Expected tokens per second by rows"), el("figcaption", {}, "Tokens per second that each size promised; the dot is what was scored.")));
  }
  detail.replaceChildren(...parts, el("div", { class: "columns" }, figures));
}
const nearest = (points, rows) => points.reduce((a, b) => (Math.abs(b[0] - rows) < Math.abs(a[0] - rows) ? b : a));

function answer() {
  return el("p", { class: "answer" }, steps.map((step, at) => {
    const made = el("button", { style: { "--c": colour(step) }, title: `step ${at + 1}: ${step.fresh.length} tokens`, onclick: () => choose(at) }, step.text);
    current.push([made, at]);
    return made;
  }));
}
function timeline() {
  const width = 1100, height = 150, total = steps.reduce((sum, s) => sum + s.milliseconds, 0);
  const most = Math.max(...steps.map((s) => Math.max(s.fresh.length, s.expected || 0)));
  let x = 0;
  const bars = steps.flatMap((step, at) => {
    const wide = (step.milliseconds / total) * width, high = (step.fresh.length / most) * (height - 24), left = x;
    x += wide;
    const bar = svg("rect", { x: left, y: height - 14 - high, width: Math.max(wide - 1, 0.5), height: high, style: { "--c": colour(step) }, onclick: () => choose(at) }, svg("title", {}, `step ${at + 1}: ${step.fresh.length} tokens in ${significant(step.milliseconds)} ms`));
    current.push([bar, at]);
    const y = height - 14 - ((step.expected || 0) / most) * (height - 24);
    return [bar, step.expected === null ? null : svg("line", { x1: left, x2: left + Math.max(wide - 1, 0.5), y1: y, y2: y })];
  });
  return el("figure", {}, svg("svg", { class: "timeline", width: "100%", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Steps by time" }, ...bars.filter(Boolean), svg("text", { x: 0, y: height - 1 }, "0"), svg("text", { x: width, y: height - 1, "text-anchor": "end" }, `${(total / 1000).toFixed(2)} s`)),
    el("figcaption", {}, "Width is time, height is tokens; a line is what was expected. ← and → go from step to step."),
    el("div", { class: "legend" }, KINDS.map((kind) => el("span", {}, el("span", { class: "swatch", style: { "--c": colour({ kind }) } }), { plain: "plain", chain: "a chain from text", tree: "a tree", paid: "drafted by a model" }[kind]))));
}

let chosen = 0;
document.getElementById("nav").remove();
document.getElementById("head").append(el("h1", {}, page.title), el("p", { class: "soft" }, page.subtitle));
if (steps.length) {
  main.append(el("section", { id: "graph" }, answer(), timeline()), detail);
  choose(0);
} else main.append(el("p", {}, "The answer ended with its first token: no step was made."));
document.addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (by && steps[chosen + by]) choose(chosen + by);
});
document.documentElement.dataset.ready = "yes";
