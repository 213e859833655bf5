// Pictures to keep: what the panes show, with its words, as a PNG file.

// The panes side by side at a fixed size, with what a picture must say of itself around and below them.
function composed() {
  const [size, margin, line] = [720, 26, 26];
  const inner = size - 2 * margin;
  const shown = panes().filter((pane) => !pane.hidden && !contentOf(pane).small).map(contentOf);
  const canvas = document.createElement("canvas");
  canvas.width = size * shown.length;
  canvas.height = size + 5 * line;
  const context = canvas.getContext("2d");
  context.fillStyle = "#0e1116";
  context.fillRect(0, 0, canvas.width, canvas.height);
  shown.forEach((content, place) => {
    const part = document.createElement("canvas");
    drawView(part, inner, content);
    const left = place * size + margin;
    context.drawImage(part, left, margin);
    surround(context, left, margin, inner, margin, views.get(content.view), given.side * given.spacing);
    pictureWords(context, content, place * size + 14, size, line);
  });
  context.textAlign = "left";
  context.textBaseline = "alphabetic";
  context.fillStyle = "#ffd98f";
  context.font = face(17, 700);
  context.fillText(`${given.research}${given.synthetic ? "  \u00b7  Synthetic phantom" : ""}`, 14, size + 4.4 * line);
  return canvas;
}

// Below one picture: what it shows, its window, and the limits of its colours.
function pictureWords(context, content, x, y, line) {
  const { target, method } = content;
  const limit = layerFor(target, method)?.limits[target];
  const malignancy = target === "malignancy" ? " (reader-assessed likelihood)" : "";
  const scale = state.map && limit
    ? `Orange raises, blue lowers${malignancy}: full colour at ${signed(limit)} and ${signed(-limit)}; lines at half`
    : "No map shown";
  const window = `Window ${minus(Math.round(state.low))} to ${minus(Math.round(state.high))} HU`;
  context.fillStyle = "#e9edf3";
  context.textBaseline = "alphabetic";
  context.textAlign = "left";
  [`Nodule ${given.nodule}`, `${caption(content)}  \u00b7  ${window}`, scale].forEach((text, place) => {
    context.font = face(15, place ? 400 : 700);
    context.fillText(text, x, y + (place + 1) * line, 692);
  });
}

const asBlob = () => new Promise((done) => composed().toBlob(done, "image/png"));

async function copyPicture() {
  try {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": asBlob() })]);
    element("spoken").textContent = element("copied").textContent = "Picture copied.";
  } catch {
    await savePicture("This browser does not let the page copy; the picture was saved instead.");
  }
}

async function savePicture(told = "Picture saved.") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await asBlob());
  link.download = `${given.nodule}_${state.view}_${state.target}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  element("spoken").textContent = element("copied").textContent = typeof told === "string" ? told : "Picture saved.";
}
