// @ts-check
/** The chat page: puts the protocol's client, the stored conversation and the views together. */

import { watchCore } from "./core.js";
import { RequestError, Server } from "./server.js";
import { TurnView, endWords, number, storedWords } from "./turn-view.js";
import { TurnstoneClient } from "./turnstone.js";

/** @typedef {import("./turnstone.js").Turn} Turn */
/** @typedef {import("./server.js").StoredMessage} StoredMessage */
/** @typedef {{turnId: string | number, sessionId: string | null, message: string}} RunningNote */

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

const log = byId("log");
const turns = byId("turns");
const welcome = byId("welcome");
const connection = byId("connection");
const input = /** @type {HTMLTextAreaElement} */ (byId("message"));
const send = byId("send");
const stop = byId("stop");
const newest = byId("newest");

const place = readPlace();
const noteKey = `turnstone.running.${place.examId}.${place.participantId}`;
const token = takeToken();
const server = new Server(token);
const client = new TurnstoneClient({
  url: new URL("/chat", location.href.replace(/^http/, "ws")).href,
  token: token ?? undefined,
});

/** @type {{turn: Turn, view: TurnView} | null} one at a time, as in the protocol */
let running = null;

// ---------------------------------------------------------------- a turn

/** @param {string} message */
function addView(message) {
  const view = new TurnView(message, (markdown) => server.renderMarkdown(markdown), keepingPlace);
  turns.append(view.item);
  welcome.hidden = true;
  return view;
}

/** @param {string} message */
function ask(message) {
  follow(client.send({ message, ...place }), message, addView(message));
  scrollToNewest();
}

/**
 * Show a turn that is under way.
 *
 * @param {Turn} turn
 * @param {string} message
 * @param {TurnView} view
 */
function follow(turn, message, view) {
  running = { turn, view };
  takeNote(turn, message);
  view.note(turn.state === "sending" ? "Sending…" : "Thinking…", "waiting");
  send.hidden = true;
  stop.hidden = false;
  announce("Waiting for the answer.");
  turn.finished.then(() => finish(turn, message, view));
}

/**
 * @param {Turn} turn
 * @param {string} message
 * @param {TurnView} view
 */
function finish(turn, message, view) {
  running = null;
  sessionStorage.removeItem(noteKey);
  if (document.activeElement === stop) input.focus();
  send.hidden = false;
  stop.hidden = true;
  keepingPlace(() => {
    view.answer.show(turn.text);
    view.note(endWords(turn), turn.error ? "failed" : "ended");
    if (turn.error) recover(turn, message, view);
  });
  if (turn.error) announce(`The answer failed. ${turn.error.message}`);
  else announce(turn.text ? `Answer: ${turn.text}` : endWords(turn));
  if (turn.sessionId) showTotal(turn.sessionId);
}

/**
 * Offer what can be done after a failure.
 *
 * @param {Turn} turn
 * @param {string} message
 * @param {TurnView} view
 */
function recover(turn, message, view) {
  const isStored = turn.usage !== null || turn.text !== "";
  if (turn.error?.retryable) {
    view.offerRetry(() => {
      if (running) return;
      if (isStored) view.withdrawRetry();
      else view.item.remove();
      ask(message);
      input.focus();
    });
  } else if (!isStored && input.value === "") {
    input.value = message; // to be mended and sent again
  }
}

/** @param {string} sessionId */
async function showTotal(sessionId) {
  const session = await server.session(sessionId).catch(() => null);
  if (session) writeTotal(session.total_tokens);
}

/** @param {number} tokens */
function writeTotal(tokens) {
  byId("total").textContent = tokens > 0 ? `${number(tokens)} tokens in this session` : "";
}

// ---------------------------------------------------------------- the client's events

client.on("started", ({ turn }) => {
  if (running?.turn !== turn) return;
  takeNote(turn, String(turn.request?.message));
  if (!running.view.stopping) running.view.note("Thinking…", "waiting");
});

for (const type of /** @type {const} */ (["text", "cut"])) {
  client.on(type, ({ turn }) => {
    if (running?.turn !== turn) return;
    const { view } = running;
    if (!view.stopping) view.note("Writing…", "running");
    keepingPlace(() => view.answer.show(turn.text));
  });
}

client.on("state", ({ state, closeCode, retryInMs }) => {
  const isRetry = connection.dataset.state === "waiting";
  if (state === "connecting" && isRetry) return; // each try by itself is no news
  connection.dataset.state = state;
  connection.textContent = connectionWords(state, closeCode, retryInMs ?? 0);
});

/**
 * @param {import("./turnstone.js").ConnectionState} state
 * @param {number | null} closeCode
 * @param {number} retryInMs
 * @returns {string}
 */
function connectionWords(state, closeCode, retryInMs) {
  if (state === "open") return "Connected";
  if (state === "connecting") return "Connecting…";
  if (state === "waiting") return retryInMs > 4000 ? "Offline, still trying" : "Reconnecting…";
  if (state === "refused") return closeCode === 4401 ? "Not signed in" : "Not allowed";
  return "Not connected";
}

// ---------------------------------------------------------------- after a reload

/** Show the stored conversation and take up a turn that is still running. */
async function restore() {
  const note = readNote();
  const session = await server.activeSession(place);
  const messages = session ? await server.messages(session.id) : [];
  const open = showMessages(messages);
  welcome.hidden = messages.length > 0;
  if (session && open) {
    // It runs, or it ended without any text: the server tells which.
    const { turn_id: turnId, content } = open.message;
    follow(client.resume({ sessionId: session.id, turnId, message: content }), content, open.view);
  } else if (note && note.sessionId === null && !messages.some((known) => isSameTurn(known, note))) {
    // The page was left before the server was known to have the message.
    follow(client.send({ message: note.message, turnId: note.turnId, ...place }), note.message, addView(note.message));
  } else {
    sessionStorage.removeItem(noteKey);
  }
  if (session) writeTotal(session.total_tokens);
  scrollToNewest();
}

/**
 * @param {StoredMessage[]} messages  in order
 * @returns {{message: StoredMessage, view: TurnView} | null}  the last message, if it has no answer yet
 */
function showMessages(messages) {
  /** @type {{message: StoredMessage, view: TurnView} | null} */
  let open = null;
  for (const message of messages) {
    if (message.role.toLowerCase() === "user") {
      open?.view.note("No answer", "ended");
      open = { message, view: addView(message.content) };
    } else if (open) {
      open.view.answer.show(message.content);
      open.view.note(storedWords(message), "ended");
      open = null;
    }
  }
  return open;
}

/**
 * @param {StoredMessage} message
 * @param {RunningNote} note
 */
function isSameTurn(message, note) {
  return String(message.turn_id) === String(note.turnId);
}

/** @param {unknown} error */
function explainRestore(error) {
  const refused = error instanceof RequestError && (error.status === 401 || error.status === 403);
  const notice = document.createElement("p");
  notice.className = "notice";
  notice.textContent = refused
    ? "This server asks for a token. Open this page with #token=… at the end of its address."
    : "The earlier conversation could not be loaded. ";
  if (!refused) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Try again";
    button.addEventListener("click", () => location.reload());
    notice.append(button);
  }
  log.prepend(notice);
  announce(notice.firstChild?.textContent ?? "");
}

/**
 * Note the running turn where a reload of this tab finds it.
 *
 * @param {Turn} turn
 * @param {string} message
 */
function takeNote(turn, message) {
  /** @type {RunningNote} */
  const note = { turnId: turn.id, sessionId: turn.sessionId, message };
  sessionStorage.setItem(noteKey, JSON.stringify(note));
}

/** @returns {RunningNote | null} */
function readNote() {
  return JSON.parse(sessionStorage.getItem(noteKey) ?? "null");
}

/**
 * The token, where the server wants one, comes behind `#token=`, which is never sent; it is kept for this tab and taken
 * out of the address.
 *
 * @returns {string | null}
 */
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    sessionStorage.setItem("turnstone.token", given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem("turnstone.token");
}

/** @returns {{examId: number, participantId: number}} */
function readPlace() {
  const query = new URLSearchParams(location.search);
  /** @param {string} name */
  const read = (name) => {
    const value = Number(query.get(name));
    return Number.isSafeInteger(value) && value > 0 ? value : 1;
  };
  return { examId: read("exam_id"), participantId: read("participant_id") };
}

// ---------------------------------------------------------------- writing and reading

async function submit() {
  await restored;
  const message = input.value.trim();
  if (message === "") return;
  if (running) {
    announce("An answer is still being written. Stop it first, or wait.");
    return;
  }
  input.value = "";
  input.focus();
  ask(message);
}

function stopRunning() {
  if (!running) return;
  running.view.stopping = true;
  running.view.note("Stopping…", "waiting");
  client.cancel(running.turn.id);
}

/** @param {KeyboardEvent} event */
function isComposing(event) {
  return event.isComposing || event.keyCode === 229; // 229: Safari's Enter that ends a composition
}

const NEAR_PX = 60;
const isAtEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_PX;

function scrollToNewest() {
  log.scrollTop = log.scrollHeight;
}

/**
 * Change the log; who reads its end goes on reading its end, who reads further up is left in peace.
 *
 * @param {() => void} change
 */
function keepingPlace(change) {
  const follows = isAtEnd();
  change();
  if (follows) scrollToNewest();
  newest.hidden = isAtEnd();
}

/** @param {string} words */
function announce(words) {
  byId("announcer").textContent = words;
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !isComposing(event)) stopRunning();
});
stop.addEventListener("click", stopRunning);
newest.addEventListener("click", scrollToNewest);
log.addEventListener("scroll", () => (newest.hidden = isAtEnd()));

const chooser = /** @type {HTMLFormElement} */ (byId("place"));
const [examField, participantField] = chooser.querySelectorAll("input");
examField.value = String(place.examId);
participantField.value = String(place.participantId);
chooser.addEventListener("submit", (event) => {
  event.preventDefault();
  location.search = `?exam_id=${examField.value}&participant_id=${participantField.value}`;
});

client.connect();
input.focus();
const restored = restore().catch(explainRestore);
watchCore((path, options) => server.request(path, options), byId("core"));
