"use strict";
(() => {
  const table = document.getElementById("nodules");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const search = document.getElementById("search");
  const label = document.getElementById("label");
  const count = document.getElementById("count");

  const filter = () => {
    const words = search.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = row.cells[1].dataset.sort.toLowerCase().includes(words);
      row.hidden = !fits || (label.value !== "" && row.dataset.label !== label.value);
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${rows.length} nodules`;
  };

  const compare = (column, direction) => (first, second) => {
    const [a, b] = [first, second].map((row) => row.cells[column].dataset.sort);
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    const numbers = !Number.isNaN(x) && !Number.isNaN(y);
    return direction * (numbers ? x - y : a.localeCompare(b));
  };

  const sort = (heading) => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    rows.sort(compare(heading.cellIndex, ascending ? 1 : -1));
    body.append(...rows);
  };

  for (const button of table.tHead.querySelectorAll("button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }
  search.addEventListener("input", filter);
  label.addEventListener("change", filter);
  search.form.addEventListener("submit", (event) => event.preventDefault());
})();
