// @ts-check
/** The chat page: puts the protocol's client, the stored conversation and the views together. */

import { watchCore } from "./core.js";
import { RequestError, Server } from "./server.js";
import { TurnView, endWords, isBroken, number, spokenEnd, storedWords } from "./turn-view.js";
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
const remark = byId("remark");

/** How long the announcement of an answer waits for its last rendering. */
const LAYOUT_PATIENCE_MS = 3000;
const HTTP_WORDS = "This network blocks WebSockets. Answers come another way, and nothing is lost.";
/** Where this tab notes that its network lets no WebSocket through, so that a reload need not find out again. */
const WAY_KEY = "turnstone.way";

const { place, mistakes } = readPlace();
const noteKey = `turnstone.running.${place.examId}.${place.participantId}`;
takeToken();
const token = sessionStorage.getItem("turnstone.token");
const server = new Server(token);
const client = new TurnstoneClient({
  url: new URL("/chat", location.href.replace(/^http/, "ws")).href,
  token: token ?? undefined,
  begin: sessionStorage.getItem(WAY_KEY) === "http" ? "http" : "websocket",
});

/** @type {{turn: Turn, view: TurnView} | null} one at a time, as in the protocol */
let running = null;

// ---------------------------------------------------------------- a turn

/** @param {string} message */
function addView(message) {
  const view = new TurnView(message, (markdown) => server.renderMarkdown(markdown), keepingPlace, announce);
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
  showProgress();
  send.hidden = true;
  stop.hidden = false;
  announce("Waiting for the answer.");
  turn.finished.then(() => finish(turn, message, view));
}

/** Say below the running answer how far it is. */
function showProgress() {
  if (!running) return;
  const { turn, view } = running;
  const isCutOff = ["waiting", "offline"].includes(connection.dataset.state ?? "");
  if (isCutOff) view.note("Waiting for the connection", "paused");
  else if (view.stopping) view.note("Stopping…", "waiting");
  else if (turn.text !== "") view.note("Writing…", "running");
  else view.note(turn.state === "sending" ? "Sending…" : "Thinking…", "waiting");
}

/**
 * @param {Turn} turn
 * @param {string} message
 * @param {TurnView} view
 */
async function finish(turn, message, view) {
  running = null;
  sessionStorage.removeItem(noteKey);
  if (document.activeElement === stop) input.focus();
  send.hidden = false;
  stop.hidden = true;
  if (remark.dataset.kind === "hint") clearRemark();
  if (turn.error && !turn.error.retryable && !isKnown(turn)) {
    giveBack(message, view, turn.error.message);
    return;
  }
  keepingPlace(() => showEnd(turn, message, view));
  if (turn.sessionId) showTotal(turn.sessionId);
  await Promise.race([view.answer.laidOut(), new Promise((resolve) => setTimeout(resolve, LAYOUT_PATIENCE_MS))]);
  announce(spokenEnd(turn, view.answer.spoken()));
}

/**
 * @param {Turn} turn
 * @param {string} message
 * @param {TurnView} view
 */
function showEnd(turn, message, view) {
  view.answer.show(turn.text);
  view.note(endWords(turn), turn.error ? "failed" : "ended");
  if (!turn.error?.retryable) return;
  view.offerRetry(() => {
    if (running) return;
    if (isKnown(turn)) view.withdrawRetry();
    else view.item.remove();
    ask(message);
    input.focus();
  });
}

/**
 * Whether the server has the message. Where it refused it, the conversation does not hold it.
 *
 * @param {Turn} turn
 */
const isKnown = (turn) => turn.sessionId !== null;

/**
 * A message that the server does not take goes back to where it was written, to be mended and sent again.
 *
 * @param {string} message
 * @param {TurnView} view
 * @param {string} reason
 */
function giveBack(message, view, reason) {
  view.item.remove();
  welcome.hidden = turns.childElementCount > 0;
  input.value = [message, input.value].filter(Boolean).join("\n\n"); // the next one may have been begun
  say(reason, "error");
}

/**
 * Say something at the composer, until the message is changed.
 *
 * @param {string} words
 * @param {"hint" | "error"} kind
 */
function say(words, kind) {
  remark.textContent = words;
  remark.dataset.kind = kind;
  remark.hidden = false;
  input.ariaInvalid = String(kind === "error");
  announce(words);
}

function clearRemark() {
  remark.hidden = true;
  remark.textContent = "";
  input.ariaInvalid = null;
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
  showProgress();
});

for (const type of /** @type {const} */ (["text", "cut"])) {
  client.on(type, ({ turn }) => {
    if (running?.turn !== turn) return;
    const { view } = running;
    showProgress();
    keepingPlace(() => view.answer.show(turn.text));
  });
}

client.on("state", ({ state, closeCode, retryInMs, transport }) => {
  const isOverHttp = transport !== "websocket";
  sessionStorage.setItem(WAY_KEY, isOverHttp ? "http" : "websocket");
  const isRetry = connection.dataset.state === "waiting";
  if (state === "connecting" && isRetry) return; // each try by itself is no news
  connection.dataset.state = state;
  connection.textContent = connectionWords(state, closeCode, retryInMs ?? 0);
  connection.dataset.transport = transport;
  connection.title = state === "open" && isOverHttp ? HTTP_WORDS : "";
  if (state === "open" && isOverHttp) connection.textContent += ", restricted network";
  showProgress();
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
  if (state === "offline") return "Offline";
  if (state === "waiting") return retryInMs > 4000 || !navigator.onLine ? "Offline, still trying" : "Reconnecting…";
  if (state === "refused") return closeCode === 4401 ? "Not signed in" : "Not allowed";
  return "Not connected";
}

// ---------------------------------------------------------------- after a reload

/** Show the stored conversation and take up a turn that is still running. */
async function restore() {
  const note = readNote();
  const session = await server.activeSession(place);
  const messages = session ? await server.messages(session.id) : [];
  const { open, broken } = showMessages(messages);
  welcome.hidden = messages.length > 0;
  if (session) for (const shown of broken) askWhy(session.id, shown, shown.message.turn === messages.at(-1)?.turn);
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
 * @typedef {{message: StoredMessage, view: TurnView}} Shown  a stored message of the candidate and its place
 *
 * @param {StoredMessage[]} messages  in order
 * @returns {{open: Shown | null, broken: Shown[]}}  the last message, if it has no answer yet; those that failed
 */
function showMessages(messages) {
  /** @type {Shown | null} */
  let open = null;
  /** @type {Shown[]} */
  const broken = [];
  for (const message of messages) {
    if (message.role.toLowerCase() === "user") {
      if (open) {
        open.view.note("No answer", "ended");
        broken.push(open);
      }
      open = { message, view: addView(message.content) };
    } else if (open) {
      open.view.answer.show(message.content);
      open.view.note(storedWords(message), isBroken(message) ? "failed" : "ended");
      if (isBroken(message)) broken.push(open);
      open = null;
    }
  }
  return { open, broken };
}

/**
 * The stored conversation does not say why an answer failed; the repeated end of its turn does.
 *
 * @param {string} sessionId
 * @param {Shown} shown
 * @param {boolean} isLast  an older one has been gone past, and is not tried again
 */
async function askWhy(sessionId, { message, view }, isLast) {
  const turn = await client.resume({ sessionId, turnId: message.turn_id }).finished;
  if (turn.number === null) return; // the question failed, not only the turn
  keepingPlace(() => showEnd(turn, message.content, view));
  if (!isLast) view.withdrawRetry();
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
  if (refused) {
    showNotice("This server asks for a token. Open this page with #token=… at the end of its address.");
    return;
  }
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Try again";
  button.addEventListener("click", () => location.reload());
  showNotice("The earlier conversation could not be loaded. ").append(button);
}

/** @param {string} words */
function showNotice(words) {
  const notice = document.createElement("p");
  notice.className = "notice";
  notice.textContent = words;
  log.prepend(notice);
  announce(words);
  return notice;
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
 * @returns {boolean}  whether there was one
 */
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given === null) return false;
  sessionStorage.setItem("turnstone.token", given);
  history.replaceState(null, "", location.pathname + location.search);
  return true;
}

/** @returns {{place: {examId: number, participantId: number}, mistakes: string[]}}  1 where the address says nothing */
function readPlace() {
  const query = new URLSearchParams(location.search);
  /** @type {string[]} */
  const mistakes = [];
  /** @param {string} name */
  const read = (name) => {
    const given = query.get(name) ?? "1";
    const value = Number(given);
    if (/^[0-9]+$/.test(given) && Number.isSafeInteger(value) && value > 0) return value;
    mistakes.push(`${name}=${given}`);
    return 1;
  };
  return { place: { examId: read("exam_id"), participantId: read("participant_id") }, mistakes };
}

// ---------------------------------------------------------------- writing and reading

async function submit() {
  await restored;
  const message = input.value.trim();
  if (message === "") return;
  if (running) {
    say("An answer is still being written. Stop it first, or wait.", "hint");
    return;
  }
  input.value = "";
  clearRemark();
  input.focus();
  ask(message);
}

function stopRunning() {
  if (!running) return;
  running.view.stopping = true;
  showProgress();
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
input.addEventListener("input", clearRemark);
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

// Written into the address bar of an open page, a token loads nothing by itself.
addEventListener("hashchange", () => {
  if (takeToken()) location.reload();
});

/** Nothing is opened where the address names no exam: a candidate would write into somebody else's conversation. */
function explainMistakes() {
  const wrong = mistakes.join(" and ");
  showNotice(`The address says ${wrong}, which is no whole number from 1 up. Choose the exam and participant above.`);
  input.disabled = true;
  /** @type {HTMLButtonElement} */ (send).disabled = true;
  for (const field of [participantField, examField]) {
    if (!mistakes.some((mistake) => mistake.startsWith(`${field.name}=`))) continue;
    field.value = "";
    field.focus();
  }
}

async function start() {
  client.connect();
  input.focus();
  await restore().catch(explainRestore);
}

const restored = mistakes.length === 0 ? start() : explainMistakes();
watchCore((path, options) => server.request(path, options), byId("core"));
