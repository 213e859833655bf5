"use strict";
(() => {
  const table = document.getElementById("nodules");
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const byId = (name) => document.getElementById(name);
  const [search, label, fold, worst, count, empty] = ["search", "label", "fold", "worst", "count", "empty"].map(byId);

  // Read once: looking cells up again in every comparison is what makes sorting slow.
  const rows = [...body.rows].map((row) => ({
    row,
    words: row.dataset.words,
    label: row.dataset.label,
    fold: row.dataset.fold,
    values: [...row.cells].map((cell) => {
      const text = cell.dataset.sort ?? "";
      return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
    }),
  }));

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of rows) {
      const fits =
        (label.value === "" || entry.label === label.value) &&
        (fold.value === "" || entry.fold === fold.value) &&
        words.every((word) => entry.words.includes(word));
      if (entry.row.hidden === fits) entry.row.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    count.textContent = shown === rows.length ? `${shown} nodules` : `${shown} of ${rows.length} nodules`;
    empty.hidden = shown > 0;
  };

  // What is not known comes last, whichever the direction.
  const compare = (column, direction) => (first, second) => {
    const [a, b] = [first.values[column], second.values[column]];
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    return direction * order;
  };

  const sort = (heading, ascending) => {
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    rows.sort(compare(heading.cellIndex, ascending ? 1 : -1));
    body.append(...rows.map((entry) => entry.row));
    worst.setAttribute("aria-pressed", String(heading === error && !ascending));
  };

  const error = headings.find((heading) => heading.textContent === "Error");
  for (const heading of headings) {
    heading.querySelector("button")?.addEventListener("click", () => {
      sort(heading, heading.getAttribute("aria-sort") !== "ascending");
    });
  }
  worst.addEventListener("click", () => {
    const pressed = worst.getAttribute("aria-pressed") === "true";
    sort(pressed ? headings[1] : error, pressed);
  });
  search.addEventListener("input", filter);
  label.addEventListener("change", filter);
  fold.addEventListener("change", filter);
  search.form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.matches("input, select")) return;
    event.preventDefault();
    search.focus();
  });
  // A page that the browser restores keeps what was typed.
  filter();
})();
