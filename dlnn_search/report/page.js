// Draws a page's pictures: as wide as their places, in the reader's light or dark colours.
(async () => {
  const NARROW = 520;
  const places = [...document.querySelectorAll(".picture[data-picture]")];
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  async function unpack() {
    const packed = document.getElementById("plotly");
    if (window.Plotly || !packed) return;
    const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    packed.remove();
  }

  function template(narrow) {
    const [text, grid, card] = dark.matches
      ? ["#e4e7eb", "#36424e", "#1b222a"] : ["#1f2933", "#dde3e8", "#f7f9fa"];
    const axis = {
      automargin: true, gridcolor: grid, zerolinecolor: grid, linecolor: grid,
      title: { standoff: 10, font: { size: narrow ? 12 : 13 } },
    };
    return { layout: {
      font: { family: "system-ui, sans-serif", size: narrow ? 11 : 12, color: text },
      paper_bgcolor: card, plot_bgcolor: card,
      xaxis: axis, yaxis: axis,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      hoverlabel: { align: "left" }, margin: { l: 8, r: 16, t: narrow ? 12 : 44, b: 8 },
    } };
  }

  function draw(place) {
    const { data, layout } = figures[place.dataset.picture];
    const narrow = place.clientWidth < NARROW;
    // Parallel axes need 90 pixels each: the value's comes first, then the most important ones.
    const axes = layout.meta?.axes ? Math.min(layout.meta.axes, Math.max(3, Math.floor(place.clientWidth / 90))) : 0;
    const xaxis = axes ? { ...layout.xaxis, range: [-0.6, axes - 0.4] } : layout.xaxis;
    const height = Math.min(layout.height || 440, narrow && !layout.meta?.tall ? 380 : Infinity);
    return Plotly.react(place, data, { ...layout, xaxis, height, width: place.clientWidth, template: template(narrow) }, {
      responsive: false, displaylogo: false, displayModeBar: !narrow && !axes,
      // These and no others: the library has one that would send the data away.
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    }).then(() => { place.dataset.drawn = narrow ? "narrow" : "wide"; });
  }

  try {
    await unpack();
    for (const place of places) { place.textContent = ""; await draw(place); }
  } catch (error) {
    const why = window.Plotly ? `The picture could not be drawn: ${error.message}`
      : document.body.dataset.missing;
    for (const place of places) {
      if (!place.dataset.drawn) place.replaceChildren(Object.assign(document.createElement("p"), { textContent: why }));
    }
    return;
  }
  const again = () => places.forEach(draw);
  dark.addEventListener("change", again);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; again(); } });
})();
