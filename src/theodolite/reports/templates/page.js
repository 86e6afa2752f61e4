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

  // A plane keeps its shape: where it is narrower than planned it is lower too, but for the labels around it.
  const labels = { beside: 160, around: 90 };
  const height = ({ dataset, clientWidth }) => {
    const planned = Number(dataset.height);
    if (!dataset.width) return planned;
    const share = (clientWidth - labels.beside) / (Number(dataset.width) - labels.beside);
    return Math.round(labels.around + (planned - labels.around) * Math.min(Math.max(share, 0.3), 1));
  };

  // A surface needs WebGL; without it the picture for readers without scripts stands in its place.
  const webgl = (() => {
    const context = document.createElement("canvas").getContext("webgl");
    context?.getExtension("WEBGL_lose_context")?.loseContext();
    return Boolean(context);
  })();

  const draw = (place) => {
    const name = place.dataset.plot;
    if (figures[name].layout.scene && !webgl) {
      place.innerHTML = place.nextElementSibling.textContent;
      place.dataset.drawn = "yes";
      return undefined;
    }
    const palette = colors();
    const { data, layout } = painted(figures[name], palette, false);
    layout.height = height(place);
    place.style.height = `${layout.height}px`;
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
    if (place.dataset.width) place.style.maxWidth = `${place.dataset.width}px`;
    place.style.height = `${height(place)}px`;
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
  window.addEventListener("resize", () => {
    places.filter((place) => place.dataset.drawn && place.clientHeight !== height(place)).forEach(draw);
  });
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
