// The forms of the filters and of the ranking: they show the state, and write it.
import { $, make } from "./dom.js";

const radios = (name) => [...document.querySelectorAll(`input[name="${name}"]`)];

function ticks(box, name, entries) {
  box.replaceChildren(
    ...entries.map(({ value, note }) =>
      make(
        "label",
        {},
        make("input", { type: "checkbox", name, value }),
        make("span", {}, String(value), note ? make("small", {}, ` ${note}`) : ""),
      ),
    ),
  );
}

/** Fills the forms with the datasets, years and limits of the database. */
export function fill(about) {
  ticks(
    $("datasets"),
    "dataset",
    about.datasets.map((d) => ({ value: d.name, note: d.rows.toLocaleString("en") })),
  );
  const years = [...new Set(about.datasets.flatMap((d) => d.years))].sort();
  ticks(
    $("years"),
    "year",
    years.map((value) => ({ value })),
  );
  const days = about.datasets
    .flatMap((d) => d.dates ?? [])
    .filter(Boolean)
    .sort()
    .map((d) => d.slice(0, 10));
  for (const id of ["from", "to"]) Object.assign($(id), days.length ? { min: days[0], max: days.at(-1) } : {});
  $("k").max = about.max_results;
  for (const radio of radios("method")) radio.disabled = !about.methods.includes(radio.value);
}

/** Shows the state in the forms. */
export function show(state) {
  for (const box of radios("dataset")) box.checked = state.datasets.includes(box.value);
  for (const box of radios("year")) box.checked = state.years.includes(Number(box.value));
  for (const id of ["from", "to"]) $(id).value = state[id];
  for (const name of ["within", "method", "layer"])
    for (const radio of radios(name)) radio.checked = radio.value === state[name];
  for (const name of ["nodata", "cloud"])
    $(`max-${name}`).value = state[name] === null ? "" : +(100 * state[name]).toFixed(4);
  $("k").value = state.k;
  $("apart-on").checked = state.apart !== null;
  if (state.apart !== null) $("apart").value = state.apart;
  $("apart").disabled = state.apart === null;
  count(state);
}

function count(state) {
  const set = [
    state.datasets.length,
    state.years.length,
    state.from || state.to,
    state.within !== "all",
    state.nodata !== null,
    state.cloud !== null,
  ];
  const n = set.filter(Boolean).length;
  $("filters-set").textContent = n ? `${n} set` : "none set";
  radios("within").find((r) => r.value === "area").disabled = !state.area;
  $("draw").textContent = state.area ? "Draw another area" : "Draw an area";
  $("filters-clear").disabled = !n && !state.area;
}

/** Writes the filters into `state`. Returns false, and shows the browser's message, if a value is invalid. */
export function take(state) {
  if (!$("filter-form").reportValidity()) return false;
  const ticked = (name) =>
    radios(name)
      .filter((b) => b.checked)
      .map((b) => b.value);
  const fraction = (id) => ($(id).value === "" ? null : Number($(id).value) / 100);
  Object.assign(state, {
    datasets: ticked("dataset"),
    years: ticked("year").map(Number),
    from: $("from").value,
    to: $("to").value,
    within: ticked("within")[0],
    nodata: fraction("max-nodata"),
    cloud: fraction("max-cloud"),
  });
  count(state);
  return true;
}

/** Writes method, number and distance into `state`. Returns false if one of them is invalid. */
export function takeRanking(state) {
  $("apart").disabled = !$("apart-on").checked;
  if (!$("ranking").reportValidity()) return false;
  state.method = radios("method").find((r) => r.checked).value;
  state.k = Number($("k").value) || state.k;
  state.apart = $("apart-on").checked ? Number($("apart").value) || null : null;
  return true;
}
