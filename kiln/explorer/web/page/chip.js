// The card of the chip that was picked: its picture, its facts, its marks.
import { $, icon, make, place } from "./dom.js";
import { frame, origin } from "./pictures.js";
import { DISLIKE, LIKE, markOf } from "./state.js";

const percent = (share) => (share === null || share === undefined ? "unknown" : `${(100 * share).toFixed(1)} %`);

/** Shows `facts`; `act.mark(id, kind)`, `act.alone(id)` and `act.close()` are its buttons. */
export function showChip(facts, state, act, takeFocus) {
  const box = $("chip"),
    id = facts.chip_id,
    from = make("dd", {}, "…");
  const facts_ = {
    Date: facts.datetime ? facts.datetime.slice(0, 10) : "none",
    Dataset: facts.dataset,
    Centre: place(facts.lon, facts.lat, 4),
    Nodata: percent(facts.nodata_fraction),
    Cloud: percent(facts.cloud_fraction),
  };
  const rows = Object.entries(facts_).map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value)),
  );
  origin(id).then((words) => {
    from.textContent = words;
  });
  const mark = (kind, words) => {
    const b = make(
      "button",
      { type: "button", className: `mark ${kind}`, "aria-pressed": String(markOf(state, id) === kind) },
      icon(kind),
      words,
    );
    b.addEventListener("click", () => act.mark(id, kind));
    return b;
  };
  const alone = make("button", { type: "button", title: "Drop the other marks and look for this alone" }, "Only this");
  alone.addEventListener("click", () => act.alone(id));
  const close = make("button", { type: "button", className: "away", "aria-label": "Close the chip" }, icon("close"));
  close.addEventListener("click", act.close);
  const same = box.dataset.id === id && !box.hidden;
  const held = same ? [...box.querySelectorAll("button")].indexOf(document.activeElement) : -1;
  box.dataset.id = id;
  box.replaceChildren(
    same ? box.querySelector(".picture") : frame(id),
    make(
      "div",
      { className: "facts" },
      make("code", { className: "id" }, id),
      make("dl", {}, ...rows, make("div", {}, make("dt", {}, "Picture"), from)),
      make("p", { className: "row" }, mark(LIKE, "Like"), mark(DISLIKE, "Dislike"), alone),
    ),
    close,
  );
  box.hidden = false;
  if (held >= 0) box.querySelectorAll("button")[held]?.focus();
  else if (takeFocus) box.querySelector(`.mark.${LIKE}`).focus({ preventScroll: true });
}

export function hideChip() {
  const box = $("chip");
  box.hidden = true;
  delete box.dataset.id;
  box.replaceChildren();
}
