// Pictures of chips: asked for when they come into sight, a few at a time, kept, and with their reason where missing.
import * as api from "./api.js";
import { make } from "./dom.js";

const MOST = 1200; // kept
const AT_ONCE = 6;
const kept = new Map(); // chip_id -> promise of {url, from, why}
const waiting = [];
let running = 0;

function next() {
  while (running < AT_ONCE && waiting.length) {
    const { id, done, failed } = waiting.pop(); // what came into sight last
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
    why: (answer.headers.get("x-picture-why") ?? "").replace(/^no service configured$/, ""), // which is no fault
  };
}

function picture(id) {
  if (!kept.has(id)) {
    const promise = new Promise((done, failed) => waiting.push({ id, done, failed }));
    promise.catch(() => kept.delete(id)); // asked again when it is shown again
    kept.set(id, promise);
    if (kept.size > MOST) {
      const [oldest, value] = kept.entries().next().value;
      kept.delete(oldest);
      value.then(
        ({ url }) => setTimeout(URL.revokeObjectURL, 60_000, url),
        () => {},
      );
    }
    next();
  }
  return kept.get(id);
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
      kept.delete(id);
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

const sight = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      sight.unobserve(target);
      show(target);
    }
  },
  { rootMargin: "200px" },
);

/** A square that becomes the chip's picture once it is in sight. */
export function frame(id) {
  const span = make("span", { className: "picture", "data-of": id });
  sight.observe(span);
  return span;
}

/** Where a shown picture came from, in words, once known. */
export async function origin(id) {
  try {
    const { from, why } = await picture(id);
    if (from === "none") return `none: ${why}`;
    return from === "wms" ? "image service" : `source${why ? `: ${why}` : ""}`;
  } catch (error) {
    return `none: ${error.message}`;
  }
}

/** Asks again for the pictures that could not be had. */
export function retry() {
  for (const span of document.querySelectorAll(".picture[data-failed]")) {
    delete span.dataset.failed;
    sight.observe(span);
  }
}
