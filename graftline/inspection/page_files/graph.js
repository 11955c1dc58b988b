"use strict";
// The graph of one step of the slider: sections that open, nodes that can be clicked.
class GraphView {
  constructor(page, root, panel) {
    this.page = page;
    this.root = root;
    this.panel = panel;
    this.frame = null;
    this.removed = null; // not said: where they do not crowd out the rest
    const passes = page.scenes.flatMap((s) => s.sections.flatMap((x) => x.nodes.map((n) => n.by || "")));
    this.colours = new Map([...new Set(passes)].filter(Boolean).map((name, i) => [name, `var(--p${i % 10})`]));
  }
  colour(by) {
    return this.colours.get(by || "") || "var(--host)";
  }
  get scene() {
    return this.page.scenes[this.frame.scene];
  }
  show(frame) {
    this.frame = frame;
    this.selected = null;
    const sections = this.scene.sections;
    const scores = sections.map((one) => this.interest(one));
    const most = Math.max(...scores);
    this.parts = sections.map((section, i) => this.part(section, most ? scores[i] > 0 : this.plain(section, i)));
    this.root.replaceChildren(...this.parts.map((p) => p.details));
  }
  // How much there is to see in a section in this step.
  interest(section) {
    const hit = this.frame.kind === "pass" ? (n) => n.by === this.frame.by : (n) => Boolean(n.status);
    return section.nodes.filter(hit).length;
  }
  plain(section, i) {
    const first = this.scene.sections.findIndex((s) => /^\d+$/.test(s.places[0]));
    return first < 0 ? i === 0 : i === first;
  }
  part(section, open) {
    const count = section.places.length;
    const nodes = section.nodes.filter((n) => n.status !== "removed").length;
    const told = el("span", { class: "soft" }, nodes === 1 ? "1 node" : `${nodes} nodes`);
    const summary = el("summary", {}, el("strong", {}, section.title), count > 1 ? el("span", { class: "times" }, `× ${count}`) : null, told, ...this.signs(section));
    const canvas = el("div", { class: "canvas" });
    const part = { section, canvas, drawn: null };
    part.details = el("details", { class: "part", open, ontoggle: () => part.details.open && this.draw(part) }, summary, canvas);
    if (open) this.draw(part);
    return part;
  }
  signs(section) {
    if (this.frame.kind === "pass") {
      const made = this.interest(section);
      return made ? [el("span", { class: "good" }, `${made} by ${this.frame.by}`)] : [];
    }
    const count = (status) => section.nodes.filter((n) => n.status === status).length;
    const told = [["added", "+", "good"], ["removed", "−", "bad"], ["changed", "~", "warn"]];
    return told.filter(([s]) => count(s)).map(([s, sign, tone]) => el("span", { class: tone }, `${sign}${count(s)} ${s}`));
  }
  crowded(section) {
    const removed = section.nodes.filter((n) => n.status === "removed").length;
    return removed > section.nodes.length / 2 && removed < section.nodes.length;
  }
  draw(part) {
    const withRemoved = this.frame.kind === "graph" && (this.removed ?? !this.crowded(part.section));
    if (part.drawn === withRemoved) return;
    part.drawn = withRemoved;
    const { section } = part, placed = layout(section, withRemoved);
    const edges = placed.edges.map((e) => {
      const made = svg("path", { class: e.gone ? "edge gone" : "edge", d: curve(e.points), "marker-end": "url(#arrow)" });
      return Object.assign(e, { made }).made;
    });
    const boxes = [...placed.at].map(([i, box]) => (i < section.nodes.length ? this.node(part, i, box) : this.pill(section.pills[i - section.nodes.length], box)));
    const marker = svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, svg("path", { class: "arrow", d: "M0 0L8 4L0 8z" }));
    const label = `Graph of ${section.title}: ${section.nodes.length} nodes`;
    part.placed = placed;
    part.canvas.replaceChildren(svg("svg", { width: placed.width, height: placed.height, viewBox: `0 0 ${placed.width} ${placed.height}`, role: "group", "aria-label": label }, svg("defs", {}, marker), ...edges, ...boxes));
  }
  node(part, i, box) {
    const node = part.section.nodes[i], { frame } = this;
    const later = frame.kind === "pass" && frame.later.includes(node.by);
    const status = frame.kind === "graph" ? node.status : node.by === frame.by ? "hit" : "";
    const classes = ["node", status, node.quiet && "quiet", later && "later"].filter(Boolean).join(" ");
    const sign = frame.kind === "graph" ? { added: "+", changed: "~" }[node.status] : "";
    const y = node.small && !node.quiet ? -4 : 4;
    const told = `${node.op}${status ? `, ${status}` : ""}${node.by ? `, made by ${node.by}` : ""}`;
    const made = svg("g", { class: classes, tabindex: 0, role: "button", "aria-label": told, transform: `translate(${box.x} ${box.y})`, style: { "--c": this.colour(node.by) }, onclick: () => this.select(part, i), onkeydown: (e) => this.key(e, part, i) },
      svg("title", {}, `${node.op}: ${node.names[0]}`),
      svg("rect", { x: -box.width / 2, y: -box.height / 2, width: box.width, height: box.height, rx: node.quiet ? 10 : 6 }),
      svg("text", { "text-anchor": "middle", x: sign ? 6 : 0, y }, shortOperator(node.op)),
      node.small && !node.quiet ? svg("text", { class: "small", "text-anchor": "middle", y: 11 }, node.small) : null,
      sign ? svg("text", { class: "badge", x: -box.width / 2 + 7, y: 4 }, sign) : null);
    (part.boxes ||= new Map()).set(i, made);
    return made;
  }
  pill(pill, box) {
    return svg("g", { class: "pill", transform: `translate(${box.x} ${box.y})` },
      svg("title", {}, pill.side === "in" ? `reads ${pill.text}` : `read by ${pill.text}`),
      svg("rect", { x: -box.width / 2, y: -10, width: box.width, height: 20, rx: 10 }),
      svg("text", { "text-anchor": "middle", y: 4 }, shortened(pill.text, 44)));
  }
  key(event, part, i) {
    if (event.key === "Enter" || event.key === " ") this.select(part, i);
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") this.walk(part, i, event.key === "ArrowDown");
    else return;
    event.preventDefault();
  }
  // Move along an edge: to the first reader, or to the first of what is read.
  walk(part, i, down) {
    const next = part.placed.edges.filter((e) => (down ? e.from : e.to) === i).map((e) => (down ? e.to : e.from)).find((n) => part.boxes.has(n));
    if (next !== undefined) part.boxes.get(next).focus();
  }
  select(part, i, place) {
    this.clear();
    const node = part.section.nodes[i];
    this.selected = { part, i };
    part.boxes.get(i).classList.add("selected");
    for (const e of part.placed.edges) e.made.classList.toggle("near", e.from === i || e.to === i);
    this.panel.show(node, part.section, place || 0);
  }
  clear() {
    if (!this.selected) return;
    const { part, i } = this.selected;
    part.boxes.get(i)?.classList.remove("selected");
    for (const e of part.placed.edges) e.made.classList.remove("near");
    this.selected = null;
  }
  // Open, scroll to and select a node of the current scene.
  reveal(section, i, place) {
    const part = this.parts[this.scene.sections.indexOf(section)];
    part.details.open = true;
    this.draw(part);
    if (!part.boxes.has(i)) return;
    this.select(part, i, place);
    part.boxes.get(i).scrollIntoView({ block: "center", inline: "center" });
    part.boxes.get(i).focus({ preventScroll: true });
  }
}
