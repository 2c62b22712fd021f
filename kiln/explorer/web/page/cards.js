// The two rows of marked chips and the grid of results. Keys and buttons on a picture mark its chip.
import { $, icon, make, place, roving } from "./dom.js";
import { frame } from "./pictures.js";
import { DISLIKE, LIKE, markOf } from "./state.js";

/** Returns year and dataset of a chip as one line. */
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

/** Returns what every card has: a button with the picture that shows the chip on the map, and its accessible name. */
function opener(id, shortcuts, act) {
  const name = make("span", { className: "unseen" }); // read aloud before the picture, or before the reason for a missing one
  const main = make(
    "button",
    { type: "button", className: "open", tabIndex: -1, "data-chip": id, "aria-keyshortcuts": shortcuts },
    name,
    frame(id),
  );
  main.addEventListener("click", () => act.show(id));
  return { main, name };
}

/** Listens to the keys of the cards in a list: L, D, Delete. Enter is the click of the button. */
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

/** Replaces the children of `list` by `nodes`. Nodes that stay in place are not moved. */
function replaceNodes(list, nodes) {
  const remaining = new Set(nodes);
  for (const child of [...list.children]) if (!remaining.has(child)) child.remove();
  nodes.forEach((node, i) => {
    if (list.children[i] !== node) list.insertBefore(node, list.children[i] ?? null);
  });
}

/** Runs `change`, which replaces cards of a list, and restores the focus to the same place. */
function withFocusRestored(list, change) {
  const focusedCard = document.activeElement?.closest?.("[data-chip]");
  const cards = () => [...list.querySelectorAll("[data-chip]")];
  const at = focusedCard && list.contains(focusedCard) ? cards().indexOf(focusedCard) : -1;
  change();
  if (at < 0) return;
  const now = cards();
  (list.contains(focusedCard) ? focusedCard : (now[Math.min(at, now.length - 1)] ?? $("find")))?.focus({
    preventScroll: list.contains(focusedCard),
  });
}

/** Returns `draw(state, facts)`, which shows the marks in the two rows; `facts` is a map by chip_id. */
export function rows(act) {
  const lists = { [LIKE]: $("likes"), [DISLIKE]: $("dislikes") },
    cardsById = new Map(),
    updateTabStops = [];
  for (const list of Object.values(lists)) {
    keys(list, act);
    updateTabStops.push(
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
      { type: "button", className: "away", tabIndex: -1, title: "Remove the mark" },
      icon("close"),
    );
    away.addEventListener("click", () => act.mark(id, null));
    return { li: make("li", { "data-id": id }, main, away), main, name, away };
  }

  return (state, facts) => {
    for (const [kind, list] of Object.entries(lists)) {
      const ids = state[`${kind}s`];
      withFocusRestored(list, () =>
        replaceNodes(
          list,
          ids.map((id) => {
            const key = `${kind} ${id}`,
              known = facts.get(id);
            if (!cardsById.has(key)) cardsById.set(key, card(id));
            const { li, main, name, away } = cardsById.get(key);
            const description = known?.missing
              ? `${id}, not in this database`
              : known
                ? `${caption(known)}, ${place(known.lon, known.lat)}`
                : id;
            name.textContent = `${kind === LIKE ? "Liked" : "Disliked"}: ${description}`;
            main.title = known?.missing ? `${id}: ${known.missing}` : `${id}\n${description}`;
            away.setAttribute("aria-label", `Remove the mark: ${description}`);
            li.classList.toggle("unknown", Boolean(known?.missing));
            return li;
          }),
        ),
      );
      $(`${kind}s-count`).textContent = ids.length || "";
      list.parentElement.classList.toggle("empty", !ids.length);
    }
    for (const key of cardsById.keys()) {
      const [kind, id] = key.split(/ (.*)/s);
      if (!state[`${kind}s`].includes(id)) cardsById.delete(key);
    }
    for (const update of updateTabStops) update();
  };
}

/** Returns `draw(results, state)`, which shows the results in the grid. */
export function grid(act) {
  const list = $("grid");
  let cardsById = new Map();
  keys(list, act);
  const columns = () => getComputedStyle(list).gridTemplateColumns.split(" ").length;
  const updateTabStop = roving(list, () => [...list.querySelectorAll("[data-chip]")], columns);

  function card(id) {
    const { main, name } = opener(id, "L D", act);
    const similarity = make("b"),
      description = make("span", { className: "words" });
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
        description,
      ),
    );
    return { li, main, name, similarity, description };
  }

  return (results, state) => {
    const before = cardsById;
    cardsById = new Map();
    withFocusRestored(list, () =>
      replaceNodes(
        list,
        results.map((facts, i) => {
          const id = facts.chip_id,
            parts = before.get(id) ?? card(id),
            marked = markOf(state, id);
          cardsById.set(id, parts);
          parts.similarity.textContent = facts.similarity.toFixed(3);
          parts.description.textContent = caption(facts);
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
    updateTabStop();
  };
}
