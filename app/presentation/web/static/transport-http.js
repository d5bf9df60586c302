// @ts-check
/**
 * The protocol's frames without a WebSocket: what the client would send becomes requests, and what is read of its turns
 * becomes the frames that a socket would bring.
 */

import { LostError, isReachable, jsonOf, pause } from "./http.js";
import { TurnReader } from "./turn-reader.js";

/** @typedef {import("./turn.js").Frame} Frame */
/** @typedef {import("./connection.js").Transport} Transport */
/** @typedef {import("./turn.js").TurnId} TurnId */
/** @typedef {import("./http.js").Problem} Problem */

/** How often in a row "later" is taken for an answer. */
const MAX_TRIES = 4;
/** Turn ids that no path can hold: a browser takes them for a way up. */
const UNSPEAKABLE = new Set([".", ".."]);

/** @implements {Transport} */
export class HttpTransport {
  /** @type {import("./connection.js").TransportKind} */
  kind;
  onopen = () => {};
  onkind = () => {};
  /** @type {(frame: Frame) => void} */
  onframe = () => {};
  /** @type {(closeCode: number | null) => void} */
  onlost = () => {};
  #http;
  #waits;
  #closed = false;
  /** @type {Map<string, TurnReader>} by turn id as text */
  #readers = new Map();
  /** @type {Map<string, Promise<string | null>>} the sessions of messages under way, by turn id as text */
  #sessions = new Map();

  /**
   * @param {import("./http.js").Http} http
   * @param {"sse" | "poll"} kind  how to begin reading
   * @param {{patienceMs: number, doubtMs: number, silenceMs: number}} waits
   */
  constructor(http, kind, waits) {
    this.#http = http;
    this.kind = kind;
    this.#waits = waits;
    this.#do(this.#open());
  }

  /** @param {Frame} frame */
  send(frame) {
    if (UNSPEAKABLE.has(frame.turn_id)) return void this.#do(this.#refuse(frame.turn_id));
    switch (frame.type) {
      case "message":
        return void this.#do(this.#sendMessage(frame));
      case "resume":
        return void this.#do(this.#read(frame.session_id, frame.turn_id, frame.after_seq));
      case "cancel":
        return void this.#do(this.#cancel(frame));
      case "ping":
        return void this.#do(this.#ping());
    }
  }

  close() {
    this.#closed = true;
    for (const reader of this.#readers.values()) reader.stop();
  }

  /**
   * Nothing is heard of what fails after the end.
   *
   * @param {Promise<void>} action
   */
  async #do(action) {
    try {
      await action;
    } catch (error) {
      if (!(error instanceof LostError)) throw error;
      if (this.#closed) return;
      this.close();
      this.onlost(error.closeCode);
    }
  }

  /** @param {TurnId} turnId */
  async #refuse(turnId) {
    await null; // whoever sends does not expect an answer at once
    const message = `A turn cannot be called "${turnId}" where no WebSocket gets through.`;
    this.#hand({ type: "error", turn_id: turnId, code: "invalid_frame", message, retryable: false });
  }

  async #open() {
    await this.#checkLife();
    if (!this.#closed) this.onopen();
  }

  async #ping() {
    await this.#checkLife();
    this.#hand({ type: "pong" });
  }

  async #checkLife() {
    if (!(await isReachable(this.#http.base, this.#waits.patienceMs))) throw new LostError(null);
  }

  /** @param {Frame} frame */
  async #sendMessage({ type: _, ...message }) {
    const turnId = message.turn_id;
    const options = {
      headers: { "Content-Type": "application/json", Prefer: "respond-async" },
      body: JSON.stringify(message),
    };
    const answer = this.#post("/api/chat/message", options);
    const key = String(turnId);
    const session = answer.then(({ body }) => body?.session_id ?? null).catch(() => null);
    this.#sessions.set(key, session);
    const { body, problem } = await answer;
    if (problem) return this.#hand(errorFrame(turnId, problem));
    this.#hand({ type: "started", session_id: body.session_id, turn_id: turnId, turn: body.turn });
    this.#sessions.delete(key);
    await this.#read(body.session_id, turnId, 0);
  }

  /**
   * Stop a turn; that it has stopped is read with its events.
   *
   * @param {Frame} frame
   */
  async #cancel(frame) {
    const sessionId = frame.session_id ?? (await this.#sessions.get(String(frame.turn_id)));
    if (!sessionId) return; // its message was refused, and that has ended it
    const { problem } = await this.#post(`${pathOf(sessionId, frame.turn_id)}/cancel`, {});
    if (problem?.retryable) throw new LostError(null); // everything is asked for again
  }

  /**
   * @param {string} path
   * @param {RequestInit} options
   * @returns {Promise<{body: any, problem: null} | {body: null, problem: Problem}>}
   */
  async #post(path, options) {
    for (let tries = 1; ; tries++) {
      const { response, problem } = await this.#http.call(path, { method: "POST", ...options });
      if (response) return { body: await jsonOf(response), problem: null };
      if (problem.retryAfterMs === null || tries === MAX_TRIES) return { body: null, problem };
      await pause(problem.retryAfterMs);
      if (this.#closed) throw new LostError(null);
    }
  }

  /**
   * @param {string} sessionId
   * @param {TurnId} turnId
   * @param {number} afterSeq
   */
  async #read(sessionId, turnId, afterSeq) {
    const key = String(turnId);
    this.#readers.get(key)?.stop();
    if (this.#closed) return;
    const reader = new TurnReader({
      http: this.#http,
      path: `${pathOf(sessionId, turnId)}/events`,
      afterSeq,
      poll: this.kind === "poll",
      ...this.#waits,
      onframe: (frame) => this.#hand(frame),
      onproblem: (problem) => this.#hand(errorFrame(turnId, problem)),
      onpoll: () => {
        this.kind = "poll";
        this.onkind();
      },
    });
    this.#readers.set(key, reader);
    await reader.run();
    if (this.#readers.get(key) === reader) this.#readers.delete(key);
  }

  /** @param {Frame} frame */
  #hand(frame) {
    if (!this.#closed) this.onframe(frame);
  }
}

/**
 * @param {string} sessionId
 * @param {TurnId} turnId
 */
const pathOf = (sessionId, turnId) =>
  `/api/sessions/${encodeURIComponent(sessionId)}/turns/${encodeURIComponent(String(turnId))}`;

/**
 * @param {TurnId} turnId
 * @param {Problem} problem
 * @returns {Frame}
 */
function errorFrame(turnId, { code, message, retryable }) {
  return { type: "error", turn_id: turnId, code, message, retryable };
}
