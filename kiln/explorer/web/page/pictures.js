// Pictures of chips: loaded when they scroll into view, a few at a time, and cached. A missing one shows its reason.
import * as api from "./api.js";
import { make } from "./dom.js";

const MAX_CACHED = 1200;
const MAX_REQUESTS = 6; // at once
const cache = new Map(); // chip_id -> promise of {url, from, why}
const waiting = [];
let running = 0;

function next() {
  while (running < MAX_REQUESTS && waiting.length) {
    const { id, done, failed } = waiting.pop(); // the one that came into view last
    running++;
    load(id)
      .then(done, failed)
      .finally(() => {
        running--;
        next();
      });
  }
}

async function load(id) {
  const answer = await api.picture(id);
  return {
    url: URL.createObjectURL(await answer.blob()),
    from: answer.headers.get("x-picture-from") ?? "wms",
    why: (answer.headers.get("x-picture-why") ?? "").replace(/^no service configured$/, ""), // which is not a failure
  };
}

function picture(id) {
  if (!cache.has(id)) {
    const promise = new Promise((done, failed) => waiting.push({ id, done, failed }));
    promise.catch(() => cache.delete(id)); // the next time, it is requested again
    cache.set(id, promise);
    if (cache.size > MAX_CACHED) {
      const [oldest, value] = cache.entries().next().value;
      cache.delete(oldest);
      value.then(
        ({ url }) => setTimeout(URL.revokeObjectURL, 60_000, url),
        () => {},
      );
    }
    next();
  }
  return cache.get(id);
}

const missing = (why) =>
  make("span", { className: "missing" }, make("b", {}, "No picture"), make("span", {}, ` ${why}`));

async function show(frame) {
  const id = frame.dataset.of;
  try {
    const { url, from, why } = await picture(id);
    frame.dataset.from = from;
    frame.title = from === "none" ? `No picture: ${why}` : from === "source" && why ? `From the source: ${why}` : "";
    if (from === "none") return frame.replaceChildren(missing(why));
    const image = make("img", { src: url, alt: "", decoding: "async", draggable: false });
    image.addEventListener("error", () => {
      cache.delete(id);
      failed(frame, "the picture cannot be decoded");
    });
    frame.replaceChildren(image);
  } catch (error) {
    failed(frame, error.message);
  }
}

function failed(frame, why) {
  frame.dataset.from = "none";
  frame.title = `No picture: ${why}`;
  frame.replaceChildren(missing(why));
  frame.dataset.failed = "1";
}

const visibility = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      visibility.unobserve(target);
      show(target);
    }
  },
  { rootMargin: "200px" },
);

/** Returns a square that loads the chip's picture once it is in view. */
export function frame(id) {
  const span = make("span", { className: "picture", "data-of": id });
  visibility.observe(span);
  return span;
}

/** Returns the origin of a picture as text, once it is known. */
export async function origin(id) {
  try {
    const { from, why } = await picture(id);
    if (from === "none") return `none: ${why}`;
    return from === "wms" ? "image service" : `source${why ? `: ${why}` : ""}`;
  } catch (error) {
    return `none: ${error.message}`;
  }
}

/** Requests the pictures again that failed. */
export function retry() {
  for (const span of document.querySelectorAll(".picture[data-failed]")) {
    delete span.dataset.failed;
    visibility.observe(span);
  }
}
