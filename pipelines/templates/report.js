for (const figure of document.querySelectorAll(".compare")) {
  const stack = figure.querySelector(".stack"), split = figure.querySelector(".split");
  const alpha = figure.querySelector(".alpha"), shown = figure.querySelector("output");
  const results = [...figure.querySelectorAll(".after")];
  const divide = () => stack.style.setProperty("--split", `${split.value}%`);
  const choose = () => {
    results.forEach((image, index) => { image.hidden = index !== Number(alpha.value); });
    shown.value = results[alpha.value].dataset.name;
    alpha.setAttribute("aria-valuetext", shown.value);
  };
  const follow = (event) => {
    const { left, width } = stack.getBoundingClientRect();
    split.value = 100 * (event.clientX - left) / width;
    divide();
  };
  split.addEventListener("input", divide);
  if (alpha) { alpha.addEventListener("input", choose); choose(); }
  stack.addEventListener("pointerdown", (event) => { stack.setPointerCapture(event.pointerId); follow(event); });
  stack.addEventListener("pointermove", (event) => { if (event.buttons || event.pointerType === "mouse") follow(event); });
  figure.hidden = false;
  divide();
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const falls = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value;
      const order = (a, b) => head.dataset.kind === "text" ? value(a).localeCompare(value(b)) : value(a) - value(b);
      const rows = [...body.rows].sort((a, b) => falls ? order(b, a) : order(a, b));
      body.append(...rows);
    });
  });
}
