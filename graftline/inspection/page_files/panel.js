"use strict";
// What is known of the selected node: the pass that made it, its laws, attributes and weights.
class Panel {
  constructor(page, root) {
    this.page = page;
    this.root = root;
    this.hint();
  }
  hint() {
    this.root.classList.add("empty");
    this.root.replaceChildren(el("h3", {}, "Nothing is selected"), el("p", { class: "soft" }, "Click a node, or reach it with Tab and press Enter. ← and → change the step, / searches, ↑ and ↓ follow edges, Esc closes this."));
  }
  show(node, section, place) {
    this.root.classList.remove("empty");
    const names = node.names || [];
    const weights = (node.weights || []).map((each) => each[Math.min(place, each.length - 1)]).map((n) => this.page.weights[n]);
    const pick = names.length > 1 ? el("select", { "aria-label": "Block", onchange: (e) => this.show(node, section, e.target.selectedIndex) }, section.places.map((p, i) => el("option", { selected: i === place }, `block ${p}`))) : null;
    const parts = [
      el("button", { class: "close", "aria-label": "Close", onclick: () => this.close() }, "×"),
      el("h3", {}, node.op), pick,
      el("p", { class: "mono" }, names[place] || ""),
      ...this.origin(node),
      ...this.list("What changed", node.changes),
      ...this.rows("Attributes", ["name", "value"], node.attributes),
      ...this.list("Makes", node.shapes),
      ...this.rows("Weights", ["name", "type and shape", "size#"], weights.map((w) => [this.weight(w), `${w[1]} ${w[2]}`, bytes(w[3])])),
      ...this.list("Constants it reads", node.constants),
      ...this.laws(node),
    ];
    this.root.replaceChildren(...parts.filter(Boolean));
  }
  close() {
    this.hint();
    this.closed?.();
  }
  weight(row) {
    return el("span", {}, el("span", { class: "mono" }, row[0]), el("br"), el("span", { class: "soft" }, `${row[4]}, at ${row[5].toLocaleString("en")}`));
  }
  origin(node) {
    const told = [];
    const status = { added: "added by this step", removed: "removed by this step", changed: "changed by this step" }[node.status];
    if (node.role) told.push(el("p", {}, "Role: ", el("strong", {}, node.role)));
    if (status) told.push(el("p", { class: { added: "good", removed: "bad", changed: "warn" }[node.status] }, status));
    if (!node.by) return [...told, el("p", { class: "soft" }, "Of the host: no pass made it.")];
    const row = (this.page.passes || []).find((p) => p[1].split("{")[0] === node.by);
    return [...told, el("p", {}, "Made by ", el("strong", {}, node.by)), row ? el("p", { class: "soft" }, row[6]) : null].filter(Boolean);
  }
  list(title, lines) {
    return lines && lines.length ? [el("h3", {}, title), ...lines.map((l) => el("div", { class: "mono" }, l))] : [];
  }
  rows(title, columns, rows) {
    return rows && rows.length ? [el("h3", {}, title), table(columns, rows.map((r) => r.map((c) => (typeof c === "string" ? el("span", { class: "mono" }, c) : c))))] : [];
  }
  laws(node) {
    const all = (this.page.laws || []).filter((law) => law[1] === node.by);
    if (!node.by || !all.length) return [];
    const seen = new Map(all.map((law) => [`${law[2]} ${law[4]} ${law[3]}`, law]));
    return [el("h3", {}, `Laws that hold ${node.by}`), table(["law", "found"], [...seen.values()].map((law) => [el("span", {}, el("strong", {}, law[2]), el("br"), status(law[3])), `${law[4]}${bound(law)}`]))];
  }
}
const TONES = { held: "good", measured: "warn", not_run: "bad" };
const status = (name) => el("span", { class: TONES[name] || "" }, name.replace("_", " "));
function bound(law) {
  if (law[5] === null) return "";
  return ` (${significant(law[5])}${law[6] === null ? "" : `, limit ${significant(law[6])}`})`;
}
