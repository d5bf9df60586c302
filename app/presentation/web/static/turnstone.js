// @ts-check
/**
 * A client for Turnstone's protocol, for any page: no dependencies, no build step.
 *
 *     import { TurnstoneClient } from "/static/turnstone.js";
 *     const client = new TurnstoneClient({ url: "wss://exam.example/chat", token: fetchTicket });
 *     client.on("text", ({ turn }) => show(turn.id, turn.text));
 *     client.on("ended", ({ turn }) => finish(turn.id, turn.state, turn.usage));
 *     client.connect();
 *     const turn = client.send({ message: "Where is my bug?", examId: 1, participantId: 1 });
 *
 * A lost connection is opened again and running turns go on where they stopped: nothing is lost, repeated or
 * billed twice. `turn.text` is at every moment a beginning of the stored answer, except that the answer of a turn
 * that ends as `interrupted` may be cut back (event `cut`).
 *
 * Where a proxy lets no WebSocket through, the same goes over plain HTTP, by itself and until a WebSocket works again;
 * `state` events say so (`transport`), and nothing else changes.
 *
 * @typedef {import("./turn.js").TurnId} TurnId
 * @typedef {import("./turn.js").Usage} Usage
 * @typedef {import("./turn.js").Frame} Frame
 * @typedef {import("./turn.js").TurnError} TurnError
 * @typedef {import("./turn.js").TurnState} TurnState
 * @typedef {import("./connection.js").ConnectionState} ConnectionState
 * @typedef {import("./connection.js").TransportKind} TransportKind
 *
 * @typedef {object} ClientOptions
 * @property {string} url  ws:// or wss:// address of `/chat`
 * @property {string} [httpUrl]  http:// or https:// address of the service, for where no WebSocket gets through; that of
 *   `url` without its `/chat` if left out
 * @property {string | (() => string | Promise<string>)} [token]  asked for at every connection, if a function
 * @property {"websocket" | "http"} [begin]  what to try first ("websocket"); a page that has just fallen back to HTTP
 *   saves its next one the way there
 * @property {number} [backoffMs]  longest wait before the first new try (250); doubles with each further one
 * @property {number} [backoffMaxMs]  longest wait of all (15000)
 * @property {number} [heartbeatMs]  silence after which the server is asked for a sign of life (20000)
 * @property {number} [patienceMs]  wait for that sign, and for a connection to open (10000)
 * @property {number} [doubtMs]  wait for that sign after the network went or came, and for the first one of a WebSocket
 *   or stream that something on the way may hold back (3000)
 * @property {number} [returnMs]  time over HTTP after which a WebSocket is tried again (300000)
 *
 * @typedef {object} NewMessage
 * @property {string} message
 * @property {TurnId} [turnId]  unique in its session; made here if left out
 * @property {string} [sessionId]  or examId and participantId
 * @property {number} [examId]
 * @property {number} [participantId]
 * @property {number} [specId]
 *
 * @typedef {object} Events  what each event's detail holds
 * @property {import("./connection.js").StateDetail} state
 * @property {{turn: Turn}} started
 * @property {{turn: Turn, added: string}} text
 * @property {{turn: Turn}} cut  `turn.text` became shorter
 * @property {{turn: Turn}} ended  see `turn.state`; fires once for every turn
 * @property {TurnError} error  an error that belongs to no turn
 * @property {Frame} frame  every frame from the server, also of types this client does not know
 */

import { Connection } from "./connection.js";
import { Turn } from "./turn.js";

export { AnswerText, Turn } from "./turn.js";

const TOO_LARGE = 1009;
/** What a refused connection means for its turns, by close code. */
const REFUSALS = new Map([
  [4401, { code: "unauthenticated", message: "The server asks for a valid token." }],
  [4403, { code: "forbidden", message: "This token does not allow that." }],
]);
/** How often missing text is asked for, and a message sent, without any progress before the turn is given up. */
const MAX_TRIES = 4;
const REPLAY_PATIENCE_MS = 3000;

export class TurnstoneClient extends EventTarget {
  #connection;
  /** @type {Map<string, Turn>} turns that have not ended, by id as text */
  #turns = new Map();

  /** @param {ClientOptions} options */
  constructor({
    url,
    httpUrl,
    token,
    begin = "websocket",
    backoffMs = 250,
    backoffMaxMs = 15_000,
    heartbeatMs = 20_000,
    patienceMs = 10_000,
    doubtMs = 3_000,
    returnMs = 300_000,
  }) {
    super();
    const waits = { backoffMs, backoffMaxMs, heartbeatMs, patienceMs, doubtMs, returnMs };
    const askToken = async () => (typeof token === "function" ? token() : token);
    const base = httpUrl?.replace(/\/$/, "") ?? httpUrlOf(url);
    this.#connection = new Connection(
      { url, httpUrl: base, askToken, begin, ...waits },
      {
        state: (detail) => this.#noteState(detail),
        opened: () => this.#opened(),
        frame: (frame) => this.#heard(frame),
        lost: (closeCode) => this.#lost(closeCode),
        isIdle: () => this.#turns.size === 0,
      },
    );
  }

  /** @type {ConnectionState} */
  get state() {
    return this.#connection.state;
  }

  /** @type {TransportKind} what answers come by, or would */
  get transport() {
    return this.#connection.transport;
  }

  /**
   * `addEventListener` with the detail at hand.
   *
   * @template {keyof Events} K
   * @param {K} type
   * @param {(detail: Events[K]) => void} listener
   * @returns {() => void}  takes the listener off again
   */
  on(type, listener) {
    const wrapped = (/** @type {Event} */ event) => listener(/** @type {CustomEvent<Events[K]>} */ (event).detail);
    this.addEventListener(type, wrapped);
    return () => this.removeEventListener(type, wrapped);
  }

  /** Open the connection and keep it open. */
  connect() {
    this.#connection.open();
  }

  /** Close the connection for good. Running turns go on at the server; `resume` takes them up again. */
  close() {
    for (const turn of this.#turns.values()) this.#forgetReplay(turn);
    this.#turns.clear();
    this.#connection.close();
  }

  /**
   * Send a message; connects if need be. Repeating it with the same `turnId` is safe.
   *
   * @param {NewMessage} message
   * @returns {Turn}
   */
  send({ message, turnId = crypto.randomUUID(), sessionId, examId, participantId, specId }) {
    const running = this.#turns.get(String(turnId));
    if (running) {
      if (running.request?.message === message) return running;
      throw new Error(`turn ${turnId} is still running`);
    }
    const place = { exam_id: examId, participant_id: participantId, spec_id: specId };
    const target = sessionId === undefined ? place : { session_id: sessionId };
    const turn = new Turn(turnId, { type: "message", message, turn_id: turnId, ...target }, sessionId ?? null);
    this.#take(turn);
    return turn;
  }

  /**
   * Take up a turn that runs, or ran, at the server: after a reload, or in another tab.
   *
   * @param {{sessionId: string, turnId: TurnId, message?: string}} turn  with its message it is sent again in case
   *   the server never got it
   * @returns {Turn}
   */
  resume({ sessionId, turnId, message }) {
    const running = this.#turns.get(String(turnId));
    if (running) return running;
    const request =
      message === undefined ? null : { type: "message", message, turn_id: turnId, session_id: sessionId };
    const turn = new Turn(turnId, request, sessionId);
    turn.confirmed = true;
    turn.state = "running";
    this.#take(turn);
    return turn;
  }

  /**
   * Stop a turn. It ends with state `cancelled`, or as it ended before the server heard of this.
   *
   * @param {TurnId} turnId
   * @returns {boolean}  whether such a turn is running
   */
  cancel(turnId) {
    const turn = this.#turns.get(String(turnId));
    if (!turn) return false;
    if (!turn.confirmed && turn.sends === 0) {
      this.#end(turn, { type: "cancelled" });
      return true;
    }
    turn.cancelWanted = true;
    if (this.#connection.isOpen) this.#sendCancel(turn);
    return true;
  }

  /** @param {Turn} turn */
  #take(turn) {
    this.#turns.set(String(turn.id), turn);
    if (this.#connection.isOpen) this.#transmit(turn);
    else if (this.state === "waiting") this.#connection.hurry();
    else this.connect();
  }

  // ---------------------------------------------------------------- connection

  #opened() {
    for (const turn of [...this.#turns.values()]) this.#transmit(turn);
  }

  /** @param {number | null} closeCode */
  #lost(closeCode) {
    for (const turn of [...this.#turns.values()]) {
      this.#forgetReplay(turn);
      if (closeCode === TOO_LARGE && !turn.confirmed && turn.sends > 0) {
        this.#fail(turn, "message_too_large", "The message is too large for this server.", false);
      }
    }
  }

  /** @param {Events["state"]} detail */
  #noteState(detail) {
    this.#emit("state", detail);
    if (detail.state !== "refused") return;
    const refusal = REFUSALS.get(detail.closeCode ?? 0);
    for (const turn of [...this.#turns.values()]) {
      if (refusal) this.#fail(turn, refusal.code, refusal.message, false);
    }
  }

  // ---------------------------------------------------------------- client → server

  /**
   * Tell a fresh connection about a turn.
   *
   * @param {Turn} turn
   */
  #transmit(turn) {
    if (turn.confirmed) {
      this.#sendResume(turn);
    } else if (turn.sends++ >= MAX_TRIES) {
      this.#fail(turn, "internal", "The server did not take the message.", true);
      return;
    } else if (turn.request) {
      this.#connection.send(turn.request);
    }
    if (turn.cancelWanted) this.#sendCancel(turn);
  }

  /** @param {Turn} turn */
  #sendResume(turn) {
    this.#connection.send({
      type: "resume",
      session_id: turn.sessionId,
      turn_id: turn.id,
      after_seq: turn.answer.seq,
    });
  }

  /** @param {Turn} turn */
  #sendCancel(turn) {
    const session = turn.sessionId === null ? {} : { session_id: turn.sessionId };
    this.#connection.send({ type: "cancel", turn_id: turn.id, ...session });
  }

  /**
   * Ask for the text after what is held, and ask again while none comes.
   *
   * @param {Turn} turn
   */
  #askReplay(turn) {
    if (turn.replayTimer !== undefined) return;
    if (turn.replays++ >= MAX_TRIES) {
      this.#fail(turn, "internal", "The answer could not be read to its end.", true);
      return;
    }
    this.#sendResume(turn);
    this.#replayLater(turn);
  }

  /** @param {Turn} turn */
  #replayLater(turn) {
    turn.replayTimer ??= setTimeout(() => {
      turn.replayTimer = undefined;
      this.#askReplay(turn);
    }, REPLAY_PATIENCE_MS);
  }

  /** @param {Turn} turn */
  #forgetReplay(turn) {
    clearTimeout(turn.replayTimer);
    turn.replayTimer = undefined;
    turn.replays = 0;
    turn.heldEnd = null;
  }

  // ---------------------------------------------------------------- server → client

  /** @param {Frame} frame */
  #heard(frame) {
    this.#emit("frame", frame);
    const known = frame.turn_id !== undefined && frame.turn_id !== null;
    const turn = known ? this.#turns.get(String(frame.turn_id)) : undefined;
    if (turn) this.#read(turn, frame);
    else if (frame.type === "error" && !known) this.#emit("error", errorOf(frame));
  }

  /**
   * @param {Turn} turn
   * @param {Frame} frame
   */
  #read(turn, frame) {
    switch (frame.type) {
      case "started":
        return this.#readStarted(turn, frame);
      case "delta":
        return this.#readDelta(turn, frame);
      case "done":
      case "cancelled":
        return this.#readEnd(turn, frame, turn.seen);
      case "error":
        return this.#readError(turn, frame);
    }
  }

  /**
   * @param {Turn} turn
   * @param {Frame} frame
   */
  #readStarted(turn, frame) {
    turn.confirmed = true;
    turn.sessionId = frame.session_id;
    turn.number = frame.turn;
    if (turn.state !== "sending") return;
    turn.state = "running";
    this.#emit("started", { turn });
  }

  /**
   * @param {Turn} turn
   * @param {Frame} frame
   */
  #readDelta(turn, frame) {
    const before = turn.answer.text.length;
    turn.seen = Math.max(turn.seen, frame.seq);
    const outcome = turn.answer.add(frame.first_seq ?? frame.seq, frame.seq, frame.content);
    if (outcome === "gap") this.#askReplay(turn);
    if (outcome !== "added") return;
    const end = turn.heldEnd;
    this.#forgetReplay(turn);
    this.#emit("text", { turn, added: turn.answer.text.slice(before) });
    if (end) this.#readEnd(turn, end, turn.seen);
  }

  /**
   * @param {Turn} turn
   * @param {Frame} frame
   */
  #readError(turn, frame) {
    if (frame.last_seq !== undefined) {
      turn.seen = frame.last_seq;
      this.#readEnd(turn, frame, frame.last_seq);
    } else if (turn.confirmed && frame.code === "turn_not_found" && turn.request && turn.sends < MAX_TRIES) {
      this.#startOver(turn);
    } else if (turn.confirmed && frame.retryable) {
      this.#replayLater(turn); // not the turn failed, but what we asked about it
    } else {
      this.#end(turn, frame);
    }
  }

  /**
   * The server never got the message, or lost it: send it again.
   *
   * @param {Turn} turn
   */
  #startOver(turn) {
    this.#forgetReplay(turn);
    turn.confirmed = false;
    turn.seen = 0;
    if (turn.answer.seq > 0) {
      turn.answer.cutTo(0);
      this.#emit("cut", { turn });
    }
    this.#transmit(turn);
  }

  /**
   * A terminal frame: the turn ends once exactly the deltas up to `lastSeq` are held.
   *
   * @param {Turn} turn
   * @param {Frame} frame
   * @param {number} lastSeq
   */
  #readEnd(turn, frame, lastSeq) {
    if (turn.answer.seq > lastSeq) {
      turn.answer.cutTo(lastSeq);
      this.#emit("cut", { turn });
    }
    if (turn.answer.seq === lastSeq) {
      this.#end(turn, frame);
    } else {
      turn.heldEnd = frame;
      this.#askReplay(turn);
    }
  }

  /**
   * @param {Turn} turn
   * @param {string} code
   * @param {string} message
   * @param {boolean} retryable
   */
  #fail(turn, code, message, retryable) {
    this.#end(turn, { type: "error", code, message, retryable });
  }

  /**
   * @param {Turn} turn
   * @param {Frame} frame
   */
  #end(turn, frame) {
    this.#forgetReplay(turn);
    this.#turns.delete(String(turn.id));
    turn.number = frame.turn ?? turn.number;
    turn.usage = frame.usage ?? null;
    if (frame.type === "done") {
      turn.state = "done";
      turn.finishReason = frame.finish_reason;
    } else if (frame.type === "cancelled") {
      turn.state = "cancelled";
    } else {
      turn.state = "error";
      turn.error = errorOf(frame);
    }
    this.#emit("ended", { turn });
    turn.settle(turn);
    if (this.#turns.size === 0) this.#connection.idle();
  }

  /**
   * @template {keyof Events} K
   * @param {K} type
   * @param {Events[K]} detail
   */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/**
 * Address of the service, by that of its WebSocket.
 *
 * @param {string} url
 * @returns {string | null}  null: it does not end like one
 */
function httpUrlOf(url) {
  const address = /^ws(s?:\/\/[^?#]*?)(?:\/api\/chat\/ws|\/chat)(?:[?#]|$)/.exec(url);
  return address ? `http${address[1]}` : null;
}

/**
 * @param {Frame} frame
 * @returns {TurnError}
 */
function errorOf(frame) {
  return { code: frame.code, message: frame.message, retryable: Boolean(frame.retryable) };
}
