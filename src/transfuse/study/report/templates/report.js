"use strict";
// The page is complete without this; it adds sorting by column, filtering, and values on hovering, tapping or focus.

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const sort = (head, down) => {
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[head.cellIndex].dataset.sort ?? row.cells[head.cellIndex].textContent.trim();
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
    const numeric = rows.every(([text]) => text !== "" && Number.isFinite(Number(text)));
    const collator = new Intl.Collator("en", { numeric: true });
    rows.sort(numeric ? ([a], [b]) => a - b : ([a], [b]) => collator.compare(a, b));
    table.tBodies[0].append(...(down ? rows.reverse() : rows).map(([, row]) => row));
  };
  for (const head of heads) {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(head, head.getAttribute("aria-sort") === "ascending"));
  }
  return (index, down) => sort(heads[index], down);
}

// Narrow screens show rows as cards, without a head to click on.
function sortList(table, sort) {
  const list = document.createElement("select");
  list.ariaLabel = "sort by";
  list.add(new Option("sort by", ""));
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    const numeric = head.classList.contains("n");
    const name = head.textContent.trim().toLowerCase();
    list.add(new Option(`${name} ${numeric ? "↑" : ""}`, `${index} up`));
    if (numeric) list.add(new Option(`${name} ↓`, `${index} down`));
  });
  list.addEventListener("change", () => {
    const [index, way] = list.value.split(" ");
    if (index) sort(Number(index), way === "down");
  });
  return list;
}

function filterable(tools, table) {
  const rows = [...table.tBodies[0].rows];
  const texts = new Map(); // read when first asked for: opening a large page should not wait for it
  const text = (row) => texts.get(row) ?? texts.set(row, row.textContent.toLowerCase()).get(row);
  const count = tools.querySelector("output");
  const filter = () => {
    const words = tools.querySelector("[type=search]").value.toLowerCase().split(/\s+/).filter(Boolean);
    const kinds = new Set([...tools.querySelectorAll(":checked[type=checkbox]")].map((box) => box.value));
    let shown = 0;
    for (const row of rows) {
      row.hidden = !kinds.has(row.dataset.kind) || !words.every((word) => text(row).includes(word));
      shown += !row.hidden;
    }
    count.value = shown === rows.length ? "" : `${shown} of ${rows.length} shown`;
  };
  tools.addEventListener("input", filter);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const sort = sortable(table);
  const tools = table.previousElementSibling;
  if (!tools?.matches(".tools")) continue;
  tools.querySelector(".sorting").append(sortList(table, sort));
  filterable(tools, table);
  tools.hidden = false;
}

const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);

function show(words, left, top) {
  tip.textContent = words;
  tip.hidden = false;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${scrollX + Math.max(4, Math.min(left + 12, room))}px`;
  const above = top - tip.offsetHeight - 10;
  tip.style.top = `${scrollY + (above > 0 ? above : top + 16)}px`;
}

function hide() {
  tip.hidden = true;
  document.querySelector("svg .cursor")?.remove();
}

// The words of a mark; its title becomes ours, or the browser would show it as well.
function wordsOf(target) {
  const mark = target.closest?.("svg :not(text)");
  for (let element = mark; element && element.localName !== "svg"; element = element.parentElement) {
    const title = element.querySelector(":scope > title");
    if (title) {
      element.dataset.tip = title.textContent;
      element.setAttribute("aria-label", title.textContent);
      title.remove();
    }
    if (element.dataset.tip) return element.dataset.tip;
  }
  return "";
}

function curveAt(svg, index) {
  const at = svg.dataset.at.split(" ");
  const rows = [...svg.querySelectorAll(".arm")]
    .map((arm) => [arm.dataset.arm, arm.dataset.values.split(" ")[index]])
    .filter(([, value]) => value !== "-");
  const plain = (text) => Number(text.replaceAll(",", ""));
  rows.sort(([, a], [, b]) => plain(b) - plain(a));
  const cursor = document.createElementNS(svg.namespaceURI, "path");
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("d", `M${at[index]} 8V180`);
  hide();
  svg.append(cursor);
  svg.dataset.index = index;
  const box = svg.getBoundingClientRect();
  const x = box.left + (at[index] / svg.viewBox.baseVal.width) * box.width;
  const step = svg.dataset.steps.split(" ")[index];
  show([`step ${step}`, ...rows.map(([arm, value]) => `${value}  ${arm}`)].join("\n"), x, box.top + 8);
}

function point(event) {
  const svg = event.target.closest?.("svg.curves");
  if (svg) {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const far = svg.dataset.at.split(" ").map((place) => Math.abs(place - x));
    return curveAt(svg, far.indexOf(Math.min(...far)));
  }
  const words = event.target.closest?.("svg") ? wordsOf(event.target) : "";
  if (words) show(words, event.clientX, event.clientY);
  else if (!tip.hidden) hide();
}

document.addEventListener("pointermove", point);
document.addEventListener("pointerdown", point);
document.addEventListener("focusin", ({ target }) => {
  if (!target.matches("svg .mark, svg.curves") || !target.matches(":focus-visible")) return;
  const box = target.getBoundingClientRect();
  if (target.matches(".curves")) curveAt(target, target.dataset.index ?? target.dataset.at.split(" ").length - 1);
  else show(wordsOf(target), box.left, box.top);
});
document.addEventListener("focusout", hide);
document.addEventListener("keydown", (event) => {
  const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (event.key === "Escape") hide();
  if (!way || !event.target.matches("svg.curves")) return;
  event.preventDefault();
  const last = event.target.dataset.at.split(" ").length - 1;
  curveAt(event.target, Math.max(0, Math.min(last, Number(event.target.dataset.index ?? last) + way)));
});
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
