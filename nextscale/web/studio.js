// The brush of the edit tab, the edges of the compare tab, and two keys: Ctrl+Enter begins, Escape stops. Listens on the document, since the page
// replaces its parts whenever a new picture comes.
(() => {
  const past = new WeakMap(); // canvas -> earlier contents, for undo
  const MOST_PAST = 30;
  let stroke = null;

  const brushOf = (node) => node.closest?.(".brush");
  const canvasOf = (brush) => brush.querySelector("canvas");
  const pen = (canvas) => canvas.getContext("2d", { willReadFrequently: true });

  function remember(canvas) {
    const kept = past.get(canvas) ?? [];
    kept.push(pen(canvas).getImageData(0, 0, canvas.width, canvas.height));
    past.set(canvas, kept.slice(-MOST_PAST));
  }

  function place(canvas, event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  }

  function line(canvas, from, to) {
    const brush = brushOf(canvas), draw = pen(canvas);
    const erase = brush.querySelector("[data-tool=erase]").getAttribute("aria-pressed") === "true";
    draw.globalCompositeOperation = erase ? "destination-out" : "source-over";
    draw.strokeStyle = "#e5484d";
    draw.lineWidth = (Number(brush.querySelector("input").value) / 100) * canvas.width;
    draw.lineCap = draw.lineJoin = "round";
    draw.beginPath();
    draw.moveTo(...from);
    draw.lineTo(...to);
    draw.stroke();
    draw.globalCompositeOperation = "source-over";
  }

  function invert(canvas) {
    const draw = pen(canvas);
    draw.globalCompositeOperation = "xor";
    draw.fillStyle = "#e5484d";
    draw.fillRect(0, 0, canvas.width, canvas.height);
    draw.globalCompositeOperation = "source-over";
  }

  const tools = {
    undo: (canvas) => {
      const last = past.get(canvas)?.pop();
      if (last) pen(canvas).putImageData(last, 0, 0);
    },
    clear: (canvas) => { remember(canvas); pen(canvas).clearRect(0, 0, canvas.width, canvas.height); },
    invert: (canvas) => { remember(canvas); invert(canvas); },
  };

  document.addEventListener("pointerdown", (event) => {
    const canvas = event.target.closest?.(".brush canvas");
    if (!canvas || event.button) return;
    event.preventDefault();
    remember(canvas);
    stroke = { canvas, at: place(canvas, event) };
    line(canvas, stroke.at, stroke.at);
  });
  document.addEventListener("pointermove", (event) => {
    if (!stroke) return;
    const to = place(stroke.canvas, event);
    line(stroke.canvas, stroke.at, to);
    stroke.at = to;
  });
  for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, () => { stroke = null; });

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".brush button");
    if (!button) return;
    const tool = button.dataset.tool;
    if (tool === "erase") button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    else tools[tool](canvasOf(brushOf(button)));
  });

  // Two pictures on top of each other: how much of the upper one is seen.
  document.addEventListener("input", (event) => {
    const pair = event.target.closest?.(".slider-pair");
    pair?.style.setProperty("--at", `${event.target.value}%`);
  });

  // A mask that comes with the picture (from the history) is drawn as if by hand.
  new MutationObserver(() => {
    for (const canvas of document.querySelectorAll(".brush canvas[data-mask]")) {
      const mask = new Image();
      mask.src = canvas.dataset.mask;
      delete canvas.dataset.mask;
      mask.onload = () => pen(canvas).drawImage(mask, 0, 0, canvas.width, canvas.height);
    }
  }).observe(document.documentElement, { childList: true, subtree: true });

  // What was painted, as a PNG whose alpha is the mask; empty where there is no picture.
  window.nextscaleMask = () => document.querySelector(".brush canvas")?.toDataURL("image/png") ?? "";

  const shown = (kind) => [...document.querySelectorAll(`button.${kind}`)].find((button) => button.offsetParent && !button.disabled);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) shown("begin")?.click();
    if (event.key === "Escape") shown("stop-work")?.click();
  });
})();
