/* What can be asked of a job: its buttons, the question before what cannot be taken back, and what came of it. */

import { jobPath, NeedsToken, post, Problem } from "./api.js";
import { confirm } from "./dialogs.js";
import { el, setText } from "./dom.js";
import { VERBS } from "./jobs.js";

const LABELS = { pause: "Pause", resume: "Resume", checkpoint: "Checkpoint", requeue: "Requeue", cancel: "Cancel" };

/* Asked before these verbs. */
const QUESTIONS = {
  cancel: (job) => ({
    title: `Cancel ${job.name}?`,
    text: `It stops for good at step ${job.steps_done}, and gives no result. A requeue would take it up again from its last checkpoint.`,
    yes: "Cancel the job",
  }),
  requeue: (job) => ({
    title: `Queue ${job.name} again?`,
    text: "It waits for a slot once more, with its retries restored, and goes on from its last checkpoint.",
    yes: "Queue again",
    option: "from scratch: forget its checkpoints",
  }),
};

export class Actions {
  #buttons = new Map();
  #status;
  #job = null;
  #onDone;

  /** `onDone` is called after each answer, as the job may have moved. */
  constructor(parent, onDone) {
    this.#onDone = onDone;
    const box = el("div", { class: "buttons", role: "group", "aria-label": "Ask of this job" });
    for (const [verb, label] of Object.entries(LABELS)) {
      const button = el("button", { type: "button", class: verb === "cancel" ? "danger" : null, "data-verb": verb, disabled: true,
        onclick: () => this.#ask(verb) }, label);
      this.#buttons.set(verb, button);
      box.append(button);
    }
    this.#status = el("p", { class: "outcome", role: "status", hidden: true });
    parent.append(box, this.#status);
  }

  /** Offer what is possible for this job now. */
  show(job) {
    this.#job = job;
    for (const [verb, button] of this.#buttons) {
      const isPossible = VERBS[verb].includes(job.state);
      if (button.disabled === isPossible) button.disabled = !isPossible;
      button.title = isPossible ? "" : `not while it is ${job.state}`;
    }
  }

  async #ask(verb) {
    const job = this.#job;
    const answer = verb in QUESTIONS ? await confirm(QUESTIONS[verb](job)) : { option: false };
    if (!answer) return;
    this.#say("working", `${LABELS[verb]}: asked…`);
    try {
      const outcome = await post(jobPath(job.id, `:${verb}`), answer.option ? { from_scratch: true } : {});
      this.#say(outcome.done === false ? "working" : "good", outcome.text || `${LABELS[verb]}: done`);
    } catch (error) {
      this.#say("bad", refusal(LABELS[verb], error));
    }
    this.#onDone();
  }

  #say(kind, text) {
    this.#status.className = `outcome ${kind}`;
    this.#status.hidden = false;
    setText(this.#status, text);
  }
}

function refusal(label, error) {
  if (error instanceof NeedsToken) return `${label}: refused; the token is not known any more`;
  const details = error instanceof Problem ? error.problems : [];
  return [`${label}: refused; ${error.message}`, ...details].join("\n");
}
