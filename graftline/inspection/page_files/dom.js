"use strict";
// Elements are made by name and filled with text, never with markup: nothing of a graph is parsed.
const SVG = "http://www.w3.org/2000/svg";

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) made.style.setProperty(key, one);
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) made.append(child);
  return made;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function bytes(count) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (count < 1024 || unit === "GiB") return `${unit === "B" ? count : count.toFixed(1)} ${unit}`;
    count /= 1024;
  }
}
function significant(value) {
  if (value === null) return "";
  if (value === 0) return "0";
  return Math.abs(value) >= 0.001 && Math.abs(value) < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}
function table(columns, rows, wide) {
  const numeric = columns.map((c) => c.endsWith("#"));
  const cell = (tag, content, i) => el(tag, numeric[i] ? { class: "num" } : {}, content);
  const head = el("tr", {}, columns.map((c, i) => {
    const made = cell("th", c.replace(/#$/, ""), i);
    made.setAttribute("scope", "col");
    return made;
  }));
  const body = rows.map((row) => el("tr", {}, row.map((content, i) => cell("td", content, i))));
  const made = el("table", { class: wide ? "wide" : null }, el("thead", {}, head), el("tbody", {}, body));
  return el("div", { class: "scroll" }, made);
}
const measuring = document.createElement("canvas").getContext("2d");
function textWidth(text, size) {
  measuring.font = `${size}px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif`;
  return measuring.measureText(text).width;
}
const shortened = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
