// Sets of marks as GeoJSON; `kiln search --marks` reads the same files.
import { DISLIKE, LIKE } from "./state.js";

export const MAX_MARKS = 1000; // of each kind

function geometry([w, s, e, n]) {
  const ring = (a, b) => [
    [
      [a, s],
      [b, s],
      [b, n],
      [a, n],
      [a, s],
    ],
  ];
  return w <= e
    ? { type: "Polygon", coordinates: ring(w, e) }
    : { type: "MultiPolygon", coordinates: [ring(w, 180), ring(-180, e)] }; // cut at the antimeridian
}

/** Returns a FeatureCollection of the marks. A chip without known facts has no geometry. */
export function asGeoJson(state, facts) {
  const features = [LIKE, DISLIKE].flatMap((mark) =>
    state[`${mark}s`].map((id) => {
      const { bbox, similarity, missing, ...known } = facts.get(id) ?? {};
      return {
        type: "Feature",
        id,
        ...(bbox ? { bbox } : {}),
        geometry: bbox ? geometry(bbox) : null,
        properties: { ...known, chip_id: id, mark },
      };
    }),
  );
  return { type: "FeatureCollection", features };
}

/** Returns {likes, dislikes} of a file's text. Throws an Error if it is no set of marks. */
export function marksOf(text, name) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error(`${name} is no JSON. Open a file that “Save marks” wrote.`);
  }
  if (value?.type !== "FeatureCollection" || !Array.isArray(value.features))
    throw new Error(`${name} is no GeoJSON FeatureCollection. Open a file that “Save marks” wrote.`);
  const ids = { [LIKE]: new Set(), [DISLIKE]: new Set() };
  for (const [i, feature] of value.features.entries()) {
    const { chip_id: id, mark } = feature?.properties ?? {};
    if (typeof id !== "string" || !Object.hasOwn(ids, mark))
      throw new Error(`${name}, feature ${i + 1}: expected the properties chip_id, a text, and mark, “like” or “dislike”.`);
    ids[mark].add(id);
  }
  for (const [mark, set] of Object.entries(ids))
    if (set.size > MAX_MARKS) throw new Error(`${name} has ${set.size} ${mark}s: at most ${MAX_MARKS} can be used.`);
  const both = [...ids[LIKE]].find((id) => ids[DISLIKE].has(id));
  if (both) throw new Error(`${name}: ${both} is both liked and disliked.`);
  if (!ids[LIKE].size && !ids[DISLIKE].size) throw new Error(`${name} has no marks in it.`);
  return { likes: [...ids[LIKE]], dislikes: [...ids[DISLIKE]] };
}
