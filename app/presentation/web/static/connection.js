// @ts-check
/**
 * Keeps a connection to the service open: over a WebSocket, and over plain HTTP where no WebSocket gets through.
 *
 * Nothing here knows of turns: what is lost with a connection, its owner sends again on the next one.
 */

import { Fallback } from "./fallback.js";
import { Http, isReachable } from "./http.js";
import { HttpTransport } from "./transport-http.js";
import { WebSocketTransport } from "./transport-websocket.js";

/** @typedef {import("./turn.js").Frame} Frame */

/**
 * @typedef {"idle" | "connecting" | "open" | "offline" | "waiting" | "refused" | "closed"} ConnectionState  "offline":
 *   the browser says that it has no network; the connection is kept until it has not answered either
 * @typedef {"websocket" | "sse" | "poll"} TransportKind  what carries an answer: a WebSocket, server-sent events, or long
 *   polls
 * @typedef {{state: ConnectionState, closeCode: number | null, retryInMs: number | null, transport: TransportKind}}
 *   StateDetail
 *
 * @typedef {object} Transport  carries the protocol's frames
 * @property {TransportKind} kind
 * @property {(frame: Frame) => void} send  only once it is open
 * @property {() => void} close  nothing is heard of it afterwards
 * @property {() => void} onopen
 * @property {() => void} onkind  `kind` has changed
 * @property {(frame: Frame) => void} onframe
 * @property {(closeCode: number | null) => void} onlost  null: it died without a word
 *
 * @typedef {object} Owner
 * @property {(detail: StateDetail) => void} state
 * @property {() => void} opened  a fresh connection, which knows of nothing
 * @property {(frame: Frame) => void} frame
 * @property {(closeCode: number | null) => void} lost
 * @property {() => boolean} isIdle  whether nothing would be disturbed by another connection
 *
 * @typedef {object} ConnectionOptions
 * @property {string} url  of the WebSocket
 * @property {string | null} httpUrl  of the service, without a slash at its end; null: there is nothing but the WebSocket
 * @property {() => Promise<string | undefined>} askToken
 * @property {"websocket" | "http"} begin
 * @property {number} backoffMs
 * @property {number} backoffMaxMs
 * @property {number} heartbeatMs
 * @property {number} patienceMs
 * @property {number} doubtMs
 * @property {number} returnMs
 */

/** Close codes of a server that needs a moment: the first wait is longer, so that not everybody returns at once. */
const BUSY = new Set([1012, 4429, 4503]);
/** Close codes after which trying again with the same token is pointless. */
const REFUSALS = new Set([4401, 4403]);
/** Age at which HTTP is believed to work as a whole. */
const PROVEN_AFTER_MS = 5000;

export class Connection {
  /** @type {ConnectionState} */
  state = "idle";
  #options;
  #owner;
  /** @type {Transport | null} */
  #transport = null;
  #failures = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} next try, or next look at the heartbeat */
  #timer;
  /** @type {ReturnType<typeof setTimeout> | undefined} for a WebSocket that has not said anything yet */
  #doubtTimer;
  /** Tells a connection that is being opened that it is no longer wanted. */
  #generation = 0;
  #openedAt = 0;
  /** Whether the transport has brought a frame. */
  #heard = false;

  #fallback;
  /** @type {"sse" | "poll"} as the network was found to be */
  #httpKind = /** @type {const} */ ("sse");
  /** @type {WebSocketTransport | null} tried out beside the HTTP that works */
  #candidate = null;
  #wantsReturn = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} next try of a WebSocket, or the end of the one under way */
  #returnTimer;

  #whenOnline = () => this.#networkCame();
  #whenOffline = () => this.#networkWent();

  /**
   * @param {ConnectionOptions} options
   * @param {Owner} owner
   */
  constructor(options, owner) {
    this.#options = options;
    this.#owner = owner;
    this.#fallback = new Fallback(options);
  }

  /** Whether there is something to send on: what is lost with it is sent again on the next one. */
  get isOpen() {
    return this.state === "open" || this.state === "offline";
  }

  /** @type {TransportKind} */
  get transport() {
    return this.#transport?.kind ?? (this.#fallback.prefersHttp ? this.#httpKind : "websocket");
  }

  get #isOnHttp() {
    return this.#transport !== null && this.#transport.kind !== "websocket";
  }

  open() {
    if (this.state === "connecting" || this.isOpen || this.state === "waiting") return;
    globalThis.addEventListener?.("online", this.#whenOnline);
    globalThis.addEventListener?.("offline", this.#whenOffline);
    this.#failures = 0;
    this.#open();
  }

  close() {
    globalThis.removeEventListener?.("online", this.#whenOnline);
    globalThis.removeEventListener?.("offline", this.#whenOffline);
    this.#discard();
    this.#setState("closed");
  }

  /** Do not wait any longer for the next try. */
  hurry() {
    if (this.state === "waiting") this.#open();
  }

  /** @param {Frame} frame */
  send(frame) {
    this.#transport?.send(frame);
  }

  /** To be called when the owner has become idle. */
  idle() {
    if (this.#wantsReturn) this.#tryWebSocket();
  }

  // ---------------------------------------------------------------- opening and losing

  async #open() {
    const generation = ++this.#generation;
    const { url, httpUrl, askToken, patienceMs, doubtMs, heartbeatMs } = this.#options;
    this.#setState("connecting");
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#lost(null), patienceMs);
    /** @type {string | undefined} */
    let token;
    try {
      token = await askToken();
    } catch {
      // Whoever hands out tokens is out of reach: as bad as a server that is, and as passing.
      if (generation === this.#generation) this.#lost(null);
      return;
    }
    if (generation !== this.#generation) return;
    if (this.#fallback.prefersHttp && httpUrl !== null) {
      const waits = { patienceMs, doubtMs, silenceMs: heartbeatMs + patienceMs };
      this.#take(new HttpTransport(new Http(httpUrl, token, askToken), this.#httpKind, waits));
    } else {
      this.#take(new WebSocketTransport(url, token));
      this.#doubtTimer = setTimeout(() => this.#doubt(generation), doubtMs);
    }
  }

  /** @param {Transport} transport */
  #take(transport) {
    this.#transport = transport;
    this.#openedAt = performance.now();
    transport.onopen = () => this.#opened();
    transport.onframe = (frame) => this.#heardFrame(frame);
    transport.onlost = (closeCode) => this.#lost(closeCode);
    transport.onkind = () => {
      if (transport.kind !== "websocket") this.#httpKind = transport.kind;
      this.#setState(this.state);
    };
  }

  #opened() {
    this.#setState("open");
    // The answer to this shows that the server means it; only then is the back-off forgotten.
    this.#askForLife(this.#options.patienceMs);
    if (this.#isOnHttp) this.#returnLater();
    this.#owner.opened();
  }

  /** @param {number | null} closeCode  null: the connection died without a word */
  #lost(closeCode) {
    if (this.#transport?.kind === "websocket") this.#judge(closeCode);
    this.#discard();
    this.#owner.lost(closeCode);
    if (closeCode !== null && REFUSALS.has(closeCode)) {
      this.#setState("refused", closeCode);
      return;
    }
    const { backoffMs, backoffMaxMs } = this.#options;
    const first = closeCode !== null && BUSY.has(closeCode) ? 4 * backoffMs : backoffMs;
    const longest = Math.min(backoffMaxMs, first * 2 ** this.#failures++);
    const retryInMs = Math.round(longest * (0.5 + Math.random() / 2));
    this.#timer = setTimeout(() => this.#open(), retryInMs);
    this.#setState("waiting", closeCode, retryInMs);
  }

  #discard() {
    this.#generation++;
    clearTimeout(this.#timer);
    clearTimeout(this.#doubtTimer);
    this.#dropCandidate();
    this.#heard = false;
    const transport = this.#transport;
    this.#transport = null;
    transport?.close();
  }

  /**
   * @param {ConnectionState} state
   * @param {number | null} closeCode
   * @param {number | null} retryInMs
   */
  #setState(state, closeCode = null, retryInMs = null) {
    this.state = state;
    this.#owner.state({ state, closeCode, retryInMs, transport: this.transport });
  }

  // ---------------------------------------------------------------- signs of life

  /** @param {Frame} frame */
  #heardFrame(frame) {
    this.#heard = true;
    clearTimeout(this.#doubtTimer);
    // An overloaded server may say so and close, again and again; and over HTTP a pong says little of the rest.
    const isNew = performance.now() - this.#openedAt < PROVEN_AFTER_MS;
    const saysLittle = frame.type === "error" || (frame.type === "pong" && this.#isOnHttp && isNew);
    if (!saysLittle) this.#failures = 0;
    if (this.state === "offline") this.#setState("open");
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#askForLife(this.#options.patienceMs), this.#options.heartbeatMs);
    this.#owner.frame(frame);
    if (this.#wantsReturn) this.#tryWebSocket();
  }

  /** @param {number} patienceMs */
  #askForLife(patienceMs) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#lost(null), patienceMs);
    this.send({ type: "ping" });
  }

  /** The browser has no network. A connection within this machine lives on all the same, so it is asked. */
  #networkWent() {
    if (this.state !== "open") return;
    this.#setState("offline");
    this.#askForLife(this.#options.doubtMs);
  }

  /** A connection from before the network changed is mostly dead without knowing it. */
  #networkCame() {
    this.#wantsReturn = this.#fallback.prefersHttp; // another network may let a WebSocket through
    if (this.isOpen) {
      this.#askForLife(this.#options.doubtMs);
    } else if (this.state === "connecting") {
      this.#discard(); // its first packets went nowhere, and the system is slow to repeat them
      this.#open();
    } else {
      this.hurry();
    }
  }

  // ---------------------------------------------------------------- to HTTP and back

  /**
   * The WebSocket is silent. Where the service answers over HTTP meanwhile, something on the way keeps it so.
   *
   * @param {number} generation
   */
  async #doubt(generation) {
    const { httpUrl, patienceMs } = this.#options;
    if (httpUrl === null || !(await isReachable(httpUrl, patienceMs))) return;
    if (generation === this.#generation && !this.#heard) this.#lost(null);
  }

  /** @param {number | null} closeCode  of the WebSocket that is lost */
  async #judge(closeCode) {
    const isSettled = await this.#fallback.judge(closeCode, this.#heard, performance.now() - this.#openedAt);
    const isTrying = this.isOpen || this.state === "waiting" || this.state === "connecting";
    if (!isSettled || !isTrying || this.#heard) return;
    this.#discard();
    this.#open();
  }

  #returnLater() {
    clearTimeout(this.#returnTimer);
    this.#returnTimer = setTimeout(() => {
      this.#wantsReturn = true;
      this.#tryWebSocket();
    }, this.#fallback.returnInMs);
  }

  /** Try a WebSocket while nothing runs that it could disturb; until it has answered, HTTP goes on. */
  async #tryWebSocket() {
    if (this.#candidate || !this.#isOnHttp || this.state !== "open" || !this.#owner.isIdle()) return;
    this.#wantsReturn = false;
    const generation = this.#generation;
    const { url, askToken, patienceMs } = this.#options;
    const token = await askToken().catch(() => undefined);
    if (generation !== this.#generation || this.#candidate) return;
    const candidate = (this.#candidate = new WebSocketTransport(url, token));
    const giveUp = () => {
      this.#dropCandidate();
      this.#fallback.postpone();
      this.#returnLater();
    };
    clearTimeout(this.#returnTimer);
    this.#returnTimer = setTimeout(giveUp, patienceMs);
    candidate.onlost = giveUp;
    candidate.onopen = () => candidate.send({ type: "ping" });
    candidate.onframe = (frame) => {
      if (frame.type === "error") return;
      if (this.#owner.isIdle()) return this.#return(candidate, frame);
      this.#dropCandidate();
      this.#wantsReturn = true; // as soon as it is
    };
  }

  /**
   * @param {WebSocketTransport} candidate
   * @param {Frame} frame  that it has brought
   */
  #return(candidate, frame) {
    this.#candidate = null;
    this.#discard();
    this.#fallback.clear();
    this.#httpKind = "sse";
    this.#take(candidate);
    this.#setState("open");
    this.#heardFrame(frame);
  }

  #dropCandidate() {
    clearTimeout(this.#returnTimer);
    this.#candidate?.close();
    this.#candidate = null;
  }
}
