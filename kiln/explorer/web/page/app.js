// The page: actions change the state; the state is written into the address and drawn.
import * as api from "./api.js";
import * as cards from "./cards.js";
import * as filters from "./filters.js";
import * as states from "./state.js";
import { hideChip, showChip } from "./chip.js";
import { $, download, later } from "./dom.js";
import { asGeoJson, marksOf, MAX_MARKS } from "./marks.js";
import { retry } from "./pictures.js";

const POLL_MS = 4000; // between requests for the current version
const facts = new Map(); // chip_id -> facts of the chip, or {chip_id, missing} if the database does not have it
let state = states.read(location.hash.slice(1));
let about,
  map,
  picked = null,
  running, // the AbortController of the search under way
  results = [];
const pending = new Set(); // what the results wait for: "find", "filters", "search"

const say = (id, text) => {
  $(id).textContent = text;
};
const wait = (what, on) => {
  pending[on ? "add" : "delete"](what);
  $("grid").setAttribute("aria-busy", pending.size > 0);
};
const unmarked = () => !state.likes.length && !state.dislikes.length;
const address = () => history.replaceState(null, "", `#${states.write(state)}`);
const remember = (chip) => {
  facts.set(chip.chip_id, { ...facts.get(chip.chip_id), ...chip });
  return facts.get(chip.chip_id);
};

// ---------------------------------------------------------------------------------------------------- search

async function search() {
  running?.abort();
  const controller = (running = new AbortController());
  const hasLikes = state.likes.length > 0;
  $("invite").hidden = hasLikes || state.dislikes.length > 0 || !about.rows;
  $("open-export").disabled = !hasLikes;
  if (!hasLikes) {
    results = [];
    say("status", state.dislikes.length ? "Like at least one chip to search." : "Nothing is marked yet.");
    for (const id of ["note", "results-error"]) say(id, "");
    drawResults();
    return wait("search", false);
  }
  wait("search", true);
  try {
    const answer = await api.search(states.query(state), controller.signal);
    results = answer.results;
    results.forEach(remember);
    say("results-error", "");
    say("note", answer.note ?? "");
    const n = results.length;
    say(
      "status",
      n
        ? `${n} ${n === 1 ? "chip" : "chips"} · ${answer.by === "linear" || answer.by === "mean" ? answer.by : answer.method} · ${Math.max(1, Math.round(answer.ms))} ms`
        : "No other chip matches the filters.",
    );
    drawResults();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status) say("results-error", error.message); // without an answer, the connection's line shows the problem
    say("status", "");
  }
  if (running === controller) wait("search", false);
}

const searchLater = later(search, 40);

/** Searches once no other change follows; until then the results count as outdated. */
function searchSoon() {
  wait("search", true);
  searchLater();
}

function drawResults() {
  drawGrid(results, state);
  map?.results(results.filter((r) => !states.markOf(state, r.chip_id)));
}

/** Loads the facts of marks of which only the id is known, six at a time. */
async function loadFacts() {
  const unknown = [...state.likes, ...state.dislikes].filter((id) => !facts.has(id));
  const worker = async () => {
    for (let id = unknown.pop(); id !== undefined; id = unknown.pop()) {
      try {
        remember(await api.chip(id));
      } catch (error) {
        if (!error.status) return;
        facts.set(id, { chip_id: id, missing: error.message });
      }
    }
  };
  if (!unknown.length) return;
  await Promise.all(Array.from({ length: 6 }, worker));
  drawMarks();
}

function drawMarks() {
  drawRows(state, facts);
  const known = (mark) => state[`${mark}s`].map((id) => ({ facts: facts.get(id), mark })).filter((m) => m.facts?.bbox);
  map?.marks([...known("like"), ...known("dislike")]);
  for (const id of ["save", "clear"]) $(id).disabled = unmarked();
  if (picked) showChip(facts.get(picked), state, act);
}

function changed() {
  address();
  drawMarks();
  drawGrid(results, state); // marks show at once; the ranking follows when the server answers
  searchSoon();
  loadFacts();
}

// ----------------------------------------------------------------------------------------------------- marks

const act = {
  mark(id, kind) {
    if (kind && states.markOf(state, id) !== kind && state[`${kind}s`].length >= MAX_MARKS)
      return say("results-error", `At most ${MAX_MARKS} ${kind}s can be used.`);
    states.mark(state, id, kind);
    changed();
  },
  alone(id) {
    Object.assign(state, { likes: [id], dislikes: [] });
    changed();
  },
  async show(id) {
    let known = facts.get(id);
    if (!known?.bbox) {
      try {
        known = remember(await api.chip(id));
      } catch (error) {
        return say("find-error", error.message);
      }
    }
    pick(known, false);
    map?.go(known);
  },
  point(id) {
    map?.point(facts.get(id ?? picked)?.bbox ? facts.get(id ?? picked) : null);
  },
  close() {
    const inside = $("chip").contains(document.activeElement);
    picked = null;
    hideChip();
    map?.point(null);
    if (inside) (document.querySelector("#map canvas") ?? $("find-text")).focus();
  },
  async pick({ lng, lat }, takeFocus) {
    wait("find", unmarked()); // the first chip found is liked
    try {
      const chip = remember(await api.chipAt(lng, lat, states.mapFilters(state)));
      say("find-error", "");
      say("map-note", "");
      choose(chip, takeFocus);
    } catch (error) {
      if (error.status) say("map-note", error.message);
    }
    wait("find", false);
  },
  moved(view, bbox, byHand) {
    if (view) state.view = view;
    if (state.within === "view" && byHand) {
      state.bbox = bbox;
      searchSoon();
    }
    address();
  },
  drawn(ring) {
    if (ring) Object.assign(state, { area: ring, within: "area" });
    filters.show(state);
    map.area();
    address();
    if (ring) searchSoon();
    $("draw").focus({ preventScroll: true });
  },
};
const drawRows = cards.rows(act),
  drawGrid = cards.grid(act);

function pick(chip, takeFocus) {
  picked = chip.chip_id;
  showChip(chip, state, act, takeFocus);
  map?.point(chip);
}

/** Shows a chip that a person chose, and likes it if there are no marks yet. */
function choose(chip, takeFocus) {
  const first = unmarked();
  if (first) states.mark(state, chip.chip_id, states.LIKE);
  pick(chip, takeFocus);
  if (first) changed();
}

async function find(text) {
  const query = text.trim();
  if (!query) return say("find-error", "Enter longitude and latitude, such as -96.2, 43.6, or a chip_id.");
  const numbers = query.match(/^(-?\d+(?:\.\d+)?)[\s,;]+(-?\d+(?:\.\d+)?)$/);
  wait("find", unmarked()); // the first chip found is liked
  try {
    const [lon, lat] = numbers ? numbers.slice(1).map(Number) : [];
    if (numbers && Math.abs(lat) > 90 && Math.abs(lon) <= 90)
      throw new api.ApiError(`The latitude ${lat} is more than 90: longitude comes first.`, 422);
    const chip = remember(numbers ? await api.chipAt(lon, lat, states.mapFilters(state)) : await api.chip(query));
    say("find-error", "");
    choose(chip, false);
    map?.go(chip);
  } catch (error) {
    say("find-error", error.message);
  }
  wait("find", false);
}

// ------------------------------------------------------------------------------------------- filters, ranking

const applyFilters = later(() => {
  if (filters.take(state)) {
    if (state.within === "view") state.bbox = map?.box() ?? state.bbox;
    address();
    map?.refresh();
    search();
  }
  wait("filters", false);
}, 150);

function filtered() {
  wait("filters", true);
  applyFilters();
}

function listen() {
  $("filter-form").addEventListener("change", filtered);
  $("ranking").addEventListener("change", () => {
    if (filters.takeRanking(state)) {
      address();
      searchSoon();
    }
  });
  for (const id of ["filter-form", "ranking"]) $(id).addEventListener("submit", (event) => event.preventDefault());
  $("filters-clear").addEventListener("click", () => {
    const { datasets, years, from, to, within, area, bbox, nodata, cloud } = states.fresh();
    Object.assign(state, { datasets, years, from, to, within, area, bbox, nodata, cloud });
    filters.show(state);
    map?.area();
    address();
    map?.refresh();
    search();
    $("filters").querySelector("summary").focus();
  });
  $("draw").addEventListener("click", () => {
    map?.draw(true);
    $("map-side").scrollIntoView({ block: "nearest" });
  });
  $("layers").addEventListener("change", (event) => {
    state.layer = event.target.value;
    address();
    map?.refresh();
  });
  $("find-form").addEventListener("submit", (event) => {
    event.preventDefault();
    find($("find-text").value);
  });
  $("example").addEventListener("click", () => find(about.example));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && picked && !document.querySelector("dialog[open]")) act.close();
  });
  addEventListener("hashchange", () => {
    // a link was pasted into the address of this page
    state = Object.assign(state, states.read(location.hash.slice(1)));
    filters.show(state);
    if (state.view) map?.map.jumpTo({ center: state.view.slice(0, 2), zoom: state.view[2] });
    map?.area();
    map?.refresh();
    changed();
  });

  $("save").addEventListener("click", async () => {
    await loadFacts();
    download(
      new Blob([`${JSON.stringify(asGeoJson(state, facts), null, 1)}\n`], { type: "application/geo+json" }),
      "marks.geojson",
    );
  });
  $("open").addEventListener("click", () => $("open-file").click());
  $("open-file").addEventListener("change", async ({ target }) => {
    const [file] = target.files;
    try {
      Object.assign(state, marksOf(await file.text(), file.name));
      say("find-error", "");
      changed();
    } catch (error) {
      say("find-error", error.message);
    }
    target.value = ""; // the same file may be opened again
  });
  $("clear").addEventListener("click", () => {
    Object.assign(state, { likes: [], dislikes: [] });
    changed();
    $("find-text").focus();
  });
  $("copy-link").addEventListener("click", async ({ target }) => {
    address();
    try {
      await navigator.clipboard.writeText(location.href);
      target.textContent = "Copied";
    } catch {
      target.textContent = "Copy it from the address bar";
    }
    setTimeout(() => {
      target.textContent = "Copy link";
    }, 2500);
  });
  $("open-help").addEventListener("click", () => $("help").showModal());
  $("open-export").addEventListener("click", () => {
    say("export-error", "");
    say("export-note", about.export_note);
    $("export").showModal();
  });
  $("export-cancel").addEventListener("click", () => $("export").close());
  $("export-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    $("export-go").disabled = true;
    try {
      const format = new FormData($("export-form")).get("format");
      const { blob, name } = await api.exported({
        ...states.query(state),
        format,
        embeddings: $("embeddings").checked,
      });
      download(blob, name);
      $("export").close();
    } catch (error) {
      say("export-error", error.message);
    }
    $("export-go").disabled = false;
  });
}

// ------------------------------------------------------------------------------------------ start and polling

function describe() {
  const names = about.datasets.map((d) => d.name).join(", ");
  say("about", `${about.rows.toLocaleString("en")} chips · ${names || "empty"} · version ${about.version}`);
  say("dimensions", `${about.dimensions} numbers a chip`);
  $("untrained").hidden = !about.untrained;
  $("example").disabled = !about.example;
  $("empty").hidden = about.rows > 0;
  filters.fill(about);
  filters.show(state);
}

async function poll() {
  try {
    const now = await api.version();
    if (about && now !== about.version) {
      if (!about.rows) return location.reload(); // the map must start where the chips are
      about = await api.about();
      facts.clear();
      results.forEach(remember);
      describe();
      map?.refresh(about.version);
      changed();
    }
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error; // the connection's line shows it
  } finally {
    setTimeout(poll, document.hidden ? 4 * POLL_MS : POLL_MS);
  }
}

api.onConnection((connected) => {
  $("connection").classList.toggle("hot", !connected);
  say(
    "connection",
    connected
      ? "The server is back."
      : "The server does not answer. Your marks stay, and the page continues when the server is back.",
  );
  if (!connected) return;
  setTimeout(() => {
    if (!$("connection").classList.contains("hot")) say("connection", "");
  }, 4000);
  if (!about) return;
  retry();
  map?.refresh();
  changed();
});

async function start() {
  try {
    about = await api.about();
  } catch (error) {
    if (error.status) {
      say("connection", error.message);
      $("connection").classList.add("hot");
    }
    setTimeout(start, POLL_MS);
    return;
  }
  describe();
  changed();
  setTimeout(poll, POLL_MS);
  try {
    map = (await import("./map.js")).makeMap(about, state, act);
    map.area();
    map.refresh();
    drawMarks();
    drawResults();
    map.map.once("idle", () => {
      document.body.dataset.map = "drawn";
    });
    globalThis.kiln = { map: map.map }; // for the console and the browser tests
  } catch (error) {
    console.error(error);
    $("map").replaceChildren();
    say("map-note", "This browser cannot draw the map: it has no WebGL. Search works without the map.");
  }
}

listen();
start();
