(() => {
  "use strict";
  const held = document.getElementById("drawings");
  if (!held || !window.Plotly) return;
  const { palettes, figures } = JSON.parse(held.textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const family = getComputedStyle(document.body).fontFamily;
  let printing = false;

  const colors = () => palettes[dark.matches && !printing ? "dark" : "light"];

  // "@role" or "@role/alpha" where a specification names a colour.
  const color = (text, palette) => {
    const token = /^@([a-z]+)(?:\/([\d.]+))?$/.exec(text);
    if (!token) return text;
    const hex = palette[token[1]];
    if (!token[2]) return hex;
    const channel = (at) => parseInt(hex.slice(at, at + 2), 16);
    return `rgba(${channel(1)},${channel(3)},${channel(5)},${token[2]})`;
  };

  const painted = (value, palette, named) => {
    if (Array.isArray(value)) return value.map((item) => painted(item, palette, named));
    if (typeof value === "string") return named ? color(value, palette) : value;
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, item]) => [key, painted(item, palette, /color(scale)?$/.test(key))]),
    );
  };

  const draw = (place) => {
    const name = place.dataset.plot;
    const palette = colors();
    const { data, layout } = painted(figures[name], palette, false);
    layout.font = { ...layout.font, family };
    layout.hoverlabel = { ...layout.hoverlabel, bgcolor: palette.paper, bordercolor: palette.faint };
    layout.hoverlabel.font = { ...layout.hoverlabel.font, color: palette.ink, family };
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: palette.faint, activecolor: palette.ink };
    place.dataset.drawn = "yes";
    return window.Plotly.react(place, data, layout, {
      responsive: true,
      displaylogo: false,
      showSendToCloud: false,
      modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
      toImageButtonOptions: { format: "svg", filename: name },
    });
  };

  const places = [...document.querySelectorAll(".plot")];
  for (const place of places) {
    place.style.height = `${place.dataset.height}px`;
    if (place.dataset.width) place.style.maxWidth = `${place.dataset.width}px`;
  }
  // One figure a turn, from the top: the page stays responsive while many are drawn.
  const waiting = [...places];
  const turn = () => {
    const place = waiting.shift();
    if (!place) return;
    if (!place.dataset.drawn) draw(place);
    setTimeout(turn);
  };
  setTimeout(turn);

  const redraw = () => places.filter((place) => place.dataset.drawn).forEach(draw);
  dark.addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => {
    printing = true;
    for (const fold of document.querySelectorAll("details")) fold.open = true;
    places.forEach(draw);
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    redraw();
  });
})();
