// @ts-check
/** Decides between WebSocket and HTTP, from what becomes of the WebSockets. */

import { isReachable } from "./http.js";

const TOO_LARGE = 1009;
const RESTARTING = 1012;
/** How many WebSockets in a row come to nothing, while the service answers over HTTP, before it is HTTP's turn. */
const MAX_SUSPICIONS = 3;
/** A WebSocket that lived shorter, and was not closed by the service, came to nothing. */
const SHORT_LIFE_MS = 5000;

export class Fallback {
  #httpUrl;
  #doubtMs;
  #returnMs;
  /** WebSockets in a row that came to nothing, though the service answered over HTTP. */
  #suspicions;
  /** When a WebSocket is tried again, by the clock of `performance`; 0: not decided. */
  #returnAt = 0;

  /**
   * @param {object} options
   * @param {string | null} options.httpUrl  null: there is nothing to fall back to
   * @param {"websocket" | "http"} options.begin
   * @param {number} options.doubtMs
   * @param {number} options.returnMs
   */
  constructor({ httpUrl, begin, doubtMs, returnMs }) {
    this.#httpUrl = httpUrl;
    this.#doubtMs = doubtMs;
    this.#returnMs = returnMs;
    this.#suspicions = begin === "http" && httpUrl !== null ? MAX_SUSPICIONS : 0;
  }

  get prefersHttp() {
    return this.#suspicions >= MAX_SUSPICIONS;
  }

  /**
   * A WebSocket was lost: is it the service that is away, or do WebSockets come to nothing here?
   *
   * @param {number | null} closeCode  null: it died without a word
   * @param {boolean} wasHeard  whether it has brought a frame
   * @param {number} livedMs
   * @returns {Promise<boolean>}  whether this has settled it: from now on, HTTP
   */
  async judge(closeCode, wasHeard, livedMs) {
    const isServersWord = closeCode !== null && (closeCode >= 4000 || closeCode === TOO_LARGE || closeCode === RESTARTING);
    if (isServersWord || (wasHeard && livedMs >= SHORT_LIFE_MS)) {
      this.#suspicions = 0;
      return false;
    }
    // A service that is away answers over HTTP no more than over a WebSocket, and nobody is to change over for that.
    const isThere = this.#httpUrl !== null && (await isReachable(this.#httpUrl, this.#doubtMs));
    if (this.prefersHttp) return false;
    this.#suspicions = isThere ? this.#suspicions + 1 : 0;
    return this.prefersHttp;
  }

  /** Milliseconds until a WebSocket should be tried again. */
  get returnInMs() {
    this.#returnAt ||= performance.now() + this.#returnMs;
    return this.#returnAt - performance.now();
  }

  /** Such a try has come to nothing. */
  postpone() {
    this.#returnAt = 0;
  }

  /** A WebSocket works. */
  clear() {
    this.#suspicions = this.#returnAt = 0;
  }
}
