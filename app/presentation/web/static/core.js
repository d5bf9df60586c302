// @ts-check
/**
 * The demo's second pane: the callbacks that arrived at Core.
 *
 * @typedef {{n: number, received_at: string, headers: Record<string, string>, body: Record<string, any>}} CoreEvent
 * @typedef {{epoch: string, items: CoreEvent[]}} News
 */

import { number } from "./turn-view.js";

const INTERVAL_MS = 1000;
const PATIENCE_MS = 10_000;
const MAX_SHOWN = 200;
/** Where the pane is open from the beginning: beside the chat, or below it and still leaving it most of the height. */
const ROOMY = "(min-width: 64rem), (min-width: 48rem) and (min-height: 40rem)";

/**
 * Show the pane if the page was told of something to show, and keep it up to date for as long as the page lives.
 *
 * @param {(path: string, options: RequestInit) => Promise<Response>} ask
 * @param {HTMLElement} pane
 */
export async function watchCore(ask, pane) {
  const address = pane.dataset.events;
  if (!address) return;
  const [fold, list, empty, count] = ["details", "ol", "#core-empty", "#core-count"].map(
    (selector) => /** @type {HTMLElement} */ (pane.querySelector(selector)),
  );
  fold.toggleAttribute("open", matchMedia(ROOMY).matches);
  pane.hidden = false;
  /** @type {string | null} which run of the demo the numbers belong to; each one counts from 1 */
  let epoch = null;
  let after = 0;
  for (;;) {
    const news = document.hidden ? null : await read(ask, `${address}?after=${after}`);
    if (news && news.epoch !== epoch && after > 0) {
      after = 0; // the demo was started anew: what it has is asked for from its beginning
      list.replaceChildren();
      continue;
    }
    if (news) {
      epoch = news.epoch;
      after = news.items.at(-1)?.n ?? after;
      for (const event of news.items) list.prepend(describe(event));
      while (list.children.length > MAX_SHOWN) list.lastElementChild?.remove();
      empty.hidden = list.children.length > 0;
      count.textContent = list.children.length > 0 ? number(after) : "";
    }
    await new Promise((resolve) => setTimeout(resolve, INTERVAL_MS));
  }
}

/**
 * @param {(path: string, options: RequestInit) => Promise<Response>} ask
 * @param {string} path
 * @returns {Promise<News | null>}  null: nothing that can be used, and the next try may fare better
 */
async function read(ask, path) {
  try {
    const response = await ask(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

/**
 * @param {CoreEvent} event
 * @returns {HTMLLIElement}
 */
function describe({ received_at, headers, body }) {
  const item = document.createElement("li");
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  const raw = document.createElement("pre");
  raw.tabIndex = 0;
  raw.role = "region";
  raw.ariaLabel = `Body and headers of ${body.type}`;
  raw.textContent = `${JSON.stringify(body, null, 2)}\n\n${headerLines(headers)}`;
  item.dataset.outcome = body.type === "error" ? "failed" : (body.metadata?.status ?? "");
  summary.append(text("strong", body.type), text("span", facts(body)), time(received_at));
  details.append(summary, raw);
  item.append(details);
  return item;
}

/**
 * @param {Record<string, any>} body
 * @returns {string}
 */
function facts(body) {
  const turn = body.turn ?? body.metadata?.turn; // an error's turn stands in its metadata
  const known = [
    `session ${shorten(String(body.session_id))}`,
    turn == null ? "" : `turn ${turn}`,
    body.total_tokens === undefined ? "" : `${number(body.total_tokens)} tokens`,
    body.metadata?.status ?? "",
    body.error_type ?? "",
  ];
  return known.filter(Boolean).join(" · ");
}

/**
 * @param {string} id
 * @returns {string}
 */
function shorten(id) {
  return id.length > 12 ? `${id.slice(0, 8)}…` : id;
}

/**
 * @param {Record<string, string>} headers
 * @returns {string}
 */
function headerLines(headers) {
  return Object.entries(headers)
    .map(([name, value]) => `${name}: ${value}`)
    .join("\n");
}

/**
 * @param {string} tag
 * @param {string} content
 * @returns {HTMLElement}
 */
function text(tag, content) {
  const element = document.createElement(tag);
  element.textContent = content;
  return element;
}

/**
 * @param {string} moment  RFC 3339
 * @returns {HTMLTimeElement}
 */
function time(moment) {
  const element = document.createElement("time");
  element.dateTime = moment;
  element.textContent = new Date(moment).toLocaleTimeString();
  return element;
}
