// The two rows of marked chips and the grid of results: pictures that keys and buttons mark.
import { $, icon, make, place, roving } from "./dom.js";
import { frame } from "./pictures.js";
import { DISLIKE, LIKE, markOf } from "./state.js";

/** What `facts` say of a chip in a line. */
export const caption = (facts) => [facts.year ?? "no date", facts.dataset].join(" · ");

function button(kind, id, act, pressed) {
  const label = kind === LIKE ? "Like" : "Dislike";
  const b = make(
    "button",
    { type: "button", className: `mark ${kind}`, tabIndex: -1, title: label, "aria-label": label },
    icon(kind),
  );
  b.setAttribute("aria-pressed", String(pressed));
  b.addEventListener("click", () => act.mark(id, kind));
  return b;
}

/** What every card has: its picture as a button that shows the chip, and the name that is read for it. */
function opener(id, shortcuts, act) {
  const name = make("span", { className: "unseen" }); // read before the picture, or before why there is none
  const main = make(
    "button",
    { type: "button", className: "open", tabIndex: -1, "data-chip": id, "aria-keyshortcuts": shortcuts },
    name,
    frame(id),
  );
  main.addEventListener("click", () => act.show(id));
  return { main, name };
}

/** Keys of a card: L, D, Delete and Enter. */
function keys(list, act) {
  list.addEventListener("keydown", (event) => {
    const main = event.target.closest("[data-chip]");
    if (!main || event.altKey || event.ctrlKey || event.metaKey) return;
    const kind = { l: LIKE, d: DISLIKE }[event.key.toLowerCase()];
    if (kind) act.mark(main.dataset.chip, kind);
    else if (event.key === "Delete" || event.key === "Backspace") act.mark(main.dataset.chip, null);
    else return;
    event.preventDefault();
  });
  for (const [type, on] of [
    ["pointerover", true],
    ["pointerout", false],
    ["focusin", true],
    ["focusout", false],
  ])
    list.addEventListener(type, (event) => {
      const card = event.target.closest("li");
      if (card) act.point(on ? card.dataset.id : null);
    });
}

/** Replaces the children of `list` by `nodes` without touching those that stay where they are. */
function settle(list, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...list.children]) if (!wanted.has(child)) child.remove();
  nodes.forEach((node, i) => {
    if (list.children[i] !== node) list.insertBefore(node, list.children[i] ?? null);
  });
}

/** Keeps the focus at its place in a list whose cards changed. */
function focused(list, change) {
  const held = document.activeElement?.closest?.("[data-chip]");
  const cards = () => [...list.querySelectorAll("[data-chip]")];
  const at = held && list.contains(held) ? cards().indexOf(held) : -1;
  change();
  if (at < 0) return;
  const now = cards();
  (list.contains(held) ? held : (now[Math.min(at, now.length - 1)] ?? $("find")))?.focus({
    preventScroll: list.contains(held),
  });
}

/** The rows: `draw(state, facts)` shows the marks, `facts` a map of what is known of chips. */
export function rows(act) {
  const lists = { [LIKE]: $("likes"), [DISLIKE]: $("dislikes") },
    made = new Map(),
    steady = [];
  for (const list of Object.values(lists)) {
    keys(list, act);
    steady.push(
      roving(
        list,
        () => [...list.querySelectorAll("[data-chip]")],
        () => 1,
      ),
    );
  }

  function card(id) {
    const { main, name } = opener(id, "L D Delete", act);
    const away = make(
      "button",
      { type: "button", className: "away", tabIndex: -1, title: "Take the mark away" },
      icon("close"),
    );
    away.addEventListener("click", () => act.mark(id, null));
    return { li: make("li", { "data-id": id }, main, away), main, name, away };
  }

  return (state, facts) => {
    for (const [kind, list] of Object.entries(lists)) {
      const ids = state[`${kind}s`];
      focused(list, () =>
        settle(
          list,
          ids.map((id) => {
            const key = `${kind} ${id}`,
              known = facts.get(id);
            if (!made.has(key)) made.set(key, card(id));
            const { li, main, name, away } = made.get(key);
            const words = known?.missing
              ? `${id}, not in this database`
              : known
                ? `${caption(known)}, ${place(known.lon, known.lat)}`
                : id;
            name.textContent = `${kind === LIKE ? "Liked" : "Disliked"}: ${words}`;
            main.title = known?.missing ? `${id}: ${known.missing}` : `${id}\n${words}`;
            away.setAttribute("aria-label", `Take the mark away: ${words}`);
            li.classList.toggle("unknown", Boolean(known?.missing));
            return li;
          }),
        ),
      );
      $(`${kind}s-count`).textContent = ids.length || "";
      list.parentElement.classList.toggle("empty", !ids.length);
    }
    for (const key of made.keys()) {
      const [kind, id] = key.split(/ (.*)/s);
      if (!state[`${kind}s`].includes(id)) made.delete(key);
    }
    for (const one of steady) one();
  };
}

/** The grid: `draw(results, state)`. */
export function grid(act) {
  const list = $("grid");
  let made = new Map();
  keys(list, act);
  const columns = () => getComputedStyle(list).gridTemplateColumns.split(" ").length;
  const steady = roving(list, () => [...list.querySelectorAll("[data-chip]")], columns);

  function card(id) {
    const { main, name } = opener(id, "L D", act);
    const similarity = make("b"),
      words = make("span", { className: "words" });
    const li = make(
      "li",
      { "data-id": id },
      main,
      make(
        "div",
        { className: "under" },
        similarity,
        button(LIKE, id, act, false),
        button(DISLIKE, id, act, false),
        words,
      ),
    );
    return { li, main, name, similarity, words };
  }

  return (results, state) => {
    const before = made;
    made = new Map();
    focused(list, () =>
      settle(
        list,
        results.map((facts, i) => {
          const id = facts.chip_id,
            parts = before.get(id) ?? card(id),
            marked = markOf(state, id);
          made.set(id, parts);
          parts.similarity.textContent = facts.similarity.toFixed(3);
          parts.words.textContent = caption(facts);
          parts.main.title = `${id}\n${place(facts.lon, facts.lat)}`;
          parts.name.textContent = `${i + 1}: similarity ${facts.similarity.toFixed(3)}, ${caption(facts)}, ${place(facts.lon, facts.lat)}${marked ? `, ${marked}d` : ""}`;
          for (const kind of [LIKE, DISLIKE]) {
            const b = parts.li.querySelector(`.mark.${kind}`);
            b.setAttribute("aria-pressed", String(marked === kind));
            b.setAttribute("aria-label", `${kind === LIKE ? "Like" : "Dislike"} result ${i + 1}`);
          }
          return parts.li;
        }),
      ),
    );
    steady();
  };
}
