// @ts-check
/**
 * A client for Turnstone's WebSocket protocol, for any page: no dependencies, no build step.
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
 * @typedef {string | number} TurnId
 * @typedef {{prompt_tokens: number, completion_tokens: number, total_tokens: number,
 *   source: "provider" | "counted"}} Usage
 * @typedef {{type: string, [field: string]: any}} Frame  one JSON frame as the protocol describes it
 * @typedef {{code: string, message: string, retryable: boolean}} TurnError
 * @typedef {"sending" | "running" | "done" | "cancelled" | "error"} TurnState
 * @typedef {"idle" | "connecting" | "open" | "offline" | "waiting" | "refused" | "closed"} ConnectionState  "offline":
 *   the browser says that it has no network; the connection is kept until it has not answered either
 *
 * @typedef {object} ClientOptions
 * @property {string} url  ws:// or wss:// address of `/chat`
 * @property {string | (() => string | Promise<string>)} [token]  asked for at every connection, if a function
 * @property {number} [backoffMs]  longest wait before the first new try (250); doubles with each further one
 * @property {number} [backoffMaxMs]  longest wait of all (15000)
 * @property {number} [heartbeatMs]  silence after which the server is asked for a sign of life (20000)
 * @property {number} [patienceMs]  wait for that sign, and for a connection to open (10000)
 * @property {number} [doubtMs]  wait for that sign after the network went or came (3000)
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
 * @property {{state: ConnectionState, closeCode: number | null, retryInMs: number | null}} state
 * @property {{turn: Turn}} started
 * @property {{turn: Turn, added: string}} text
 * @property {{turn: Turn}} cut  `turn.text` became shorter
 * @property {{turn: Turn}} ended  see `turn.state`; fires once for every turn
 * @property {TurnError} error  an error that belongs to no turn
 * @property {Frame} frame  every frame from the server, also of types this client does not know
 */

const RESTARTING = 1012;
const TOO_LARGE = 1009;
/** Close codes after which trying again with the same token is pointless. */
const REFUSALS = new Map([
  [4401, { code: "unauthenticated", message: "The server asks for a valid token." }],
  [4403, { code: "forbidden", message: "This token does not allow that." }],
]);
/** Close codes of a server that needs a moment: the first wait is longer, so that not everybody returns at once. */
const BUSY = new Set([RESTARTING, 4429, 4503]);
/** What may stand in a subprotocol; a token with other characters goes into a first frame. */
const SUBPROTOCOL = /^[\w!#$%&'*+.^`|~-]+$/;
/** How often missing text is asked for, and a message sent, without any progress before the turn is given up. */
const MAX_TRIES = 4;
const REPLAY_PATIENCE_MS = 3000;

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
   * @param {Record<string, unknown> | null} request  the message frame; null for a turn taken up from elsewhere
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

export class TurnstoneClient extends EventTarget {
  /** @type {ConnectionState} */
  state = "idle";
  /** @type {Required<Omit<ClientOptions, "token">>} */
  #options;
  /** @type {ClientOptions["token"]} */
  #token;
  /** @type {WebSocket | null} */
  #socket = null;
  /** @type {Map<string, Turn>} turns that have not ended, by id as text */
  #turns = new Map();
  #failures = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} the one timer: next try, or next look at the heartbeat */
  #timer;
  /** Tells a connection that is being opened that it is no longer wanted. */
  #generation = 0;
  #whenOnline = () => this.#networkCame();
  #whenOffline = () => this.#networkWent();

  /** @param {ClientOptions} options */
  constructor({
    url,
    token,
    backoffMs = 250,
    backoffMaxMs = 15_000,
    heartbeatMs = 20_000,
    patienceMs = 10_000,
    doubtMs = 3_000,
  }) {
    super();
    this.#options = { url, backoffMs, backoffMaxMs, heartbeatMs, patienceMs, doubtMs };
    this.#token = token;
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
    if (this.state === "connecting" || this.#hasSocket || this.state === "waiting") return;
    globalThis.addEventListener?.("online", this.#whenOnline);
    globalThis.addEventListener?.("offline", this.#whenOffline);
    this.#failures = 0;
    this.#open();
  }

  /** Close the connection for good. Running turns go on at the server; `resume` takes them up again. */
  close() {
    globalThis.removeEventListener?.("online", this.#whenOnline);
    globalThis.removeEventListener?.("offline", this.#whenOffline);
    this.#discardSocket();
    for (const turn of this.#turns.values()) this.#forgetReplay(turn);
    this.#turns.clear();
    this.#setState("closed");
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
    if (this.#hasSocket) this.#sendCancel(turn);
    return true;
  }

  /** @param {Turn} turn */
  #take(turn) {
    this.#turns.set(String(turn.id), turn);
    if (this.#hasSocket) this.#transmit(turn);
    else if (this.state === "waiting") this.#retryNow();
    else this.connect();
  }

  // ---------------------------------------------------------------- connection

  /** Whether there is something to send on: what is lost with it is sent again on the next one. */
  get #hasSocket() {
    return this.state === "open" || this.state === "offline";
  }

  async #open() {
    const generation = ++this.#generation;
    this.#setState("connecting");
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#lost(null), this.#options.patienceMs);
    /** @type {string | undefined} */
    let token;
    try {
      token = typeof this.#token === "function" ? await this.#token() : this.#token;
    } catch {
      // Whoever hands out tokens is out of reach: as bad as a server that is, and as passing.
      if (generation === this.#generation) this.#lost(null);
      return;
    }
    if (generation !== this.#generation) return;
    const bySubprotocol = token !== undefined && SUBPROTOCOL.test(token);
    const socket = new WebSocket(this.#options.url, bySubprotocol ? ["turnstone.v1", `bearer.${token}`] : []);
    this.#socket = socket;
    socket.onopen = () => {
      if (token !== undefined && !bySubprotocol) this.#transmitFrame({ type: "auth", token });
      this.#opened();
    };
    socket.onmessage = (event) => this.#heard(event.data);
    socket.onclose = (event) => this.#lost(event.code);
  }

  #opened() {
    this.#setState("open");
    // The answer to this shows that the server means it; only then is the back-off forgotten.
    this.#transmitFrame({ type: "ping" });
    this.#watchHeartbeat();
    for (const turn of [...this.#turns.values()]) this.#transmit(turn);
  }

  /** @param {number | null} closeCode  null: the connection died without a word */
  #lost(closeCode) {
    this.#discardSocket();
    for (const turn of [...this.#turns.values()]) {
      this.#forgetReplay(turn);
      if (closeCode === TOO_LARGE && !turn.confirmed && turn.sends > 0) {
        this.#fail(turn, "message_too_large", "The message is too large for this server.", false);
      }
    }
    const refusal = closeCode === null ? undefined : REFUSALS.get(closeCode);
    if (refusal) {
      this.#setState("refused", closeCode);
      for (const turn of [...this.#turns.values()]) this.#fail(turn, refusal.code, refusal.message, false);
      return;
    }
    const { backoffMs, backoffMaxMs } = this.#options;
    const first = closeCode !== null && BUSY.has(closeCode) ? 4 * backoffMs : backoffMs;
    const longest = Math.min(backoffMaxMs, first * 2 ** this.#failures++);
    const retryInMs = Math.round(longest * (0.5 + Math.random() / 2));
    this.#timer = setTimeout(() => this.#open(), retryInMs);
    this.#setState("waiting", closeCode, retryInMs);
  }

  #retryNow() {
    if (this.state === "waiting") this.#open();
  }

  /** The browser has no network. A connection within this machine lives on all the same, so it is asked. */
  #networkWent() {
    if (this.state !== "open") return;
    this.#setState("offline");
    this.#askForLife(this.#options.doubtMs);
  }

  /** A connection from before the network changed is mostly dead without knowing it. */
  #networkCame() {
    if (this.#hasSocket) {
      this.#askForLife(this.#options.doubtMs);
    } else if (this.state === "connecting") {
      this.#discardSocket(); // its first packets went nowhere, and the system is slow to repeat them
      this.#open();
    } else {
      this.#retryNow();
    }
  }

  #discardSocket() {
    this.#generation++;
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null; // a dead connection's own close event may take minutes
    socket.close();
  }

  #watchHeartbeat() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#askForLife(this.#options.patienceMs), this.#options.heartbeatMs);
  }

  /** @param {number} patienceMs */
  #askForLife(patienceMs) {
    clearTimeout(this.#timer);
    this.#transmitFrame({ type: "ping" });
    this.#timer = setTimeout(() => this.#lost(null), patienceMs);
  }

  /**
   * @param {ConnectionState} state
   * @param {number | null} closeCode
   * @param {number | null} retryInMs
   */
  #setState(state, closeCode = null, retryInMs = null) {
    this.state = state;
    this.#emit("state", { state, closeCode, retryInMs });
  }

  // ---------------------------------------------------------------- client → server

  /** @param {Record<string, unknown>} frame */
  #transmitFrame(frame) {
    this.#socket?.send(JSON.stringify(frame));
  }

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
      this.#transmitFrame(turn.request);
    }
    if (turn.cancelWanted) this.#sendCancel(turn);
  }

  /** @param {Turn} turn */
  #sendResume(turn) {
    this.#transmitFrame({
      type: "resume",
      session_id: turn.sessionId,
      turn_id: turn.id,
      after_seq: turn.answer.seq,
    });
  }

  /** @param {Turn} turn */
  #sendCancel(turn) {
    const session = turn.sessionId === null ? {} : { session_id: turn.sessionId };
    this.#transmitFrame({ type: "cancel", turn_id: turn.id, ...session });
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

  /** @param {unknown} data */
  #heard(data) {
    /** @type {Frame} */
    let frame;
    try {
      frame = JSON.parse(String(data));
    } catch {
      return; // no frame of this protocol
    }
    if (frame.type !== "error") this.#failures = 0; // an overloaded server may say so and close, again and again
    if (this.state === "offline") this.#setState("open");
    this.#watchHeartbeat();
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
 * @param {Frame} frame
 * @returns {TurnError}
 */
function errorOf(frame) {
  return { code: frame.code, message: frame.message, retryable: Boolean(frame.retryable) };
}
