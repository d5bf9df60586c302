// @ts-check
/**
 * A turn as a page sees it, and the text of its answer.
 *
 * @typedef {string | number} TurnId
 * @typedef {{prompt_tokens: number, completion_tokens: number, total_tokens: number,
 *   source: "provider" | "counted"}} Usage
 * @typedef {{type: string, [field: string]: any}} Frame  one JSON frame as the protocol describes it
 * @typedef {{code: string, message: string, retryable: boolean}} TurnError
 * @typedef {"sending" | "running" | "done" | "cancelled" | "error"} TurnState
 */

/** Text put together from numbered deltas. Remembers where each one ended, so that it can be cut back. */
export class AnswerText {
  text = "";
  /** Number of the last delta held. */
  seq = 0;
  /** @type {Map<number, number>} seq → length of the text up to and with it; joined deltas leave holes */
  #lengths = new Map([[0, 0]]);

  /**
   * Take deltas `first` to `last`, joined in `content`.
   *
   * @param {number} first
   * @param {number} last
   * @param {string} content
   * @returns {"added" | "known" | "gap"}  "gap": this does not continue what is held; ask for what follows `seq`
   */
  add(first, last, content) {
    if (last <= this.seq) return "known";
    // A frame that begins in the part held already fits only where that beginning is a place we remember.
    const start = this.#lengths.get(first - 1);
    if (start === undefined || !content.startsWith(this.text.slice(start))) return "gap";
    this.text = this.text.slice(0, start) + content;
    this.seq = last;
    this.#lengths.set(last, this.text.length);
    return "added";
  }

  /**
   * Forget what came after delta `seq`.
   *
   * @param {number} seq
   * @returns {boolean}  false: that place lies inside joined deltas, and more had to be forgotten
   */
  cutTo(seq) {
    let kept = 0;
    for (const known of this.#lengths.keys()) {
      if (known > seq) this.#lengths.delete(known);
      else kept = Math.max(kept, known);
    }
    this.text = this.text.slice(0, this.#lengths.get(kept));
    this.seq = kept;
    return kept === seq;
  }
}

/** One message and the answer to it. To be read by the page; only the client writes it. */
export class Turn {
  /** @type {TurnState} */
  state = "sending";
  /** @type {string | null} */
  sessionId;
  /** @type {number | null} 1, 2, 3 … in the session */
  number = null;
  /** @type {Usage | null} */
  usage = null;
  /** @type {string | null} */
  finishReason = null;
  /** @type {TurnError | null} */
  error = null;
  /** @type {Promise<Turn>} settles when the turn ended, however it ended */
  finished;

  /** @internal */ answer = new AnswerText();
  /** @internal the highest seq any frame spoke of */ seen = 0;
  /** @internal the server has the message */ confirmed = false;
  /** @internal */ sends = 0;
  /** @internal */ cancelWanted = false;
  /** @internal */ replays = 0;
  /** @internal @type {ReturnType<typeof setTimeout> | undefined} */ replayTimer;
  /** @internal @type {Frame | null} an ending that came while text was missing */ heldEnd = null;
  /** @internal @type {(turn: Turn) => void} */ settle = () => {};

  /**
   * @param {TurnId} id
   * @param {Frame | null} request  the message frame; null for a turn taken up from elsewhere
   * @param {string | null} sessionId
   */
  constructor(id, request, sessionId) {
    this.id = id;
    this.request = request;
    this.sessionId = sessionId;
    this.finished = new Promise((resolve) => (this.settle = resolve));
  }

  get text() {
    return this.answer.text;
  }

  get ended() {
    return this.state !== "sending" && this.state !== "running";
  }
}
