// The server's API: every call that the page makes, and whether the server answers at all.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // 0: no answer
  }
}

const listeners = new Set();
let reachable = true;

/** Calls `tell(true|false)` when the server stops answering or answers again. */
export const onConnection = (tell) => listeners.add(tell);

function connected(now) {
  if (now === reachable) return;
  reachable = now;
  for (const tell of listeners) tell(now);
}

/** A Response with a 2xx status. Throws ApiError with the server's own words, or AbortError. */
export async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    connected(false);
    throw new ApiError("The server does not answer.", 0);
  }
  connected(true);
  if (answer.ok) return answer;
  let words = `The server answered ${answer.status}.`;
  if (answer.headers.get("content-type")?.includes("json")) words = (await answer.json()).error ?? words;
  const error = new ApiError(words, answer.status);
  error.wait = Number(answer.headers.get("retry-after")) || 0;
  throw error;
}

/** As `request`, but asked again, three times, while the server says that it is asked too often. */
async function patient(path, options = {}) {
  for (let tries = 0; ; tries++) {
    try {
      return await request(path, options);
    } catch (error) {
      if (error.status !== 429 || tries === 3) throw error;
      await new Promise((go) => setTimeout(go, 1000 * (error.wait || 2 ** tries)));
      options.signal?.throwIfAborted();
    }
  }
}

const get = async (path, signal) => (await patient(path, { signal })).json();
const post = (path, body, signal) =>
  patient(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });

export const about = () => get("/api/about");
export const version = async () => (await (await request("/api/version", { cache: "no-store" })).json()).version;
export const chip = (id) => get(`/api/chip?${new URLSearchParams({ id })}`);
export const chipAt = (lon, lat, filters, signal) =>
  get(`/api/chip?${new URLSearchParams({ at: `${lon},${lat}`, ...filters })}`, signal);
export const outlines = (bbox, filters, signal) =>
  get(`/api/chips?${new URLSearchParams({ bbox: bbox.join(), ...filters })}`, signal);
export const search = async (query, signal) => (await post("/api/search", query, signal)).json();
export const picture = (id, signal) => patient(`/api/picture/${encodeURIComponent(id)}.png`, { signal });

/** The results as a file: {blob, name}. */
export async function exported(query) {
  const answer = await post("/api/export", query);
  const name = /filename="?([^";]+)/.exec(answer.headers.get("content-disposition") ?? "")?.[1];
  return { blob: await answer.blob(), name: name ?? `results.${query.format === "geojson" ? "geojson" : "parquet"}` };
}

/** The address of a map layer's tiles, as MapLibre wants it. */
export const tiles = (layer, filters, version) =>
  `${location.origin}/api/tiles/${layer}/{z}/{x}/{y}.png?${new URLSearchParams({ ...filters, v: version })}`;
