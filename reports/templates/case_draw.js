// Pictures on canvases: CT, hatching, map, lines, words. Each function draws from what it is given and changes nothing.

// CT through a window as grey values; clipped before it is enlarged, so that bone and padding leave no ringing.
function greyOf(hu, side, size, low, high) {
  const clipped = Float32Array.from(hu, (value) => Math.min(high, Math.max(low, value)));
  const image = enlarge(clipped, side, side, size, cubic, 2);
  return image.map((value) => (Math.min(1, Math.max(0, (value - low) / (high - low))) * 255 + 0.5) | 0);
}

// CT, hatching where nothing was read, and a map over both, as pixels.
function paint(context, size, cut, shown) {
  const picture = context.createImageData(size, size);
  const pixels = new Uint32Array(picture.data.buffer);
  const grey = greyOf(cut.hu, cut.side, size, shown.low, shown.high);
  const map = shown.map;
  const scores = map && enlarge(map.scores, map.rows, map.columns, size, triangle, 1);
  const bright = map ? 1 - shown.dimmed : 1;
  const stripe = Math.max(6, Math.round(size / 24));
  for (let y = 0, place = 0; y < size; y++) {
    const row = Math.floor((y * cut.side) / size) * cut.side;
    for (let x = 0; x < size; x++, place++) {
      let red = grey[place] * bright;
      let green = red;
      let blue = red;
      if (cut.hu[row + Math.floor((x * cut.side) / size)] === cut.unread) {
        const light = (x + y) % stripe < stripe / 4;
        red = (light ? 89 : 48) * bright;
        green = (light ? 97 : 53) * bright;
        blue = (light ? 109 : 61) * bright;
      }
      const strength = scores ? strengthOf(scores[place], map) : 0;
      if (strength) {
        const colour = scores[place] > 0 ? shown.raises : shown.lowers;
        red += (colour[0] - red) * strength;
        green += (colour[1] - green) * strength;
        blue += (colour[2] - blue) * strength;
      }
      pixels[place] = pixelOf(red, green, blue);
    }
  }
  context.putImageData(picture, 0, 0);
}

// A pixel as little-endian machines keep it: alpha, blue, green, red.
const pixelOf = (red, green, blue) =>
  ((255 << 24) | (Math.round(blue) << 16) | (Math.round(green) << 8) | Math.round(red)) >>> 0;

// Opacity of a score: nothing at zero and inside the thresholds, all of it at the limit and beyond.
function strengthOf(score, map) {
  if (score > 0 ? score < map.from : -score < map.until) return 0;
  return Math.min(1, Math.abs(score) / map.limit) * map.opacity;
}

// Lines in shares of the picture's side, on a dark halo so that they show on lung and on nodule.
function stroke(context, size, lines, colour, width, dashes = []) {
  context.setLineDash(dashes.map((length) => length * size));
  context.lineJoin = "round";
  for (const [ink, thick] of [["rgba(0,0,0,0.5)", 2 * width], [colour, width]]) {
    context.strokeStyle = ink;
    context.lineWidth = Math.max(thick * size, thick === width ? 1 : 2);
    for (const line of lines) {
      context.beginPath();
      line.forEach(([x, y], place) => context[place ? "lineTo" : "moveTo"](x * size, y * size));
      context.stroke();
    }
  }
  context.setLineDash([]);
}

const face = (pixels, weight = 600) => `${weight} ${pixels.toFixed(1)}px "DejaVu Sans", Verdana, sans-serif`;

// Around a picture that is kept: letters of the patient's sides in the margin, and below it a scale bar.
function surround(context, x, y, size, margin, view, sideMm) {
  const [left, right, top, bottom] = view.letters;
  const [middle, half, far] = [size / 2, margin / 2, size + margin / 2];
  const places = [[left, -half, middle], [right, far, middle], [top, middle, -half], [bottom, middle, far]];
  const length = (10 / sideMm) * size;
  const from = x + size - length;
  context.fillStyle = context.strokeStyle = "#fff";
  context.font = face(0.62 * margin, 700);
  context.textBaseline = "middle";
  context.textAlign = "center";
  for (const [letter, across, down] of places) context.fillText(letter, x + across, y + down + 1);
  context.font = face(0.54 * margin);
  context.textAlign = "right";
  context.fillText("10 mm", from - 8, y + far);
  context.lineWidth = 2;
  context.beginPath();
  for (const end of [from, from + length]) {
    context.moveTo(end, y + far - 5);
    context.lineTo(end, y + far + 5);
  }
  context.moveTo(from, y + far);
  context.lineTo(from + length, y + far);
  context.stroke();
}

// The readers' outlines: the consensus thick and solid, others thin.
function outline(context, size, cut, levels, colours) {
  for (const { least, reader, kind } of levels) {
    const marked = reader === undefined ? (place) => cut.marked[place] >= least : (place) => (cut.each[place] >> reader) & 1;
    const mask = Float32Array.from(cut.marked, (_, place) => Number(marked(place)));
    const lines = contours(mask, cut.side, cut.side, 0.5);
    stroke(context, size, lines, colours[kind], kind === "consensus" ? 0.0085 : 0.0045);
  }
}

// Solid at plus, dashed at minus the level: the sign survives grey print.
function signLines(context, size, map, level, colours) {
  const { scores, rows, columns } = map;
  stroke(context, size, contours(scores, rows, columns, level), colours.above, 0.006);
  const turned = scores.map((score) => -score);
  stroke(context, size, contours(turned, rows, columns, level), colours.below, 0.006, [0.024, 0.018]);
}

// A cross with an open middle at the voxel's centre.
function cross(context, size, row, column, side) {
  const [x, y, half] = [(column + 0.5) / side, (row + 0.5) / side, 0.5 / side];
  const arm = half + 0.03;
  const lines = [
    [[x - arm, y], [x - half, y]],
    [[x + half, y], [x + arm, y]],
    [[x, y - arm], [x, y - half]],
    [[x, y + half], [x, y + arm]],
  ];
  stroke(context, size, lines, "#8dff8d", 0.004);
}
