// The viewer: its state, what it draws of it, and what it reads under the cross.

const element = (id) => document.getElementById(id);
const given = JSON.parse(element("viewer-data").textContent);
const views = new Map(given.views.map((view) => [view.key, view]));
const titles = new Map(given.targets.map((target) => [target.key, target.title]));
const MOST_PIXELS = 768;

const initial = () => ({
  target: given.targets.find(({ key }) => layerFor(key))?.key ?? given.targets[0].key,
  method: given.layers[0]?.method ?? "",
  compare: "",
  view: "axial",
  slices: Object.fromEntries(given.views.map(({ key }) => [key, given.central])),
  map: true,
  low: -1350,
  high: 150,
  opacity: given.opacity,
  from: 0,
  until: 0,
  outlines: "both",
  probe: null,
});

let volume;
let state;
let waiting = false;
let typed = "";

function layerFor(target, method) {
  return given.layers.find((layer) => layer.targets.includes(target) && (!method || layer.method === method));
}

// What a pane shows: [target, method]. The second pane compares another target by the same method, or another method.
function chosen(second) {
  if (!second || !state.compare) return [state.target, state.method];
  const [kind, name] = state.compare.split(":");
  return kind === "method" ? [state.target, name] : [name, state.method];
}

// The token grid of a target on a slice, or null where there is none.
function mapOn(target, method, view, depth) {
  const layer = layerFor(target, method);
  if (layer?.cube) return cubeMap(layer, target, view, depth);
  const places = layer && [layer.targets.indexOf(target), layer.views.indexOf(view), layer.slices.indexOf(depth)];
  if (!layer || places.includes(-1)) return null;
  const { rows, columns } = layer;
  const [count, depths] = [rows * columns, layer.slices.length];
  const start = ((places[0] * layer.views.length + places[1]) * depths + places[2]) * count;
  return { scores: layer.values.subarray(start, start + count), rows, columns, limit: layer.limits[target] };
}

// The same of a volume of scores on the cube's own voxels.
function cubeMap(layer, target, view, depth) {
  const { side } = given;
  const start = layer.targets.indexOf(target) * side ** 3;
  const scores = cutOf(layer.values.slice(start, start + side ** 3), views.get(view), side, depth);
  return { scores, rows: side, columns: side, limit: layer.limits[target] };
}

function cutAt(view, depth) {
  const place = views.get(view);
  const { side, unread } = given;
  const each = volume.each && cutOf(volume.each, place, side, depth);
  return { hu: cutOf(volume.hu, place, side, depth), marked: cutOf(volume.marked, place, side, depth), each, side, unread };
}

const consensusLeast = Math.max(1, Math.ceil(given.level * given.readers - 1e-9));

// Which outlines to draw: the least number of readers or one reader's place, and how the line looks.
function outlineLevels(kind) {
  const consensus = { least: consensusLeast, kind: "consensus" };
  const each = Array.from({ length: given.readers }, (_, place) => ({ least: place + 1, kind: "reader" }));
  if (kind.startsWith("reader ")) return [consensus, { reader: Number(kind.slice(7)) - 1, kind: "reader" }];
  return { none: [], consensus: [consensus], both: [each[0], consensus], each: [...each, consensus] }[kind];
}

// ---- Drawing

// One view with everything on it; `target` none draws the plain CT.
function drawView(canvas, size, { view, depth, target, method, small }) {
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  const cut = cutAt(view, depth);
  const found = state.map ? mapOn(target, method, view, depth) : null;
  const map = found && { ...found, opacity: state.opacity, from: state.from * found.limit, until: state.until * found.limit };
  const { raises, lowers } = given.colours;
  paint(context, size, cut, { low: state.low, high: state.high, map, raises, lowers, dimmed: given.dimmed });
  if (map && state.opacity) signLines(context, size, map, given.contour * map.limit, given.colours);
  outline(context, size, cut, outlineLevels(small && state.outlines === "each" ? "both" : state.outlines), given.colours);
  if (state.probe && state.probe.view === view && state.probe.depth === depth) {
    cross(context, size, state.probe.row, state.probe.column, given.side);
  }
}

const panes = () => [...document.querySelectorAll("#panes .pane")];

// What each pane shows: the chosen view, beside it another map of it or the other two views.
function contentOf(pane) {
  const others = [...views.keys()].filter((key) => key !== state.view);
  const role = pane.dataset.role;
  const view = role === "first" || role === "second" ? state.view : others[role === "upper" ? 0 : 1];
  const [target, method] = chosen(role === "second");
  return { view, depth: state.slices[view], target, method, small: role === "upper" || role === "lower" };
}

function render() {
  waiting = false;
  element("panes").classList.toggle("compared", state.compare !== "");
  for (const pane of panes()) {
    pane.hidden = pane.dataset.role === "second" ? !state.compare : pane.dataset.role !== "first" && Boolean(state.compare);
    if (!pane.hidden) renderPane(pane);
  }
  renderControls();
}

function renderPane(pane) {
  const canvas = pane.querySelector("canvas");
  const content = contentOf(pane);
  const size = Math.min(MOST_PIXELS, Math.max(160, Math.round(canvas.clientWidth * devicePixelRatio)));
  drawView(canvas, size, content);
  canvas.setAttribute("aria-label", `${views.get(content.view).title} view, slice`);
  canvas.setAttribute("aria-valuemax", given.side);
  canvas.setAttribute("aria-valuenow", content.depth + 1);
  canvas.setAttribute("aria-valuetext", describe(content));
  pane.querySelector("figcaption").textContent = caption(content);
  pane.querySelector(".note").textContent = content.small && state.map && !mapOn(content.target, content.method, content.view, content.depth) ? "no map" : "";
  const { letters } = views.get(content.view);
  ["left", "right", "top", "bottom"].forEach((edge, place) => (pane.querySelector(`.edge.${edge}`).textContent = letters[place]));
  pane.querySelector(".ruler").style.width = `${(canvas.clientWidth * 10) / (given.side * given.spacing)}px`;
}

// Whether and which map a pane shows, in words.
function mapWords({ view, depth, target, method }) {
  if (!state.map) return "plain CT";
  if (!layerFor(target, method)) return `no ${method ? `${method} ` : ""}map of ${titles.get(target).toLowerCase()}`;
  return mapOn(target, method, view, depth) ? `${titles.get(target)}, ${method}` : "no map on this slice";
}

function caption(content) {
  const { view, depth, target, method, small } = content;
  const slice = `${views.get(view).title} ${depth + 1}/${given.side}`;
  if (small) return slice;
  const map = state.compare && state.map && mapOn(target, method, view, depth);
  return `${slice} \u00b7 ${mapWords(content)}${map ? ` \u00b7 \u00b1${signed(map.limit).slice(1)}` : ""}`;
}

function describe(content) {
  const probe = state.probe && state.probe.view === content.view ? `; ${probeWords()}` : "";
  return `Slice ${content.depth + 1} of ${given.side}, ${mapWords(content)}${probe}`;
}

// ---- The probe

function probeNumbers(target, method) {
  const { view, depth, row, column } = state.probe;
  const [z, y, x] = voxelOf(views.get(view), given.side, depth, row, column);
  const hu = volume.hu[(z * given.side + y) * given.side + x];
  const map = mapOn(target, method, view, depth);
  const cell = map && Math.floor(((row + 0.5) * map.rows) / given.side) * map.columns
    + Math.floor(((column + 0.5) * map.columns) / given.side);
  const position = [x, y, z].map((index, axis) => given.origin[axis] + index * given.spacing);
  return { hu: hu === given.unread ? null : hu, score: map ? map.scores[cell] : null, position };
}

function probeWords() {
  if (!state.probe) return "Point at a picture, or move the cross with Shift and the arrow keys.";
  const targets = state.compare ? [chosen(false), chosen(true)] : [chosen(false)];
  const { hu, position } = probeNumbers(...targets[0]);
  const scores = targets.map(([target, method]) => {
    const { score } = probeNumbers(target, method);
    const name = state.compare.startsWith("method") ? method : titles.get(target);
    return `${name} ${score === null ? "no score here" : signed(score)}`;
  });
  const frame = given.patient ? "mm" : "mm (scan's frame)";
  return [hu === null ? "not read" : `${minus(hu)} HU`, ...scores, `${bodyWords(position)} ${frame}`].join("  \u00b7  ");
}

function probeAt(pane, event) {
  const canvas = pane.querySelector("canvas");
  const box = canvas.getBoundingClientRect();
  const place = (offset, length) => Math.min(given.side - 1, Math.max(0, Math.floor((offset / length) * given.side)));
  const { view, depth } = contentOf(pane);
  return { view, depth, row: place(event.clientY - box.top, box.height), column: place(event.clientX - box.left, box.width) };
}

function moveProbe(pane, right, down) {
  const { view, depth } = contentOf(pane);
  const half = given.side / 2;
  const old = state.probe?.view === view ? state.probe : { row: half, column: half };
  const within = (value) => Math.min(given.side - 1, Math.max(0, value));
  update({ probe: { view, depth, row: within(old.row + down), column: within(old.column + right) } });
  element("spoken").textContent = probeWords();
}

// ---- Changes

function update(changes) {
  state = { ...state, ...changes };
  if (!waiting) requestAnimationFrame(render);
  waiting = true;
}

// Whether the slice changed; at the ends it does not, and a page can scroll on.
function setSlice(view, depth) {
  const within = Math.min(given.side - 1, Math.max(0, depth));
  if (within === state.slices[view]) return false;
  const probe = state.probe?.view === view ? { ...state.probe, depth: within } : state.probe;
  update({ slices: { ...state.slices, [view]: within }, probe });
  return true;
}

function setWindow(level, width) {
  const wide = Math.min(4000, Math.max(10, Math.round(width)));
  const middle = Math.min(3000, Math.max(-1500, Math.round(level)));
  update({ low: middle - wide / 2, high: middle + wide / 2 });
}

// A number that was typed; an empty field changes nothing.
function takeNumbers() {
  const number = (id, otherwise) => (element(id).value === "" ? otherwise : Number(element(id).value));
  setWindow(number("level", level()), number("width", width()));
  endTyping();
}

// What is drawn while a number is typed leaves its field alone; afterwards the field shows the window again.
function endTyping() {
  typed = "";
  update({});
}

const level = () => (state.low + state.high) / 2;
const width = () => state.high - state.low;

// The next option of a list, past those that `same` says would change nothing.
function nextOf(select, same = () => false) {
  do select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
  while (same(select.value));
  select.dispatchEvent(new Event("change", { bubbles: true }));
}
