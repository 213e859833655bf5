"use strict";
// Until the rows to show are chosen, the table's body is not laid out; without a script all rows are there.
document.documentElement.classList.add("loading");
document.addEventListener("DOMContentLoaded", () => {
  const table = document.getElementById("nodules");
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const byId = (name) => document.getElementById(name);
  const [search, label, fold, worst, count, empty, more] = ["search", "label", "fold", "worst", "count", "empty", "more"].map(byId);

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

  // Laying a thousand rows out takes the time that a reader waits for; the rest comes when the table is scrolled.
  const STEP = 150;
  let limit = STEP;

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of rows) {
      const fits =
        (label.value === "" || entry.label === label.value) &&
        (fold.value === "" || entry.fold === fold.value) &&
        words.every((word) => entry.words.includes(word));
      shown += fits ? 1 : 0;
      const hidden = !fits || shown > limit;
      if (entry.row.hidden !== hidden) entry.row.hidden = hidden;
    }
    const all = `${rows.length} nodule${rows.length === 1 ? "" : "s"}`;
    count.textContent = shown === rows.length ? all : `${shown} of ${all}`;
    empty.hidden = shown > 0;
    more.hidden = shown <= limit;
  };

  const filter = () => {
    limit = STEP;
    show();
  };

  const grow = (rowsMore) => {
    limit += rowsMore;
    show();
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
    filter();
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
  more.addEventListener("click", () => grow(STEP));
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting) || more.hidden) return;
    grow(STEP);
    // An observer tells of changes alone: in a tall window the end of the table may still be in sight.
    seen.unobserve(more);
    seen.observe(more);
  }, { rootMargin: "600px" });
  seen.observe(more);
  window.addEventListener("beforeprint", () => grow(rows.length));
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
  document.documentElement.classList.remove("loading");
});
