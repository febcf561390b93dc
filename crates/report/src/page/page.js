// Shows the values under the pointer. The page is complete without it.
for (const svg of document.querySelectorAll("svg.chart")) {
  const series = JSON.parse(svg.dataset.hover);
  const figure = svg.parentElement, tip = figure.querySelector(".tip"), cursor = svg.querySelector(".cursor");
  const nearest = (points, x) => points.reduce((best, p) => (Math.abs(p[1] - x) < Math.abs(best[1] - x) ? p : best));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), width = svg.viewBox.baseVal.width;
    const x = ((event.clientX - box.left) / box.width) * width;
    const at = nearest(series.flatMap((s) => s.points), x);
    const lines = [`${svg.dataset.step} ${Math.round(at[0])}`];
    for (const s of series) {
      const p = nearest(s.points, at[1]);
      if (Math.abs(p[1] - at[1]) < 6) lines.push(`${s.name}: ${p[2]}`);
    }
    tip.replaceChildren(...lines.map((line) => Object.assign(document.createElement("div"), { textContent: line })));
    tip.style.display = "block";
    const left = (at[1] / width) * box.width;
    tip.style.left = `${left > box.width / 2 ? left - tip.offsetWidth - 12 : left + 12}px`;
    tip.style.top = "14px";
    cursor.setAttribute("x1", at[1]);
    cursor.setAttribute("x2", at[1]);
  });
  svg.addEventListener("pointerleave", () => {
    tip.style.display = "none";
    cursor.setAttribute("x1", -9);
    cursor.setAttribute("x2", -9);
  });
}
