// @ts-check
/**
 * The demo's second pane: the callbacks that arrived at Core. A server without the demo's receiver answers 404 to the
 * first question, and there is no pane.
 *
 * @typedef {{n: number, received_at: string, headers: Record<string, string>, body: Record<string, any>}} CoreEvent
 */

const INTERVAL_MS = 1000;
const MAX_SHOWN = 200;

/**
 * Show the pane if this server has something for it, and keep it up to date for as long as the page lives.
 *
 * @param {(path: string) => Promise<Response>} ask
 * @param {HTMLElement} pane
 * @param {HTMLElement} list
 */
export async function watchCore(ask, pane, list) {
  let after = 0;
  for (;;) {
    if (!document.hidden) {
      const response = await ask(`/demo/core/events?after=${after}`).catch(() => null);
      if (response && !response.ok && pane.hidden) return;
      if (response?.ok) {
        const { items } = await response.json();
        for (const event of items) list.prepend(describe(event));
        while (list.children.length > MAX_SHOWN) list.lastElementChild?.remove();
        after = items.at(-1)?.n ?? after;
        pane.hidden = false;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, INTERVAL_MS));
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
  raw.textContent = `${JSON.stringify(body, null, 2)}\n\n${headerLines(headers)}`;
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
  const known = [
    `session ${shorten(String(body.session_id))}`,
    body.turn == null ? "" : `turn ${body.turn}`,
    body.total_tokens === undefined ? "" : `${body.total_tokens} tokens`,
    body.metadata?.status ?? "",
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
