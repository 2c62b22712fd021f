// The card of the selected chip: its picture, its facts, its marks.
import { $, icon, make, place } from "./dom.js";
import { frame, origin } from "./pictures.js";
import { DISLIKE, LIKE, markOf } from "./state.js";

const percent = (fraction) => (fraction === null || fraction === undefined ? "unknown" : `${(100 * fraction).toFixed(1)} %`);

/** Shows a chip. Its buttons call `act.mark(id, kind)`, `act.alone(id)` and `act.close()`. */
export function showChip(facts, state, act, takeFocus) {
  const box = $("chip"),
    id = facts.chip_id,
    from = make("dd", {}, "…");
  const labelled = {
    Date: facts.datetime ? facts.datetime.slice(0, 10) : "none",
    Dataset: facts.dataset,
    Centre: place(facts.lon, facts.lat, 4),
    Nodata: percent(facts.nodata_fraction),
    Cloud: percent(facts.cloud_fraction),
  };
  const rows = Object.entries(labelled).map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value)),
  );
  origin(id).then((text) => {
    from.textContent = text;
  });
  const mark = (kind, label) => {
    const b = make(
      "button",
      { type: "button", className: `mark ${kind}`, "aria-pressed": String(markOf(state, id) === kind) },
      icon(kind),
      label,
    );
    b.addEventListener("click", () => act.mark(id, kind));
    return b;
  };
  const alone = make("button", { type: "button", title: "Clear the other marks and search for this chip only" }, "Only this");
  alone.addEventListener("click", () => act.alone(id));
  const close = make("button", { type: "button", className: "away", "aria-label": "Close the chip" }, icon("close"));
  close.addEventListener("click", act.close);
  const same = box.dataset.id === id && !box.hidden;
  const focusedButton = same ? [...box.querySelectorAll("button")].indexOf(document.activeElement) : -1;
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
  if (focusedButton >= 0) box.querySelectorAll("button")[focusedButton]?.focus();
  else if (takeFocus) box.querySelector(`.mark.${LIKE}`).focus({ preventScroll: true });
}

export function hideChip() {
  const box = $("chip");
  box.hidden = true;
  delete box.dataset.id;
  box.replaceChildren();
}
