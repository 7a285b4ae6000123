/* A job's log, followed: new lines come as they are written; scrolling up holds the view, scrolling down lets it go on. */

import { follow, jobPath, NeedsToken, Problem, Unreachable } from "./api.js";
import { el, setText } from "./dom.js";

const MOST_LINES = 5000;
const AGAIN_MS = 3000;

export class LogView {
  #box;
  #status;
  #lines = 0;
  #last = "";
  #stop = new AbortController();

  constructor(parent, id) {
    this.#box = el("pre", { class: "log", tabindex: 0, "aria-label": "Log" });
    this.#status = el("p", { class: "hint" }, "…");
    parent.append(this.#box, this.#status);
    this.#follow(id);
  }

  /** No more of it. */
  close() {
    this.#stop.abort();
  }

  async #follow(id) {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      const isOver = await this.#once(id, signal);
      if (isOver) return;
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }

  async #once(id, signal) {
    let isOver = false; // nothing more will come
    const receive = (event, data) => {
      if (event === "end") isOver = true;
      else if (event === "reset") this.#clear();
      else if (event === "message") this.#add(data);
    };
    const setLast = (last) => (this.#last = last);
    setText(this.#status, "following");
    try {
      await follow(jobPath(id, "/logs?follow=1"), { signal, last: this.#last, receive, setLast });
    } catch (error) {
      if (!isExpected(error)) throw error;
      setText(this.#status, error instanceof Problem ? error.message : "lost the connection; trying again");
      return error.status === 404;
    }
    setText(this.#status, isOver ? (this.#lines ? "end of the log: the job has ended" : "the log is empty") : "");
    return isOver;
  }

  #clear() {
    this.#box.replaceChildren();
    this.#lines = 0;
  }

  #add(line) {
    const isAtEnd = this.#box.scrollHeight - this.#box.scrollTop - this.#box.clientHeight < 24;
    this.#box.append(logLine(line));
    this.#lines += 1;
    if (this.#lines > MOST_LINES) {
      this.#box.firstElementChild.remove();
      this.#lines -= 1;
    }
    if (isAtEnd) this.#box.scrollTop = this.#box.scrollHeight;
  }
}

/* "2026-11-21T06:30:00Z  text": the time of day small, the whole of it on demand. */
function logLine(line) {
  const found = /^(\d{4}-\d\d-\d\dT[\d:.]+Z)\s+(.*)$/s.exec(line);
  if (!found) return el("span", { class: "log-line" }, `${line}\n`);
  const at = new Date(found[1]);
  return el("span", { class: "log-line" }, el("time", { title: found[1] }, at.toLocaleTimeString("en-GB")), ` ${found[2]}\n`);
}

function isExpected(error) {
  return error.name === "AbortError" || [Unreachable, Problem, NeedsToken].some((kind) => error instanceof kind);
}
