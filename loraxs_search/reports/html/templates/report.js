(() => {
  "use strict";
  const touch = matchMedia("(pointer: coarse)").matches;
  const draw = (node) => {
    if (node.dataset.drawn) return;
    node.dataset.drawn = "yes";
    const figure = JSON.parse(document.getElementById(node.dataset.figure).textContent);
    if (touch) figure.layout.dragmode = false; // a finger scrolls the page
    const options = { responsive: true, displayModeBar: false, doubleClick: "reset" };
    Plotly.newPlot(node, figure.data, figure.layout, options);
  };
  const nodes = [...document.querySelectorAll(".plot")];
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "800px" });
  nodes.forEach((node) => near.observe(node));
  // In the frame of an artifact viewer, a link within the page may lead to the viewer's own.
  document.addEventListener("click", (click) => {
    const link = click.target.closest("a[href^='#']");
    const target = link && document.getElementById(link.hash.slice(1));
    if (!target) return;
    click.preventDefault();
    target.scrollIntoView();
    target.setAttribute("tabindex", "-1");
    target.focus({ preventScroll: true });
  });
  addEventListener("beforeprint", () => nodes.forEach(draw));
})();
