/* What the states of a job mean for the page: groups, what may be asked of a job in each, its colour, its progress. */

export const GROUPS = [
  { key: "all", label: "All", states: [] },
  { key: "live", label: "Running", states: ["loading", "running", "pausing", "cancelling"] },
  { key: "waiting", label: "Waiting", states: ["queued", "retry-wait"] },
  { key: "paused", label: "Paused", states: ["paused"] },
  { key: "finished", label: "Finished", states: ["finished"] },
  { key: "failed", label: "Failed", states: ["failed", "dead", "cancelled"] },
];

export const LIVE = GROUPS[1].states;
export const ENDED = ["finished", "failed", "dead", "cancelled"];

/* Order of the states when the table is sorted by them: what needs eyes first. */
export const STATES = [
  "running", "loading", "pausing", "cancelling", "retry-wait", "queued", "paused", "failed", "dead", "cancelled", "finished",
];

/* Verb -> states in which it can do something. */
export const VERBS = {
  pause: ["queued", "loading", "running", "retry-wait"],
  resume: ["paused", "pausing"],
  checkpoint: ["running"],
  cancel: ["queued", "loading", "running", "pausing", "paused", "retry-wait"],
  requeue: ["failed", "dead", "cancelled"],
};

/** Share done in [0, 1], or null while the number of steps is unknown. */
export function progress(job) {
  return job.steps_total ? Math.min(1, job.steps_done / job.steps_total) : null;
}

const NUM_COLOURS = 8;
const colours = new Map();
let current = [];

/** These jobs are on the slots now: their colours are to differ as far as eight go. */
export function setCurrent(ids) {
  current = ids;
  ids.forEach(colour);
}

/** Return the class of a job's colour: the same all over the page, once given for good, rarest among the jobs on slots. */
export function colour(id) {
  if (!colours.has(id)) colours.set(id, rarest());
  return `c${colours.get(id)}`;
}

function rarest() {
  const uses = Array(NUM_COLOURS).fill(0);
  for (const id of current) uses[colours.get(id) ?? -1] += NUM_COLOURS;
  for (const used of colours.values()) uses[used] += 1 / (colours.size + 1);
  return uses.indexOf(Math.min(...uses));
}
