/* Asks again and again, gently: not while the page is hidden, ever more rarely while the server is away. */

const LONGEST_SECONDS = 30;

export class Poller {
  #task;
  #seconds;
  #onFailure;
  #timer = null;
  #isBusy = false;
  #isWanted = false;
  #failures = 0;
  #failingSince = null;

  /**
   * Call the async `task`, which throws when the server is away, every `seconds`.
   * `onFailure(since, seconds)` is then told since when, and when the next try is; `since` is null when the server is back.
   */
  constructor(task, seconds, onFailure) {
    this.#task = task;
    this.#seconds = seconds;
    this.#onFailure = onFailure;
    document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(this.#timer) : this.now()));
  }

  /** Run the task as soon as possible, and go on from there. */
  now() {
    clearTimeout(this.#timer);
    if (this.#isBusy) this.#isWanted = true;
    else this.#run();
  }

  async #run() {
    this.#isBusy = true;
    this.#isWanted = false;
    try {
      await this.#task();
      this.#succeed();
    } catch {
      this.#fail();
    }
    this.#isBusy = false;
    this.#plan();
  }

  #plan() {
    if (document.hidden) return;
    const seconds = this.#isWanted ? 0 : this.#delay();
    this.#timer = setTimeout(() => this.#run(), seconds * 1000);
  }

  #delay() {
    return Math.min(LONGEST_SECONDS, this.#seconds * 2 ** Math.min(this.#failures, 6));
  }

  #succeed() {
    if (this.#failingSince !== null) this.#onFailure(null, 0);
    this.#failures = 0;
    this.#failingSince = null;
  }

  #fail() {
    this.#failures += 1;
    this.#failingSince ??= Date.now() / 1000;
    this.#onFailure(this.#failingSince, this.#delay());
  }
}
