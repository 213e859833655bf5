// Numbers on grids: unpacking, slices of the cube, interpolation, contour lines, positions. Nothing here draws.

// Base64 of deflated bytes to a typed array.
async function unpack(text, Kind) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Kind(await new Response(stream).arrayBuffer());
}

// Index [slice, row, column] in the cube of the pixel (row, column) of a view's image, as it is looked at.
function voxelOf(view, side, depth, row, column) {
  const up = view.flip ? side - 1 - row : row;
  return [
    [depth, up, column],
    [up, depth, column],
    [up, column, depth],
  ][view.axis];
}

// One slice of a cube [slice, row, column] as it is looked at.
function cutOf(cube, view, side, depth) {
  const image = new cube.constructor(side * side);
  for (let row = 0; row < side; row++) {
    for (let column = 0; column < side; column++) {
      const [z, y, x] = voxelOf(view, side, depth, row, column);
      image[row * side + column] = cube[(z * side + y) * side + x];
    }
  }
  return image;
}

const triangle = (x) => Math.max(0, 1 - Math.abs(x));

// Keys' cubic convolution with a = -1/2.
function cubic(x) {
  const t = Math.abs(x);
  if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
  return t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
}

// For each of `to` pixels: which of `from` cells it mixes, and with which weights; what lies outside is left out.
function mixing(from, to, kernel, reach) {
  return Array.from({ length: to }, (_, place) => {
    const centre = ((place + 0.5) * from) / to - 0.5;
    const first = Math.max(0, Math.ceil(centre - reach));
    const last = Math.min(from - 1, Math.floor(centre + reach));
    const weights = [];
    for (let cell = first; cell <= last; cell++) weights.push(kernel(cell - centre));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: weights.map((weight) => weight / total) };
  });
}

// A grid of rows x columns, enlarged to size x size: along the rows first, then across them.
function enlarge(grid, rows, columns, size, kernel, reach) {
  const across = mixing(columns, size, kernel, reach);
  const down = mixing(rows, size, kernel, reach);
  const wide = new Float32Array(rows * size);
  for (let row = 0; row < rows; row++) {
    for (let x = 0; x < size; x++) {
      const { first, weights } = across[x];
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * grid[row * columns + first + k];
      wide[row * size + x] = sum;
    }
  }
  const image = new Float32Array(size * size);
  for (let y = 0; y < size; y++) {
    const { first, weights } = down[y];
    for (let k = 0; k < weights.length; k++) {
      const from = (first + k) * size;
      const weight = weights[k];
      for (let x = 0; x < size; x++) image[y * size + x] += weight * wide[from + x];
    }
  }
  return image;
}

// Lines where a grid of cell values crosses `level`: polylines [[x, y], ...] in shares of the picture's side.
// Cells beyond the edge count as below the level. Marching squares; a saddle keeps its two high corners apart.
function contours(grid, rows, columns, level) {
  const low = level - Math.abs(level) - 1;
  const at = (row, column) =>
    row < 0 || column < 0 || row >= rows || column >= columns ? low : grid[row * columns + column];
  const next = new Map();
  const point = (r1, c1, r2, c2) => {
    const [a, b] = [at(r1, c1), at(r2, c2)];
    const share = (level - a) / (b - a);
    const clamp = (value) => Math.min(1, Math.max(0, value));
    return [clamp((c1 + share * (c2 - c1) + 0.5) / columns), clamp((r1 + share * (r2 - r1) + 0.5) / rows)];
  };
  const edges = (r, c) => ({
    top: { key: `h${r},${c}`, of: () => point(r, c, r, c + 1) },
    bottom: { key: `h${r + 1},${c}`, of: () => point(r + 1, c, r + 1, c + 1) },
    left: { key: `v${r},${c}`, of: () => point(r, c, r + 1, c) },
    right: { key: `v${r},${c + 1}`, of: () => point(r, c + 1, r + 1, c + 1) },
  });
  // By which of the corners (top left 1, top right 2, bottom right 4, bottom left 8) are high: from edge to edge.
  const steps = [
    "", "left top", "top right", "left right", "right bottom", "left top right bottom", "top bottom", "left bottom",
    "bottom left", "bottom top", "top right bottom left", "bottom right", "right left", "right top", "top left", "",
  ];
  for (let r = -1; r < rows; r++) {
    for (let c = -1; c < columns; c++) {
      const corners = [at(r, c), at(r, c + 1), at(r + 1, c + 1), at(r + 1, c)];
      const kind = corners.reduce((sum, value, bit) => sum + (value >= level ? 1 << bit : 0), 0);
      const names = steps[kind] ? steps[kind].split(" ") : [];
      const around = edges(r, c);
      for (let k = 0; k < names.length; k += 2) {
        const [from, to] = [around[names[k]], around[names[k + 1]]];
        next.set(from.key, { to: to.key, point: from.of() });
      }
    }
  }
  return loopsOf(next);
}

// Follows steps from edge to edge into closed lines.
function loopsOf(next) {
  const lines = [];
  while (next.size) {
    const [start] = next.keys();
    const line = [];
    for (let key = start; next.has(key); ) {
      const step = next.get(key);
      next.delete(key);
      line.push(step.point);
      key = step.to;
    }
    lines.push([...line, line[0]]);
  }
  return lines;
}

// A position (x, y, z), mm, in DICOM's patient axes as letters and distances: L 45.3, P 12.0, H 107.0.
function bodyWords([x, y, z]) {
  const sides = [["L", "R", x], ["P", "A", y], ["H", "F", z]];
  return sides.map(([plus, minus, mm]) => `${mm < 0 ? minus : plus} ${Math.abs(mm).toFixed(1)}`).join(" ");
}

// A score with its sign and three significant digits; a plain 0 for zero.
function signed(value) {
  if (!value) return "0";
  const text = Number(Math.abs(value).toPrecision(3)).toString();
  return `${value < 0 ? "\u2212" : "+"}${text}`;
}

const minus = (value) => String(value).replace("-", "\u2212");
