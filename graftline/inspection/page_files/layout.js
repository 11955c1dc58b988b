"use strict";
// Where the nodes, pills and edges of a section are drawn: layers from top to bottom, by dagre.
const laidOut = new Map();

function nodeSize(node) {
  const size = node.quiet ? 11 : 12.5;
  const sign = node.status ? 14 : 0;
  const wide = Math.max(textWidth(shortOperator(node.op), size), node.small ? textWidth(node.small, 10.5) : 0);
  return { width: Math.ceil(wide + 22 + sign), height: node.quiet ? 21 : node.small ? 38 : 27 };
}
const shortOperator = (operator) => shortened(operator.split("::").pop(), 40);

function layout(section, withRemoved) {
  const key = withRemoved ? "with" : "without";
  if (!laidOut.has(section)) laidOut.set(section, {});
  const known = laidOut.get(section);
  if (known[key]) return known[key];
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "TB", nodesep: 16, ranksep: 24, edgesep: 8, marginx: 6, marginy: 6 });
  graph.setDefaultEdgeLabel(() => ({}));
  const shown = (i) => i >= section.nodes.length || withRemoved || section.nodes[i].status !== "removed";
  section.nodes.forEach((node, i) => shown(i) && graph.setNode(String(i), nodeSize(node)));
  const edges = section.edges.filter(([from, to, gone]) => shown(from) && shown(to) && (withRemoved || !gone));
  const used = new Set(edges.flat());
  section.pills.forEach((pill, i) => {
    const at = section.nodes.length + i;
    const width = Math.ceil(textWidth(shortened(pill.text, 44), 11) + 20);
    if (used.has(at)) graph.setNode(String(at), { width, height: 20 });
  });
  for (const [from, to] of edges) graph.setEdge(String(from), String(to));
  dagre.layout(graph);
  const size = graph.graph();
  known[key] = {
    width: Math.ceil(Math.max(size.width || 0, 10)), height: Math.ceil(Math.max(size.height || 0, 10)),
    at: new Map(graph.nodes().map((id) => [Number(id), graph.node(id)])),
    edges: edges.map(([from, to, gone]) => {
      const [a, b] = [String(from), String(to)];
      return { from, to, gone, points: ends(graph.edge(a, b).points, graph.node(a), graph.node(b)) };
    }),
  };
  return known[key];
}

// Through the points from layer to layer; it leaves and enters boxes straight down.
function curve(points) {
  let path = `M${points[0].x} ${points[0].y}`;
  for (let i = 1; i < points.length; i++) {
    const a = points[i - 1], b = points[i], middle = (a.y + b.y) / 2;
    path += `C${a.x} ${middle} ${b.x} ${middle} ${b.x} ${b.y}`;
  }
  return path;
}

function ends(points, from, to) {
  const within = (x, box) => Math.max(box.x - box.width / 2 + 8, Math.min(x, box.x + box.width / 2 - 8));
  const first = { x: within(points[0].x, from), y: from.y + from.height / 2 };
  const last = { x: within(points[points.length - 1].x, to), y: to.y - to.height / 2 };
  return [first, ...points.slice(2, -2), last];
}
