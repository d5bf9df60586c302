// @ts-check
/** Reads one turn over HTTP: as server-sent events, and by long poll where something on the way holds those back. */

import { LostError, jsonOf, pause } from "./http.js";

/** @typedef {import("./turn.js").Frame} Frame */
/** @typedef {import("./http.js").Problem} Problem */

/**
 * @typedef {object} Reading  what a reader is given
 * @property {import("./http.js").Http} http
 * @property {string} path  of the turn's events
 * @property {number} afterSeq
 * @property {boolean} poll  whether to poll from the beginning
 * @property {number} doubtMs  wait for a stream's first byte, which the service sends at once
 * @property {number} silenceMs  longest silence within a stream; the service breaks every silence of 15 s
 * @property {(frame: Frame) => void} onframe
 * @property {(problem: Problem) => void} onproblem  the turn cannot be read
 * @property {() => void} onpoll  streams are held back; it goes on by long poll
 */

const ENDS = new Set(["done", "cancelled", "error"]);
/** A stream or poll that failed sooner than this was not cut by somebody's limit: nothing got through. */
const BARELY_OPEN_MS = 2000;
/** Seconds that a poll waits for news; halved, down to one, where somebody's limit is shorter. */
const POLL_WAIT_S = 20;
/** Answers to polls are at least this far apart: a fast answer is then read in pieces, not in requests for each word. */
const POLL_EVERY_MS = 250;
/** How often in a row "later" is taken for an answer. */
const MAX_REFUSALS = 5;

export class TurnReader {
  #reading;
  #seq;
  #poll;
  #waitS = POLL_WAIT_S;
  #refusals = 0;
  #ended = false;
  /** The request under way, and the longest it may be silent. */
  #request = new AbortController();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #isSilent = false;

  /** @param {Reading} reading */
  constructor(reading) {
    this.#reading = reading;
    this.#seq = reading.afterSeq;
    this.#poll = reading.poll;
  }

  /**
   * Read to the turn's end, or until stopped.
   *
   * @returns {Promise<void>}
   * @throws {LostError}
   */
  async run() {
    while (!this.#ended) await (this.#poll ? this.#readPoll() : this.#readStream());
  }

  /** Nothing is handed on afterwards. */
  stop() {
    this.#ended = true;
    this.#request.abort();
  }

  async #readStream() {
    const begun = performance.now();
    const before = this.#seq;
    try {
      const response = await this.#ask("text/event-stream", "", this.#reading.doubtMs);
      if (!response?.body) return;
      const events = new EventParser();
      for await (const chunk of chunksOf(response.body)) {
        this.#watch(this.#reading.silenceMs);
        for (const frame of events.feed(chunk)) this.#take(frame);
        if (this.#ended) return;
      }
    } catch (error) {
      if (!(error instanceof LostError) || error.closeCode !== null) throw error;
    } finally {
      clearTimeout(this.#timer);
    }
    if (this.#ended) return;
    if (this.#isSilent) {
      this.#poll = true;
      this.#reading.onpoll();
    } else if (this.#seq === before && performance.now() - begun < BARELY_OPEN_MS) {
      throw new LostError(null);
    }
  }

  async #readPoll() {
    const begun = performance.now();
    const longestMs = 1000 * this.#waitS + this.#reading.silenceMs;
    try {
      const response = await this.#ask("application/json", `&wait_s=${this.#waitS}`, longestMs);
      if (!response) return;
      for (const frame of (await jsonOf(response)).items) this.#take(frame);
    } catch (error) {
      if (this.#ended) return;
      const isLimit = performance.now() - begun > BARELY_OPEN_MS && this.#waitS > 1;
      if (!(error instanceof LostError) || error.closeCode !== null || !isLimit) throw error;
      this.#waitS = Math.ceil(this.#waitS / 2);
    } finally {
      clearTimeout(this.#timer);
    }
    if (!this.#ended) await pause(Math.max(0, begun + POLL_EVERY_MS - performance.now()));
  }

  /**
   * @param {string} accept
   * @param {string} more  further parameters
   * @param {number} silenceMs  longest silence before the first byte
   * @returns {Promise<Response | null>}  null: it was told to wait, and has waited; or it has ended
   */
  async #ask(accept, more, silenceMs) {
    const { http, path, onproblem } = this.#reading;
    this.#request = new AbortController();
    this.#watch(silenceMs);
    const options = { headers: { Accept: accept }, signal: this.#request.signal };
    const { response, problem } = await http.call(`${path}?after_seq=${this.#seq}${more}`, options);
    if (this.#ended) return null;
    if (response) {
      if (!response.headers.get("Content-Type")?.startsWith(accept)) throw new LostError(null);
      this.#refusals = 0;
      return response;
    }
    if (problem.retryAfterMs !== null && this.#refusals++ < MAX_REFUSALS) {
      await pause(problem.retryAfterMs);
    } else {
      this.#ended = true;
      onproblem(problem);
    }
    return null;
  }

  /** @param {number} silenceMs  after which the request is given up */
  #watch(silenceMs) {
    const request = this.#request;
    this.#isSilent = false;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#isSilent = true;
      request.abort();
    }, silenceMs);
  }

  /** @param {Frame} frame */
  #take(frame) {
    if (this.#ended) return;
    if (frame.type === "delta") this.#seq = frame.seq;
    this.#ended = ENDS.has(frame.type);
    this.#reading.onframe(frame);
  }
}

/** Takes server-sent events apart that come in pieces. */
class EventParser {
  #rest = "";

  /**
   * @param {string} chunk
   * @returns {Frame[]}  of the events that it completes
   * @throws {LostError}  the service did not say this
   */
  feed(chunk) {
    const events = (this.#rest + chunk).split(/\r?\n\r?\n/);
    this.#rest = events.pop() ?? "";
    return events.flatMap((event) => {
      const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      return data.length === 0 ? [] : [frameOf(data.map((line) => line.slice(5)).join("\n"))];
    });
  }
}

/** @param {string} json */
function frameOf(json) {
  try {
    return JSON.parse(json);
  } catch {
    throw new LostError(null);
  }
}

/**
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<string>}
 * @throws {LostError}
 */
async function* chunksOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield decoder.decode(value, { stream: true });
    }
  } catch {
    throw new LostError(null);
  } finally {
    reader.cancel().catch(() => {}); // what was read to its end, or has broken, has nothing to cancel
  }
}
