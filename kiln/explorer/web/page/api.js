// The server's API: every request of the page, and whether the server answers.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // 0: no answer
  }
}

const listeners = new Set();
let reachable = true;

/** Calls `listener(false)` when the server stops answering, and `listener(true)` when it answers again. */
export const onConnection = (listener) => listeners.add(listener);

function connected(now) {
  if (now === reachable) return;
  reachable = now;
  for (const listener of listeners) listener(now);
}

/** Returns a Response with a 2xx status. Throws ApiError with the server's error text, or AbortError. */
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
  let message = `The server answered ${answer.status}.`;
  if (answer.headers.get("content-type")?.includes("json")) message = (await answer.json()).error ?? message;
  const error = new ApiError(message, answer.status);
  error.wait = Number(answer.headers.get("retry-after")) || 0;
  throw error;
}

/** As `request`, with three retries while the server answers that there are too many requests. */
async function requestWithRetries(path, options = {}) {
  for (let tries = 0; ; tries++) {
    try {
      return await request(path, options);
    } catch (error) {
      if (error.status !== 429 || tries === 3) throw error;
      await new Promise((done) => setTimeout(done, 1000 * (error.wait || 2 ** tries)));
      options.signal?.throwIfAborted();
    }
  }
}

const get = async (path, signal) => (await requestWithRetries(path, { signal })).json();
const post = (path, body, signal) =>
  requestWithRetries(path, {
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
export const picture = (id, signal) => requestWithRetries(`/api/picture/${encodeURIComponent(id)}.png`, { signal });

/** Returns the results as a file: {blob, name}. */
export async function exported(query) {
  const answer = await post("/api/export", query);
  const name = /filename="?([^";]+)/.exec(answer.headers.get("content-disposition") ?? "")?.[1];
  return { blob: await answer.blob(), name: name ?? `results.${query.format === "geojson" ? "geojson" : "parquet"}` };
}

/** Returns the address template of a map layer's tiles for MapLibre. */
export const tiles = (layer, filters, version) =>
  `${location.origin}/api/tiles/${layer}/{z}/{x}/{y}.png?${new URLSearchParams({ ...filters, v: version })}`;
