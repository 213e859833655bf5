// The viewer's controls, by mouse and by keyboard, and its start once the page is there; the page works without.

function press(group, value) {
  for (const button of group.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.value === value));
  }
}

function renderControls() {
  press(element("targets"), state.target);
  press(element("view"), state.view);
  const preset = given.windows.find((window) => window.level === level() && window.width === width());
  press(element("window"), preset?.key ?? "");
  for (const [id, value] of [["level", level()], ["width", width()]]) {
    if (id !== typed) element(id).value = value;
  }
  element("map").setAttribute("aria-pressed", String(state.map));
  element("compare").value = state.compare;
  element("method").value = state.method;
  element("outlines").value = state.outlines;
  element("slice").value = state.slices[state.view] + 1;
  element("slice-value").textContent = `${state.slices[state.view] + 1} of ${given.side}`;
  element("probe").textContent = probeWords();
  renderScale();
  for (const part of document.querySelectorAll("#findings > div")) part.hidden = part.dataset.target !== state.target;
}

// The sliders' values and the colour bar's ends, in the scores of the chosen map.
function renderScale() {
  const limit = layerFor(state.target, state.method)?.limits[state.target];
  const [target, method] = [titles.get(state.target), state.method];
  element("opacity-value").textContent = `${Math.round(state.opacity * 100)}\u00a0%`;
  element("from-value").textContent = limit ? signed(state.from * limit) : "\u2013";
  element("until-value").textContent = limit ? signed(-state.until * limit) : "\u2013";
  for (const [id, sign] of [["lowest", -1], ["highest", 1]]) {
    element(id).textContent = limit ? signed(sign * limit) : "\u2013";
  }
  element("shown").textContent = limit ? `${target}, ${method}` : `${target}: no map`;
}

function fill(select, options) {
  for (const [value, text] of options) select.add(new Option(text, value));
}

function prepareControls() {
  const methods = [...new Set(given.layers.map((layer) => layer.method))];
  fill(element("method"), methods.map((method) => [method, method]));
  fill(element("compare"), [
    ["", "nothing"],
    ...given.targets.filter(({ key }) => layerFor(key)).map(({ key, title }) => [`target:${key}`, title]),
    ...methods.map((method) => [`method:${method}`, `method ${method}`]),
  ]);
  for (let number = 1; number <= (given.each?.count ?? 0); number++) {
    element("outlines").add(new Option(`consensus, reader ${number}`, `reader ${number}`));
  }
  element("slice").max = given.side;
  const onInput = (id, change) => element(id).addEventListener("input", (event) => change(Number(event.target.value)));
  onInput("slice", (value) => setSlice(state.view, value - 1));
  onInput("opacity", (value) => update({ opacity: value / 100 }));
  onInput("from", (value) => update({ from: value / 100 }));
  onInput("until", (value) => update({ until: value / 100 }));
  for (const id of ["level", "width"]) {
    element(id).addEventListener("input", () => (typed = id));
    element(id).addEventListener("blur", endTyping);
    element(id).addEventListener("change", takeNumbers);
  }
  for (const id of ["method", "compare", "outlines"]) {
    element(id).addEventListener("change", (event) => update({ [id]: event.target.value }));
  }
  const choose = (id, change) => element(id).addEventListener("click", (event) => {
    const value = event.target.closest("button")?.dataset.value;
    if (value) change(value);
  });
  choose("targets", (target) => update({ target }));
  choose("view", (view) => update({ view }));
  choose("window", setPreset);
  element("map").addEventListener("click", () => update({ map: !state.map }));
  element("reset").addEventListener("click", reset);
  element("copy").addEventListener("click", copyPicture);
  element("save").addEventListener("click", savePicture);
  element("help").addEventListener("click", () => element("keys").showModal());
}

function setPreset(key) {
  const { level: middle, width: wide } = given.windows.find((window) => window.key === key);
  setWindow(middle, wide);
}

function reset() {
  state = initial();
  for (const [id, value] of [["opacity", state.opacity * 100], ["from", 0], ["until", 0]]) element(id).value = value;
  update({});
}

// ---- Pointer and wheel

function preparePane(pane) {
  const canvas = pane.querySelector("canvas");
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    drag = { x: event.clientX, y: event.clientY, level: level(), width: width() };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    update({ probe: probeAt(pane, event) });
    if (!drag) return;
    const [right, down] = [event.clientX - drag.x, event.clientY - drag.y];
    if (Math.abs(right) + Math.abs(down) > 3) setWindow(drag.level + 4 * down, drag.width + 4 * right);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (drag = null));
  canvas.addEventListener("wheel", (event) => {
    const { view, depth } = contentOf(pane);
    if (!event.ctrlKey && setSlice(view, depth + Math.sign(event.deltaY))) event.preventDefault();
  }, { passive: false });
  canvas.addEventListener("dblclick", () => update({ view: contentOf(pane).view }));
  canvas.addEventListener("keydown", (event) => paneKey(pane, event));
}

function paneKey(pane, event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const { view, depth } = contentOf(pane);
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5 };
  if (event.shiftKey && arrows[event.key]) moveProbe(pane, ...arrows[event.key]);
  else if (event.key in steps) setSlice(view, depth + steps[event.key]);
  else if (event.key === "Home") setSlice(view, given.central);
  else if (event.key === "Enter") update({ view });
  else return;
  event.preventDefault();
}

// ---- Keys

const keys = {
  " ": () => update({ map: !state.map }),
  l: () => setPreset("lung"),
  m: () => setPreset("soft"),
  w: () => setPreset("wide"),
  o: () => nextOf(element("outlines")),
  c: () => nextOf(element("compare"), (value) => [`target:${state.target}`, `method:${state.method}`].includes(value)),
  v: () => update({ view: [...views.keys()][([...views.keys()].indexOf(state.view) + 1) % views.size] }),
  p: () => savePicture(),
  r: () => reset(),
  "?": () => element("keys").showModal(),
};

function pageKey(event) {
  const typing = event.target.closest?.("input, select, textarea, dialog");
  const button = event.target.closest?.("button, a, summary") && event.key === " ";
  if (typing || button || event.ctrlKey || event.altKey || event.metaKey || !element("shortcuts").checked) return;
  const target = /^[1-9]$/.test(event.key) && given.targets[Number(event.key) - 1];
  const act = target ? () => update({ target: target.key }) : keys[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
}

// ---- Start

async function start() {
  volume = { hu: await unpack(given.hu, Int16Array), marked: await unpack(given.marked, Uint8Array) };
  volume.each = given.each && await unpack(given.each.bits, Uint16Array);
  for (const layer of given.layers) layer.values = await unpack(layer.scores, Float32Array);
  state = initial();
  prepareControls();
  panes().forEach(preparePane);
  document.addEventListener("keydown", pageKey);
  document.documentElement.classList.add("live");
  element("viewer").hidden = false;
  new ResizeObserver(() => update({})).observe(element("panes"));
  render();
}

start().catch((error) => {
  // The static pictures stay; the console says why.
  console.error(error);
});
