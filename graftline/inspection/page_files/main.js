"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main"), nav = document.getElementById("nav");

function header() {
  const chips = (page.chips || []).map((c) => el("div", {}, el("dt", {}, c.what), el("dd", { class: c.good === true ? "good" : c.good === false ? "warn" : null }, c.told)));
  document.getElementById("head").append(el("h1", {}, page.title), el("p", { class: "soft" }, page.subtitle), el("dl", { class: "chips" }, chips));
}

function section(id, title, content) {
  nav.append(el("a", { href: `#${id}` }, title));
  main.append(el("section", { id }, el("h2", {}, title), content));
}

class Explorer {
  constructor() {
    this.steps = el("ol", { class: "steps" });
    this.slider = el("input", { type: "range", min: 0, step: 1, value: 0, "aria-label": "Step: graphs and passes", oninput: () => this.go(Number(this.slider.value)) });
    this.told = el("div", { class: "frame", role: "status", "aria-live": "polite" });
    this.legend = el("div", { class: "legend" });
    this.search = el("input", { type: "search", placeholder: "Search nodes and weights  ( / )", "aria-label": "Search nodes and weights", oninput: () => this.find(), onkeydown: (e) => e.key === "ArrowDown" && this.results.querySelector("button")?.focus() });
    this.results = el("ul", { class: "results" });
    const root = el("div", { id: "sections" }), aside = el("aside", { id: "panel", "aria-label": "Selected node", "aria-live": "polite" });
    this.panel = new Panel(page, aside);
    this.view = new GraphView(page, root, this.panel);
    this.panel.closed = () => this.view.clear();
    this.tracks = page.tracks.length > 1 ? el("select", { "aria-label": "Stage", onchange: () => this.track(this.tracks.selectedIndex) }, page.tracks.map((t) => el("option", {}, t.name))) : null;
    const ghosts = el("input", { type: "checkbox", onchange: () => { this.view.removed = ghosts.checked; this.go(this.at); } });
    ghosts.indeterminate = true;
    const controls = el("div", { class: "controls" }, this.tracks ? el("label", {}, "stage ", this.tracks) : null, el("div", { class: "find" }, this.search, this.results), el("label", {}, ghosts, " removed nodes"));
    this.element = el("div", {}, controls, this.slider, this.steps, this.told, this.legend, el("div", { class: "split" }, root, aside));
    this.track(0);
  }
  track(number) {
    this.frames = page.tracks[number].frames;
    this.slider.max = this.frames.length - 1;
    this.steps.replaceChildren(...this.frames.map((f, i) => el("li", {}, el("button", { class: f.kind, onclick: () => this.go(i) }, f.label))));
    this.go(this.frames.length - 1);
  }
  go(at) {
    this.at = Math.max(0, Math.min(at, this.frames.length - 1));
    const frame = this.frames[this.at];
    this.slider.value = this.at;
    this.slider.setAttribute("aria-valuetext", frame.label);
    [...this.steps.children].forEach((li, i) => (i === this.at ? li.firstChild.setAttribute("aria-current", "step") : li.firstChild.removeAttribute("aria-current")));
    this.told.replaceChildren(...this.words(frame));
    this.panel.hint();
    this.view.show(frame);
    this.keys(frame);
  }
  words(frame) {
    const nodes = frame.nodes.filter((n) => n !== undefined).join(" → ");
    if (frame.kind === "graph") {
      const lines = page.scenes[frame.scene].graph;
      const list = lines.length ? el("details", {}, el("summary", {}, `${lines.length} differences of ports and versions`), lines.slice(0, 400).map((l) => el("div", { class: "mono" }, l))) : null;
      return [el("strong", {}, frame.label), ` · ${nodes} nodes · ${frame.told}`, list].filter(Boolean);
    }
    const hidden = frame.later.length ? ` Faded is what later passes made (${frame.later.join(", ")}).` : "";
    return [el("strong", {}, frame.text), ` · ${nodes} nodes · ${frame.seconds.toFixed(2)} s`, el("p", {}, frame.why), el("p", { class: "soft" }, `Added: ${frame.added.join(", ") || "no nodes of its own"}. The graph after this pass alone is not kept in the bundle; drawn is ${frame.in}, with what the pass made standing out.${hidden}`)];
  }
  keys(frame) {
    const makers = [...new Set(this.view.scene.sections.flatMap((s) => s.nodes.map((n) => n.by || "")))];
    const swatches = makers.sort().map((by) => el("span", {}, el("span", { class: "swatch", style: { "--c": this.view.colour(by) } }), by || "host"));
    const signs = frame.kind === "graph" && this.view.scene.counts.added + this.view.scene.counts.removed + this.view.scene.counts.changed ? [el("span", { class: "good" }, "+ added"), el("span", { class: "warn" }, "~ changed"), el("span", { class: "bad" }, "dashed: removed")] : [];
    this.legend.replaceChildren(...swatches, ...signs);
  }
  find() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    this.results.replaceChildren();
    if (!words.length) return;
    for (const section of this.view.scene.sections) {
      section.nodes.forEach((node, i) => {
        const known = `${node.op} ${node.role || ""} ${node.by || ""}`.toLowerCase();
        node.names.forEach((name, place) => {
          if (this.results.children.length >= 60) return;
          const weights = (node.weights || []).map((w) => page.weights[w[Math.min(place, w.length - 1)]][0]).join(" ");
          const text = `${known} ${name} ${weights}`.toLowerCase();
          if (!words.every((w) => text.includes(w)) || (place && words.every((w) => known.includes(w)))) return;
          const told = [el("strong", {}, node.op), ` ${shortened(name, 60)} `, el("span", { class: "soft" }, section.places.length > 1 ? `block ${section.places[place]}` : section.title)];
          this.results.append(el("li", {}, el("button", { onclick: () => this.found(section, i, place) }, told)));
        });
      });
    }
    if (!this.results.children.length) this.results.append(el("li", { class: "soft" }, "nothing of that name in this step"));
  }
  found(section, i, place) {
    this.results.replaceChildren();
    this.view.reveal(section, i, place);
  }
  key(event) {
    const typing = event.target.matches("input[type=search], select, textarea");
    if (event.key === "Escape") { this.results.replaceChildren(); this.panel.close(); this.search.blur(); }
    else if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    else if (event.key === "/") { this.search.focus(); event.preventDefault(); }
    else if (event.target !== this.slider && event.key === "ArrowRight") this.go(this.at + 1);
    else if (event.target !== this.slider && event.key === "ArrowLeft") this.go(this.at - 1);
  }
}

header();
const explorer = new Explorer();
section("graph", "Graph", explorer.element);
for (const [id, [title, content]] of Object.entries(PARTS)) {
  const made = content(page);
  if (made) section(id, title, made);
}
document.addEventListener("keydown", (event) => explorer.key(event));
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
document.documentElement.dataset.ready = "yes";
