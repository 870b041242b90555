"use strict";
// The page is complete without this; it adds sorting by column and filtering.
for (const head of document.querySelectorAll("table.sortable thead th")) {
  head.tabIndex = 0;
  const sort = () => {
    const body = head.closest("table").tBodies[0];
    const column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
    const order = (a, b) => key(a).localeCompare(key(b), "en", { numeric: true });
    const numbers = (a, b) => Number(key(a)) - Number(key(b));
    const rows = [...body.rows];
    const numeric = rows.every((row) => key(row) !== "" && Number.isFinite(Number(key(row))));
    rows.sort(numeric ? numbers : order);
    body.append(...(down ? rows.reverse() : rows));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      sort();
    }
  });
}
for (const tools of document.querySelectorAll(".tools")) {
  const table = tools.nextElementSibling;
  const filter = () => {
    const words = tools.querySelector("[type=search]").value.toLowerCase().split(/\s+/);
    const kinds = new Set([...tools.querySelectorAll(":checked")].map((box) => box.value));
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !kinds.has(row.dataset.kind) || !words.every((word) => text.includes(word));
    }
  };
  tools.hidden = false;
  tools.addEventListener("input", filter);
}
