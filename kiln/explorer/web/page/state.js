// The state of the page as one object, and as the fragment of the address: a link restores the page.

export const LIKE = "like",
  DISLIKE = "dislike";

export const fresh = () => ({
  view: null, // [longitude, latitude, zoom] of the map
  layer: "coverage",
  likes: [],
  dislikes: [],
  method: "mean",
  k: 48,
  apart: null, // kilometres between results
  datasets: [],
  years: [],
  from: "",
  to: "",
  within: "all", // or the map's `view`, or the drawn `area`
  bbox: null, // of the view: west, south, east, north
  area: null, // the drawn ring of [longitude, latitude], closed
  nodata: null, // maximum fraction
  cloud: null, // maximum fraction
});

const LISTS = { like: "likes", dislike: "dislikes", dataset: "datasets" };
const NUMBERS = ["apart", "nodata", "cloud"];
const WORDS = { layer: ["coverage", "colours", "none"], method: ["mean", "linear"], within: ["all", "view", "area"] };
const DAY = /^\d{4}-\d\d-\d\d$/;

/** Returns the fragment without `#`: only what differs from a fresh page. */
export function write(state) {
  const p = new URLSearchParams(),
    plain = fresh();
  if (state.view)
    p.set("map", [state.view[2].toFixed(2), state.view[1].toFixed(5), state.view[0].toFixed(5)].join("/"));
  for (const [key, list] of Object.entries(LISTS)) for (const value of state[list]) p.append(key, value);
  for (const year of state.years) p.append("year", year);
  for (const key of ["layer", "method", "k", "apart", "from", "to", "within", "nodata", "cloud"])
    if (state[key] !== plain[key]) p.set(key, state[key]);
  if (state.within === "view" && state.bbox) p.set("bbox", state.bbox.map((v) => v.toFixed(5)).join());
  if (state.area)
    p.set(
      "area",
      state.area
        .slice(0, -1)
        .map((c) => c.map((v) => v.toFixed(5)).join())
        .join(";"),
    );
  return p.toString().replaceAll("%2F", "/").replaceAll("%2C", ",").replaceAll("%3A", ":").replaceAll("%3B", ";");
}

/** Returns the state of a fragment. Invalid values are as on a fresh page. */
export function read(fragment) {
  const p = new URLSearchParams(fragment),
    state = fresh();
  const numbers = (text, parts) => {
    const values = (text ?? "").split(parts).map((v) => (v.trim() === "" ? NaN : Number(v)));
    return values.every(Number.isFinite) ? values : [];
  };
  const [zoom, lat, lon] = numbers(p.get("map"), "/");
  if (lon !== undefined && Math.abs(lat) <= 90) state.view = [lon, lat, zoom];
  for (const [key, list] of Object.entries(LISTS)) state[list] = [...new Set(p.getAll(key))];
  state.dislikes = state.dislikes.filter((id) => !state.likes.includes(id));
  state.years = [...new Set(p.getAll("year").map(Number))].filter(Number.isInteger);
  for (const [key, allowed] of Object.entries(WORDS)) if (allowed.includes(p.get(key))) state[key] = p.get(key);
  for (const key of NUMBERS) {
    const value = Number(p.get(key));
    if (p.get(key) && value >= 0 && (key === "apart" ? value > 0 : value <= 1)) state[key] = value;
  }
  const k = Number(p.get("k"));
  if (p.has("k") && Number.isInteger(k) && k >= 1 && k <= 500) state.k = k;
  for (const key of ["from", "to"]) if (DAY.test(p.get(key))) state[key] = p.get(key);
  const bbox = numbers(p.get("bbox"), ",");
  if (bbox.length === 4) state.bbox = bbox;
  const ring = (p.get("area") ?? "").split(";").map((c) => numbers(c, ","));
  if (ring.length > 2 && ring.every((c) => c.length === 2)) state.area = [...ring, ring[0]];
  if ((state.within === "area" && !state.area) || (state.within === "view" && !state.bbox)) state.within = "all";
  return state;
}

/** Returns the filters of /api/search. */
export function filters(state) {
  const f = {};
  if (state.datasets.length) f.datasets = state.datasets;
  if (state.years.length) f.years = state.years;
  for (const key of ["from", "to"]) if (state[key]) f[key] = state[key];
  if (state.nodata !== null) f.max_nodata = state.nodata;
  if (state.cloud !== null) f.max_cloud = state.cloud;
  if (state.within === "view" && state.bbox) f.bbox = state.bbox;
  if (state.within === "area" && state.area) f.area = { type: "Polygon", coordinates: [state.area] };
  return f;
}

/** Returns the filters of the map's requests: all but bounding box and area. */
export function mapFilters(state) {
  const { bbox, area, ...rest } = filters(state);
  return Object.fromEntries(Object.entries(rest).map(([k, v]) => [k, String(v)]));
}

/** Returns the body of /api/search and /api/export. */
export const query = (state) => ({
  likes: state.likes,
  dislikes: state.dislikes,
  method: state.method,
  k: state.k,
  ...(state.apart ? { apart_km: state.apart } : {}),
  filters: filters(state),
});

/** Returns `like`, `dislike` or null. */
export const markOf = (state, id) => (state.likes.includes(id) ? LIKE : state.dislikes.includes(id) ? DISLIKE : null);

/** Marks a chip. Null, or the mark that the chip has, removes its mark. */
export function mark(state, id, kind) {
  const before = markOf(state, id);
  state.likes = state.likes.filter((i) => i !== id);
  state.dislikes = state.dislikes.filter((i) => i !== id);
  if (kind && kind !== before) state[`${kind}s`].push(id);
}
