// The map: tiles from the server, outlines of the chips in view, marks, results, and drawing an area.
import * as maplibregl from "./vendor/maplibre/maplibre-gl.mjs";
import * as api from "./api.js";
import { $, later, make, place } from "./dom.js";
import { caption } from "./cards.js";
import { frame } from "./pictures.js";
import { mapFilters } from "./state.js";

const NONE = { type: "FeatureCollection", features: [] };
const STEPS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 45]; // degrees between lines of the grid
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const polygon = (bbox, properties) => {
  const [w, s, e0, n] = bbox,
    e = e0 < w ? e0 + 360 : e0;
  return {
    type: "Feature",
    properties,
    geometry: {
      type: "Polygon",
      coordinates: [
        [
          [w, s],
          [e, s],
          [e, n],
          [w, n],
          [w, s],
        ],
      ],
    },
  };
};
const point = (lon, lat, properties = {}) => ({
  type: "Feature",
  properties,
  geometry: { type: "Point", coordinates: [lon, lat] },
});
const collection = (features) => ({ type: "FeatureCollection", features });

function layers() {
  const line = (id, source, name, width, more = {}) => ({
    id,
    source,
    type: "line",
    paint: { "line-color": colour(name), "line-width": width, ...more.paint },
    ...(more.filter ? { filter: more.filter } : {}),
  });
  const dot = (id, source, name, size, filter) => ({
    id,
    source,
    type: "circle",
    maxzoom: 12,
    filter: ["all", ["==", ["geometry-type"], "Point"], ...(filter ? [filter] : [])],
    paint: {
      "circle-color": colour(name),
      "circle-radius": ["interpolate", ["linear"], ["zoom"], 6, size / 2, 10, size],
      "circle-stroke-color": colour("paper"),
      "circle-stroke-width": ["interpolate", ["linear"], ["zoom"], 6, 0.75, 10, 1.5],
    },
  });
  const is = (mark) => ["==", ["get", "mark"], mark];
  return [
    { id: "paper", type: "background", paint: { "background-color": colour("sea") } },
    line("graticule", "graticule", "rule", 1),
    line("outlines", "outlines", "ink", 0.75, {
      paint: { "line-opacity": ["interpolate", ["linear"], ["zoom"], 6, 0.15, 10, 0.5] },
    }),
    line("results-case", "results", "paper", 4), // legible on any colour
    line("results", "results", "hot", 2),
    dot("results-dots", "results", "hot", 4),
    {
      id: "area-fill",
      source: "area",
      type: "fill",
      paint: { "fill-color": colour("ink"), "fill-opacity": 0.08 },
      filter: ["==", ["geometry-type"], "Polygon"],
    },
    line("area-case", "area", "paper", 5),
    line("area", "area", "ink", 2.5, { paint: { "line-dasharray": [3, 2] } }),
    { ...dot("corners", "area", "ink", 5), maxzoom: 24 },
    line("likes", "marks", "like", 2.5, { filter: is("like") }),
    line("dislikes", "marks", "dislike", 2.5, { filter: is("dislike"), paint: { "line-dasharray": [1.5, 1] } }),
    dot("likes-dots", "marks", "like", 5.5, is("like")),
    dot("dislikes-dots", "marks", "dislike", 5.5, is("dislike")),
    line("pointed", "pointed", "ink", 3),
    { ...dot("pointed-dot", "pointed", "ink", 6), maxzoom: 24 },
  ];
}

/** Creates the map. It calls act.pick(point, takeFocus), act.moved(view, bbox, byHand) and act.drawn(ring or null).
 * Throws without WebGL. */
export function makeMap(about, state, act) {
  const sources = {};
  for (const name of ["graticule", "outlines", "area", "results", "marks", "pointed"])
    sources[name] = { type: "geojson", data: NONE };
  if (about.base_map) sources.base = about.base_map;
  const style = { version: 8, sources, layers: layers() };
  if (about.base_map)
    style.layers.splice(1, 0, { id: "base", type: "raster", source: "base", paint: { "raster-saturation": -0.4 } });
  const start = state.view
    ? { center: state.view.slice(0, 2), zoom: state.view[2] }
    : about.bounds
      ? { bounds: about.bounds, fitBoundsOptions: { padding: 36, maxZoom: 12 } }
      : { center: [0, 20], zoom: 1 };
  const map = new maplibregl.Map({
    container: "map",
    style,
    ...start,
    attributionControl: false,
    dragRotate: false,
    pitchWithRotate: false,
    touchPitch: false,
    rollEnabled: false,
    fadeDuration: 100,
    maxZoom: 18,
  });
  map.touchZoomRotate.disableRotation();
  map.keyboard.disableRotation();
  map.addControl(new maplibregl.NavigationControl({ showCompass: false }), "top-right");
  map.addControl(new maplibregl.ScaleControl({ maxWidth: 90 }), "bottom-right");
  if (about.base_map?.attribution) map.addControl(new maplibregl.AttributionControl({ compact: true }), "bottom-right");
  const canvas = map.getCanvas();
  canvas.setAttribute(
    "aria-label",
    "Map of the chips: arrow keys move it, plus and minus zoom, Enter selects the chip at the cross",
  );
  canvas.setAttribute("role", "application");
  let version = about.version,
    ring = null,
    outlineRequest,
    ready = false;
  const waiting = [];
  const whenReady = (run) => (ready ? run() : waiting.push(run));
  map.once("load", () => {
    ready = true;
    for (const run of waiting.splice(0)) run();
  });
  const set = (name, data) => whenReady(() => map.getSource(name).setData(data));
  const box = () => {
    // as the API expects boxes: west > east crosses the antimeridian
    const b = map.getBounds(),
      turn = (v) => ((((v + 540) % 360) + 360) % 360) - 180;
    const lat = [Math.max(-90, b.getSouth()), Math.min(90, b.getNorth())];
    const wide = b.getEast() - b.getWest() >= 359;
    let [w, e] = wide ? [-180, 180] : [turn(b.getWest()), turn(b.getEast())];
    if (w > e && w - e < 180) [w, e] = [-180, 180]; // more than half the world
    return [w, lat[0], e, lat[1]];
  };

  function graticule() {
    const b = map.getBounds(),
      span = b.getEast() - b.getWest();
    const step = STEPS.find((s) => span / s <= (canvas.clientWidth < 500 ? 4 : 7)) ?? 60;
    const west = Math.floor(b.getWest() / step) * step,
      south = Math.max(Math.ceil(-85 / step), Math.floor(b.getSouth() / step)) * step;
    const lines = [],
      labels = [],
      digits = step < 0.1 ? 2 : step < 1 ? 1 : 0,
      degrees = (value, below, above) => {
        const text = Math.abs(value).toFixed(digits);
        return `${text}°${Number(text) ? (value < 0 ? below : above) : ""}`;
      };
    for (let lon = west; lon <= b.getEast() + step; lon += step) {
      lines.push([
        [lon, -85],
        [lon, 85],
      ]);
      const x = map.project([lon, b.getSouth()]).x,
        turned = ((((lon + 540) % 360) + 360) % 360) - 180;
      if (x > 130 && x < canvas.clientWidth - 120)
        labels.push([x, null, degrees(turned, "W", "E")]);
    }
    for (let lat = south; lat <= Math.min(85, b.getNorth() + step); lat += step) {
      lines.push([
        [west - step, lat],
        [b.getEast() + step, lat],
      ]);
      const y = map.project([b.getWest(), lat]).y;
      if (y > 64 && y < canvas.clientHeight - 40)
        labels.push([null, y, degrees(lat, "S", "N")]);
    }
    set(
      "graticule",
      collection([{ type: "Feature", properties: {}, geometry: { type: "MultiLineString", coordinates: lines } }]),
    );
    $("grid-labels").replaceChildren(
      ...labels.map(([x, y, text]) => {
        const label = make("span", { textContent: text, className: x === null ? "lat" : "lon" });
        if (x === null) label.style.top = `${y}px`;
        else label.style.left = `${x}px`;
        return label;
      }),
    );
  }

  const outline = later(async () => {
    outlineRequest?.abort();
    outlineRequest = new AbortController();
    try {
      const answer = await api.outlines(box(), mapFilters(state), outlineRequest.signal);
      const tooMany = answer.too_many;
      set("outlines", tooMany ? NONE : answer);
      $("map-note").textContent = tooMany
        ? `${tooMany.toLocaleString("en")} chips in view: zoom in for their outlines`
        : answer.features.length
          ? ""
          : "No chips in view match the filters";
    } catch (error) {
      if (error.name !== "AbortError" && error.status) $("map-note").textContent = error.message;
    }
  }, 150);

  function tiles() {
    whenReady(() => {
      if (map.getLayer("tiles")) map.removeLayer("tiles");
      if (map.getSource("tiles")) map.removeSource("tiles");
      if (state.layer === "none") return;
      map.addSource("tiles", {
        type: "raster",
        tileSize: 256,
        maxzoom: 18,
        tiles: [api.tiles(state.layer, mapFilters(state), version)],
      });
      map.addLayer(
        {
          id: "tiles",
          type: "raster",
          source: "tiles",
          paint: { "raster-fade-duration": 100, "raster-resampling": "nearest" },
        },
        "outlines",
      );
    });
  }

  function area() {
    const corners = ring ?? [];
    if (ring)
      set(
        "area",
        collection([
          ...corners.map((c) => point(...c)),
          ...(corners.length > 1
            ? [{ type: "Feature", properties: {}, geometry: { type: "LineString", coordinates: corners } }]
            : []),
        ]),
      );
    else
      set(
        "area",
        state.area
          ? collection([{ type: "Feature", properties: {}, geometry: { type: "Polygon", coordinates: [state.area] } }])
          : NONE,
      );
    $("drawing").hidden = !ring;
    $("map-side").classList.toggle("drawing", Boolean(ring));
    if (!ring) return;
    $("draw-done").disabled = corners.length < 3;
    $("drawing-text").textContent =
      corners.length < 3
        ? `Click the corners of the area, or press Enter at the cross. ${corners.length} so far.`
        : `${corners.length} corners. Close the area, or add more.`;
  }
  function draw(on) {
    ring = on ? [] : null;
    map.doubleClickZoom[on ? "disable" : "enable"]();
    area();
    if (on) canvas.focus();
  }
  function corner(at) {
    const last = ring.at(-1),
      here = [+at.lng.toFixed(5), +at.lat.toFixed(5)];
    if (!last || last[0] !== here[0] || last[1] !== here[1]) ring.push(here);
    area();
  }
  $("draw-done").addEventListener("click", () => {
    const done = [...ring, ring[0]];
    draw(false);
    act.drawn(done);
  });
  $("draw-cancel").addEventListener("click", () => {
    draw(false);
    act.drawn(null);
  });
  $("map-side").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && ring) {
      draw(false);
      act.drawn(null);
      event.stopPropagation();
    }
    if (event.target !== canvas) return;
    if (event.key === "Enter") ring ? corner(map.getCenter()) : act.pick(map.getCenter().wrap(), true);
    else if (event.key === "Backspace" && ring) {
      ring.pop();
      area();
    } else return;
    event.preventDefault();
  });
  map.on("click", (event) => (ring ? corner(event.lngLat) : act.pick(event.lngLat.wrap(), false)));

  let peekTimer, peeking;
  const hide = () => {
    clearTimeout(peekTimer);
    peeking?.abort();
    $("peeked").hidden = true;
  };
  async function look({ lng, lat }, { x, y }) {
    peeking = new AbortController();
    try {
      const facts = await api.chipAt(lng, lat, mapFilters(state), peeking.signal),
        figure = $("peeked");
      figure.replaceChildren(frame(facts.chip_id), make("figcaption", {}, caption(facts)));
      figure.style.left = `${Math.min(Math.max(8, x + 16), canvas.clientWidth - 176)}px`;
      figure.style.top = `${y > canvas.clientHeight - 210 ? Math.max(8, y - 200) : y + 16}px`;
      figure.hidden = false;
    } catch (error) {
      if (error.name !== "AbortError") $("peeked").hidden = true; // no chip there: nothing to show
    }
  }
  map.on("mousemove", (event) => {
    const { lng, lat } = event.lngLat.wrap();
    $("pointer").textContent = place(lng, lat, 4);
    hide();
    if ($("peek").getAttribute("aria-pressed") === "true" && !ring)
      peekTimer = setTimeout(look, 180, { lng, lat }, event.point);
  });
  map.on("mouseout", () => {
    hide();
    $("pointer").textContent = "";
  });
  $("peek").addEventListener("click", () => {
    $("peek").setAttribute("aria-pressed", String($("peek").getAttribute("aria-pressed") !== "true"));
    hide();
  });

  map.on("move", graticule);
  map.on("resize", graticule);
  map.on("moveend", (event) => {
    const { lng, lat } = map.getCenter().wrap();
    act.moved([lng, lat, map.getZoom()], box(), Boolean(event.originalEvent || event.kiln));
    outline();
  });
  // The zoom buttons move the map without an original event.
  for (const b of document.querySelectorAll(".maplibregl-ctrl-group button"))
    b.addEventListener("click", () => map.once("moveend", () => act.moved(null, box(), true)));
  dark.addEventListener("change", () =>
    whenReady(() => {
      for (const { id, paint } of layers())
        for (const [key, value] of Object.entries(paint))
          if (key.endsWith("color")) map.setPaintProperty(id, key, value);
    }),
  );
  map.on("error", ({ error }) => {
    // Failed tiles are not logged: the page shows when the server does not answer.
    if (!/fetch|AJAX|abort/i.test(error?.message ?? "")) console.warn(error);
  });
  whenReady(graticule);

  return {
    box,
    draw,
    area,
    refresh(now = version) {
      version = now;
      tiles();
      outline();
    },
    results: (chips) => set("results", collection(chips.flatMap((f) => [polygon(f.bbox, {}), point(f.lon, f.lat)]))),
    marks: (known) =>
      set(
        "marks",
        collection(
          known.flatMap(({ facts, mark }) => [polygon(facts.bbox, { mark }), point(facts.lon, facts.lat, { mark })]),
        ),
      ),
    point: (facts) => set("pointed", facts ? collection([polygon(facts.bbox, {}), point(facts.lon, facts.lat)]) : NONE),
    go(facts) {
      // The map moves only if the chip is outside the view or under its card.
      const at = map.project([facts.lon, facts.lat]),
        all = canvas.getBoundingClientRect(),
        card = $("chip").getBoundingClientRect();
      const under = at.x < card.right - all.left + 20 && at.y > card.top - all.top - 20;
      if (at.x > 20 && at.y > 20 && at.x < all.width - 20 && at.y < all.height - 20 && !under) return;
      const offset = [0, (card.top - all.top - all.height) / 2]; // the centre of the part that the card leaves free
      map.easeTo({ center: [facts.lon, facts.lat], offset, duration: 500 }, { kiln: true });
    },
    map,
  };
}
