// Helpers for elements. Text is always set as text, never as markup.

export const $ = (id) => document.getElementById(id);

/** Returns an element with properties, attributes (`aria-*`, `role`, `data-*`) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "for") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

/** Returns one of the icons in index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** Downloads a file in the browser. */
export function download(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Returns a function that calls `run` once `wait` ms have passed without another call. */
export function later(run, wait) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(run, wait, ...args);
  };
}

export const place = (lon, lat, digits = 3) =>
  `${Math.abs(lat).toFixed(digits)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(digits)}° ${lon < 0 ? "W" : "E"}`;

/** Makes one of the `items()` of a list its stop for Tab; keys move the stop. `columns()` is 1 for a row. Returns an
 * update for changed items. */
export function roving(list, items, columns) {
  const stop = (target) => {
    for (const item of items()) item.tabIndex = item === target ? 0 : -1;
  };
  list.addEventListener("focusin", (event) => {
    const item = event.target.closest("[data-chip]");
    if (item) stop(item);
  });
  list.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const all = items(),
      at = all.indexOf(event.target.closest("[data-chip]"));
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() }[event.key];
    let to = at + (step ?? 0);
    if (event.key === "Home") to = 0;
    else if (event.key === "End") to = all.length - 1;
    else if (!step) return;
    if (at < 0) return;
    event.preventDefault();
    if (all[to]) all[to].focus();
  });
  return () => {
    const all = items();
    if (all.length && !all.some((item) => item.tabIndex === 0)) all[0].tabIndex = 0;
  };
}
